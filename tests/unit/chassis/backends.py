"""A channel with real gRPC servers behind it, in this process."""

from __future__ import annotations

from typing import Any

import pytest

from chassis.calls.breaker import BreakerSettings
from chassis.calls.bulkhead import BulkheadSettings
from chassis.calls.client import Channel, ClientSettings
from chassis.calls.outlier_detection import BalancingSettings
from chassis.calls.retry import RetrySettings
from chassis.calls.transport import GrpcTransport
from chassis.errors import RpcError
from chassis.platform.discovery import Endpoint, Endpoints

from .echo_service import Echo, Stub

SETTINGS = ClientSettings(
    deadline_seconds=2.0,
    bulkhead=BulkheadSettings(calls_at_once=1000, wait_seconds=0.05),
    breaker=BreakerSettings(
        window_seconds=5.0, minimum_calls=3, failure_ratio=0.5, slow_seconds=60.0, slow_ratio=1.0,
        failures_in_a_row=50, reset_seconds=0.3, half_open_max=1,
    ),
    retry=RetrySettings(
        attempts=2, attempt_seconds=5.0, first_seconds=0.01, longest_seconds=0.05,
        budget_ratio=0.1, budget_per_second=0.0, budget_saved=50,
    ),
    balancing=BalancingSettings(
        failures=1, silent_seconds=5.0, outlier_factor=100.0, outlier_seconds=1.0, left_out_seconds=1.0,
        left_out_longest_seconds=16.0, left_out_share=0.5, return_seconds=0.0, warmup_seconds=0.0,
    ),
)  # fmt: skip


def settings(**changes: Any) -> ClientSettings:
    """The settings with some changed, each named section__setting or by its own name."""
    changed = SETTINGS.model_dump()
    for name, value in changes.items():
        section, _, setting = name.partition("__")
        if setting:
            changed[section][setting] = value
        else:
            changed[name] = value
    return ClientSettings(**changed)


class World:
    """A channel, the endpoints it follows and the servers behind them."""

    def __init__(self) -> None:
        self.settings = SETTINGS
        self.endpoints = Endpoints("echo")
        self.channel = Channel("echo", self.endpoints, lambda: self.settings, GrpcTransport())
        self.stub = Stub(self.channel)
        self.servers: list[Echo] = []

    async def start(self, *behaviours: Any) -> list[Echo]:
        started = [await Echo(behaviour).start() for behaviour in behaviours]
        self.servers += started
        self.announce(*started)
        return started

    def state(self) -> str:
        return self.channel.breaker.state

    def announce(self, *servers: Echo) -> None:
        self.endpoints.replace(tuple(Endpoint(s.address, s.address) for s in servers))


async def refusal(call: Any) -> RpcError:
    """The error that a call ends in; fails if there is none."""
    with pytest.raises(RpcError) as caught:
        await call
    return caught.value
