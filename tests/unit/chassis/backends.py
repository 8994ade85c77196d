"""A channel with real gRPC servers behind it, in this process."""

from __future__ import annotations

from typing import Any

import pytest

from chassis.calls.breaker import BreakerRules
from chassis.calls.client import Channel
from chassis.calls.client_settings import ClientSettings
from chassis.calls.outlier_detection import EjectionRules
from chassis.calls.retry import RetryRules
from chassis.calls.routing.discovery_chain import Subset, without_rules
from chassis.calls.routing.router import Router, Routes
from chassis.calls.routing.target import Target
from chassis.calls.transport import GrpcTransport
from chassis.errors import RpcError
from chassis.platform.discovery import Endpoint, Endpoints
from chassis.settings import Live

from .echo_service import Echo, Stub

SETTINGS = ClientSettings(
    deadline_seconds=2.0, calls_at_once=1000, failure_ratio=0.5, reset_seconds=0.3, attempts=2, attempt_seconds=5.0,
    retry_budget_ratio=0.1, ejection_seconds=1.0,
)  # fmt: skip
BREAKER_RULES = BreakerRules(
    window_seconds=5.0, minimum_calls=3, slow_share=30.0, slow_ratio=1.0, failures_in_a_row=50, half_open_max=1
)
RETRY_RULES = RetryRules(first_seconds=0.001, longest_seconds=0.05, budget_size=50)
EJECTION_RULES = EjectionRules(
    failures_in_a_row=1, stall_seconds=5.0, slow_factor=100.0, slow_seconds=1.0, return_seconds=0.0, warmup_seconds=0.0
)


def settings(**changes: Any) -> ClientSettings:
    """Returns the settings of these tests with some changed."""
    return ClientSettings(**(SETTINGS.model_dump() | changes))


def channel_to(target: Target, settings: Live[ClientSettings]) -> Channel:
    """Returns a channel whose calls all go to one target, once its instances are known."""
    router, rules = Router(target.name, lambda _: target), without_rules(target.name)
    if target.endpoints.loaded:
        router.current = Routes(rules, {Subset(target.name): target})
    else:
        router.apply(rules)
    return Channel(target.name, router, settings)


class Backends:
    """A channel with its only target, the list of endpoints it follows, and the servers behind them."""

    def __init__(self) -> None:
        self.settings = Live(SETTINGS)
        self.endpoints = Endpoints("echo")
        self.target = Target(
            self.endpoints, self.settings, GrpcTransport(),
            breaker_rules=BREAKER_RULES, retry_rules=RETRY_RULES, ejection_rules=EJECTION_RULES,
        )  # fmt: skip
        self.channel = channel_to(self.target, self.settings)
        self.stub = Stub(self.channel)
        self.servers: list[Echo] = []

    def change(self, **changes: Any) -> None:
        """Changes some settings from now on."""
        self.settings.replace(settings(**changes))

    async def start(self, *behaviours: Any) -> list[Echo]:
        """Starts one server per behaviour and makes them the only endpoints."""
        started = [await Echo(behaviour).start() for behaviour in behaviours]
        self.servers += started
        self.announce(*started)
        return started

    def state(self) -> str:
        return self.target.breaker.state

    def announce(self, *servers: Echo) -> None:
        """Makes these servers the only endpoints, as an answer of Consul does."""
        self.endpoints.replace(tuple(Endpoint(s.address, s.address) for s in servers))


async def error_of(call: Any) -> RpcError:
    """Returns the error that a call ends in; fails if there is none."""
    with pytest.raises(RpcError) as caught:
        await call
    return caught.value
