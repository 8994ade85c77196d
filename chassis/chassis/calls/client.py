"""What a generated stub calls through: deadline, bulkhead, breaker, retries under a budget, balancing, telemetry.

Invariant: a call ends within its deadline as an answer or an RpcError; with nobody to call it fails at once.
"""

from __future__ import annotations

import asyncio
import time
import weakref
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, TypeVar

import grpc
from opentelemetry.metrics import CallbackOptions, Observation
from opentelemetry.trace import Span, SpanKind, Status, StatusCode
from pydantic import Field

from chassis.calls.balancing import Balancer
from chassis.calls.breaker import AsyncBreaker, BreakerOpen, BreakerSettings
from chassis.calls.bulkhead import Bulkhead, BulkheadSettings
from chassis.calls.outlier_detection import BalancingSettings
from chassis.calls.retry import Retries, RetryBudget, RetrySettings
from chassis.calls.transport import GrpcTransport, Method, Transport, repeatable
from chassis.deadline import at_most, remaining
from chassis.errors import RpcError, deadline_exceeded, unavailable
from chassis.settings import Section
from chassis.telemetry.metrics import meter
from chassis.telemetry.traces import traceparent, tracer

if TYPE_CHECKING:
    from chassis.platform.discovery import Endpoints
    from chassis.process import Process

T = TypeVar("T")
Metadata = Sequence[tuple[str, str]]

_FIRST_ANSWER_SECONDS = 1.0
_LATER = {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.RESOURCE_EXHAUSTED}
_END: Any = object()
_tracer = tracer()
_duration = meter().create_histogram("rpc.client.duration", "ms", "time of a call as its caller sees it")


class ClientSettings(Section):
    """How one service is called."""

    deadline_seconds: float = Field(gt=0, le=60, description="longest time a call may take, its retries included")
    bulkhead: BulkheadSettings = Field(description="how many calls at once")
    breaker: BreakerSettings = Field(description="when no call is made for a while")
    retry: RetrySettings = Field(description="when a failed call is made again")
    balancing: BalancingSettings = Field(description="which instance a call goes to")


def connect(process: Process[Any], service: str, *, settings: ClientSettings | Callable[[], ClientSettings]) -> Channel:
    """A channel to every healthy instance of a Consul service; give it to a generated stub. Closed with the process."""
    live = settings if callable(settings) else lambda: settings
    channel = Channel(service, process.discovery.endpoints(service), live, GrpcTransport())
    process.on_close(channel.close)
    return channel


