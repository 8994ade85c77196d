"""What stands before a route: whose request it is, and how long it may take."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass
from functools import wraps
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, Protocol, cast

from sanic import HTTPResponse, Request

from chassis.deadline import deadline
from gateway.auth.access_tokens import Tokens
from gateway.http.problems import Problem
from gateway.profile_cache import Profiles
from gateway.settings import Settings

if TYPE_CHECKING:
    from shop.order.v1.order_pb2_grpc import OrderServiceAsyncStub
    from shop.user.v1.user_pb2_grpc import UserServiceAsyncStub

P = ParamSpec("P")
_LATER_SECONDS = 0.2
Answer = Coroutine[Any, Any, HTTPResponse | None]
"""None: the route has sent it by itself."""
Route = Callable[Concatenate[Request, P], Answer]


class Health(Protocol):
    """What is known of the process and of what it depends on."""

    @property
    def draining(self) -> bool: ...

    @property
    def started(self) -> bool: ...

    async def until_draining(self) -> None: ...

    def dependencies(self) -> Mapping[str, str]: ...

    def breakers(self) -> Mapping[str, str]: ...


@dataclass(frozen=True)
class Backend:
    """Everything the routes use; `settings` gives the settings of the moment."""

    users: UserServiceAsyncStub
    orders: OrderServiceAsyncStub
    tokens: Tokens
    health: Health
    profiles: Profiles
    settings: Callable[[], Settings]


def backend(request: Request) -> Backend:
    """What `app.create` was given."""
    return cast(Backend, request.app.ctx)


def timed(setting: str) -> Callable[[Route[P]], Route[P]]:
    """Give a route as many seconds as the setting says; every call it makes shares them."""

    def around(route: Route[P]) -> Route[P]:
        @wraps(route)
        async def bounded(request: Request, /, *args: P.args, **kwargs: P.kwargs) -> HTTPResponse | None:
            seconds: float = getattr(backend(request).settings(), setting)
            with deadline(seconds):
                # Later than the deadline of the calls: a call that is cut here would tell its breaker nothing.
                async with asyncio.timeout(seconds + _LATER_SECONDS):
                    return await route(request, *args, **kwargs)

        return bounded

    return around


def signed_in(route: Callable[Concatenate[Request, str, P], Answer]) -> Route[P]:
    """Hand the id of the user behind the Bearer token to the route; refuse a request without one."""

    @wraps(route)
    async def checked(request: Request, /, *args: P.args, **kwargs: P.kwargs) -> HTTPResponse | None:
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not token:
            raise Problem("UNAUTHENTICATED")
        holder = await backend(request).tokens.holder_of(token.strip())
        request.ctx.credit_currency = holder.credit_currency
        return await route(request, holder.user_id, *args, **kwargs)

    return checked
