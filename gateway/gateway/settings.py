"""Every setting of the gateway; the values stand in Consul KV under `config/gateway`."""

from __future__ import annotations

from pydantic import Field

from chassis.calls.client import ClientSettings
from chassis.serving.limiter import LimiterSettings
from chassis.settings import ProcessSettings


class Settings(ProcessSettings):
    """How the gateway behaves; a change is followed while it runs, by "new connections" from the next one on."""

    deadline_seconds: float = Field(gt=0, le=60, description="time for one request, from its last byte")
    password_deadline_seconds: float = Field(gt=0, le=60, description="the same where a password is hashed")
    body_limit_bytes: int = Field(ge=1024, le=2**24, description="largest request body; new connections")
    request_seconds: float = Field(gt=0, le=60, description="time for a request's head to arrive; new connections")
    response_seconds: float = Field(gt=0, le=300, description="time for body and answer; new connections")
    keep_alive_seconds: float = Field(gt=0, le=600, description="how long an idle connection stays; new connections")
    keys_seconds: float = Field(gt=0, le=86400, description="how often the public token keys are read again")
    unknown_key_seconds: float = Field(gt=0, le=60, description="least time between looks for an unknown key")
    profile_stale_seconds: float = Field(ge=0, le=86400, description="oldest kept profile told while users are away")
    profiles_kept: int = Field(ge=0, le=1_000_000, description="profiles kept for that")
    probe_seconds: float = Field(gt=0, le=60, description="how often the dependencies are looked at for /readyz")
    watch_heartbeat_seconds: float = Field(gt=0, le=300, description="longest silence of a watch")
    watch_retry_seconds: float = Field(ge=0, le=60, description="when a caller whose watch has ended comes back")
    limiter: LimiterSettings = Field(description="how many requests are taken on at once")
    users: ClientSettings = Field(description="calls to user-service")
    orders: ClientSettings = Field(description="calls to order-service")
