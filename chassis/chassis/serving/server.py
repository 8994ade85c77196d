"""The gRPC side of a service: health, reflection, interceptors for errors, telemetry and deadline, and the drain.

Invariant: health says SERVING only while every readiness probe does; a call that was accepted is finished on SIGTERM.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Sequence
from typing import TYPE_CHECKING, Any

import grpc.aio
import structlog
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_health.v1._async import HealthServicer
from grpc_reflection.v1alpha import reflection

from chassis.serving.interceptors import INTERCEPTORS, limited
from chassis.serving.limiter import Limiter, LimiterSettings

if TYPE_CHECKING:
    from chassis.process import Process

log = structlog.get_logger(__name__)

_OPTIONS = (
    # Two processes on one port would share its calls at random, which looks like a flaky network.
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
    limits: Callable[[], LimiterSettings] | None = None,
    exempt: Collection[str] = (),
) -> None:
    """Serve at the process's bind address until it is told to stop, then drain and return.

    `services` are the full names for health and reflection ("shop.user.v1.UserService"). With `limits`, calls beyond
    what answers in time are refused with RESOURCE_EXHAUSTED, but for the `exempt` methods ("/package.Service/Name"):
    those that have a queue of their own, and those that give something back.
    """
    around = limited(Limiter(process.name, limits), exempt) if limits else INTERCEPTORS
    server = grpc.aio.server(interceptors=around, options=_OPTIONS)
    register(server)
    status = _Health(process, services)
    status.add_to(server)
    _add_reflection(server, services)
    address = process.environment.bind_address
    server.add_insecure_port(address)
    await status.begin()
    await server.start()
    log.info("serving", address=address)
    watch = process.supervise("readiness", status.follow)
    await process.stopping.wait()
    watch.cancel()
    await status.fail()
    await process.until_drained()
    await server.stop(process.settings.value.grace_seconds)


class _Health:
    """grpc.health.v1 that follows the readiness of the process, for the whole server and each service."""

    def __init__(self, process: Process[Any], services: Sequence[str]) -> None:
        self._process = process
        self._services = ("", *services)
        self._servicer = HealthServicer()
        self._last: dict[str, str] = {}

    def add_to(self, server: grpc.aio.Server) -> None:
        health_pb2_grpc.add_HealthServicer_to_server(self._servicer, server)

    async def begin(self) -> None:
        """The liveness beside it asks for no more than an answer: what restarts a process must not depend on others."""
        await self._servicer.set(_LIVENESS, health_pb2.HealthCheckResponse.SERVING)
        await self.look()

    async def follow(self) -> None:
        while True:
            await asyncio.sleep(_PROBE_SECONDS)
            await self.look()

    async def look(self) -> None:
        answers = await self._process.readiness()
        if answers != self._last:
            log.info("readiness", **answers)
            self._last = answers
        ready = all(answer == "ok" for answer in answers.values())
        response = health_pb2.HealthCheckResponse
        for service in self._services:
            await self._servicer.set(service, response.SERVING if ready else response.NOT_SERVING)

    async def fail(self) -> None:
        await self._servicer.enter_graceful_shutdown()


def _add_reflection(server: grpc.aio.Server, services: Sequence[str]) -> None:
    names = (*services, health.SERVICE_NAME, reflection.SERVICE_NAME)
    reflection.enable_server_reflection(names, server)
