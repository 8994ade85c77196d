"""The channel of generated stubs: adds deadline and telemetry to each call, and sends it to a target by traffic rules.

Invariant: a call ends within its deadline, with a response or an RpcError; without an instance it fails immediately.
"""

from __future__ import annotations

import math
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing, suppress
from functools import cache, partial
from typing import TYPE_CHECKING, Any

from opentelemetry.trace import Span, SpanKind, Status, StatusCode

from chassis.calls.client_settings import ClientSettings
from chassis.calls.retry import LEAST_SECONDS
from chassis.calls.routing.discovery_chain import Subset
from chassis.calls.routing.router import Router, Routes
from chassis.calls.routing.target import Target
from chassis.calls.transport import GrpcTransport, Metadata, Method, OutOfTime, is_idempotent
from chassis.deadline import at_most, remaining
from chassis.errors import RpcError, unavailable
from chassis.mesh import tls
from chassis.settings import Live
from chassis.telemetry.metrics import Durations
from chassis.telemetry.traces import start_span, trace_headers

if TYPE_CHECKING:
    from chassis.process import Process

_DISCOVERY_SECONDS = 1.0
_UNKNOWN = "addresses not read from consul yet"
_durations = Durations("rpc.client.duration", "ms", "duration of a call, all attempts included")


def connect(process: Process[Any], service: str, *, settings: Live[ClientSettings]) -> Channel:
    """Returns a channel to the healthy instances of a Consul service, for a generated stub; the process closes it.

    Traffic rules in Consul say which instances get which calls. In a mesh the process shows its certificate, and an
    instance has to prove that it is of the service.
    """
    identity = process.join_mesh()

    @cache
    def transport(called: str) -> GrpcTransport:
        if identity is None:
            return GrpcTransport()
        made = GrpcTransport(partial(tls.channel, identity, called))
        identity.on_change(made.renew)
        return made

    def target(subset: Subset) -> Target:
        endpoints = process.discovery.watch(subset.label, subset.service, subset.filter)
        return Target(endpoints, settings, transport(subset.service), subset.name)

    router = Router(service, target)
    process.supervise(f"traffic rules {service}", lambda: router.follow(process.consul))
    channel = Channel(service, router, settings)
    process.on_close(channel.close)
    return channel


