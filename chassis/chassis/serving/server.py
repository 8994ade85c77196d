"""The gRPC server of a service: health, reflection, the interceptor of each call, and the drain after SIGTERM.

Invariant: health is SERVING only while every readiness probe passes; an accepted call is finished after SIGTERM.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Sequence
from typing import TYPE_CHECKING, Any

import grpc.aio
import structlog
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from chassis.serving.interceptor import CallInterceptor
from chassis.serving.limiter import Limiter, LimiterSettings

if TYPE_CHECKING:
    from chassis.process import Process
    from chassis.settings import Live

log = structlog.get_logger(__name__)

_OPTIONS = (
    # Two processes on one port would share its calls at random, which looks like an unreliable network.
    ("grpc.so_reuseport", 0),
    ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 5_000),
)
_PROBE_SECONDS = 1.0
_LIVENESS = "liveness"


async def serve(
    process: Process[Any],
    register: Callable[[grpc.aio.Server], None],
    services: Sequence[str],
    *,
    limiter_settings: Live[LimiterSettings] | None = None,
    exempt: Collection[str] = (),
    urgent: Collection[str] = (),
) -> None:
    """Serves at the bind address of the process until SIGTERM, then drains and returns.

    `services` are the full names for health and reflection ("shop.user.v1.UserService"). With `limiter_settings`,
    calls beyond the concurrency limit fail with RESOURCE_EXHAUSTED. The `exempt` methods ("/package.Service/Name")
    are not limited, because they have a queue of their own; the `urgent` ones, which free resources, have a reserve.
    """
    limiter = Limiter(process.name, limiter_settings) if limiter_settings else None
    server = grpc.aio.server(interceptors=(CallInterceptor(limiter, exempt, urgent),), options=_OPTIONS)
    register(server)
    health_service = HealthService(process, services)
    health_service.add_to(server)
    reflection.enable_server_reflection((*services, health.SERVICE_NAME, reflection.SERVICE_NAME), server)
    address = process.environment.bind_address
    server.add_insecure_port(address)
    await health_service.start()
    await server.start()
    log.info("serving", address=address)
    following = process.supervise("readiness", health_service.follow)
    await process.stopping.wait()
    following.cancel()
    await health_service.stop()
    await process.wait_for_drain()
    await server.stop(process.settings.value.grace_seconds)


class HealthService:
    """grpc.health.v1: reports the readiness of the process for the whole server ("") and for each service.

    The additional service name "liveness" is always SERVING: a check that restarts the process must not fail because
    a dependency does.
    """

    def __init__(self, process: Process[Any], services: Sequence[str]) -> None:
        self._process = process
        self._services = ("", *services)
        self._servicer = health.aio.HealthServicer()
        self._last: dict[str, str] = {}

    def add_to(self, server: grpc.aio.Server) -> None:
        """Registers the health service at a server that has not started."""
        health_pb2_grpc.add_HealthServicer_to_server(self._servicer, server)

    async def start(self) -> None:
        """Sets the first status of each service; call it before the server starts."""
        await self._servicer.set(_LIVENESS, health_pb2.HealthCheckResponse.SERVING)
        await self.update()

    async def follow(self) -> None:
        """Updates the status at a fixed interval, without end."""
        while True:
            await asyncio.sleep(_PROBE_SECONDS)
            await self.update()

    async def update(self) -> None:
        """Runs the readiness probes and sets the status; logs the results when they change."""
        results = await self._process.readiness()
        if results != self._last:
            log.info("readiness changed", **results)
            self._last = results
        ready = all(result == "ok" for result in results.values())
        response = health_pb2.HealthCheckResponse
        for service in self._services:
            await self._servicer.set(service, response.SERVING if ready else response.NOT_SERVING)

    async def stop(self) -> None:
        """Sets NOT_SERVING for good."""
        await self._servicer.enter_graceful_shutdown()
