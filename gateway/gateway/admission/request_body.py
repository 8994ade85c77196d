"""Receives the body of a request, bounded in bytes, in time and in rate.

Invariant: a body that is too large or too slow ends its request, which has taken no permit of the limiter by then.
"""

from __future__ import annotations

import asyncio

from sanic import Request

from gateway.http.problems import Problem
from gateway.http.sanic_internals import abandon_body, end_connection, read_chunk
from gateway.settings import Settings

_FIRST_SECONDS = 2.0  # for the round trips of a distant client; after them the rate counts


async def receive_body(request: Request, settings: Settings) -> None:
    """Sets `request.body`; raises Problem. Not for GET and HEAD, whose body means nothing (RFC 9110, 9.3.1)."""
    if int(request.headers.get("content-length", 0)) > settings.body_limit_bytes:
        raise _too_large(request)
    loop, received = asyncio.get_running_loop(), bytearray()
    began = loop.time()
    try:
        async with asyncio.timeout_at(began + min(_FIRST_SECONDS, settings.body_seconds)) as timeout:
            while chunk := await read_chunk(request):
                received += chunk
                if len(received) > settings.body_limit_bytes:
                    raise _too_large(request)
                allowed = _FIRST_SECONDS + len(received) / settings.body_bytes_per_second
                timeout.reschedule(began + min(allowed, settings.body_seconds))
    except TimeoutError:
        abandon_body(request)
        raise Problem("REQUEST_TIMEOUT") from None
    request.body = bytes(received)


def _too_large(request: Request) -> Problem:
    end_connection(request)
    return Problem("BODY_TOO_LARGE")
