"""Compares the same read of an order as gRPC and as REST with JSON, between the same two processes.

The server has grpc.aio and Sanic, which this system uses. The client has grpc.aio, and for REST aiohttp, which is fast,
or httpx, which this system uses. One order has one line, the other has a hundred.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import httpx
from bench.measurement.cpu import cpu_seconds
from bench.measurement.options import need_peers, options
from bench.measurement.rounds import Measurement, Visit
from bench.peers.fixed_order import as_json, order
from bench.setup.processes import Server, free_port, serving
from bench.traffic.byte_counter import counting
from bench.traffic.grpc_load import call

from shop.order.v1.order_pb2 import GetOrderRequest, GetOrderResponse

PEERS = Path(__file__).parents[1] / "peers"
LINES, REST = (1, 100), ("aiohttp", "httpx")
GET = "/shop.order.v1.OrderService/GetOrder"
CLIENT, SERVER = "client", "server"


def client(way: str, port: int, lines: int, callers: int, seconds: float) -> dict[str, Any]:
    """Runs the client process, and returns what it has measured."""
    words = [str(PEERS / "grpc_rest_client.py"), way, str(port), str(lines), str(callers), str(seconds)]
    env = {"PYTHONPATH": str(PEERS.parents[1]), "PATH": "/usr/bin:/bin"}
    done = subprocess.run([sys.executable, *words], capture_output=True, text=True, check=False, env=env)
    if done.returncode:
        raise SystemExit(done.stderr[-2000:])
    found: dict[str, Any] = json.loads(done.stdout)
    return found


class Reads:
    """Visits of one way, which keep the latencies beside the CPU time."""

    def __init__(self, server: Server, way: str, port: int, lines: int, chosen: argparse.Namespace) -> None:
        self._server = server
        self._run = partial(client, way, port, lines, chosen.callers)
        self._seconds = chosen.seconds
        self.latencies: list[float] = []

    def visit(self) -> Visit:
        pids = self._server.pids()
        before = cpu_seconds(pids)
        found = self._run(self._seconds)
        self.latencies += found["latencies"]
        used = {CLIENT: float(found["cpu"]), SERVER: cpu_seconds(pids) - before}
        return Visit(found["requests"], found["seconds"], used)

    def milliseconds(self, share: float) -> float:
        return statistics.quantiles(self.latencies, n=1000)[round(share * 1000) - 1] * 1000


def bytes_of_a_read(way: str, port: int, lines: int) -> tuple[int, int]:
    """Bytes on the wire of one read on a connection that is in use: sent and received."""

    def counted(seconds: float) -> tuple[int, int, int]:
        with counting(port) as counter:
            found = client(way, counter.port, lines, 1, seconds)
        return counter.sent, counter.received, int(found["requests"])

    # The difference of two runs leaves the opening of the connection out.
    (sent, received, few), (more_sent, more_received, many) = counted(0.2), counted(1.0)
    return round((more_sent - sent) / (many - few)), round((more_received - received) / (many - few))


def check(grpc_port: int, rest_port: int) -> None:
    """Raises SystemExit unless both return the same order."""
    for lines in LINES:
        wanted = as_json(order(str(lines), lines))
        asked = GetOrderRequest(order_id=str(lines)).SerializeToString()
        one = as_json(GetOrderResponse.FromString(call(f"127.0.0.1:{grpc_port}", GET, asked)).order)
        other = httpx.get(f"http://127.0.0.1:{rest_port}/v1/orders/{lines}", timeout=10).json()
        if not one == other == wanted:
            raise SystemExit(f"the answers differ: {one} and {other}")


def measure(chosen: argparse.Namespace) -> None:
    grpc_port, rest_port = free_port(), free_port()
    ports = {"grpc": grpc_port, **dict.fromkeys(REST, rest_port)}
    words = [str(PEERS / "grpc_rest_server.py"), str(grpc_port), str(rest_port)]
    with serving([sys.executable, *words], rest_port) as server:
        check(grpc_port, rest_port)
        reads = {f"{way}, {lines} lines": Reads(server, way, ports[way], lines, chosen)
                 for lines in LINES for way in ports}  # fmt: skip
        ways: dict[str, Callable[[], Visit]] = {name: each.visit for name, each in reads.items()}
        found = Measurement.run(ways, chosen.rounds)
        print(found.table(SERVER))
        print(found.table(CLIENT))
        for name, each in reads.items():
            print(f"{name:<44} p50 {each.milliseconds(0.5):.2f} ms, p99 {each.milliseconds(0.99):.2f} ms")
        for lines in LINES:
            for way, port in ports.items():
                sent, received = bytes_of_a_read(way, port, lines)
                print(f"{f'{way}, {lines} lines':<44} {sent:,} bytes sent, {received:,} bytes received per read")
            for way, part in itertools.product(REST, (SERVER, CLIENT)):
                names = f"{way}, {lines} lines", f"grpc, {lines} lines"
                ratio = found.ratio(*names, lambda visit, part=part: visit.microseconds(part))  # type: ignore[misc]
                print(f"{f'{names[0]} / {names[1]}, {part}':<44} {ratio.text(2)}")


if __name__ == "__main__":
    parser = options("grpc-rest", rounds=4, seconds=2.0)
    parser.add_argument("--callers", type=int, default=8, help="concurrent reads (default 8)")
    chosen = parser.parse_args()
    need_peers("aiohttp")
    measure(chosen)