class Channel:
    """Stands where a stub expects a grpc.aio channel; unary and server-streaming methods."""

    def __init__(
        self, service: str, endpoints: Endpoints, settings: Callable[[], ClientSettings], transport: Transport
    ) -> None:
        self.service = service
        self.bulkhead = Bulkhead(service, lambda: settings().bulkhead)
        self.breaker = AsyncBreaker(service, lambda: settings().breaker)
        self.budget = RetryBudget(lambda: settings().retry)
        self._endpoints = endpoints
        self._settings = settings
        self.balancer = Balancer(endpoints, transport, self.breaker.probe_soon, lambda: settings().balancing)
        self._transport = transport
        _channels.add(self)

    def unary_unary(
        self,
        method: str,
        request_serializer: Callable[[Any], bytes],
        response_deserializer: Callable[[bytes], Any],
        _registered_method: bool = False,
    ) -> Callable[..., Awaitable[Any]]:
        """For generated stubs: `await call(request, timeout=seconds, metadata=pairs)`; raises RpcError."""
        target = Method(method, request_serializer, response_deserializer, repeatable(method))

        def call(request: Any, *, timeout: float | None = None, metadata: Metadata = ()) -> Awaitable[Any]:
            return self._unary(target, request, timeout, metadata)

        return call

    def unary_stream(
        self,
        method: str,
        request_serializer: Callable[[Any], bytes],
        response_deserializer: Callable[[bytes], Any],
        _registered_method: bool = False,
    ) -> Callable[..., AsyncIterator[Any]]:
        """For generated stubs: `async for message in call(request)`; `timeout` bounds the whole stream.

        The first message is due within the setting `deadline_seconds`; the breaker counts nothing after it.
        """
        target = Method(method, request_serializer, response_deserializer, repeatable=False)

        def call(request: Any, *, timeout: float | None = None, metadata: Metadata = ()) -> AsyncIterator[Any]:
            return self._stream(target, request, timeout, metadata)

        return call

    async def close(self) -> None:
        """Close the connections to every instance."""
        await self.balancer.close()

    async def _unary(self, method: Method, request: Any, limit: float | None, metadata: Metadata) -> Any:
        settings = self._settings()
        budget = at_most(settings.deadline_seconds if limit is None else limit)
        ends_at = time.monotonic() + budget
        with self._observed(method) as span:
            if budget <= 0:
                raise deadline_exceeded()
            sent = _traced(metadata, span)
            return await self._guarded(lambda: self._attempts(method, request, ends_at, sent, span), budget, span)

    async def _attempts(self, method: Method, request: Any, ends_at: float, metadata: Metadata, span: Span) -> Any:
        await self._known(ends_at - time.monotonic())
        self.budget.earn()
        retries = Retries(self._settings().retry, self.budget, method)
        while True:
            try:
                return await self._try(method, request, retries, ends_at=ends_at, metadata=metadata, span=span)
            except RpcError as error:
                pause = retries.pause(error, ends_at - time.monotonic(), self.balancer.spare(retries.tried))
                if pause is None:
                    raise
                span.add_event("rpc.retry", {"error.message": error.message[:200], "pause": pause})
                _retries.add(1, {"rpc.service": self.service})
            await asyncio.sleep(pause)

    async def _try(
        self, method: Method, request: Any, retries: Retries, *, ends_at: float, metadata: Metadata, span: Span
    ) -> Any:
        with self.balancer.pick(retries.tried, method) as turn:
            address = turn.peer.endpoint.address
            retries.tried.add(turn.peer.endpoint)
            span.set_attribute("server.address", address)
            left = max(0.001, ends_at - time.monotonic())
            spare = self.balancer.spare(retries.tried)
            try:
                async with retries.patience(left, spare, self.balancer.unusual(method)):
                    answer = await self._transport.unary(address, method, request, left, metadata)
            except RpcError as error:
                self.balancer.settle(turn, method, error)
                raise
            self.balancer.settle(turn, method, None)
            return answer

    async def _stream(
        self, method: Method, request: Any, limit: float | None, metadata: Metadata
    ) -> AsyncIterator[Any]:
        seconds = remaining() if limit is None else at_most(limit)
        with self._observed(method) as span:
            answers = self._answers(method, request, seconds, _traced(metadata, span), span)
            try:
                first = await self._guarded(lambda: self._first(answers), seconds, span)
                if first is not _END:
                    yield first
                    async for answer in answers:
                        yield answer
            finally:
                await answers.aclose()

    async def _first(self, answers: AsyncGenerator[Any, None]) -> Any:
        try:
            async with asyncio.timeout(at_most(self._settings().deadline_seconds)):
                return await anext(answers, _END)
        except TimeoutError:
            raise deadline_exceeded("the first message did not come in time") from None

    async def _answers(
        self, method: Method, request: Any, seconds: float | None, metadata: Metadata, span: Span
    ) -> AsyncGenerator[Any, None]:
        await self._known(_FIRST_ANSWER_SECONDS)
        with self.balancer.pick(frozenset(), method) as turn:
            address = turn.peer.endpoint.address
            span.set_attribute("server.address", address)
            try:
                async for answer in self._transport.stream(address, method, request, seconds, metadata):
                    if not turn.streaming:
                        self.balancer.settle(turn, method, None)
                        self.balancer.streaming(turn)
                    yield answer
            except RpcError as error:
                self.balancer.settle(turn, method, error)
                raise

    async def _guarded(self, work: Callable[[], Awaitable[T]], left: float | None, span: Span) -> T:
        """Run `work` in a place of the bulkhead and behind the breaker; a full or open one answers in its place."""
        await self.bulkhead.enter(_FIRST_ANSWER_SECONDS if left is None else left)
        try:
            return await self._broken_or(work, span)
        finally:
            self.bulkhead.leave()

    async def _broken_or(self, work: Callable[[], Awaitable[T]], span: Span) -> T:
        try:
            return await self.breaker.call(work)
        except BreakerOpen as refusal:
            span.add_event("breaker.refused", {"breaker.name": refusal.name, "retry_after": refusal.retry_after})
            raise unavailable("BREAKER_OPEN", str(refusal), refusal.retry_after) from None
        except RpcError as error:
            if error.code in _LATER and error.retry_after is None:
                error.retry_after = self._settings().breaker.reset_seconds
            raise
        finally:
            span.set_attribute("breaker.state", self.breaker.state)

    async def _known(self, seconds: float) -> None:
        """Give discovery a moment for its very first answer; without one there is simply nobody to call."""
        if not self._endpoints.loaded:
            with suppress(TimeoutError):
                await self._endpoints.ready(min(seconds, _FIRST_ANSWER_SECONDS))

    @contextmanager
    def _observed(self, method: Method) -> Iterator[Span]:
        # Not made current: a stream's generator may end in another context than it began in.
        span = _tracer.start_span(method.name, kind=SpanKind.CLIENT, attributes=method.attributes)
        started, code = time.perf_counter(), "CANCELLED"
        try:
            yield span
            code = "OK"
        except RpcError as error:
            code = error.code.name
            span.set_attribute("error.type", error.reason)
            span.set_status(Status(StatusCode.ERROR, error.message[:200]))
            raise
        finally:
            span.set_attribute("rpc.grpc.status_code", code)
            span.end()
            milliseconds = (time.perf_counter() - started) * 1000
            _duration.record(milliseconds, {**method.attributes, "rpc.grpc.status_code": code})


def _traced(metadata: Metadata, span: Span) -> Metadata:
    header = traceparent(span)
    return (*metadata, ("traceparent", header)) if header else tuple(metadata)


def _gauge(name: str, unit: str, read: Callable[[Channel], float], description: str) -> None:
    def observe(_options: CallbackOptions) -> Iterable[Observation]:
        return [Observation(read(channel), {"rpc.service": channel.service}) for channel in list(_channels)]

    meter().create_observable_gauge(name, [observe], unit, description)


_channels: weakref.WeakSet[Channel] = weakref.WeakSet()
_retries = meter().create_counter("rpc.client.retries", description="calls made once more")
_gauge("rpc.client.retry_budget", "1", lambda c: c.budget.left, "retries that could be made now")
_gauge("rpc.client.retries_refused", "1", lambda c: c.budget.refused, "retries not made: the budget was spent")
_gauge("bulkhead.taken", "1", lambda c: c.bulkhead.taken, "calls under way")
_gauge("bulkhead.refused", "1", lambda c: c.bulkhead.refused, "calls refused for want of a place")
_gauge("balancer.left_out", "1", lambda c: len(c.balancer.left_out), "instances that are avoided now")
