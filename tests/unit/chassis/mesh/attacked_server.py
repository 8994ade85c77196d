"""A process of its own, whose standard error is followed: attacks a service of the mesh in it, prints the metric."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Callable
from typing import Any

import grpc.aio
import structlog

from chassis.mesh import handshake_failures
from chassis.telemetry import metrics

from ..echo_service import Stub
from .authority import Authority
from .mesh_under_test import Mesh, code_of

METRIC = "mesh.handshakes.failed"


async def main() -> None:
    handshake_failures.start()
    os.write(2, b"from a library\n")
    print("from Python", file=sys.stderr)
    async with Mesh().running() as mesh:
        attacks: list[Callable[[], grpc.aio.Channel]] = [
            lambda: grpc.aio.insecure_channel(mesh.address),
            lambda: mesh.with_leaf(None),
            lambda: mesh.with_leaf(Authority("foreign").leaf("gateway")),
            lambda: mesh.with_leaf(mesh.authority.leaf("gateway", seconds=-60)),
            lambda: mesh.with_leaf(mesh.authority.leaf("gateway")),
        ]
        for connect in attacks:
            async with connect() as channel:
                await code_of(lambda channel=channel: Stub(channel).read("x", timeout=3))  # type: ignore[misc]
        async with asyncio.timeout(10):
            while len(counted()) < len(attacks) - 1:
                await asyncio.sleep(0.05)
    print(json.dumps(counted()))


def counted() -> dict[str, int]:
    found: list[Any] = [each.data for each in metrics.collect(0) if each.name == METRIC]
    return {point.attributes["error.type"]: point.value for data in found for point in data.data_points}


structlog.configure(processors=[structlog.processors.JSONRenderer()])
asyncio.run(main())
