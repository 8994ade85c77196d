"""Every setting of the gateway; the values are in Consul KV under `config/gateway`."""

from __future__ import annotations

from ipaddress import ip_network
from typing import Annotated

from pydantic import AfterValidator, Field

from chassis.calls.client_settings import ClientSettings
from chassis.serving.limiter import LimiterSettings
from chassis.settings import ProcessSettings, Section


def _network(text: str) -> str:
    ip_network(text)
    return text


Network = Annotated[str, AfterValidator(_network)]


class ClientLimitSettings(Section):
    """Limits of one client. All are lower than the limits for all clients together, so that others find a permit."""

    calls_per_user: int = Field(ge=1, le=100_000, description="concurrent requests of one user, without watches")
    watches_per_user: int = Field(ge=1, le=100_000, description="open watches of one user")
    watches_per_address: int = Field(ge=1, le=100_000, description="open watches from one client address")
    passwords_per_address: int = Field(
        ge=1, le=100_000, description="concurrent registrations and sign-ins from one client address"
    )
    sign_ins_per_account: int = Field(
        ge=1, le=100_000, description="concurrent sign-ins to one account from one client address"
    )
    failed_sign_ins_per_account: int = Field(
        ge=1, le=100_000, description="failed sign-ins to one account from one client address in the time below"
    )
    failed_sign_ins_seconds: float = Field(gt=0, le=86400, description="time in which that many failures are forgotten")
    retry_after_seconds: float = Field(gt=0, le=60, description="retry time where a request has to end first")


class Settings(ProcessSettings):
    """Settings of the gateway; a change applies while it runs, where "new connections" is added to those only."""

    deadline_seconds: float = Field(gt=0, le=60, description="time for one request, from its last byte")
    password_deadline_seconds: float = Field(gt=0, le=60, description="the same where a password is hashed")
    body_limit_bytes: int = Field(ge=1024, le=2**24, description="largest request body")
    body_seconds: float = Field(gt=0, le=60, description="longest time for a body to arrive")
    body_bytes_per_second: int = Field(ge=1, le=2**20, description="least rate of a body after its first two seconds")
    request_head_seconds: float = Field(gt=0, le=60, description="time for a request's head to arrive; new connections")
    response_seconds: float = Field(gt=0, le=300, description="longest silence within a request; new connections")
    keep_alive_seconds: float = Field(gt=0, le=600, description="how long an idle connection stays; new connections")
    profile_cache_max_age_seconds: float = Field(
        ge=0, le=86400, description="oldest profile returned while user-service is unavailable"
    )
    profile_cache_size: int = Field(ge=0, le=1_000_000, description="profiles in that cache")
    dependency_probe_seconds: float = Field(gt=0, le=60, description="interval of probing Consul and Vault for /readyz")
    watch_heartbeat_seconds: float = Field(gt=0, le=300, description="longest silence of a watch")
    watch_retry_seconds: float = Field(ge=0, le=60, description="reconnect delay of a caller whose watch has ended")
    queue_seconds: float = Field(gt=0, le=60, description="delay of the event loop that ends admission but for a few")
    trusted_proxies: list[Network] = Field(description="networks of the edge: only its X-Forwarded-For is read")
    clients: ClientLimitSettings = Field(description="what one client may have in progress at one gateway")
    limiter: LimiterSettings = Field(description="limit of concurrent requests")
    users: ClientSettings = Field(description="calls to user-service")
    orders: ClientSettings = Field(description="calls to order-service")
