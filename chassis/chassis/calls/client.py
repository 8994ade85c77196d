"""The channel of generated stubs: adds deadline, bulkhead, breaker, retries, balancing and telemetry to each call.

Invariant: a call ends within its deadline, with a response or an RpcError; without an instance it fails immediately.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing, suppress
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import grpc
from opentelemetry.trace import Span, SpanKind, Status, StatusCode

from chassis.calls.balancing import Attempt, Balancer
from chassis.calls.breaker import BREAKER_RULES, AsyncBreaker, BreakerOpen, BreakerRules
from chassis.calls.bulkhead import Bulkhead
from chassis.calls.client_settings import ClientSettings
from chassis.calls.outlier_detection import EJECTION_RULES, EjectionRules
from chassis.calls.retry import LEAST_SECONDS, RETRY_RULES, AttemptTimer, Retries, RetryBudget, RetryRules
from chassis.calls.transport import GrpcTransport, Metadata, Method, NotProcessed, OutOfTime, Transport, is_idempotent
from chassis.deadline import at_most, remaining
from chassis.errors import RpcError, deadline_exceeded, unavailable
from chassis.mesh import tls
from chassis.settings import Live
from chassis.telemetry.metrics import Durations, LiveGauges, meter
from chassis.telemetry.traces import start_span, trace_headers

if TYPE_CHECKING:
    from chassis.platform.discovery import Endpoints
    from chassis.process import Process

T = TypeVar("T")

_DISCOVERY_SECONDS = 1.0
_RETRYABLE_BY_CALLER = {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.RESOURCE_EXHAUSTED}
_END_OF_STREAM: Any = object()
_durations = Durations("rpc.client.duration", "ms", "duration of a call, all attempts included")
_retries = meter().create_counter("rpc.client.retries", description="attempts after the first")


def connect(process: Process[Any], service: str, *, settings: Live[ClientSettings]) -> Channel:
    """Returns a channel to all healthy instances of a Consul service, for a generated stub; the process closes it.

    In a mesh the process shows its certificate, and an instance has to prove that it is of the service.
    """
    identity = process.join_mesh()
    transport = GrpcTransport() if identity is None else GrpcTransport(partial(tls.channel, identity, service))
    if identity is not None:
        identity.on_change(transport.renew)
    channel = Channel(service, process.discovery.endpoints(service), settings, transport)
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
        self._timer = AttemptTimer()
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

    async def close(self) -> None:
        """Closes the connections to all instances."""
        await self.balancer.close()

    async def _unary(
        self,
        method: Method,
        request: Any,
        *,
        timeout: float | None = None,  # noqa: ASYNC109
        metadata: Metadata = (),
    ) -> Any:
        seconds = at_most(self._settings.value.deadline_seconds if timeout is None else timeout)
        ends_at = time.monotonic() + seconds
        with CallTelemetry(method) as span:
            if seconds < LEAST_SECONDS:
                raise OutOfTime
            sent = (*metadata, *trace_headers(span))
            return await self._protected(seconds, span, self._attempts, method, request, ends_at, sent, span)

    async def _attempts(self, method: Method, request: Any, ends_at: float, metadata: Metadata, span: Span) -> Any:
        if not self._endpoints.loaded:
            await self._wait_for_discovery(ends_at - time.monotonic())
        self.budget.deposit()
        retries = Retries(self._settings.value, self.budget, method, self._retry_rules)
        while True:
            try:
                return await self._attempt(retries, request, ends_at, metadata, span)
            except RpcError as error:
                is_shed = isinstance(error, NotProcessed) and error.is_shed_load
                has_alternative = self.balancer.has_alternative(retries.tried, with_capacity=is_shed)
                backoff = retries.backoff(error, ends_at - time.monotonic(), has_alternative)
                if backoff is None:
                    raise
                span.add_event("rpc.retry", {"error.message": error.message[:200], "backoff": backoff})
                _retries.add(1, {"rpc.service": self.service})
            await asyncio.sleep(backoff)

    async def _attempt(self, retries: Retries, request: Any, ends_at: float, metadata: Metadata, span: Span) -> Any:
        method, left = retries.method, ends_at - time.monotonic()
        with self.balancer.pick(retries.tried, method, left) as attempt:
            instance = attempt.instance
            try:
                if left < LEAST_SECONDS:
                    raise OutOfTime
                retries.tried.add(instance.endpoint)
                span.set_attribute("server.address", instance.endpoint.address)
                seconds = retries.attempt_seconds(left, self.balancer.slow_after(method))
                call = instance.connection.unary(method, request, left, metadata)
                if seconds is not None and self.balancer.has_alternative(retries.tried):
                    response = await self._timer.response(call, retries, seconds)
                else:
                    response = await call
            except RpcError as error:
                self._charge(attempt, method, error)
                raise
            self.balancer.record(attempt, method, None)
            return response

    def _charge(self, attempt: Attempt, method: Method, error: RpcError) -> None:
        """Counts a failure against the instance, but raises OutOfTime if the time of the caller was too short."""
        if error.code is grpc.StatusCode.DEADLINE_EXCEEDED and not attempt.is_fair:
            raise OutOfTime from None
        self.balancer.record(attempt, method, error)

    async def _stream(
        self,
        method: Method,
        request: Any,
        *,
        timeout: float | None = None,  # noqa: ASYNC109
        metadata: Metadata = (),
    ) -> AsyncIterator[Any]:
        seconds = remaining() if timeout is None else at_most(timeout)
        with CallTelemetry(method) as span:
            if seconds is not None and seconds < LEAST_SECONDS:
                raise OutOfTime
            sent = (*metadata, *trace_headers(span))
            responses = self._responses(method, request, seconds, sent, span)
            permit_seconds = self._settings.value.deadline_seconds if seconds is None else seconds
            try:
                first = await self._protected(permit_seconds, span, anext, responses, _END_OF_STREAM)
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
        if not self._endpoints.loaded:
            await self._wait_for_discovery(first_seconds)
        with self.balancer.pick(frozenset(), method, first_seconds) as attempt:
            span.set_attribute("server.address", attempt.instance.endpoint.address)
            stream = attempt.instance.connection.stream(method, request, seconds, metadata)
            try:
                async with aclosing(stream) as responses:
                    first = await _first(responses, ends_at)
                    self.balancer.record(attempt, method, None)
                    self.balancer.mark_as_stream(attempt)
                    if first is _END_OF_STREAM:
                        return
                    yield first
                    async for response in responses:
                        yield response
            except RpcError as error:
                self._charge(attempt, method, error)
                raise

    async def _protected(self, left: float, span: Span, work: Callable[..., Awaitable[T]], *args: Any) -> T:
        """Runs `work(*args)` with a permit and through the breaker; raises RpcError if either of them rejects it."""
        await self.bulkhead.acquire(left)
        try:
            return await self.breaker.call(work, *args)
        except BreakerOpen as rejection:
            span.add_event("breaker.rejected", {"breaker.name": rejection.name, "retry_after": rejection.retry_after})
            raise unavailable("BREAKER_OPEN", str(rejection), rejection.retry_after) from None
        except RpcError as error:
            if error.code in _RETRYABLE_BY_CALLER and error.retry_after is None:
                error.retry_after = self._settings.value.reset_seconds
            raise
        finally:
            span.set_attribute("breaker.state", self.breaker.state)
            self.bulkhead.release()

    async def _wait_for_discovery(self, seconds: float) -> None:
        """Waits briefly for the first list of instances; without one the call fails because there is no instance."""
        with suppress(TimeoutError):
            await self._endpoints.ready(min(seconds, _DISCOVERY_SECONDS))


class CallTelemetry:
    """Records the block as one call: its duration, and its span if the trace is sampled.

    The span is not made current, because the generator of a stream may end in another context than it began in.
    """

    __slots__ = ("_began", "_method", "_span")

    def __init__(self, method: Method) -> None:
        self._method = method

    def __enter__(self) -> Span:
        self._began = time.monotonic()
        self._span = start_span(self._method.name, kind=SpanKind.CLIENT, attributes=self._method.attributes)
        return self._span

    def __exit__(self, _kind: object, error: BaseException | None, _traceback: object) -> None:
        code = "OK" if error is None else error.code.name if isinstance(error, RpcError) else "CANCELLED"
        method, span = self._method, self._span
        series = method.durations.get(code)
        if series is None:
            series = method.durations[code] = _durations.series({**method.attributes, "rpc.grpc.status_code": code})
        series.record((time.monotonic() - self._began) * 1000, span)
        if span.is_recording():
            if isinstance(error, RpcError):
                span.set_attribute("error.type", error.reason)
                span.set_status(Status(StatusCode.ERROR, error.message[:200]))
            span.set_attribute("rpc.grpc.status_code", code)
        span.end()


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
