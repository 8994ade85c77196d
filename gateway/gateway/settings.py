"""Every setting of the gateway; the values are in Consul KV under `config/gateway`."""

from __future__ import annotations

from pydantic import Field

from chassis.calls.client_settings import ClientSettings
from chassis.serving.limiter import LimiterSettings
from chassis.settings import ProcessSettings


class Settings(ProcessSettings):
    """Settings of the gateway; a change applies while it runs, where "new connections" is added to those only."""

    deadline_seconds: float = Field(gt=0, le=60, description="time for one request, from its last byte")
    password_deadline_seconds: float = Field(gt=0, le=60, description="the same where a password is hashed")
    body_limit_bytes: int = Field(ge=1024, le=2**24, description="largest request body; new connections")
    request_head_seconds: float = Field(gt=0, le=60, description="time for a request's head to arrive; new connections")
    response_seconds: float = Field(gt=0, le=300, description="time for body and response; new connections")
    keep_alive_seconds: float = Field(gt=0, le=600, description="how long an idle connection stays; new connections")
    token_keys_refresh_seconds: float = Field(gt=0, le=86400, description="interval of reading the public token keys")
    token_keys_retry_seconds: float = Field(
        gt=0, le=60, description="least time between two reads after a failure or for an unknown key"
    )
    profile_cache_max_age_seconds: float = Field(
        ge=0, le=86400, description="oldest profile returned while user-service is unavailable"
    )
    profile_cache_size: int = Field(ge=0, le=1_000_000, description="profiles in that cache")
    dependency_probe_seconds: float = Field(gt=0, le=60, description="interval of probing Consul and Vault for /readyz")
    watch_heartbeat_seconds: float = Field(gt=0, le=300, description="longest silence of a watch")
    watch_retry_seconds: float = Field(ge=0, le=60, description="reconnect delay of a caller whose watch has ended")
    limiter: LimiterSettings = Field(description="limit of concurrent requests")
    users: ClientSettings = Field(description="calls to user-service")
    orders: ClientSettings = Field(description="calls to order-service")
