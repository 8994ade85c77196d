"""What the routes use: stubs, caches, settings."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from sanic import Request

from chassis.auth.access_token_verifier import AccessTokenVerifier
from chassis.settings import Live
from gateway.admission.client_limits import ClientLimits
from gateway.admission.loop_delay import LoopDelay
from gateway.admission.time_limits import TimeLimits
from gateway.dependency_health import DependencyHealth
from gateway.profile_cache import ProfileCache
from gateway.settings import Settings
from shop_contract.access_tokens import Principal

if TYPE_CHECKING:  # the asyncio stubs exist for type checkers only
    from shop.order.v1.order_pb2_grpc import OrderServiceAsyncStub
    from shop.user.v1.user_pb2_grpc import UserServiceAsyncStub


@dataclass(frozen=True)
class Backend:
    """The services, caches and settings that the routes use."""

    users: UserServiceAsyncStub
    orders: OrderServiceAsyncStub
    access_tokens: AccessTokenVerifier[Principal]
    health: DependencyHealth
    profiles: ProfileCache
    limits: ClientLimits
    loop_delay: LoopDelay
    settings: Live[Settings]
    time_limits: TimeLimits = field(default_factory=TimeLimits)


def backend_of(request: Request) -> Backend:
    """Returns the backend that the request's app was created with."""
    backend: Any = request.app.ctx
    return backend  # type: ignore[no-any-return]
