"""What a generated stub calls through: deadline, breaker, balancing over healthy instances, one retry, telemetry.

Invariant: a call ends within its deadline as an answer or an RpcError; with nobody to call it fails at once.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, TypeVar

import grpc
from opentelemetry.trace import Span, SpanKind, Status, StatusCode
from pydantic import Field

from chassis import telemetry
from chassis.balancing import Balancer
from chassis.breaker import AsyncBreaker, BreakerOpen
from chassis.deadline import remaining, within
from chassis.errors import RpcError, deadline_exceeded, unavailable
from chassis.settings import Section
from chassis.transport import GrpcTransport, Method, NeverSent, Transport, repeatable

if TYPE_CHECKING:
    from chassis.discovery import Endpoint, Endpoints
    from chassis.lifecycle import Process

T = TypeVar("T")
Metadata = Sequence[tuple[str, str]]

_FIRST_ANSWER_SECONDS = 1.0
_LATER = {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.RESOURCE_EXHAUSTED}
_END: Any = object()
_tracer = telemetry.tracer()
_duration = telemetry.meter().create_histogram("rpc.client.duration", "ms", "time of a call as its caller sees it")


class ClientKnobs(Section):
    """How one service is called."""

    deadline_seconds: float = Field(gt=0, le=60, description="longest time a call may take, its retry included")
    fail_max: int = Field(gt=0, description="failures in a row that open the breaker")
    reset_seconds: float = Field(gt=0, le=60, description="time an open breaker waits before it probes")
    half_open_max: int = Field(gt=0, description="probes at the same time, and successes that close the breaker")


def connect(process: Process[Any], service: str, *, knobs: ClientKnobs | Callable[[], ClientKnobs]) -> Channel:
    """A channel to every healthy instance of a Consul service; give it to a generated stub. Closed with the process."""
    live = knobs if callable(knobs) else lambda: knobs
    channel = Channel(service, process.discovery.endpoints(service), live, GrpcTransport())
    process.on_close(channel.close)
    return channel


class Channel:
    """Stands where a stub expects a grpc.aio channel; unary and server-streaming methods."""

    def __init__(
        self, service: str, endpoints: Endpoints, knobs: Callable[[], ClientKnobs], transport: Transport
    ) -> None:
        self.service = service
        self.breaker = AsyncBreaker(service, knobs)
        self._endpoints = endpoints
        self._knobs = knobs
        self._balancer = Balancer(endpoints, transport, self.breaker.probe_soon)
        self._transport = transport

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

        The first message is due within the knob `deadline_seconds`; the breaker counts nothing after it.
        """
        target = Method(method, request_serializer, response_deserializer, repeatable=False)

        def call(request: Any, *, timeout: float | None = None, metadata: Metadata = ()) -> AsyncIterator[Any]:
            return self._stream(target, request, timeout, metadata)

        return call

    async def close(self) -> None:
        """Close the connections to every instance."""
        await self._balancer.close()

    async def _unary(self, method: Method, request: Any, limit: float | None, metadata: Metadata) -> Any:
        knobs = self._knobs()
        budget = within(knobs.deadline_seconds if limit is None else limit)
        ends_at = time.monotonic() + budget
        with self._observed(method) as span:
            if budget <= 0:
                raise deadline_exceeded()
            sent = _traced(metadata, span)
            return await self._guarded(lambda: self._attempts(method, request, ends_at, sent, span), span)

    async def _attempts(self, method: Method, request: Any, ends_at: float, metadata: Metadata, span: Span) -> Any:
        await self._known(ends_at - time.monotonic())
        tried: set[Endpoint] = set()
        while True:
            with self._balancer.pick(tried) as peer:
                span.set_attribute("server.address", peer.endpoint.address)
                left = max(0.001, ends_at - time.monotonic())
                try:
                    answer = await self._transport.unary(peer.endpoint.address, method, request, left, metadata)
                except RpcError as error:
                    self._balancer.settle(peer, error)
                    tried.add(peer.endpoint)
                    if len(tried) > 1 or not self._may_repeat(method, error, tried):
                        raise
                    span.add_event("rpc.retry", {"error.message": error.message[:200]})
                else:
                    self._balancer.settle(peer, None)
                    return answer

    async def _stream(
        self, method: Method, request: Any, limit: float | None, metadata: Metadata
    ) -> AsyncIterator[Any]:
        seconds = remaining() if limit is None else within(limit)
        with self._observed(method) as span:
            answers = self._answers(method, request, seconds, _traced(metadata, span), span)
            try:
                first = await self._guarded(lambda: self._first(answers), span)
                if first is not _END:
                    yield first
                    async for answer in answers:
                        yield answer
            finally:
                await answers.aclose()

    async def _first(self, answers: AsyncGenerator[Any, None]) -> Any:
        try:
            async with asyncio.timeout(within(self._knobs().deadline_seconds)):
                return await anext(answers, _END)
        except TimeoutError:
            raise deadline_exceeded("the first message did not come in time") from None

    async def _answers(
        self, method: Method, request: Any, seconds: float | None, metadata: Metadata, span: Span
    ) -> AsyncGenerator[Any, None]:
        await self._known(_FIRST_ANSWER_SECONDS)
        with self._balancer.pick(frozenset()) as peer:
            span.set_attribute("server.address", peer.endpoint.address)
            try:
                async for answer in self._transport.stream(peer.endpoint.address, method, request, seconds, metadata):
                    self._balancer.settle(peer, None)
                    yield answer
            except RpcError as error:
                self._balancer.settle(peer, error)
                raise

    async def _guarded(self, work: Callable[[], Awaitable[T]], span: Span) -> T:
        """Run `work` behind the breaker; an open one answers in its place."""
        try:
            return await self.breaker.call(work)
        except BreakerOpen as refusal:
            span.add_event("breaker.refused", {"breaker.name": refusal.name, "retry_after": refusal.retry_after})
            raise unavailable("BREAKER_OPEN", str(refusal), refusal.retry_after) from None
        except RpcError as error:
            if error.code in _LATER and error.retry_after is None:
                error.retry_after = self._knobs().reset_seconds
            raise
        finally:
            span.set_attribute("breaker.state", self.breaker.state)

    def _may_repeat(self, method: Method, error: RpcError, tried: set[Endpoint]) -> bool:
        interrupted = error.code is grpc.StatusCode.UNAVAILABLE and error.reason == "UNAVAILABLE"
        again = isinstance(error, NeverSent) or (method.repeatable and interrupted)
        return again and self._balancer.spare(tried)

    async def _known(self, seconds: float) -> None:
        """Give discovery a moment for its very first answer; without one there is simply nobody to call."""
        if not self._endpoints.known:
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
    header = telemetry.traceparent(span)
    return (*metadata, ("traceparent", header)) if header else tuple(metadata)
