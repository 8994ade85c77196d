"""Admits a request to its route: receives the body, takes a permit and sets the deadline, in this order.

Invariant: a request holds a permit of the limiter only while a route works on it. So a slow body, or a request without
a valid token, takes no permit from others.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from functools import wraps
from typing import Any, Concatenate, ParamSpec

from sanic import HTTPResponse, Request

from chassis.deadline import deadline
from gateway.admission.request_body import receive_body
from gateway.auth.authentication import signed_in
from gateway.backend import Backend, backend_of
from gateway.http.problems import Problem
from gateway.settings import Settings

P = ParamSpec("P")
Response = Coroutine[Any, Any, HTTPResponse | None]
Route = Callable[Concatenate[Request, P], Response]
UserRoute = Callable[Concatenate[Request, str, P], Response]

_MARGIN_SECONDS = 0.2
_A_FEW = 3
_READS = frozenset({"GET", "HEAD"})


def admitted(setting: str | None, *, urgent: bool = False) -> Callable[[Route[P]], Route[P]]:
    """Limits a route to the seconds in the setting of that name, from the last byte of the body; raises TimeoutError.

    A stream (None) has no deadline. An urgent route, which makes room, may also use the reserve of the limiter.
    """
    admission = _Admission(setting, urgent=urgent)

    def decorate(route: Route[P]) -> Route[P]:
        @wraps(route)
        async def bounded(request: Request, /, *args: P.args, **kwargs: P.kwargs) -> HTTPResponse | None:
            return await admission.run(request, backend_of(request), route, *args, **kwargs)

        return bounded

    return decorate


def admitted_user(setting: str, *, urgent: bool = False) -> Callable[[UserRoute[P]], Route[P]]:
    """Admits the requests of signed-in users as `admitted` does, and passes the id of the user to the route.

    Before the body is received, it rejects a request without a valid token and what a user sends beyond
    `calls_per_user`; raises Problem or RpcError. A read beyond that is rejected as every overload is (503), because its
    client may simply repeat it; anything else with 429.
    """
    admission = _Admission(setting, urgent=urgent)

    def decorate(route: UserRoute[P]) -> Route[P]:
        @wraps(route)
        async def bounded(request: Request, user_id: str, /, *args: P.args, **kwargs: P.kwargs) -> HTTPResponse | None:
            backend = backend_of(request)
            reason = "OVERLOADED" if request.method in _READS else "TOO_MANY_REQUESTS"
            with backend.limits.call(user_id, reason):
                return await admission.run(request, backend, route, user_id, *args, **kwargs)

        return signed_in(bounded)

    return decorate


class _Admission:
    """The way of a request to its route."""

    def __init__(self, setting: str | None, *, urgent: bool) -> None:
        self._setting = setting
        self._urgent = urgent

    async def run(
        self, request: Request, backend: Backend, route: Callable[..., Response], *args: object, **kwargs: object
    ) -> HTTPResponse | None:
        settings = backend.settings.value
        if request.method not in _READS:
            await receive_body(request, settings)
        self._take_permit(request, backend, settings)
        if self._setting is None:
            return await route(request, *args, **kwargs)
        seconds: float = getattr(settings, self._setting)
        with deadline(seconds):
            # Later than the deadline of the calls: a call that is cancelled here is not counted by its breaker.
            async with asyncio.timeout(None) as timeout:
                backend.time_limits.start(timeout, seconds + _MARGIN_SECONDS)
                try:
                    return await route(request, *args, **kwargs)
                finally:
                    backend.time_limits.stop(timeout)

    def _take_permit(self, request: Request, backend: Backend, settings: Settings) -> None:
        """Takes a permit; raises Problem if the queue is too long in time, RpcError if it is too long in number.

        A few are admitted whatever the delay, so that a starved machine still answers.
        """
        app: Any = request.app
        if backend.loop_delay.seconds > settings.queue_seconds and app.limiter.in_use >= _A_FEW and not self._urgent:
            raise Problem("OVERLOADED", retry_after=settings.limiter.retry_after_seconds)
        app.admit(request, urgent=self._urgent)
