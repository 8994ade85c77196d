"""Streams the events of an order to a client as Server-Sent Events.

Invariant: the id of each event is a version of the order; every event is sent once, in order. One stream may use
several consecutive calls to the Order Service.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

import grpc
import orjson
import structlog
from opentelemetry import trace
from sanic import Blueprint, HTTPResponse, Request

from chassis.backoff import backoff
from chassis.errors import RpcError
from gateway.auth.authentication import signed_in
from gateway.backend import Backend, backend_of
from gateway.http import preconditions, serializers
from gateway.http.problems import Problem
from gateway.http.sanic_internals import stream_without_end
from gateway.http.schemas import LAST_EVENT_ID, last_event_id, path_id
from gateway.routes.admission import admitted
from shop.order.v1.order_pb2 import ORDER_STATUS_CANCELLED, ORDER_STATUS_REJECTED, WatchOrderRequest, WatchOrderResponse

log = structlog.get_logger(__name__)
routes = Blueprint("sse")

MEDIA_TYPE = "text/event-stream"
_HEADERS = {"x-accel-buffering": "no"}  # asks proxies not to buffer the response
_HEARTBEAT = ":\n\n"
_FINAL = {ORDER_STATUS_REJECTED, ORDER_STATUS_CANCELLED}
_RETRYABLE = {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.RESOURCE_EXHAUSTED}
_BACKOFF = (0.05, 1.0)
_STABLE_SECONDS = 5.0
Messages = AsyncGenerator[WatchOrderResponse, None]


@routes.get("/v1/orders/<order_id:str>/watch")
@signed_in
@admitted(None)
async def watch_order(request: Request, user_id: str, order_id: str) -> HTTPResponse | None:
    """Follow an order; a client whose stream has ended continues after Last-Event-ID."""
    order, after = path_id(order_id, "ORDER_UNKNOWN"), last_event_id(request)
    call = WatchOrderRequest(user_id=user_id, order_id=order, after_version=after)
    limits = backend_of(request).limits
    with limits.watch(user_id, request.ctx.client_address):
        return await _follow(request, call)


async def _follow(request: Request, call: WatchOrderRequest) -> HTTPResponse | None:
    async with aclosing(watched(backend_of(request), call)) as messages:
        first = await _first(messages)
        if first.status in _FINAL and not first.HasField("event"):
            return HTTPResponse(status=204)  # makes an EventSource stop reconnecting
        if request.method == "HEAD" or preconditions.failed(request, None):
            return HTTPResponse(headers=_HEADERS, content_type=MEDIA_TYPE)
        await _stream(request, first, messages)
    return None


async def watched(backend: Backend, call: WatchOrderRequest) -> Messages:
    """Yields the messages of a watch, and continues at another instance when one ends or fails.

    Raises RpcError if the second call fails as well before any message, later after `deadline_seconds` of failures.
    """
    attempts = _Attempts()
    while True:
        attempts.begin()
        try:
            async with aclosing(_call(backend, call)) as messages:
                async for message in messages:
                    attempts.received_any = True
                    yield message
                    call.after_version = message.version
        except RpcError as error:
            if error.code not in _RETRYABLE or not attempts.may_continue(backend.settings.value.deadline_seconds):
                raise
            log.info("watch interrupted, retrying", reason=error.reason, after_version=call.after_version)
        else:
            return
        await asyncio.sleep(next(attempts.delays))


class _Attempts:
    """Decides whether a watch calls again. A call that lasted for a while ends a series of failures."""

    def __init__(self) -> None:
        self.received_any = False
        self.delays = backoff(*_BACKOFF)
        self._began_at = 0.0
        self._failing_since: float | None = None

    def begin(self) -> None:
        self._began_at = time.monotonic()

    def may_continue(self, seconds: float) -> bool:
        """True for the first failure of a series, then for `seconds`, if any message was ever received."""
        now = time.monotonic()
        if self._failing_since is None or now - self._began_at > _STABLE_SECONDS:
            self._failing_since, self.delays = now, backoff(*_BACKOFF)
            return True
        return self.received_any and now - self._failing_since < seconds


def _call(backend: Backend, call: WatchOrderRequest) -> Messages:
    messages: Any = backend.orders.WatchOrder(call)
    return messages  # type: ignore[no-any-return]


async def _first(messages: Messages) -> WatchOrderResponse:
    try:
        return await anext(messages)
    except RpcError as error:
        if "after_version" in error.fields:
            raise Problem("INVALID", errors={LAST_EVENT_ID: error.fields["after_version"]}) from None
        raise


async def _stream(request: Request, first: WatchOrderResponse, messages: Messages) -> None:
    backend, span, events = backend_of(request), trace.get_current_span(), 0
    stream_without_end(request)
    response = await request.respond(headers=_HEADERS, content_type=MEDIA_TYPE)
    retry_milliseconds = round(backend.settings.value.watch_retry_seconds * 1000)
    try:
        await response.send(f"retry: {retry_milliseconds}\n\n{_server_sent_event(first)}")
        async with aclosing(_with_heartbeats(messages, backend, request.ctx.token_expires_at)) as paced:
            async for message in paced:
                await response.send(_server_sent_event(message) if message else _HEARTBEAT)
                events += message is not None
    except RpcError as error:
        log.warning("watch ended early, its client has to reconnect", reason=error.reason)
        span.set_attribute("error.type", error.reason)
    finally:
        span.set_attribute("watch.events", events + first.HasField("event"))


async def _with_heartbeats(
    messages: Messages, backend: Backend, expires_at: int
) -> AsyncGenerator[WatchOrderResponse | None, None]:
    """Yields each event, and None after `watch_heartbeat_seconds` without one.

    Ends when the gateway drains or the access token expires, at `expires_at` (Unix time).
    """
    draining = asyncio.ensure_future(backend.health.until_draining())
    arriving = asyncio.ensure_future(_next_event(messages))
    try:
        while not draining.done() and (left := expires_at - time.time()) > 0:
            silence = min(left, backend.settings.value.watch_heartbeat_seconds)
            await asyncio.wait({arriving, draining}, timeout=silence, return_when=asyncio.FIRST_COMPLETED)
            if arriving.done():
                message = arriving.result()
                if message is None:
                    return
                yield message
                arriving = asyncio.ensure_future(_next_event(messages))
            elif not draining.done() and time.time() < expires_at:
                yield None
    finally:
        for future in (arriving, draining):
            future.cancel()
        await asyncio.gather(arriving, draining, return_exceptions=True)


async def _next_event(messages: Messages) -> WatchOrderResponse | None:
    """Returns the next message with an event; a message without one only marks where a call began."""
    async for message in messages:
        if message.HasField("event"):
            return message
    return None


def _server_sent_event(message: WatchOrderResponse) -> str:
    """Returns the event in one line of data, which is enough because this JSON has no line breaks."""
    if not message.HasField("event"):
        return ""
    change = serializers.change(message)
    return f"id: {change['version']}\nevent: {change['type']}\ndata: {orjson.dumps(change).decode()}\n\n"
