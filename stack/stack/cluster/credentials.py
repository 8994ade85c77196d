"""The operator's keys and tokens of one stack: created once, kept in files that only the owner can read."""

from __future__ import annotations

import base64
import secrets
import uuid
from collections.abc import Callable
from pathlib import Path

from stack.config import Stack


class Credentials:
    """Reads each credential by name and creates it on first use."""

    def __init__(self, stack: Stack) -> None:
        self.folder = stack.secrets

    def path(self, name: str, make: Callable[[], str]) -> Path:
        """Returns the file of a credential; creates it if necessary."""
        file = self.folder / name
        if not file.exists():
            self.store(name, make())
        return file

    def store(self, name: str, value: str) -> None:
        """Writes a credential that a server has issued, in place of a former one."""
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        partial = (self.folder / name).with_suffix(".part")
        partial.touch(mode=0o600)
        partial.write_text(value)
        partial.rename(self.folder / name)

    def unseal_key(self) -> Path:
        """Returns the file with the 32 bytes with which OpenBao unseals itself."""
        return self.path("unseal-key", lambda: base64.b64encode(secrets.token_bytes(32)).decode())

    def operator_password(self) -> Path:
        """Returns the file with the password of the operator's Vault user."""
        return self.path("operator-password", lambda: secrets.token_urlsafe(24))

    def token(self, name: str) -> str:
        """Returns a token that this stack generates (`consul-management`, `consul-agent`, `nomad-management`, …)."""
        return self.path(name, lambda: str(uuid.uuid4())).read_text()
