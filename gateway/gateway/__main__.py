"""Starts the gateway."""

from __future__ import annotations

from typing import Any, cast

from chassis import process
from chassis.calls import client
from chassis.process import Process
from chassis.serving.authorization import authorization_of
from gateway import composition
from gateway.admission.client_limits import ClientLimits
from gateway.admission.loop_delay import LoopDelay
from gateway.auth.access_token_verifier import AccessTokenVerifier
from gateway.auth.caller_authorization import CallerAuthorization
from gateway.backend import Backend
from gateway.dependency_health import DependencyHealth
from gateway.http import http_server
from gateway.profile_cache import ProfileCache
from gateway.settings import Settings
from shop.order.v1.order_pb2_grpc import OrderServiceStub
from shop.user.v1.user_pb2_grpc import UserServiceStub


async def compose(process: Process[Settings]) -> None:
    """Creates the parts, connects them and serves until the process stops."""
    settings = process.settings
    users = client.connect(process, "user-service", settings=settings.section(lambda now: now.users))
    orders = client.connect(process, "order-service", settings=settings.section(lambda now: now.orders))
    access_tokens = AccessTokenVerifier(process.vault, settings)
    health = DependencyHealth(process, access_tokens, {"user-service": users, "order-service": orders})
    process.supervise("token keys", access_tokens.refresh_keys)
    process.supervise("dependencies", health.probe_agents)
    stubs = _stub(UserServiceStub, users), _stub(OrderServiceStub, orders)
    limits = ClientLimits(settings.section(lambda now: now.clients))
    loop_delay = LoopDelay()
    process.supervise("event loop", loop_delay.measure)
    backend = Backend(*stubs, access_tokens, health, ProfileCache(settings), limits, loop_delay, settings)
    authorization = authorization_of(process)
    gateway_app = composition.create(backend, callers=CallerAuthorization(authorization) if authorization else None)
    await http_server.serve(gateway_app, composition.create_health, process)


def _stub(kind: type[Any], channel: client.Channel) -> Any:
    """Returns a generated stub, which needs no more of a channel than `unary_unary` and `unary_stream`."""
    return kind(cast(Any, channel))


def main() -> None:
    """Runs the gateway as this process."""
    process.run("gateway", Settings, compose)


if __name__ == "__main__":
    main()
