"""The target of calls: the instances of a service or of a subset, with bulkhead, breaker, retries and balancing.

Invariant: what happens at a target has no effect on another one. A call ends within its deadline, with a response or an
RpcError; without an instance it fails immediately.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from typing import TYPE_CHECKING, Any, TypeVar

import grpc
from opentelemetry.trace import Span

from chassis.calls.balancing import Attempt, Balancer
from chassis.calls.breaker import BREAKER_RULES, AsyncBreaker, BreakerOpen, BreakerRules
from chassis.calls.bulkhead import Bulkhead
from chassis.calls.client_settings import ClientSettings
from chassis.calls.outlier_detection import EJECTION_RULES, EjectionRules
from chassis.calls.retry import LEAST_SECONDS, RETRY_RULES, AttemptTimer, Retries, RetryBudget, RetryRules
from chassis.calls.transport import Metadata, Method, NotProcessed, OutOfTime, Transport
from chassis.errors import RpcError, deadline_exceeded, unavailable
from chassis.settings import Live
from chassis.telemetry.metrics import LiveGauges, meter

if TYPE_CHECKING:
    from chassis.platform.discovery import Endpoints

T = TypeVar("T")

END_OF_STREAM: Any = object()
"""Returned in place of the first message of a stream that has none."""
_RETRYABLE_BY_CALLER = {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.RESOURCE_EXHAUSTED}
_retries = meter().create_counter("rpc.client.retries", description="attempts after the first")


class Target:
    """Makes calls to the instances in `endpoints`; `subset` is the name of the subset that they are, if any.

    A router sends calls here once the instances have been read from Consul.
    """

    def __init__(
        self,
        endpoints: Endpoints,
        settings: Live[ClientSettings],
        transport: Transport,
        subset: str = "",
        *,
        breaker_rules: BreakerRules = BREAKER_RULES,
        retry_rules: RetryRules = RETRY_RULES,
        ejection_rules: EjectionRules = EJECTION_RULES,
    ) -> None:
        self.name = endpoints.name
        self.subset = subset
        self.endpoints = endpoints
        self.bulkhead = Bulkhead(self.name, settings)
        self.breaker = AsyncBreaker(self.name, settings, rules=breaker_rules)
        self.budget = RetryBudget(settings, retry_rules.budget_size)
        self.balancer = Balancer(endpoints, transport, self.breaker.allow_probe, settings, rules=ejection_rules)
        self._settings = settings
        self._retry_rules = retry_rules
        self._timer = AttemptTimer()
        _targets.add(self)

    def stop(self) -> None:
        """Ends the watch of the instances; their connections close when the last stream has ended."""
        self.endpoints.stop()
        self.breaker.close()
        _targets.remove(self)

    async def close(self) -> None:
        """Ends the watch and closes the connections to all instances, with the calls under way."""
        await self.balancer.close()
        self.stop()

    async def unary(
        self,
        method: Method,
        request: Any,
        seconds: float,
        metadata: Metadata,
        span: Span,
        *,
        attempts: int | None = None,
    ) -> Any:
        """Returns the response to one request, due within `seconds`; `attempts` replaces the number of the settings."""
        ends_at = time.monotonic() + seconds
        retries = Retries(self._settings.value, self.budget, method, self._retry_rules, attempts)
        return await self._protected(seconds, span, self._attempts, retries, request, ends_at, metadata, span)

    async def stream(
        self, method: Method, request: Any, seconds: float | None, metadata: Metadata, span: Span
    ) -> AsyncGenerator[Any, None]:
        """Yields the responses to one request; `seconds` bounds the whole stream, None adds no limit.

        The first message is due within the setting `deadline_seconds`; the breaker counts nothing after it.
        """
        responses = self._responses(method, request, seconds, metadata, span)
        permit_seconds = self._settings.value.deadline_seconds if seconds is None else seconds
        try:
            first = await self._protected(permit_seconds, span, anext, responses, END_OF_STREAM)
            if first is not END_OF_STREAM:
                yield first
                async for response in responses:
                    yield response
        finally:
            await responses.aclose()

    async def _attempts(self, retries: Retries, request: Any, ends_at: float, metadata: Metadata, span: Span) -> Any:
        self.budget.deposit()
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
                _retries.add(1, {"rpc.service": self.name})
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

    async def _responses(
        self, method: Method, request: Any, seconds: float | None, metadata: Metadata, span: Span
    ) -> AsyncGenerator[Any, None]:
        longest = self._settings.value.deadline_seconds
        first_seconds = longest if seconds is None else min(longest, seconds)
        ends_at = asyncio.get_running_loop().time() + first_seconds
        with self.balancer.pick(frozenset(), method, first_seconds) as attempt:
            span.set_attribute("server.address", attempt.instance.endpoint.address)
            stream = attempt.instance.connection.stream(method, request, seconds, metadata)
            try:
                async with aclosing(stream) as responses:
                    first = await _first(responses, ends_at)
                    self.balancer.record(attempt, method, None)
                    self.balancer.mark_as_stream(attempt)
                    if first is END_OF_STREAM:
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


async def _first(responses: AsyncGenerator[Any, None], ends_at: float) -> Any:
    try:
        async with asyncio.timeout_at(ends_at):
            return await anext(responses, END_OF_STREAM)
    except TimeoutError:
        raise deadline_exceeded("the first message did not arrive in time") from None


_targets: LiveGauges[Target] = LiveGauges("rpc.service", lambda target: target.name)
_targets.gauge("rpc.client.retry_budget", lambda t: t.budget.available, "retries that the budget permits now")
_targets.gauge("rpc.client.retries_denied", lambda t: t.budget.denied, "retries not made because the budget was empty")
_targets.gauge("bulkhead.in_use", lambda t: t.bulkhead.in_use, "permits in use: calls under way")
_targets.gauge("bulkhead.rejected", lambda t: t.bulkhead.rejected, "calls rejected because no permit was free")
_targets.gauge("balancer.ejected", lambda t: len(t.balancer.ejected), "instances that get no calls now")
