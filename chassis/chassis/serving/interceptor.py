"""The interceptor of a gRPC server: google.rpc.Status errors, server span, caller and user, deadline, limit."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection
from typing import Any

import grpc
import grpc.aio

from chassis.serving.authorization import Authorization
from chassis.serving.call_telemetry import MethodTelemetry
from chassis.serving.limiter import Limiter
from chassis.serving.method_handler import MethodHandler, MethodLimit, unknown_method


class CallInterceptor(grpc.aio.ServerInterceptor):
    """Makes the handler of each method once, at its first call; each server needs its own interceptor.

    With a limiter, `exempt` methods take no permit; `urgent` ones may also use the reserve. With an authorization, each
    call needs an allowed caller, and the user for whom it acts. Health and reflection have no span, no metric, no limit
    and no user.
    """

    def __init__(
        self,
        limiter: Limiter | None = None,
        exempt: Collection[str] = (),
        urgent: Collection[str] = (),
        authorization: Authorization | None = None,
    ) -> None:
        self._limiter = limiter
        self._authorization = authorization
        self._exempt = frozenset(exempt)
        self._urgent = frozenset(urgent)
        # Only of methods that exist: a caller must not be able to fill it.
        self._handlers: dict[str, Any] = {}
        self._unknown_method = unknown_method(authorization)

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        """Called by grpc.aio for each call."""
        path = handler_call_details.method
        known = self._handlers.get(path)
        if known is not None:
            return known
        handler = await continuation(handler_call_details)
        if handler is None:
            return self._unknown_method
        made = self._handlers[path] = self._make(handler, path)
        return made

    def _make(self, handler: Any, path: str) -> Any:
        if path.startswith("/grpc."):
            return MethodHandler(handler, path, None, self._authorization).of_bytes()
        limit = None
        if self._limiter is not None and path not in self._exempt:
            limit = MethodLimit(self._limiter, urgent=path in self._urgent)
        check_user = self._authorization.user_check(path) if self._authorization is not None else None
        telemetry = MethodTelemetry(path)
        return MethodHandler(handler, path, telemetry, self._authorization, limit, check_user=check_user).of_bytes()
