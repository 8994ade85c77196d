"""Sets the deadline of a request, which all calls made for it share."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from functools import wraps
from typing import Any, Concatenate, ParamSpec

from sanic import HTTPResponse, Request

from chassis.deadline import deadline
from gateway.backend import backend_of

P = ParamSpec("P")
Route = Callable[Concatenate[Request, P], Coroutine[Any, Any, HTTPResponse | None]]

_MARGIN_SECONDS = 0.2


def timed(setting: str) -> Callable[[Route[P]], Route[P]]:
    """Limits a route to the number of seconds in the setting of that name; raises TimeoutError."""

    def decorate(route: Route[P]) -> Route[P]:
        @wraps(route)
        async def bounded(request: Request, /, *args: P.args, **kwargs: P.kwargs) -> HTTPResponse | None:
            seconds: float = getattr(backend_of(request).settings.value, setting)
            with deadline(seconds):
                # Later than the deadline of the calls: a call that is cancelled here is not counted by its breaker.
                async with asyncio.timeout(seconds + _MARGIN_SECONDS):
                    return await route(request, *args, **kwargs)

        return bounded

    return decorate
