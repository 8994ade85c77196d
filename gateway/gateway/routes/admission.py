"""Admits a request to its route: receives the body, takes a permit and sets the deadline, in this order.

Invariant: a request holds a permit of the limiter only while a route works on it. So a slow body, or a request without
a valid token, takes no permit from others.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from functools import wraps
from typing import Any, Concatenate, ParamSpec, cast

from sanic import HTTPResponse, Request

from chassis.deadline import deadline
from gateway.admission.request_body import receive_body
from gateway.backend import backend_of
from gateway.http.gateway_app import GatewayApp
from gateway.http.problems import Problem

P = ParamSpec("P")
Response = Coroutine[Any, Any, HTTPResponse | None]
Route = Callable[Concatenate[Request, P], Response]
UserRoute = Callable[Concatenate[Request, str, P], Response]

_MARGIN_SECONDS = 0.2
_A_FEW = 3


def admitted(setting: str | None, *, urgent: bool = False) -> Callable[[Route[P]], Route[P]]:
    """Limits a route to the seconds in the setting of that name, from the last byte of the body; raises TimeoutError.

    A stream (None) has no deadline. An urgent route, which makes room, may also use the reserve of the limiter.
    """

    def decorate(route: Route[P]) -> Route[P]:
        @wraps(route)
        async def bounded(request: Request, /, *args: P.args, **kwargs: P.kwargs) -> HTTPResponse | None:
            settings = backend_of(request).settings.value
            await receive_body(request, settings)
            _admit(request, urgent=urgent)
            if setting is None:
                return await route(request, *args, **kwargs)
            seconds: float = getattr(settings, setting)
            with deadline(seconds):
                # Later than the deadline of the calls: a call that is cancelled here is not counted by its breaker.
                async with asyncio.timeout(seconds + _MARGIN_SECONDS):
                    return await route(request, *args, **kwargs)

        return bounded

    return decorate


def _admit(request: Request, *, urgent: bool) -> None:
    """Takes a permit; raises Problem if the queue is too long in time, RpcError if it is too long in number.

    A few are admitted whatever the delay, so that a starved machine still answers.
    """
    backend, app = backend_of(request), cast(GatewayApp, request.app)
    settings = backend.settings.value
    if backend.loop_delay.seconds > settings.queue_seconds and app.limiter.in_use >= _A_FEW and not urgent:
        raise Problem("OVERLOADED", retry_after=settings.limiter.retry_after_seconds)
    app.admit(request, urgent=urgent)


def limited_per_user(route: UserRoute[P]) -> UserRoute[P]:
    """Rejects what a user sends beyond `calls_per_user`, before its body is received; raises Problem.

    A read is rejected as every overload is (503), because its client may simply repeat it; anything else with 429.
    """

    @wraps(route)
    async def limited(request: Request, user_id: str, /, *args: P.args, **kwargs: P.kwargs) -> HTTPResponse | None:
        reason = "OVERLOADED" if request.method in {"GET", "HEAD"} else "TOO_MANY_REQUESTS"
        with backend_of(request).limits.call(user_id, reason):
            return await route(request, user_id, *args, **kwargs)

    return limited
