"""An order watched from outside: Server-Sent Events, over as many calls to the Order Service as it takes.

Invariant: the id of each event is a version of the order; none is told twice, and none is left out before the next.
"""

from __future__ import annotations

import asyncio
import json
import math
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

import grpc
import structlog
from opentelemetry import trace
from sanic import Blueprint, HTTPResponse, Request

from chassis.backoff import backoff
from chassis.errors import RpcError
from gateway.auth.sessions import Backend, backend, signed_in
from gateway.http import serializers
from gateway.http.problems import Problem
from gateway.http.schemas import LAST_EVENT_ID, last_event_id, path_id
from shop.order.v1.order_pb2 import ORDER_STATUS_CANCELLED, ORDER_STATUS_REJECTED, WatchOrderRequest, WatchOrderResponse

log = structlog.get_logger(__name__)
routes = Blueprint("watching")

MEDIA = "text/event-stream"
_HEADERS = {"x-accel-buffering": "no"}  # proxies that collect answers before they pass them on: not this one
_BEAT = ":\n\n"
_FINAL = {ORDER_STATUS_REJECTED, ORDER_STATUS_CANCELLED}
_ELSEWHERE = {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.RESOURCE_EXHAUSTED}
_PAUSES = (0.05, 1.0)
_WORKED_SECONDS = 5.0
Messages = AsyncGenerator[WatchOrderResponse, None]


@routes.get("/v1/orders/<order_id:str>/watch")
@signed_in
async def watch_order(request: Request, user_id: str, order_id: str) -> HTTPResponse | None:
    """Follow an order; a stream that has ended goes on after Last-Event-ID."""
    order, after = path_id(order_id, "ORDER_UNKNOWN"), last_event_id(request)
    here = backend(request)
    asked = WatchOrderRequest(user_id=user_id, order_id=order, after_version=after)
    async with aclosing(followed(here, asked)) as messages:
        first = await _first(messages)
        if first.status in _FINAL and not first.HasField("event"):
            return HTTPResponse(status=204)  # which tells an EventSource not to come back
        if request.method == "HEAD":
            return HTTPResponse(headers=_HEADERS, content_type=MEDIA)
        await _tell(request, first, messages)
    return None


async def followed(here: Backend, asked: WatchOrderRequest) -> Messages:
    """What the Order Service tells of an order; where an instance ends or breaks, another one goes on.

    Raises RpcError: at the start when a second instance does not do better, later after `deadline_seconds` of trying.
    """
    trouble = _Trouble()
    while True:
        trouble.calling()
        try:
            async with aclosing(_call(here, asked)) as messages:
                async for message in messages:
                    trouble.began = True
                    yield message
                    asked.after_version = message.version
        except RpcError as error:
            if error.code not in _ELSEWHERE or not trouble.worth_another(here.settings().deadline_seconds):
                raise
            log.info("watch interrupted, going on elsewhere", reason=error.reason, after=asked.after_version)
        else:
            return
        await asyncio.sleep(next(trouble.pauses))


class _Trouble:
    """How long a watch has been failing: a call that lasted for a while ends it."""

    def __init__(self) -> None:
        self.began = False
        self.pauses = backoff(*_PAUSES)
        self._called_at = 0.0
        self._failed_at: float | None = None

    def calling(self) -> None:
        self._called_at = time.monotonic()

    def worth_another(self, seconds: float) -> bool:
        """Whether to call again: once in any case, then for so long, and only if it has ever worked."""
        now = time.monotonic()
        if self._failed_at is None or now - self._called_at > _WORKED_SECONDS:
            self._failed_at, self.pauses = now, backoff(*_PAUSES)
            return True
        return self.began and now - self._failed_at < seconds


def _call(here: Backend, asked: WatchOrderRequest) -> Messages:
    call: Any = here.orders.WatchOrder(asked)
    return call  # type: ignore[no-any-return]


async def _first(messages: Messages) -> WatchOrderResponse:
    try:
        return await anext(messages)
    except RpcError as error:
        if "after_version" in error.fields:
            raise Problem("INVALID", errors={LAST_EVENT_ID: error.fields["after_version"]}) from None
        raise


async def _tell(request: Request, first: WatchOrderResponse, messages: Messages) -> None:
    here, span, told = backend(request), trace.get_current_span(), 0
    protocol: Any = request.protocol
    protocol.response_timeout = math.inf
    protocol.http.keep_alive = False  # who comes back afterwards may come back to another gateway
    response = await request.respond(headers=_HEADERS, content_type=MEDIA)
    try:
        await response.send(f"retry: {round(here.settings().watch_retry_seconds * 1000)}\n\n{_written(first)}")
        async with aclosing(_paced(messages, here)) as paced:
            async for message in paced:
                await response.send(_written(message) if message else _BEAT)
                told += message is not None
    except RpcError as error:
        log.warning("watch ended early, its caller has to come back", reason=error.reason)
        span.set_attribute("error.type", error.reason)
    finally:
        span.set_attribute("watch.events", told + first.HasField("event"))


async def _paced(messages: Messages, here: Backend) -> AsyncGenerator[WatchOrderResponse | None, None]:
    """Events as they come, None after each `watch_heartbeat_seconds` of silence; it ends when the gateway drains."""
    ending = asyncio.ensure_future(here.health.until_draining())
    coming = asyncio.ensure_future(_next(messages))
    try:
        while not ending.done():
            silence = here.settings().watch_heartbeat_seconds
            await asyncio.wait({coming, ending}, timeout=silence, return_when=asyncio.FIRST_COMPLETED)
            if coming.done():
                message = coming.result()
                if message is None:
                    return
                yield message
                coming = asyncio.ensure_future(_next(messages))
            elif not ending.done():
                yield None
    finally:
        for each in (coming, ending):
            each.cancel()
        await asyncio.gather(coming, ending, return_exceptions=True)


async def _next(messages: Messages) -> WatchOrderResponse | None:
    """The next message with an event: a call that begins anew without one says where it begins."""
    async for message in messages:
        if message.HasField("event"):
            return message
    return None


def _written(message: WatchOrderResponse) -> str:
    """A Server-Sent Event; JSON has no line breaks of its own, so one line of data is enough."""
    if not message.HasField("event"):
        return ""
    change = serializers.change(message)
    data = json.dumps(change, separators=(",", ":"), ensure_ascii=False)
    return f"id: {change['version']}\nevent: {change['type']}\ndata: {data}\n\n"
