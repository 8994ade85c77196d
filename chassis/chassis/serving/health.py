"""The health of a server by grpc.health.v1, from the readiness of its process.

In a mesh it has a server of its own: the checks of Nomad and Consul have no certificate, and see nothing else.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import grpc.aio
import structlog
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

if TYPE_CHECKING:
    from chassis.process import Process

log = structlog.get_logger(__name__)

_PROBE_SECONDS = 1.0
_LIVENESS = "liveness"


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
