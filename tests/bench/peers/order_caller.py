"""Reads an order over gRPC in one of several ways: `order_caller.py WAY ORDER_SERVICE OTLP`.

Each line of standard input is a number of seconds; the answer is a line of JSON with the calls made in this time, the
seconds and the CPU seconds.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import logging
import sys
import time
from collections.abc import Awaitable, Callable
from types import SimpleNamespace
from typing import Any

import grpc.aio
import structlog
import uvloop
from opentelemetry import context
from opentelemetry.trace import INVALID_SPAN, NonRecordingSpan, SpanContext, TraceFlags, set_span_in_context

from chassis.calls import client
from chassis.calls.client_settings import ClientSettings
from chassis.calls.routing.discovery_chain import Leg, Route, Rules, Subset, without_rules
from chassis.calls.routing.router import Router, Routes
from chassis.calls.routing.target import Target
from chassis.calls.transport import GrpcTransport
from chassis.deadline import deadline
from chassis.platform.discovery import Endpoint, Endpoints
from chassis.settings import Live
from chassis.telemetry import export
from shop.order.v1.order_pb2 import GetOrderRequest
from shop.order.v1.order_pb2_grpc import OrderServiceStub

CALLERS = 8
SETTINGS = ClientSettings(
    deadline_seconds=3.0, calls_at_once=32, failure_ratio=0.5, reset_seconds=3.0, attempts=3, attempt_seconds=1.0,
    retry_budget_ratio=0.1, ejection_seconds=1.0,
)  # fmt: skip
SERVICE = "order-service"
ORDER = "0190a000-0000-7000-8000-0000000000ff"


def target(address: str, name: str, settings: Live[ClientSettings]) -> Target:
    """Returns a target of two instances."""
    endpoints = Endpoints(name)
    made = Target(endpoints, settings, GrpcTransport(), subset=name.partition(".")[0] if "." in name else "")
    endpoints.replace((Endpoint("a", address), Endpoint("b", address)))
    return made


def channel(address: str, change: Callable[[Target], None] = lambda _: None, **changes: Any) -> Any:
    """Returns our channel to two instances, without traffic rules; `change` replaces parts of its target."""
    settings = Live(SETTINGS.model_copy(update=changes))
    only = target(address, SERVICE, settings)
    change(only)
    return routed(without_rules(SERVICE), {Subset(SERVICE): only}, settings)


def split(address: str) -> Any:
    """Returns our channel with traffic rules: routes by method, a split between two subsets, and a timeout."""
    settings = Live(SETTINGS)
    subsets = [Subset(SERVICE, name) for name in ("stable", "canary")]
    legs = [Leg(share, (subset,), 2.5) for share, subset in zip((0.9, 0.1), subsets, strict=True)]
    others = [Route(f"/shop.order.v1.OrderService/{name}", False, legs[:1]) for name in ("PlaceOrder", "ListOrders")]
    rules = Rules((*others, Route("/", True, legs)))
    return routed(rules, {subset: target(address, subset.label, settings) for subset in subsets}, settings)


def routed(rules: Rules, targets: dict[Subset, Target], settings: Live[ClientSettings]) -> Any:
    """Returns our channel by these rules."""
    router = Router(SERVICE, targets.__getitem__)
    router.current = Routes(rules, targets)
    return client.Channel(SERVICE, router, settings)


def direct(address: str) -> Any:
    """The stub on a channel of grpc.aio."""
    return grpc.aio.insecure_channel(address)


def without_telemetry(address: str) -> Any:
    class Nothing:
        def __init__(self, method: Any) -> None:
            self.method = method

        def __enter__(self) -> Any:
            return INVALID_SPAN

        def __exit__(self, *_: object) -> None:
            return None

    client.CallTelemetry = Nothing  # type: ignore[assignment,misc]
    return channel(address)


def without_breaker(address: str) -> Any:
    class Nothing:
        state = "closed"

        async def call(self, work: Callable[..., Awaitable[Any]], *args: Any) -> Any:
            return await work(*args)

    def change(target: Any) -> None:
        target.breaker = Nothing()

    return channel(address, change)


def without_bulkhead(address: str) -> Any:
    class Nothing:
        in_use = rejected = 0

        async def acquire(self, _seconds: float) -> None:
            return None

        def release(self) -> None:
            return None

    def change(target: Any) -> None:
        target.bulkhead = Nothing()

    return channel(address, change)


def without_balancing(address: str) -> Any:
    class Nothing:
        ejected = ()

        def __init__(self, connection: Any) -> None:
            self.instance = SimpleNamespace(endpoint=Endpoint("a", address), connection=connection)

        def __enter__(self) -> Any:
            return self

        def __exit__(self, *_: object) -> None:
            return None

        def pick(self, *_: Any) -> Any:
            return self

        def record(self, *_: Any) -> None:
            return None

        def slow_after(self, _method: Any) -> float:
            return 0.0

        def has_alternative(self, _tried: Any) -> bool:
            return True

    def change(target: Any) -> None:
        target.balancer = Nothing(GrpcTransport().connect(address))

    return channel(address, change)


def without_retries(address: str) -> Any:
    """One attempt, so that no timer runs for it."""
    return channel(address, attempts=1)


WAYS: dict[str, Callable[[str], Any]] = {
    "direct": direct,
    "channel": channel,
    "split": split,
    "recorded": channel,
    "no_telemetry": without_telemetry,
    "no_breaker": without_breaker,
    "no_bulkhead": without_bulkhead,
    "no_balancing": without_balancing,
    "no_retries": without_retries,
}


def start_telemetry(otlp: str) -> None:
    """Exports telemetry to a receiver, as every process of a stack does."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    export.start("bench", "bench", "bench", f"http://{otlp}")


def enter_trace(way: str) -> None:
    """Makes the trace of a request current, as the gateway does; it is sampled only in the way `recorded`."""
    flags = TraceFlags(TraceFlags.SAMPLED if way == "recorded" else TraceFlags.DEFAULT)
    context.attach(set_span_in_context(NonRecordingSpan(SpanContext(0xA1, 0xB2, is_remote=True, trace_flags=flags))))


async def measure(stub: Any, seconds: float) -> dict[str, float]:
    """Makes calls for a time, some of them at the same time."""
    request, calls = GetOrderRequest(order_id=ORDER), itertools.count()
    began, cpu = time.perf_counter(), time.process_time()

    async def repeat() -> None:
        with deadline(3600):
            while time.perf_counter() - began < seconds:
                await stub.GetOrder(request, timeout=3)
                next(calls)

    await asyncio.gather(*(repeat() for _ in range(CALLERS)))
    return {"calls": next(calls), "seconds": time.perf_counter() - began, "cpu": time.process_time() - cpu}


async def main(way: str, address: str, otlp: str) -> None:
    start_telemetry(otlp)
    enter_trace(way)
    stub: Any = OrderServiceStub(WAYS[way](address))  # type: ignore[no-untyped-call]
    loop = asyncio.get_running_loop()
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        print(json.dumps(await measure(stub, float(line))), flush=True)


if __name__ == "__main__":
    uvloop.run(main(sys.argv[1], sys.argv[2], sys.argv[3]))
