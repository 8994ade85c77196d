"""Measures CPU and memory of gateway and Order Service with the mesh and without, and a storm of handshakes.

With `--sidecars` also a pair in plaintext behind Envoy sidecars of Consul. All run at once on the same Postgres with
their default settings, and read the same orders. The answers are compared before anything is measured, and the mesh
must refuse whom it does not know. Then calls at a fixed rate go to an Order Service while many channels to it are
opened at once.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from uuid import uuid4

import grpc
import httpx
import psutil
from bench.measurement.options import options
from bench.measurement.rounds import Measurement, Spread, Visit, abba
from bench.measurement.visits import http_visit
from bench.parts import reads
from bench.peers.sidecars import Consul, Sidecars, consul_agent, sidecars
from bench.setup.agents import Agents
from bench.setup.checkout import here
from bench.setup.mesh import Mesh
from bench.setup.order_database import order_database
from bench.setup.our_process import started
from bench.setup.processes import Server, free_port, serving
from bench.traffic.http_client import Tls, request
from bench.traffic.new_channels import Target
from bench.traffic.storm import Metadata, Storm, storm
from support.mesh.access_tokens import TokenKey
from support.mesh.channels import caller_credentials, named
from support.postgres.private_postgres import Postgres
from support.stack_under_test import eventually

from chassis.auth.acting_user import token_metadata
from chassis.mesh.names import server_name
from stack.mesh.operator_leaf import tls_context

SINK = Path(__file__).parents[1] / "setup" / "otlp_sink.py"
OFF, ON, BEHIND, SIDECARS = "mesh off", "mesh on", "behind sidecars", "sidecars"
EDGE, GATEWAY, SERVICE, CALLER, STRANGER = "edge", "gateway", "order-service", "gateway", "user-service"
USERS, ORDERS_EACH = 20, 5
LINES = [{"sku": "tea-green", "quantity": 2, "unit_price": 350}, {"sku": "cup", "quantity": 1, "unit_price": 1200}]
Headers = dict[str, str]


@dataclass(frozen=True)
class System:
    """A gateway, the Order Service that it calls, how the edge connects, and the sidecars of both if they have some."""

    gateway: Server
    orders: Server
    tls: Tls | None = None
    sidecars: Sidecars | None = None

    @property
    def port(self) -> int:
        """Where the edge connects."""
        return self.sidecars.entrance if self.sidecars else self.gateway.port

    def parts(self) -> dict[str, list[int]]:
        """The processes of each part. Call it once both serve: a child process makes the key of a certificate."""
        found = self.sidecars.pids() if self.sidecars else []
        return {GATEWAY: self.gateway.pids(), SERVICE: self.orders.pids(), SIDECARS: found}


@contextmanager
def system(
    database: Postgres, otlp: str, token_key: bytes, mesh: Mesh | None = None, consul: Consul | None = None
) -> Iterator[System]:
    """Starts both, in a mesh, behind sidecars, or without either; the Order Service applies its migrations."""
    with ExitStack() as stack:

        def start(program: str, module: str, services: Mapping[str, str]) -> Server:
            agents = Agents({program: here().settings(program)}, services, token_key, mesh)
            return stack.enter_context(started(here(), ["-m", module], agents, otlp))

        orders = start(SERVICE, "order_service", {"postgres": f"127.0.0.1:{database.port}"})
        called = free_port() if consul else orders.port
        gateway = start(GATEWAY, "gateway", {SERVICE: f"127.0.0.1:{called}"})
        if consul:
            both = stack.enter_context(sidecars(consul, (GATEWAY, gateway.port), called, (SERVICE, orders.port)))
            yield System(gateway, orders, Tls(consul.tls_context(EDGE), server_name(GATEWAY)), both)
        else:
            yield System(gateway, orders, edge_tls(mesh) if mesh else None)


def edge_tls(mesh: Mesh) -> Tls:
    """Returns how the edge of a mesh connects to a gateway."""
    return Tls(tls_context(mesh.leaf(EDGE)), server_name(GATEWAY))


def place(system: System, tokens: Sequence[str]) -> list[tuple[str, Headers]]:
    """Places some orders for each user; returns the path of each with the headers that may read it."""
    found = []
    for token in tokens:
        headers = {"Authorization": f"Bearer {token}"}
        for _ in range(ORDERS_EACH):
            body, key = {"currency": "EUR", "lines": LINES}, {"Idempotency-Key": uuid4().hex}
            placed = answered("POST", system, "/v1/orders", headers=headers | key, json=body)
            found.append((f"/v1/orders/{placed.raise_for_status().json()['id']}", headers))
    return found


def answered(method: str, system: System, path: str, **sent: Any) -> httpx.Response:
    """Sends a request again while a process that has just started does not know its keys, rules and instances yet."""
    starting = (httpx.codes.SERVICE_UNAVAILABLE, httpx.codes.FORBIDDEN)
    scheme, named = ("https", {"sni_hostname": system.tls.server_name}) if system.tls else ("http", {})

    def answer() -> httpx.Response | None:
        with httpx.Client(verify=system.tls.context if system.tls else True, timeout=20, trust_env=False) as http:
            reply = http.request(method, f"{scheme}://127.0.0.1:{system.port}{path}", extensions=named, **sent)
        return reply if reply.status_code not in starting else None

    return eventually(f"{method} {path} is served", answer, 20)


def check(systems: Mapping[str, System], orders: Sequence[tuple[str, Headers]]) -> None:
    """Raises SystemExit unless all systems return the same orders, and none without a token."""
    for path, headers in orders:
        replies = {name: answered("GET", found, path, headers=headers) for name, found in systems.items()}
        seen = [(reply.status_code, reply.json(), reply.headers.get("etag")) for reply in replies.values()]
        if seen[0][0] != httpx.codes.OK or any(each != seen[0] for each in seen):
            raise SystemExit(f"the answers differ: {seen}")
    for name, found in systems.items():
        if (reply := answered("GET", found, orders[0][0])).status_code != httpx.codes.UNAUTHORIZED:
            raise SystemExit(f"{name}: {reply.status_code} without a token")


def check_attacks(address: str, mesh: Mesh, message: bytes) -> None:
    """Raises SystemExit unless the Order Service of the mesh refuses whom it should.

    That is plaintext, a service without an intention, and the gateway without the token of a user.
    """
    stranger, caller = (caller_credentials(mesh.leaf(name)) for name in (STRANGER, CALLER))
    must_refuse(grpc.insecure_channel(address), reads.GET, message, grpc.StatusCode.UNAVAILABLE)
    channel = grpc.secure_channel(address, stranger, named(SERVICE))
    must_refuse(channel, reads.GET, message, grpc.StatusCode.PERMISSION_DENIED)
    channel = grpc.secure_channel(address, caller, named(SERVICE))
    must_refuse(channel, reads.GET, message, grpc.StatusCode.UNAUTHENTICATED)


def check_sidecars(both: Sidecars, message: bytes) -> None:
    """Raises SystemExit unless they refuse plaintext past the caller's sidecar, and a method without an intention."""
    must_refuse(grpc.insecure_channel(both.public), reads.GET, message, grpc.StatusCode.UNAVAILABLE)
    other = "/shop.order.v1.OrderService/Other"
    must_refuse(grpc.insecure_channel(both.upstream), other, message, grpc.StatusCode.PERMISSION_DENIED)


