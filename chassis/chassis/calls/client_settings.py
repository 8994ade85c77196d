"""The settings with which an operator tunes the calls to one service; other rules are constants in the code.

Invariant: each protection can be turned off by a value.
"""

from __future__ import annotations

from pydantic import Field

from chassis.settings import Section


class ClientSettings(Section):
    """Settings of the calls to one service; read at each call, so a change in Consul KV applies to the next call."""

    deadline_seconds: float = Field(gt=0, le=60, description="longest time of a call, all attempts included")
    calls_at_once: int = Field(ge=1, le=100_000, description="most concurrent calls; further calls wait, then fail")
    failure_ratio: float = Field(gt=0, le=1, description="share of failed calls that opens the breaker; 1: never")
    reset_seconds: float = Field(gt=0, le=60, description="time that the breaker stays open before it probes")
    attempts: int = Field(ge=1, le=10, description="most attempts of one call; 1: no retries")
    attempt_seconds: float = Field(gt=0, le=60, description="time after which an attempt is moved to another instance")
    retry_budget_ratio: float = Field(ge=0, le=9, description="retries earned by each call; attempts - 1: no limit")
    ejection_seconds: float = Field(ge=0, le=300, description="first ejection time of a bad instance; 0: no ejection")
