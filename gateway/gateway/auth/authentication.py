"""Authenticates a request: finds the user of its Bearer token."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from functools import wraps
from typing import Any, Concatenate, ParamSpec

from sanic import HTTPResponse, Request

from gateway.auth.access_token_verifier import AccessTokenVerifier
from gateway.http.problems import Problem

P = ParamSpec("P")
Response = Coroutine[Any, Any, HTTPResponse | None]
Route = Callable[Concatenate[Request, P], Response]


def signed_in(route: Callable[Concatenate[Request, str, P], Response]) -> Route[P]:
    """Passes the id of the signed-in user to the route; raises Problem for a request without a valid token."""

    @wraps(route)
    async def authenticated(request: Request, /, *args: P.args, **kwargs: P.kwargs) -> HTTPResponse | None:
        context: Any = request.app.ctx
        return await route(request, await authenticate(request, context.access_tokens), *args, **kwargs)

    return authenticated


async def authenticate(request: Request, verifier: AccessTokenVerifier) -> str:
    """Returns the id of the signed-in user; raises Problem for a request without a valid token."""
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    if not token or scheme.lower() != "bearer":
        raise Problem("UNAUTHENTICATED")
    principal = verifier.known(token) or await verifier.verify(token.strip())
    context = request.ctx
    context.credit_currency = principal.credit_currency
    context.token_expires_at = principal.expires_at
    return principal.user_id
