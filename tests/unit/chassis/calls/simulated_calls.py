"""Calls through a balancer without a network, on a clock that the test sets."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any, cast

import grpc

from chassis.calls.balancing import Attempt, Balancer
from chassis.calls.outlier_detection import EjectionRules
from chassis.calls.transport import Method, NotProcessed, Transport
from chassis.errors import RpcError
from chassis.platform.discovery import Endpoint, Endpoints
from chassis.settings import Live

from ..backends import SETTINGS

READ = Method("/test.Echo/Read", bytes, bytes, idempotent=True)
QUICK = Method("/test.Echo/Quick", bytes, bytes, idempotent=True)
RULES = EjectionRules(
    failures_in_a_row=3, stall_seconds=0.6, slow_factor=4.0, slow_seconds=0.05, max_share=0.5, return_seconds=4.0,
    warmup_seconds=4.0,
)  # fmt: skip
LONG = 60.0
INTERNAL = RpcError(grpc.StatusCode.INTERNAL, "INTERNAL")
TIMEOUT = RpcError(grpc.StatusCode.DEADLINE_EXCEEDED, "DEADLINE_EXCEEDED")
SHED = NotProcessed(grpc.StatusCode.RESOURCE_EXHAUSTED, "OVERLOADED")
UNREACHABLE = NotProcessed(grpc.StatusCode.UNAVAILABLE, "UNAVAILABLE")


class NoTransport:
    """Counts the connections that are open to each address."""

    def __init__(self) -> None:
        self.open: Counter[str] = Counter()

    def connect(self, address: str) -> Any:
        self.open[address] += 1
        return NoConnection(self, address)


class NoConnection:
    def __init__(self, transport: NoTransport, address: str) -> None:
        self._transport, self._address = transport, address

    async def close(self) -> None:
        self._transport.open[self._address] -= 1


class Calls:
    """Calls through a balancer over instances a, b, c …, with its settings and its clock."""

    def __init__(self, names: str, **rules: Any) -> None:
        self.now = 1000.0
        self.held: list[Any] = []
        self.settings = Live(SETTINGS)
        self.endpoints = Endpoints("echo")
        self.announce(names)
        self.transport = NoTransport()
        self.balancer = Balancer(
            self.endpoints, cast(Transport, self.transport), lambda: None, self.settings,
            rules=replace(RULES, **rules), clock=lambda: self.now,
        )  # fmt: skip

    def announce(self, names: str) -> None:
        self.endpoints.replace(tuple(Endpoint(name, name) for name in names))

    def eject_for(self, seconds: float) -> None:
        """Sets the time of a first ejection; 0 turns ejection off."""
        self.settings.replace(SETTINGS.model_copy(update={"ejection_seconds": seconds}))

    def one(self, seconds: float = 0.001, error: RpcError | None = None, only: str = "") -> str:
        """Makes one call and returns its instance; an instance that is not in `only` answers at once."""
        with self.balancer.pick(frozenset(), READ, LONG) as attempt:
            name = attempt.instance.endpoint.id
            affected = not only or name in only
            self.now += seconds if affected else 0.001
            self.balancer.record(attempt, READ, error if affected else None)
            return name

    def many(self, number: int, **how: Any) -> Counter[str]:
        return Counter(self.one(**how) for _ in range(number))

    def hold(self, name: str) -> Attempt:
        """Starts a call at an instance that does not end."""
        while True:
            held = self.balancer.pick(frozenset(), READ, LONG)
            attempt = held.__enter__()
            if attempt.instance.endpoint.id == name:
                self.held.append(held)
                return attempt
            held.__exit__(None, None, None)

    def eject(self, name: str) -> None:
        while not self.balancer.ejected:
            self.one(seconds=0.0, error=TIMEOUT, only=name)
