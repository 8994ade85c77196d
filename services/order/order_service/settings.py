"""Every setting of the Order Service; the values stand in Consul KV under `config/order-service`."""

from __future__ import annotations

from pydantic import Field

from chassis.calls.client import ClientSettings
from chassis.serving.limiter import LimiterSettings
from chassis.settings import ProcessSettings


class Settings(ProcessSettings):
    """How the Order Service and its worker behave; a change is followed while they run."""

    watchers_at_most: int = Field(ge=0, le=100_000, description="watches beyond are refused, apart from calls")
    watch_seconds: float = Field(gt=0, le=3600, description="longest time of one watch; its caller then asks again")
    limiter: LimiterSettings = Field(description="how many calls are taken on at once")
    idempotency_ttl_seconds: float = Field(ge=60, le=31_536_000, description="how long a repeat finds the first answer")
    batch_size: int = Field(ge=1, le=10_000, description="events a projection takes in one transaction")
    poll_seconds: float = Field(gt=0, le=60, description="longest sleep of the worker when nothing wakes it")
    term_seconds: float = Field(ge=0.5, le=60, description="time after which a silent active worker is replaced")
    lag_seconds: float = Field(gt=0, le=60, description="pause between two looks at how far behind the worker is")
    errands_at_once: int = Field(ge=1, le=1_000, description="errands to the User Service at one time")
    errand_seconds: float = Field(gt=0, le=300, description="one try of an errand; later another worker may try")
    retry_first_seconds: float = Field(gt=0, le=60, description="pause after the first failed try of an errand")
    retry_longest_seconds: float = Field(gt=0, le=3600, description="longest pause between two tries")
    users: ClientSettings = Field(description="calls to user-service")
