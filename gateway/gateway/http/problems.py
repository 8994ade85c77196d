"""Converts every error to an RFC 9457 problem; each reason has its own problem type.

Invariant: each reason of a service has one problem type and one page under /problems/; no internal detail is returned.
"""
# ruff: noqa: E501 - a kind a line reads as a table

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import grpc
import orjson
import structlog
from sanic import HTTPResponse, Request, exceptions
from sanic.handlers import ErrorHandler

from chassis.errors import RpcError
from gateway.http.sanic_internals import UNREADABLE_METHOD, SecuredResponse, has_unread_body

log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class Kind:
    """A type of problem: its reason inside the system, its HTTP status and its meaning for a caller."""

    reason: str
    status: int
    title: str
    meaning: str

    @property
    def name(self) -> str:
        return self.reason.lower().replace("_", "-")

    @property
    def type(self) -> str:
        return f"/problems/{self.name}"


_TABLE = (
    Kind("STALE", 200, "As of a while ago", "The service with the current data is unavailable; this is the data that it returned Age seconds ago."),
    Kind("MALFORMED", 400, "Malformed request", "The request is not valid HTTP, or its body is not valid JSON."),
    Kind("IDEMPOTENCY_KEY_MISSING", 400, "Idempotency-Key missing", "Send an Idempotency-Key header of 1 to 200 visible ASCII characters, a new one for each new order."),
    Kind("UNAUTHENTICATED", 401, "Not authenticated", "Send a valid access token: Authorization: Bearer <token>. POST /v1/sessions issues one."),
    Kind("BAD_CREDENTIALS", 401, "Wrong email or password", "Email and password do not belong together."),
    Kind("FORBIDDEN", 403, "Forbidden", "No intention of the mesh allows the calling service to send this request."),
    Kind("NOT_FOUND", 404, "Not found", "There is no resource at this path."),
    Kind("USER_UNKNOWN", 404, "Unknown user", "There is no such user."),
    Kind("ORDER_UNKNOWN", 404, "Unknown order", "You have no such order."),
    Kind("METHOD_NOT_ALLOWED", 405, "Method not allowed", "The path exists, but not for this method; the Allow header lists its methods."),
    Kind("REQUEST_TIMEOUT", 408, "Request too slow", "The request did not arrive in time."),
    Kind("EMAIL_TAKEN", 409, "Email taken", "A user with this email is registered already, perhaps in another case."),
    Kind("ORDER_CLOSED", 409, "Order closed", "The state of the order does not allow this any more."),
    Kind("CONFLICT", 409, "Changed meanwhile", "Another request changed the same resource at the same time; read it again and decide again."),
    Kind("VERSION_MISMATCH", 412, "Version mismatch", "If-Match or If-None-Match does not hold for the current version; read it again and decide again."),
    Kind("BODY_TOO_LARGE", 413, "Body too large", "The request body is larger than the gateway accepts."),
    Kind("UNSUPPORTED_MEDIA_TYPE", 415, "Unsupported media type", "Send the body as application/json."),
    Kind("EXPECTATION_FAILED", 417, "Expectation failed", "The only expectation understood is 100-continue."),
    Kind("INVALID", 422, "Invalid request", "Some fields are invalid; `errors` names each of them."),
    Kind("IDEMPOTENCY_KEY_REUSED", 422, "Idempotency-Key reused", "This key was used before with other content; a new order needs a new key."),
    Kind("TOO_MANY_REQUESTS", 429, "Too many requests", "One client may have only so many requests, watches and failed attempts to sign in; try again after Retry-After seconds."),
    Kind("HEADERS_TOO_LARGE", 431, "Headers too large", "The head of the request is larger than the gateway accepts."),
    Kind("INTERNAL", 500, "Internal error", "The server failed unexpectedly; quote the trace_id when you report it."),
    Kind("ANSWER_LOST", 502, "Answer lost", "The connection was lost before the answer; the request may have taken effect."),
    Kind("UNAVAILABLE", 503, "Temporarily unavailable", "A part of the system is temporarily unavailable; try again after Retry-After seconds."),
    Kind("HISTORY_NEWER", 503, "Written by a newer version", "A newer version of the system has written this order, and this instance cannot read it; try again after Retry-After seconds."),
    Kind("BREAKER_OPEN", 503, "Circuit open", "Calls to a failing part of the system are paused; try again after Retry-After seconds."),
    Kind("BULKHEAD_FULL", 503, "Too many calls at once", "Too many calls to a part of the system are in progress; try again after Retry-After seconds."),
    Kind("OVERLOADED", 503, "Overloaded", "The server has more requests than it can process; try again after Retry-After seconds."),
    Kind("BACKLOG", 503, "Too many open orders", "Orders are placed faster than they are completed; try again after Retry-After seconds."),
    Kind("STORAGE_FULL", 503, "Storage full", "The storage is full: nothing new can be stored, but stored data can be read. Try again after Retry-After seconds."),
    Kind("DEADLINE_EXCEEDED", 504, "Deadline exceeded", "The request was not completed in time; it may have taken effect."),
)  # fmt: skip
KINDS: Mapping[str, Kind] = {kind.reason: kind for kind in _TABLE}

