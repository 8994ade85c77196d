"""Authenticates a request: finds the user of its Bearer token."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from contextvars import ContextVar
from functools import wraps
from typing import Any, Concatenate, ParamSpec

from sanic import HTTPResponse, Request

from chassis.auth.access_token_verifier import AccessTokenVerifier
from gateway.http.problems import Problem
from shop_contract.access_tokens import Principal

P = ParamSpec("P")
Response = Coroutine[Any, Any, HTTPResponse | None]
Route = Callable[Concatenate[Request, P], Response]

_access_token: ContextVar[str] = ContextVar("access_token", default="")


def access_token() -> str:
    """Returns the verified access token of the request in progress; empty if its route needs no user."""
    return _access_token.get()


def signed_in(route: Callable[Concatenate[Request, str, P], Response]) -> Route[P]:
    """Passes the id of the signed-in user to the route; raises Problem or RpcError for a request without a valid token.

    The token is that of the request until the route ends: the next request on the connection may be of another user.
    """

    @wraps(route)
    async def authenticated(request: Request, /, *args: P.args, **kwargs: P.kwargs) -> HTTPResponse | None:
        context: Any = request.app.ctx
        user_id, token = await _authenticate(request, context.access_tokens)
        outer = _access_token.set(token)
        try:
            return await route(request, user_id, *args, **kwargs)
        finally:
            _access_token.reset(outer)

    return authenticated


async def _authenticate(request: Request, verifier: AccessTokenVerifier[Principal]) -> tuple[str, str]:
    """Returns the id of the user and the verified token."""
    scheme, _, credentials = request.headers.get("authorization", "").partition(" ")
    token = credentials.strip()
    if not token or scheme.lower() != "bearer":
        raise Problem("UNAUTHENTICATED")
    principal = verifier.known(token) or await verifier.verify(token)
    context = request.ctx
    context.credit_currency = principal.credit_currency
    context.token_expires_at = principal.expires_at
    return principal.user_id, token
