"""A channel with real gRPC servers behind it, in this process."""

from __future__ import annotations

from typing import Any

import pytest

from chassis.calls.breaker import BreakerKnobs
from chassis.calls.bulkhead import BulkheadKnobs
from chassis.calls.client import Channel, ClientKnobs
from chassis.calls.outlier_detection import BalancingKnobs
from chassis.calls.retry import RetryKnobs
from chassis.calls.transport import GrpcTransport
from chassis.errors import RpcError
from chassis.platform.discovery import Endpoint, Endpoints

from .echo import Echo, Stub

KNOBS = ClientKnobs(
    deadline_seconds=2.0,
    bulkhead=BulkheadKnobs(calls_at_once=1000, wait_seconds=0.05),
    breaker=BreakerKnobs(
        window_seconds=5.0, minimum_calls=3, failure_ratio=0.5, slow_seconds=60.0, slow_ratio=1.0,
        failures_in_a_row=50, reset_seconds=0.3, half_open_max=1,
    ),
    retry=RetryKnobs(
        attempts=2, attempt_seconds=5.0, first_seconds=0.01, longest_seconds=0.05,
        budget_ratio=0.1, budget_per_second=0.0, budget_saved=50,
    ),
    balancing=BalancingKnobs(
        failures=1, silent_seconds=5.0, outlier_factor=100.0, outlier_seconds=1.0, left_out_seconds=1.0,
        left_out_longest_seconds=16.0, left_out_share=0.5, return_seconds=0.0, warmup_seconds=0.0,
    ),
)  # fmt: skip


def knobs(**changes: Any) -> ClientKnobs:
    """The knobs with some changed, each named section__knob or by its own name."""
    changed = KNOBS.model_dump()
    for name, value in changes.items():
        section, _, knob = name.partition("__")
        if knob:
            changed[section][knob] = value
        else:
            changed[name] = value
    return ClientKnobs(**changed)


class World:
    """A channel, the endpoints it follows and the servers behind them."""

    def __init__(self) -> None:
        self.knobs = KNOBS
        self.endpoints = Endpoints("echo")
        self.channel = Channel("echo", self.endpoints, lambda: self.knobs, GrpcTransport())
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
