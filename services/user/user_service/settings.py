"""Every setting of the User Service; the values stand in Consul KV under `config/user-service`."""

from __future__ import annotations

from typing import Annotated

from iso4217 import Currency
from pydantic import AfterValidator, Field

from chassis.serving.limiter import LimiterSettings
from chassis.settings import ProcessSettings


def _active(code: str) -> str:
    if code not in {each.code for each in Currency if each.exponent is not None}:
        raise ValueError("must be an active ISO 4217 code with a minor unit")
    return code


class Settings(ProcessSettings):
    """How the User Service behaves; a change is followed while it runs."""

    limiter: LimiterSettings = Field(description="how many calls are taken on at once")
    initial_credit: int = Field(ge=0, le=2**53, description="credit limit of a new user, in minor units")
    currency: Annotated[str, AfterValidator(_active)] = Field(description="ISO 4217 code of a new user's credit")
    token_lifetime_seconds: int = Field(ge=60, le=86400, description="how long an access token is accepted")
    password_memory_kib: int = Field(ge=8192, le=262144, description="Argon2id memory for one hash, in KiB")
    password_passes: int = Field(ge=1, le=10, description="Argon2id passes over that memory")
    password_concurrency: int = Field(ge=1, le=64, description="passwords worked on at once")
    password_waiting: int = Field(ge=0, le=10000, description="passwords that may wait for a turn; more are refused")