def must_refuse(channel: grpc.Channel, path: str, message: bytes, wanted: grpc.StatusCode) -> None:
    """Raises SystemExit unless a call of the path ends with this status; closes the channel."""
    with channel:
        method: Any = channel.unary_unary(path)
        error = method.future(message, timeout=20).exception()
    if not isinstance(error, grpc.RpcError) or error.code() is not wanted:
        raise SystemExit(f"the Order Service of the mesh does not answer {wanted.name}: {error}")


def target(server: Server, mesh: Mesh | None) -> Target:
    """Returns an Order Service as the gateway calls it."""
    if mesh is None:
        return Target(server.address)
    leaf, ((_, name),) = mesh.leaf(CALLER), named(SERVICE)
    return Target(server.address, name, leaf.roots.decode(), leaf.chain.decode(), leaf.key.decode())


def measure(chosen: argparse.Namespace) -> None:
    with ExitStack() as stack:
        database, port = stack.enter_context(order_database()), free_port()
        sink = stack.enter_context(serving([sys.executable, str(SINK), str(port)], port))
        key, mesh = TokenKey(), Mesh()
        meshes = {OFF: None, ON: mesh}
        consul = stack.enter_context(consul_agent(GATEWAY, SERVICE)) if chosen.sidecars else None
        kinds: dict[str, Mapping[str, Any]] = {name: {"mesh": each} for name, each in meshes.items()}
        kinds |= {BEHIND: {"consul": consul}} if consul else {}
        systems = {
            name: stack.enter_context(system(database, sink.address, key.public, **each))
            for name, each in kinds.items()
        }
        orders = place(systems[OFF], [key.token() for _ in range(USERS)])
        check(systems, orders)
        user = str(uuid4())
        messages = reads.place(systems[OFF].orders.address, user)
        check_attacks(systems[ON].orders.address, mesh, messages[0])
        for each in systems.values():
            if each.sidecars:
                check_sidecars(each.sidecars, messages[0])
        requests = [request("GET", path, headers) for path, headers in orders]
        visits: dict[str, Callable[[], Visit]] = {}
        for name, found in systems.items():
            visits[name] = partial(
                http_visit,
                found.port,
                found.parts(),
                requests,
                chosen.connections,
                chosen.seconds,
                tls=found.tls,
            )
            visits[name]()  # warms it up
        report(Measurement.run(visits, chosen.rounds))
        report_memory({name: each.parts() for name, each in systems.items()})
        targets = {name: target(systems[name].orders, each) for name, each in meshes.items()}
        report_storms(storms(targets, messages, chosen, token_metadata(key.token(user))), chosen)


