"""Measures the CPU time of the gateway per GET, beside plain Sanic, beside FastAPI, and layer by layer.

Each is a real process in front of the same Order Service, which returns one fixed order. Ours runs as in a stack, with
its default settings except where the name says otherwise; the answers are compared before anything is measured.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
from bench.measurement.options import need_peers, options
from bench.measurement.rounds import Measurement, Visit
from bench.measurement.visits import http_visit
from bench.peers.fixed_order import as_json, order
from bench.setup.agents import Agents
from bench.setup.checkout import Checkout, checkouts, here
from bench.setup.our_process import started
from bench.setup.processes import Server, free_port, serving
from bench.traffic.http_client import request
from support.mesh.access_tokens import TokenKey
from support.stack_under_test import eventually

PEERS, SETUP = (Path(__file__).parents[1] / name for name in ("peers", "setup"))
PLAIN, PEER_SHARE, PEER_ALL = (
    "plain Sanic + grpc.aio",
    "FastAPI, same features, 1 %",
    "FastAPI, same features, every trace",
)
OURS, SHARE, ALL = "gateway, default settings", "gateway, 1 %", "gateway, every trace"
UNTRACED, UNLOGGED, DIRECT = "gateway, no trace", "gateway, no trace, no log", "gateway, no trace, direct stub calls"
SAMPLING: dict[str, dict[str, Any]] = {
    OURS: {},
    SHARE: {"traces_per_second": 0.0, "trace_share": 0.01},
    ALL: {"traces_per_second": 10_000.0, "trace_share": 1.0},
    UNTRACED: {"traces_per_second": 0.0, "trace_share": 0.0},
    UNLOGGED: {"traces_per_second": 0.0, "trace_share": 0.0, "log_level": "ERROR"},
}
# Beside each other: what the bars of docs/performance.md compare.
COMPARED = [
    (OURS, PLAIN),
    (SHARE, PEER_SHARE),
    (ALL, PEER_ALL),
    (ALL, UNTRACED),
    (UNTRACED, UNLOGGED),
    (UNTRACED, DIRECT),
]
USERS = 20


class Scene:
    """The processes around the measured ones: Order Service, telemetry receiver, token key."""

    def __init__(self, order_service: str, otlp: str) -> None:
        self.order_service, self.otlp, self.key = order_service, otlp, TokenKey()

    def agents(self, checkout: Checkout, **changes: Any) -> Agents:
        services = {"order-service": self.order_service, "user-service": self.order_service}
        return Agents({"gateway": checkout.settings("gateway", **changes)}, services, self.key.public)

    @contextmanager
    def gateway(self, checkout: Checkout, **changes: Any) -> Iterator[Server]:
        with started(checkout, ["-m", "gateway"], self.agents(checkout, **changes), self.otlp) as server:
            yield server

    @contextmanager
    def direct(self) -> Iterator[Server]:
        command = [str(PEERS / "gateway_with_direct_calls.py"), self.order_service]
        with started(here(), command, self.agents(here(), **SAMPLING[UNTRACED]), self.otlp) as server:
            yield server

    @contextmanager
    def peer(self, name: str, *arguments: str) -> Iterator[Server]:
        port = free_port()
        with serving([sys.executable, str(PEERS / name), str(port), self.order_service, *arguments], port) as server:
            yield server

    def fastapi(self, share: float) -> Any:
        return self.peer("fastapi_gateway.py", self.otlp, str(share), self.key.public.hex())


@contextmanager
def scene() -> Iterator[Scene]:
    """Starts what every measured process calls."""
    with ExitStack() as stack:
        ports = {name: free_port() for name in ("order_stub.py", "otlp_sink.py")}
        orders, sink = (
            stack.enter_context(serving([sys.executable, str(SETUP / name), str(port)], port))
            for name, port in ports.items()
        )
        yield Scene(orders.address, sink.address)


def ways(found: Scene, checkouts: list[Checkout]) -> dict[str, Any]:
    """Returns how each measured process is started, by name."""
    ours = {name: found.gateway(here(), **SAMPLING[name]) for name in SAMPLING}
    others = {f"gateway at {each.name}": found.gateway(each) for each in checkouts[1:]}
    return {
        PLAIN: found.peer("sanic_gateway.py"),
        OURS: ours[OURS],
        **others,
        SHARE: ours[SHARE],
        PEER_SHARE: found.fastapi(0.01),
        ALL: ours[ALL],
        PEER_ALL: found.fastapi(1.0),
        UNTRACED: ours[UNTRACED],
        UNLOGGED: ours[UNLOGGED],
        DIRECT: found.direct(),
    }


def check(name: str, server: Server, token: str) -> None:
    """Raises SystemExit unless the answers are those of the contract."""
    order_id = str(uuid4())
    url = f"http://{server.address}/v1/orders/{order_id}"
    reply = _first_answer(url, {"Authorization": f"Bearer {token}"})
    wanted = as_json(order(order_id))
    if reply.status_code != httpx.codes.OK or (reply.json(), reply.headers.get("etag")) != (wanted, '"2"'):
        raise SystemExit(f"{name} answers otherwise: {reply.status_code} {reply.text}")
    if name != PLAIN and httpx.get(url, timeout=20).status_code not in {401, 403}:
        raise SystemExit(f"{name} answers without a token")


def _first_answer(url: str, headers: dict[str, str]) -> httpx.Response:
    """Reads again while a process that has just started does not know its keys and instances yet."""

    def answer() -> httpx.Response | None:
        reply = httpx.get(url, headers=headers, timeout=20)
        return reply if reply.status_code != httpx.codes.SERVICE_UNAVAILABLE else None

    return eventually(f"{url} is served", answer, 20)


def measure(chosen: argparse.Namespace) -> None:
    with ExitStack() as stack:
        found = stack.enter_context(scene())
        tokens = [found.key.token() for _ in range(USERS)]
        headers = [{"Authorization": f"Bearer {token}"} for token in tokens]
        requests = [request("GET", f"/v1/orders/{uuid4()}", header) for header in headers * 5]
        visits: dict[str, Callable[[], Visit]] = {}
        for name, way in ways(found, stack.enter_context(checkouts(chosen.against))).items():
            if chosen.only and not any(word in name for word in chosen.only):
                continue
            server = stack.enter_context(way)
            check(name, server, tokens[0])
            parts = {"gateway": server.pids()}
            http_visit(server.port, parts, requests, chosen.connections, chosen.seconds)  # warms it up
            visits[name] = partial(http_visit, server.port, parts, requests, chosen.connections, chosen.seconds)
        report(Measurement.run(visits, chosen.rounds))


def report(found: Measurement) -> None:
    print(found.table("gateway"))
    print(f"\n{'ratio of CPU µs per request, by round':<80} median (lowest to highest)")
    others = [(OURS, name) for name in found.visits if name.startswith("gateway at ")]
    for name, other in COMPARED + others:
        if not {name, other} <= found.visits.keys():
            continue
        ratio = found.ratio(name, other, lambda visit: visit.microseconds("gateway"))
        print(f"{name + ' / ' + other:<80} {ratio.text(2)}")


if __name__ == "__main__":
    parser = options("gateway", rounds=5, seconds=2.0, against="also measure the gateway of an earlier commit")
    parser.add_argument("--connections", type=int, default=8, help="of the closed loop (default 8)")
    parser.add_argument("--only", nargs="+", metavar="WORD", help="only those whose name has one of these words")
    arguments = parser.parse_args()
    need_peers("fastapi", "uvicorn", "pythonjsonlogger", "circuitbreaker", "opentelemetry.instrumentation")
    measure(arguments)