class Channel:
    """Replaces a grpc.aio channel in generated stubs; supports unary and server-streaming methods."""

    def __init__(self, service: str, router: Router, settings: Live[ClientSettings]) -> None:
        self.service = service
        self._router = router
        self._settings = settings

    def unary_unary(
        self,
        method: str,
        request_serializer: Callable[[Any], bytes],
        response_deserializer: Callable[[bytes], Any],
        **_: Any,  # fragile: grpc-generated-stub
    ) -> Callable[..., Awaitable[Any]]:
        """For generated stubs: `await call(request, timeout=seconds, metadata=pairs)`; raises RpcError.

        The remaining keyword arguments are private to grpc's own channels and change between its versions.
        """
        return partial(self._unary, Method(method, request_serializer, response_deserializer, is_idempotent(method)))

    def unary_stream(
        self,
        method: str,
        request_serializer: Callable[[Any], bytes],
        response_deserializer: Callable[[bytes], Any],
        **_: Any,  # fragile: grpc-generated-stub
    ) -> Callable[..., AsyncIterator[Any]]:
        """For generated stubs: `async for message in call(request)`; `timeout` bounds the whole stream.

        The first message is due within the setting `deadline_seconds`; the breaker counts nothing after it.
        """
        return partial(self._stream, Method(method, request_serializer, response_deserializer, idempotent=False))

    def readiness(self) -> str | None:
        """Readiness probe: returns the reason while the instances have not been read from Consul."""
        return None if self._router.current else _UNKNOWN

    def dependency(self) -> str:
        """Returns "ok", or the reason why not every call can be made."""
        if self._router.current is None:
            return _UNKNOWN
        missing = self._router.current.without_instance()
        names = sorted({target.name for target in missing} - {self.service})
        of = f" of {', '.join(names)}" if names else ""
        return f"no healthy instance{of}" if missing else "ok"

    def breakers(self) -> dict[str, str]:
        """Returns the state of the breaker of each target, by its name: closed, open or half-open."""
        targets = self._router.current.targets.values() if self._router.current else ()
        return {target.name: target.breaker.state for target in targets}

    async def close(self) -> None:
        """Closes the connections to all instances."""
        await self._router.close()

    async def _unary(
        self,
        method: Method,
        request: Any,
        *,
        timeout: float | None = None,  # noqa: ASYNC109
        metadata: Metadata = (),
    ) -> Any:
        seconds = at_most(self._settings.value.deadline_seconds if timeout is None else timeout)
        telemetry = CallTelemetry(method)
        with telemetry as span:
            if seconds < LEAST_SECONDS:
                raise OutOfTime
            routes = self._router.current
            if routes is None:
                routes, seconds = await self._first_routes(seconds)
            leg = routes.choose(method.path)
            target = leg.target
            if target.subset:
                telemetry.note_subset(target.subset)
            sent = (*metadata, *trace_headers(span))
            return await target.unary(method, request, min(seconds, leg.seconds), sent, span, attempts=leg.attempts)

    async def _stream(
        self,
        method: Method,
        request: Any,
        *,
        timeout: float | None = None,  # noqa: ASYNC109
        metadata: Metadata = (),
    ) -> AsyncIterator[Any]:
        seconds = remaining() if timeout is None else at_most(timeout)
        telemetry = CallTelemetry(method)
        with telemetry as span:
            if seconds is not None and seconds < LEAST_SECONDS:
                raise OutOfTime
            routes = self._router.current
            if routes is None:
                longest = self._settings.value.deadline_seconds
                before = longest if seconds is None else min(longest, seconds)
                routes, left = await self._first_routes(before)
                seconds = None if seconds is None else seconds - (before - left)
            leg = routes.choose(method.path)
            if leg.seconds < (math.inf if seconds is None else seconds):
                seconds = leg.seconds
            target = leg.target
            if target.subset:
                telemetry.note_subset(target.subset)
            sent = (*metadata, *trace_headers(span))
            async with aclosing(target.stream(method, request, seconds, sent, span)) as responses:
                async for response in responses:
                    yield response

    async def _first_routes(self, seconds: float) -> tuple[Routes, float]:
        """Waits briefly for the first routes; returns them with the seconds that are left."""
        began = time.monotonic()
        with suppress(TimeoutError):
            await self._router.ready(min(seconds, _DISCOVERY_SECONDS))
        if self._router.current is None:
            raise unavailable("UNAVAILABLE", f"no instance of {self.service} has been read from Consul", 1.0)
        return self._router.current, seconds - (time.monotonic() - began)


class CallTelemetry:
    """Records the block as one call: its duration, and its span if the trace is sampled.

    The span is not made current, because the generator of a stream may end in another context than it began in.
    """

    __slots__ = ("_began", "_method", "_span", "_subset")

    def __init__(self, method: Method) -> None:
        self._method = method
        self._subset = ""

    def __enter__(self) -> Span:
        self._began = time.monotonic()
        self._span = start_span(self._method.name, kind=SpanKind.CLIENT, attributes=self._method.attributes)
        return self._span

    def note_subset(self, subset: str) -> None:
        """Records the call as one to a subset of the instances."""
        self._subset = subset
        self._span.set_attribute("rpc.subset", subset)

    def __exit__(self, _kind: object, error: BaseException | None, _traceback: object) -> None:
        code = "OK" if error is None else error.code.name if isinstance(error, RpcError) else "CANCELLED"
        method, span = self._method, self._span
        key = f"{code} {self._subset}" if self._subset else code
        series = method.durations.get(key)
        if series is None:
            attributes = {**method.attributes, "rpc.grpc.status_code": code}
            of_subset = {"rpc.subset": self._subset} if self._subset else {}
            series = method.durations[key] = _durations.series(attributes | of_subset)
        series.record((time.monotonic() - self._began) * 1000, span)
        if span.is_recording():
            if isinstance(error, RpcError):
                span.set_attribute("error.type", error.reason)
                span.set_status(Status(StatusCode.ERROR, error.message[:200]))
            span.set_attribute("rpc.grpc.status_code", code)
        span.end()
