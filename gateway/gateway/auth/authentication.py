"""Authenticates a request: finds the user of its Bearer token."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from functools import wraps
from typing import Any, Concatenate, ParamSpec, cast

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
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not token:
            raise Problem("UNAUTHENTICATED")
        verifier = cast(AccessTokenVerifier, request.app.ctx.access_tokens)
        principal = await verifier.verify(token.strip())
        request.ctx.credit_currency = principal.credit_currency
        request.ctx.token_expires_at = principal.expires_at
        return await route(request, principal.user_id, *args, **kwargs)

    return authenticated
