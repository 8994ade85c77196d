"""Every setting of the User Service; the values are in Consul KV under `config/user-service`."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, Field

from chassis.serving.limiter import LimiterSettings
from chassis.settings import ProcessSettings
from shop_contract.currencies import CURRENCIES


def _active(code: str) -> str:
    if code not in CURRENCIES:
        raise ValueError("must be an active ISO 4217 code with a minor unit")
    return code


class Settings(ProcessSettings):
    """Settings of the User Service; a change applies while it runs."""

    limiter: LimiterSettings = Field(description="limit of concurrent calls")
    initial_credit: int = Field(ge=0, le=2**53, description="credit limit of a new user, in minor units")
    currency: Annotated[str, AfterValidator(_active)] = Field(description="ISO 4217 code of a new user's credit")
    token_lifetime_seconds: int = Field(ge=60, le=86400, description="how long an access token is valid")
    password_memory_kib: int = Field(ge=8192, le=262144, description="Argon2id memory for one hash, in KiB")
    password_passes: int = Field(ge=1, le=10, description="Argon2id passes over that memory")
    password_threads: int = Field(ge=1, le=64, description="passwords that are hashed at the same time")
    password_queue_size: int = Field(ge=0, le=10000, description="passwords that may wait; more are rejected")
