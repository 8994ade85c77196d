"""The mesh of the benchmarks: what its stand-in gives to a process, and storms of new channels."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import grpc
import httpx
import pytest
from bench.parts.mesh import check_attacks, check_sidecars
from bench.peers.sidecars import Sidecars
from bench.setup.agents import Agents, answering
from bench.setup.checkout import here
from bench.setup.mesh import Mesh
from bench.setup.our_process import started
from bench.setup.processes import Server
from bench.traffic.new_channels import Target
from bench.traffic.storm import Calls, storm
from support.mesh.channels import named

from chassis.mesh.identity import MeshIdentity
from chassis.mesh.intentions import Intentions
from chassis.platform.consul import ConsulClient
from chassis.platform.vault import Vault
from chassis.settings import Live, MeshSettings

PATH = "/shop.order.v1.OrderService/GetOrder"
PROGRAM = """
import http.server, json, os
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps(dict(os.environ)).encode())
host, port = os.environ["BIND_ADDRESS"].split(":")
http.server.HTTPServer((host, int(port)), Handler).serve_forever()
"""


@pytest.fixture
async def tasks() -> AsyncIterator[list[asyncio.Task[None]]]:
    """The background work of a process, which ends with the test."""
    found: list[asyncio.Task[None]] = []
    yield found
    for task in found:
        task.cancel()
    await asyncio.gather(*found, return_exceptions=True)


async def test_a_process_gets_certificate_and_rules_from_the_stand_in(
    tasks: list[asyncio.Task[None]], tmp_path: Path
) -> None:
    (tmp_path / "nomad_vault.jwt").write_text("identity of a test")

    def supervise(_: str, work: Callable[[], Awaitable[None]]) -> None:
        tasks.append(asyncio.ensure_future(work()))

    with answering(Agents({}, {}, mesh=Mesh())) as agents:
        consul, vault = ConsulClient(agents.url), Vault(agents.url, "order-service", tmp_path, supervise)
        identity, rules = MeshIdentity("order-service", vault, consul), Intentions("order-service")
        identity.start(supervise, Live(MeshSettings(leaf_seconds=3600, enforce=True)))
        tasks.append(asyncio.ensure_future(rules.follow(consul)))
        async with asyncio.timeout(20):
            await identity.ready()
            while not rules.loaded:
                await asyncio.sleep(0.01)
        assert identity.readiness() is None
        assert rules.allow("gateway", PATH)
        assert not rules.allow("user-service", PATH)
        await consul.close()
        await vault.close()


def test_a_service_without_a_file_has_no_intentions() -> None:
    assert Mesh().intentions("postgres") == {"postgres": []}


@pytest.mark.parametrize(("mesh", "switch"), [(None, "off"), (Mesh(), "on")])
def test_a_process_joins_the_mesh_of_its_agents(mesh: Mesh | None, switch: str) -> None:
    agents = Agents({}, {}, mesh=mesh)
    with started(here(), ["-c", PROGRAM], agents, "127.0.0.1:1") as server:
        environment = json.loads(httpx.get(f"http://{server.address}", trust_env=False).text)
    assert environment["MESH"] == switch
    assert environment["HEALTH_ADDRESS"] != environment["BIND_ADDRESS"]


@contextmanager
def order_service(mesh: Mesh | None) -> Iterator[Target]:
    """A server whose only method answers with the message, in plaintext or by mutual TLS."""

    class Echo(grpc.GenericRpcHandler):
        def service(self, details: grpc.HandlerCallDetails) -> Any:
            handler: Any = grpc.unary_unary_rpc_method_handler(lambda message, _: message)
            return handler if details.method == PATH else None

    server = grpc.server(ThreadPoolExecutor(4))
    server.add_generic_rpc_handlers((Echo(),))
    if mesh is None:
        port, made = server.add_insecure_port("127.0.0.1:0"), ("", "", "", "")
    else:
        own, leaf, ((_, name),) = mesh.leaf("order-service"), mesh.leaf("gateway"), named("order-service")
        credentials = grpc.ssl_server_credentials([(own.key, own.chain)], own.roots, require_client_auth=True)
        port = server.add_secure_port("127.0.0.1:0", credentials)
        made = (name, leaf.roots.decode(), leaf.chain.decode(), leaf.key.decode())
    server.start()
    yield Target(f"127.0.0.1:{port}", *made)
    server.stop(0)


@pytest.mark.parametrize("mesh", [None, Mesh()])
def test_a_storm_opens_a_connection_for_each_channel_while_calls_go_on(mesh: Mesh | None) -> None:
    with order_service(mesh) as target:
        found = storm(target, PATH, [b"a", b"b"], rate=50, count=5)
    assert found.calm > 0
    assert found.lasted > 0


@pytest.mark.parametrize(("mesh", "code"), [(None, "UNAVAILABLE"), (Mesh(), "PERMISSION_DENIED")])
def test_a_server_that_does_not_refuse_is_not_measured(mesh: Mesh | None, code: str) -> None:
    with order_service(mesh) as target, pytest.raises(SystemExit, match=code):
        check_attacks(target.address, mesh or Mesh(), b"a")


@pytest.mark.parametrize(("public", "code"), [(0, "UNAVAILABLE"), (1, "PERMISSION_DENIED")])
def test_sidecars_that_do_not_refuse_are_not_measured(public: int, code: str) -> None:
    """The public port answers plaintext, or only the one of the caller does and allows every method."""
    with order_service(None) as plain, order_service(Mesh()) as closed:
        ports = [int((plain, closed)[index].address.rpartition(":")[2]) for index in (0, public)]
        upstream, reached = (Server(cast(Any, None), port) for port in ports)
        with pytest.raises(SystemExit, match=code):
            check_sidecars(Sidecars(upstream, 0, reached), b"a")


def test_a_call_that_fails_ends_the_measurement() -> None:
    with order_service(None) as target, pytest.raises(SystemExit, match="UNIMPLEMENTED"):
        storm(target, "/shop.order.v1.OrderService/Other", [b"a"], rate=50, count=1)


def test_the_longest_call_is_of_those_in_progress_in_the_time() -> None:
    calls = Calls(50, answered=[(0.0, 0.9), (0.95, 1.25), (1.1, 1.2), (2.0, 2.8)])
    assert calls.longest(1.0, 2.0) == pytest.approx(300)
    assert calls.longest(3.0, 4.0) == 0
