"""The channel of generated stubs: adds deadline, bulkhead, breaker, retries, balancing and telemetry to each call.

Invariant: a call ends within its deadline, with a response or an RpcError; without an instance it fails immediately.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator
from contextlib import aclosing, contextmanager, suppress
from typing import TYPE_CHECKING, Any, TypeVar

import grpc
from opentelemetry.trace import Span, SpanKind, Status, StatusCode

from chassis.calls.balancing import Attempt, Balancer
from chassis.calls.breaker import BREAKER_RULES, AsyncBreaker, BreakerOpen, BreakerRules
from chassis.calls.bulkhead import Bulkhead
from chassis.calls.client_settings import ClientSettings
from chassis.calls.outlier_detection import EJECTION_RULES, EjectionRules
from chassis.calls.retry import LEAST_SECONDS, RETRY_RULES, Retries, RetryBudget, RetryRules
from chassis.calls.transport import GrpcTransport, Metadata, Method, NotProcessed, OutOfTime, Transport, is_idempotent
from chassis.deadline import at_most, remaining
from chassis.errors import RpcError, deadline_exceeded, unavailable
from chassis.settings import Live
from chassis.telemetry.metrics import LiveGauges, meter
from chassis.telemetry.traces import trace_headers, tracer

if TYPE_CHECKING:
    from chassis.platform.discovery import Endpoints
    from chassis.process import Process

T = TypeVar("T")

_DISCOVERY_SECONDS = 1.0
_RETRYABLE_BY_CALLER = {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.RESOURCE_EXHAUSTED}
_END_OF_STREAM: Any = object()
_tracer = tracer()
_duration = meter().create_histogram("rpc.client.duration", "ms", "duration of a call, all attempts included")
_retries = meter().create_counter("rpc.client.retries", description="attempts after the first")


def connect(process: Process[Any], service: str, *, settings: Live[ClientSettings]) -> Channel:
    """Returns a channel to all healthy instances of a Consul service, for a generated stub; the process closes it."""
    channel = Channel(service, process.discovery.endpoints(service), settings, GrpcTransport())
    process.on_close(channel.close)
    return channel


class Channel:
    """Replaces a grpc.aio channel in generated stubs; supports unary and server-streaming methods."""

    def __init__(
        self,
        service: str,
        endpoints: Endpoints,
        settings: Live[ClientSettings],
        transport: Transport,
        *,
        breaker_rules: BreakerRules = BREAKER_RULES,
        retry_rules: RetryRules = RETRY_RULES,
        ejection_rules: EjectionRules = EJECTION_RULES,
    ) -> None:
        self.service = service
        self.bulkhead = Bulkhead(service, settings)
        self.breaker = AsyncBreaker(service, settings, rules=breaker_rules)
        self.budget = RetryBudget(settings, retry_rules.budget_size)
        self.balancer = Balancer(endpoints, transport, self.breaker.allow_probe, settings, rules=ejection_rules)
        self._endpoints = endpoints
        self._settings = settings
        self._retry_rules = retry_rules
        _channels.add(self)

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
        target = Method(method, request_serializer, response_deserializer, is_idempotent(method))

        def call(request: Any, *, timeout: float | None = None, metadata: Metadata = ()) -> Awaitable[Any]:
            return self._unary(target, request, timeout, metadata)

        return call

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
        target = Method(method, request_serializer, response_deserializer, idempotent=False)

        def call(request: Any, *, timeout: float | None = None, metadata: Metadata = ()) -> AsyncIterator[Any]:
            return self._stream(target, request, timeout, metadata)

        return call

    async def close(self) -> None:
        """Closes the connections to all instances."""
        await self.balancer.close()

    async def _unary(self, method: Method, request: Any, timeout: float | None, metadata: Metadata) -> Any:  # noqa: ASYNC109
        seconds = at_most(self._settings.value.deadline_seconds if timeout is None else timeout)
        ends_at = time.monotonic() + seconds
        with self._span(method) as span:
            if seconds < LEAST_SECONDS:
                raise OutOfTime
            sent = (*metadata, *trace_headers(span))
            return await self._protected(lambda: self._attempts(method, request, ends_at, sent, span), seconds, span)

    async def _attempts(self, method: Method, request: Any, ends_at: float, metadata: Metadata, span: Span) -> Any:
        await self._wait_for_discovery(ends_at - time.monotonic())
        self.budget.deposit()
        retries = Retries(self._settings.value, self.budget, method, self._retry_rules)
        while True:
            try:
                return await self._attempt(method, request, retries, ends_at=ends_at, metadata=metadata, span=span)
            except RpcError as error:
                is_shed = isinstance(error, NotProcessed) and error.is_shed_load
                has_alternative = self.balancer.has_alternative(retries.tried, with_capacity=is_shed)
                backoff = retries.backoff(error, ends_at - time.monotonic(), has_alternative)
                if backoff is None:
                    raise
                span.add_event("rpc.retry", {"error.message": error.message[:200], "backoff": backoff})
                _retries.add(1, {"rpc.service": self.service})
            await asyncio.sleep(backoff)

    async def _attempt(
        self, method: Method, request: Any, retries: Retries, *, ends_at: float, metadata: Metadata, span: Span
    ) -> Any:
        left = ends_at - time.monotonic()
        with self.balancer.pick(retries.tried, method, left) as attempt, self._failures_recorded(attempt, method):
            if left < LEAST_SECONDS:
                raise OutOfTime
            retries.tried.add(attempt.instance.endpoint)
            span.set_attribute("server.address", attempt.instance.endpoint.address)
            has_alternative = self.balancer.has_alternative(retries.tried)
            async with retries.attempt_timeout(left, has_alternative, self.balancer.slow_after(method)):
                response = await attempt.instance.connection.unary(method, request, left, metadata)
            self.balancer.record(attempt, method, None)
            return response

    async def _stream(
        self,
        method: Method,
        request: Any,
        timeout: float | None,  # noqa: ASYNC109
        metadata: Metadata,
    ) -> AsyncIterator[Any]:
        seconds = remaining() if timeout is None else at_most(timeout)
        with self._span(method) as span:
            if seconds is not None and seconds < LEAST_SECONDS:
                raise OutOfTime
            responses = self._responses(method, request, seconds, (*metadata, *trace_headers(span)), span)
            try:
                first = await self._protected(lambda: anext(responses, _END_OF_STREAM), seconds, span)
                if first is not _END_OF_STREAM:
                    yield first
                    async for response in responses:
                        yield response
            finally:
                await responses.aclose()

    async def _responses(
        self, method: Method, request: Any, seconds: float | None, metadata: Metadata, span: Span
    ) -> AsyncGenerator[Any, None]:
        longest = self._settings.value.deadline_seconds
        first_seconds = longest if seconds is None else min(longest, seconds)
        ends_at = asyncio.get_running_loop().time() + first_seconds
        await self._wait_for_discovery(first_seconds)
        with (
            self.balancer.pick(frozenset(), method, first_seconds) as attempt,
            self._failures_recorded(attempt, method),
        ):
            span.set_attribute("server.address", attempt.instance.endpoint.address)
            async with aclosing(attempt.instance.connection.stream(method, request, seconds, metadata)) as responses:
                first = await _first(responses, ends_at)
                self.balancer.record(attempt, method, None)
                self.balancer.mark_as_stream(attempt)
                if first is _END_OF_STREAM:
                    return
                yield first
                async for response in responses:
                    yield response

    @contextmanager
    def _failures_recorded(self, attempt: Attempt, method: Method) -> Iterator[None]:
        """Charges a failure to the instance of the attempt, but raises OutOfTime if the caller's time was too short."""
        try:
            yield
        except RpcError as error:
            if error.code is grpc.StatusCode.DEADLINE_EXCEEDED and not attempt.is_fair:
                raise OutOfTime from None
            self.balancer.record(attempt, method, error)
            raise

    async def _protected(self, work: Callable[[], Awaitable[T]], left: float | None, span: Span) -> T:
        """Runs `work` with a permit of the bulkhead and through the breaker; raises RpcError if either rejects it."""
        await self.bulkhead.acquire(self._settings.value.deadline_seconds if left is None else left)
        try:
            return await self._through_breaker(work, span)
        finally:
            self.bulkhead.release()

    async def _through_breaker(self, work: Callable[[], Awaitable[T]], span: Span) -> T:
        try:
            return await self.breaker.call(work)
        except BreakerOpen as rejection:
            span.add_event("breaker.rejected", {"breaker.name": rejection.name, "retry_after": rejection.retry_after})
            raise unavailable("BREAKER_OPEN", str(rejection), rejection.retry_after) from None
        except RpcError as error:
            if error.code in _RETRYABLE_BY_CALLER and error.retry_after is None:
                error.retry_after = self._settings.value.reset_seconds
            raise
        finally:
            span.set_attribute("breaker.state", self.breaker.state)

    async def _wait_for_discovery(self, seconds: float) -> None:
        """Waits briefly for the first list of instances; without one the call fails because there is no instance."""
        if not self._endpoints.loaded:
            with suppress(TimeoutError):
                await self._endpoints.ready(min(seconds, _DISCOVERY_SECONDS))

    @contextmanager
    def _span(self, method: Method) -> Iterator[Span]:
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


async def _first(responses: AsyncGenerator[Any, None], ends_at: float) -> Any:
    try:
        async with asyncio.timeout_at(ends_at):
            return await anext(responses, _END_OF_STREAM)
    except TimeoutError:
        raise deadline_exceeded("the first message did not arrive in time") from None


_channels: LiveGauges[Channel] = LiveGauges("rpc.service", lambda channel: channel.service)
_channels.gauge("rpc.client.retry_budget", lambda c: c.budget.available, "retries that the budget permits now")
_channels.gauge("rpc.client.retries_denied", lambda c: c.budget.denied, "retries not made because the budget was empty")
_channels.gauge("bulkhead.in_use", lambda c: c.bulkhead.in_use, "permits in use: calls under way")
_channels.gauge("bulkhead.rejected", lambda c: c.bulkhead.rejected, "calls rejected because no permit was free")
_channels.gauge("balancer.ejected", lambda c: len(c.balancer.ejected), "instances that get no calls now")
