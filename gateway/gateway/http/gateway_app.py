"""The Sanic app around the routes: limits, telemetry and security headers for every request.

Invariant: every response of this process carries `traceresponse`, also an error before a route is found (docs/adr/0015
lists the responses of the edge, some of which do not).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from sanic import Request, Sanic
from sanic.config import Config
from sanic.exceptions import RequestCancelled, ServiceUnavailable
from sanic.response import BaseHTTPResponse, HTTPResponse

from chassis.errors import is_cancelled, unavailable
from chassis.serving.limiter import Limiter, Outcome, Permit
from chassis.settings import Live
from gateway.http import preconditions
from gateway.http.header_validation import ValidatedRequest
from gateway.http.problems import Problem, ProblemHandler
from gateway.http.request_telemetry import begin_response, recorded
from gateway.http.sanic_internals import (
    SECURITY_HEADERS,
    HeadAsGetRouter,
    SecuredResponse,
    abandon_body,
    discard_body,
    has_unread_body,
)
from gateway.settings import Settings

CallerCheck = Callable[[Request], Problem | None]
_DISCARD_BYTES = 2**25
_DISCARD_SECONDS = 10.0


class GatewayApp(Sanic[Config, Any]):
    """Sanic with a limit of concurrent requests, which records each request however it ends."""

    __slots__ = ("check_caller", "limiter", "trusted_proxies")
    check_caller: CallerCheck | None
    limiter: Limiter
    trusted_proxies: tuple[str, ...]

    def apply_settings(self, settings: Settings) -> None:
        """Sets the limits of connections that are opened from now on."""
        self.config.update(
            REQUEST_MAX_SIZE=settings.body_limit_bytes,
            REQUEST_TIMEOUT=settings.request_head_seconds,
            RESPONSE_TIMEOUT=settings.response_seconds,
            KEEP_ALIVE_TIMEOUT=settings.keep_alive_seconds,
        )
        self.trusted_proxies = tuple(settings.trusted_proxies)

    async def handle_request(self, request: Request) -> None:  # fragile: sanic-handle-request
        with recorded(request):
            try:
                denied = self.check_caller(request) if self.check_caller else None
                if denied is None:
                    await super().handle_request(request)
                else:
                    await self.handle_exception(request, denied)
            except asyncio.CancelledError:
                if is_cancelled():
                    raise
                # Something that the request waited for was cancelled, not the request.
                await self.handle_exception(request, unavailable("UNAVAILABLE", "ended from within", 1.0))
            finally:
                permit: Permit | None = getattr(request.ctx, "permit", None)
                if permit is not None and not permit.released:
                    self.limiter.release(permit, Outcome.OTHER)
        if has_unread_body(request):
            await discard_body(request, _DISCARD_BYTES, _DISCARD_SECONDS)

    def admit(self, request: Request, *, urgent: bool = False) -> None:
        """Takes a permit of the limiter, which is released when the response begins; raises RpcError."""
        request.ctx.permit = self.limiter.acquire(urgent=urgent)

    async def handle_exception(  # fragile: sanic-handle-exception
        self, request: Request, exception: BaseException, run_middleware: bool = True
    ) -> None:
        if isinstance(exception, RequestCancelled):
            return  # the client has closed the connection: no error of ours, and no response can reach it
        if hasattr(request.ctx, "trace_id"):
            await super().handle_exception(request, exception, run_middleware)
        else:
            # The request failed before it could be routed: its head was too large or malformed.
            with recorded(request):
                await super().handle_exception(request, exception, run_middleware)
        if isinstance(exception, ServiceUnavailable):
            abandon_body(request)


def make(
    name: str, settings: Live[Settings], context: object, limiter: Limiter, check_caller: CallerCheck | None = None
) -> GatewayApp:
    """Creates an app without routes that follows the settings; its routes find `context` as `app.ctx`.

    `check_caller` is called before anything else is done for a request, and returns the problem that rejects it.
    """
    config = Config(env_prefix=None)
    config.update(ACCESS_LOG=False, MOTD=False)
    app = GatewayApp(
        name,
        config=config,
        ctx=context,
        router=HeadAsGetRouter(),
        error_handler=ProblemHandler(),
        request_class=ValidatedRequest,
        configure_logging=False,
    )
    app.limiter = limiter
    app.check_caller = check_caller
    app.apply_settings(settings.value)
    settings.on_change(app.apply_settings)
    app.register_middleware(_complete_response, "response")
    return app


def _complete_response(request: Request, response: BaseHTTPResponse) -> HTTPResponse | None:
    """Completes the response to a request; returns another one if that takes its place."""
    other, context = _conditional(request, response), request.ctx
    sent = response if other is None else other
    permit: Permit | None = getattr(context, "permit", None)
    if permit is not None:
        # A stream has only begun here. It no longer counts as load, and its duration is not measured.
        app: Any = request.app
        app.limiter.release(permit, _outcome(sent.status))
    begin_response(request, sent.status)
    if isinstance(sent, SecuredResponse):
        sent.traceresponse = context.traceresponse
    else:
        sent.headers["traceresponse"] = context.traceresponse
        for name, value in SECURITY_HEADERS.items():
            sent.headers.setdefault(name, value)
    return other


def _outcome(status: int) -> Outcome:
    if status < 400:
        return Outcome.ANSWERED
    return Outcome.DEADLINE if status == 504 else Outcome.OTHER


def _conditional(request: Request, response: BaseHTTPResponse) -> HTTPResponse | None:
    """Returns 304 or 412 in place of the response to a successful read, if a precondition does not hold."""
    headers = request.headers
    if response.status != 200 or (preconditions.IF_MATCH not in headers and preconditions.IF_NONE_MATCH not in headers):
        return None
    if request.method not in ("GET", "HEAD"):
        return None
    etag = response.headers.get("etag")
    status = preconditions.failed(request, etag)
    if status == 412:
        return Problem("VERSION_MISMATCH").response(request)
    return HTTPResponse(status=304, headers={"etag": etag} if etag else {}) if status == 304 else None