_REASON_BY_CODE = {
    grpc.StatusCode.UNAVAILABLE: "UNAVAILABLE",
    grpc.StatusCode.CANCELLED: "UNAVAILABLE",
    grpc.StatusCode.RESOURCE_EXHAUSTED: "OVERLOADED",
    grpc.StatusCode.DEADLINE_EXCEEDED: "DEADLINE_EXCEEDED",
}
_REASON_BY_EXCEPTION = (
    (exceptions.NotFound, "NOT_FOUND"),
    (exceptions.MethodNotAllowed, "METHOD_NOT_ALLOWED"),
    (exceptions.PayloadTooLarge, "BODY_TOO_LARGE"),
    (exceptions.RequestTimeout, "REQUEST_TIMEOUT"),
    (exceptions.ExpectationFailed, "EXPECTATION_FAILED"),
    (exceptions.ServiceUnavailable, "DEADLINE_EXCEEDED"),
    (exceptions.BadRequest, "MALFORMED"),
    (exceptions.BadURL, "MALFORMED"),
)


@dataclass(eq=False)
class Problem(Exception):  # noqa: N818 - the term of RFC 9457
    """Ends a request; `errors` maps each invalid field to a message, `retry_after` is in seconds."""

    reason: str
    detail: str = ""
    errors: Mapping[str, str] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    retry_after: float | None = None

    @property
    def kind(self) -> Kind:
        return KINDS[self.reason]

    def response(self, request: Request) -> HTTPResponse:
        """Returns the problem as the caller sees it."""
        body: dict[str, object] = {
            "type": self.kind.type,
            "title": self.kind.title,
            "status": self.kind.status,
            "detail": self.detail or self.kind.meaning,
            "instance": request.path,
            "trace_id": request.ctx.trace_id,
        }
        if self.errors:
            body["errors"] = [{"field": name, "message": text} for name, text in self.errors.items()]
        return SecuredResponse(orjson.dumps(body), self.kind.status, self._all_headers(), "application/problem+json")

    def _all_headers(self) -> dict[str, str]:
        headers = dict(self.headers)
        if self.kind.status == 401:
            headers["www-authenticate"] = "Bearer"
        if self.kind.status in {429, 503}:
            headers["retry-after"] = str(max(1, math.ceil(self.retry_after or 1)))
        return headers


class ProblemHandler(ErrorHandler):
    """Answers every exception with a problem; logs the unexpected ones, of which the caller sees no detail."""

    def default(self, request: Request, exception: Exception) -> HTTPResponse:
        """Returns the response for an exception of a request."""
        if request.method == "OPTIONS" and isinstance(exception, exceptions.MethodNotAllowed):
            return HTTPResponse(status=204, headers=_allow(exception))
        problem = problem_of(request, exception)
        if problem.reason == "INTERNAL":
            log.error("unexpected error in a request", exc_info=exception)
        return problem.response(request)


def problem_of(request: Request, error: BaseException) -> Problem:
    """Returns the problem for an exception."""
    if isinstance(error, Problem):
        return error
    if isinstance(error, RpcError):
        return _problem_of_call(error)
    if isinstance(error, TimeoutError):
        return Problem("DEADLINE_EXCEEDED")
    if isinstance(error, exceptions.SanicException):
        return _problem_of_sanic(request, error)
    return Problem("INTERNAL")


def _problem_of_call(error: RpcError) -> Problem:
    kind = KINDS.get(error.reason)
    if kind is None:
        return Problem(_REASON_BY_CODE.get(error.code, "INTERNAL"), retry_after=error.retry_after)
    # The message of a failure may name addresses; the message of a broken rule is written for the caller.
    detail = error.message if kind.status < 500 and not error.fields else ""
    return Problem(kind.reason, detail, error.fields, retry_after=error.retry_after)


def _problem_of_sanic(request: Request, error: exceptions.SanicException) -> Problem:
    reason = next((reason for known, reason in _REASON_BY_EXCEPTION if isinstance(error, known)), "INTERNAL")
    if reason == "BODY_TOO_LARGE" and request.method == UNREADABLE_METHOD:
        reason = "HEADERS_TOO_LARGE"
    if reason == "DEADLINE_EXCEEDED" and has_unread_body(request):
        reason = "REQUEST_TIMEOUT"
    return Problem(reason, headers=_allow(error) if isinstance(error, exceptions.MethodNotAllowed) else {})


def _allow(error: exceptions.MethodNotAllowed) -> dict[str, str]:
    """Returns all methods of the path: HEAD works wherever GET does, OPTIONS everywhere."""
    methods = {*(error.allowed_methods or ()), "OPTIONS"}
    return {"allow": ", ".join(sorted(methods | ({"HEAD"} if "GET" in methods else set())))}