def storms(
    targets: Mapping[str, Target], messages: list[bytes], chosen: argparse.Namespace, metadata: Metadata
) -> dict[str, list[Storm]]:
    """Makes storms at each target in interleaved rounds, after one that warms up."""
    found: dict[str, list[Storm]] = {name: [] for name in targets}
    for each in targets.values():
        storm(each, reads.GET, messages, chosen.rate, chosen.channels, metadata=metadata)
    for _, name in abba(list(targets), chosen.rounds):
        found[name].append(storm(targets[name], reads.GET, messages, chosen.rate, chosen.channels, metadata=metadata))
        print(".", end="", flush=True)
    print()
    return found


def report(found: Measurement) -> None:
    parts: tuple[str, ...] = (GATEWAY, SERVICE, SIDECARS) if BEHIND in found.visits else (GATEWAY, SERVICE)
    for part in parts:
        print(found.table(part))
    print(f"\n{'ratio of CPU µs per request, by round':<80} median (lowest to highest)")
    for way in [name for name in found.visits if name != OFF]:
        for counted in ((GATEWAY,), (SERVICE,), parts):
            ratio = found.ratio(way, OFF, lambda visit, counted=counted: sum(map(visit.microseconds, counted)))  # type: ignore[misc]
            title = f"{way} / {OFF}: {' + '.join(counted)}"
            print(f"{title:<80} {ratio.text(2)}")


def report_memory(systems: Mapping[str, Mapping[str, Sequence[int]]]) -> None:
    """Prints the memory of each part; in PSS a page that n processes of the machine share counts as 1/n for each."""
    print(f"\n{'MiB: PSS, RSS':<20} {GATEWAY:<16} {SERVICE:<16} {SIDECARS}")
    for name, parts in systems.items():
        found = [[psutil.Process(pid).memory_full_info() for pid in pids] for pids in parts.values()]
        sizes = [f"{sum(one.pss for one in each) >> 20}, {sum(one.rss for one in each) >> 20}" for each in found]
        print(f"{name:<20} {' '.join(f'{size:<16}' for size in sizes)}".rstrip())


def report_storms(found: Mapping[str, Sequence[Storm]], chosen: argparse.Namespace) -> None:
    count = len(next(iter(found.values())))
    print(f"\nms of the longest of {chosen.rate:g} calls a second to the {SERVICE}, {count} storms each:")
    print(f"{'':<20} {'before':<24} {f'while {chosen.channels} channels are opened':<40} until all are open")
    for name, each in found.items():
        calm, longest, lasted = (
            Spread.of([getattr(one, figure) for one in each]).text() for figure in ("calm", "longest", "lasted")
        )
        print(f"{name:<20} {calm:<24} {longest:<40} {lasted}")


if __name__ == "__main__":
    parser = options("mesh", rounds=5, seconds=2.0)
    parser.add_argument("--sidecars", action="store_true", help="also with Envoy sidecars of Consul")
    parser.add_argument("--connections", type=int, default=8, help="of the closed loop (default 8)")
    parser.add_argument("--channels", type=int, default=100, help="new channels of a storm (default 100)")
    parser.add_argument("--rate", type=float, default=50, help="calls a second during a storm (default 50)")
    measure(parser.parse_args())
