"""The User Service without gRPC, on any repository, with the shipped settings but cheap passwords."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from chassis.settings import Live
from user_service.access_token_issuer import AccessTokenIssuer
from user_service.commands import Commands
from user_service.passwords import Passwords
from user_service.queries import Queries
from user_service.settings import Settings
from user_service.user_repository import MemoryUserRepository, UserRepository

KV = Path(__file__).parents[3] / "consul" / "kv" / "config" / "user-service.json"
SHIPPED: dict[str, Any] = json.loads(KV.read_text())
CHEAP = {"password_memory_kib": 8192, "password_passes": 1}

SettingsFactory = Callable[..., Settings]


def shipped(**changes: Any) -> Settings:
    """Returns the shipped settings with cheap passwords and with changes."""
    return Settings.model_validate({**SHIPPED, **CHEAP, **changes})


class FakeSigner:
    """Signs like the transit engine: each key version has its own key."""

    def __init__(self) -> None:
        self.keys = {1: Ed25519PrivateKey.generate()}

    def rotate(self) -> None:
        self.keys[len(self.keys) + 1] = Ed25519PrivateKey.generate()

    async def sign(self, key: str, payload: bytes) -> tuple[bytes, int]:
        return self.keys[len(self.keys)].sign(payload), len(self.keys)


@dataclass
class Service:
    """The service without gRPC."""

    settings: Live[Settings]
    signer: FakeSigner = field(default_factory=FakeSigner)
    users: UserRepository = field(default_factory=MemoryUserRepository)

    def __post_init__(self) -> None:
        passwords = Passwords(self.settings, b"pepper")
        self.commands = Commands(self.users, passwords, AccessTokenIssuer(self.signer), self.settings)
        self.queries = Queries(self.users)
