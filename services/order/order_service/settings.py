"""Every setting of the Order Service; the values are in Consul KV under `config/order-service`."""

from __future__ import annotations

from pydantic import Field

from chassis.calls.client_settings import ClientSettings
from chassis.serving.limiter import LimiterSettings
from chassis.settings import ProcessSettings


class Settings(ProcessSettings):
    """The behaviour of the Order Service and its worker; a change takes effect while they run."""

    max_watches: int = Field(ge=0, le=100_000, description="open watches; more are rejected, apart from calls")
    max_watch_seconds: float = Field(gt=0, le=3600, description="longest time of a watch; its caller then reconnects")
    limiter: LimiterSettings = Field(description="limits of concurrent calls")
    idempotency_ttl_seconds: float = Field(ge=60, le=31_536_000, description="time in which a repeat finds its order")
    projection_batch_size: int = Field(ge=1, le=10_000, description="most events of one transaction of a projection")
    worker_poll_seconds: float = Field(gt=0, le=60, description="longest sleep of the worker without a wake-up")
    leadership_term_seconds: float = Field(ge=0.5, le=60, description="time after which a silent leader is replaced")
    lag_interval_seconds: float = Field(gt=0, le=60, description="pause between two measurements of the lag")
    outbox_concurrency: int = Field(ge=1, le=1_000, description="outbox entries that are processed at the same time")
    backlog_seconds: float = Field(gt=0, le=60, description="longest time behind before placing orders is paused")
    outbox_attempt_seconds: float = Field(gt=0, le=300, description="deadline of an attempt; a claim lasts twice that")
    outbox_retry_first_seconds: float = Field(gt=0, le=60, description="pause after the first failed attempt")
    outbox_retry_longest_seconds: float = Field(gt=0, le=3600, description="longest pause between two attempts")
    users: ClientSettings = Field(description="calls to user-service")
