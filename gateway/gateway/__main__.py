"""The gateway put together."""

from __future__ import annotations

from typing import Any, cast

from chassis import process
from chassis.calls import client
from chassis.process import Process
from gateway import app
from gateway.auth.access_tokens import Tokens
from gateway.auth.sessions import Backend
from gateway.http import http_server
from gateway.profile_cache import Profiles
from gateway.routes.health import Dependencies
from gateway.settings import Settings
from shop.order.v1.order_pb2_grpc import OrderServiceStub
from shop.user.v1.user_pb2_grpc import UserServiceStub


async def compose(process: Process[Settings]) -> None:
    settings = process.settings
    users = client.connect(process, "user-service", settings=lambda: settings.value.users)
    orders = client.connect(process, "order-service", settings=lambda: settings.value.orders)
    tokens = Tokens(process.vault, lambda: settings.value)
    health = Dependencies(process, tokens, {"user-service": users, "order-service": orders})
    process.supervise("token keys", tokens.follow)
    process.supervise("dependencies", health.follow)
    profiles = Profiles(lambda: settings.value.profiles_kept)
    stubs = _stub(UserServiceStub, users), _stub(OrderServiceStub, orders)
    backend = Backend(*stubs, tokens, health, profiles, lambda: settings.value)
    edge = app.create(backend)
    settings.on_change(edge.bound)
    await http_server.serve(edge, process)


def _stub(kind: type[Any], channel: client.Channel) -> Any:
    """A generated stub, which needs no more of a channel than `unary_unary` and `unary_stream`."""
    return kind(cast(Any, channel))


def main() -> None:
    process.run("gateway", Settings, compose)


if __name__ == "__main__":
    main()
