"""The gRPC server of a service: mutual TLS, the interceptor of each call, reflection, and the drain after SIGTERM.

Invariant: health is SERVING only while every readiness probe passes; an accepted call is finished after SIGTERM.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import grpc.aio
import structlog
from grpc_health.v1 import health
from grpc_reflection.v1alpha import reflection

from chassis.auth.acting_user import Rules
from chassis.mesh.identity import MeshIdentity
from chassis.mesh.tls import server_credentials
from chassis.serving.authorization import Users, authorization_of
from chassis.serving.health import HealthService
from chassis.serving.interceptor import CallInterceptor
from chassis.serving.limiter import Limiter, LimiterSettings

if TYPE_CHECKING:
    from chassis.auth.access_token_verifier import TokenFormat
    from chassis.process import Process
    from chassis.settings import Live

log = structlog.get_logger(__name__)

_OPTIONS = (
    # Two processes on one port would share its calls at random, which looks like an unreliable network.
    ("grpc.so_reuseport", 0),
    ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 5_000),
)
# A certificate lasts an hour; a caller that keeps its connection for longer has to show a valid one again. What is in
# progress then, goes on.
_MESH_OPTIONS = (("grpc.max_connection_age_ms", 3_600_000),)


@dataclass(frozen=True)
class ActingUsers:
    """The user for whom each method of a server acts, and what the access tokens look like that prove it."""

    rules: Rules
    token_format: TokenFormat[Any]


async def serve(
    process: Process[Any],
    register: Callable[[grpc.aio.Server], None],
    services: Sequence[str],
    *,
    limiter_settings: Live[LimiterSettings] | None = None,
    exempt: Collection[str] = (),
    urgent: Collection[str] = (),
    users: ActingUsers | None = None,
) -> None:
    """Serves at the bind address of the process until SIGTERM, then drains and returns.

    `services` are the full names for health and reflection ("shop.user.v1.UserService"). With `limiter_settings`,
    calls beyond the concurrency limit fail with RESOURCE_EXHAUSTED. The `exempt` methods ("/package.Service/Name")
    are not limited, because they have a queue of their own; the `urgent` ones, which free resources, have a reserve.
    In a mesh each caller needs a certificate and an intention, and the user's access token where `users` says so; a
    server without methods of its own needs no `users`. The health is at an address of its own. Returns at once if
    SIGTERM comes before the first certificate.
    """
    limiter = Limiter(process.name, limiter_settings) if limiter_settings else None
    if not await process.wait_for_mesh():
        return
    identity = process.join_mesh()
    interceptor = CallInterceptor(limiter, exempt, urgent, authorization_of(process, _checked(process, users)))
    options = _OPTIONS if identity is None else (*_OPTIONS, *_MESH_OPTIONS)
    server = grpc.aio.server(interceptors=(interceptor,), options=options)
    register(server)
    health_service = HealthService(process, services)
    reflection.enable_server_reflection((*services, health.SERVICE_NAME, reflection.SERVICE_NAME), server)
    servers = [server, *await _bind(process, identity, server, health_service)]
    await health_service.start()
    for each in servers:
        await each.start()
    log.info("serving", address=process.environment.bind_address, mesh=identity is not None)
    following = process.supervise("readiness", health_service.follow)
    await process.stopping.wait()
    following.cancel()
    await health_service.stop()
    await process.wait_for_drain()
    grace = process.settings.value.grace_seconds
    await asyncio.gather(*(each.stop(grace) for each in servers))


def _checked(process: Process[Any], users: ActingUsers | None) -> Users | None:
    """Returns the rules, and the verifier of access tokens with current keys; None where there is no mesh."""
    if users is None or process.join_mesh() is None:
        return None
    from chassis.auth.access_token_verifier import AccessTokenVerifier  # noqa: PLC0415 - 9 MiB, for the mesh alone

    verifier = AccessTokenVerifier(process.vault, users.token_format, process.settings)
    process.supervise("token keys", verifier.refresh_keys)
    process.add_readiness("token keys", verifier.readiness)
    return users.rules, verifier


async def _bind(
    process: Process[Any], identity: MeshIdentity | None, server: grpc.aio.Server, health_service: HealthService
) -> Sequence[grpc.aio.Server]:
    """Binds the server; returns the server of the health if that is another one."""
    environment = process.environment
    if identity is None:
        health_service.add_to(server)
        server.add_insecure_port(environment.bind_address)
        return ()
    server.add_secure_port(environment.bind_address, server_credentials(identity, of_callers=True))
    health_server = grpc.aio.server(interceptors=(CallInterceptor(),), options=_OPTIONS)
    health_service.add_to(health_server)
    health_server.add_secure_port(environment.health_address, server_credentials(identity, of_callers=False))
    return (health_server,)
