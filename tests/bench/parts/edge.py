"""Measures the CPU time of the edge per request, beside plain Traefik and plain Envoy, and what each feature costs.

The configuration is that of the running stack, read from its Envoy; only ports and the limits of one client address
differ. Every edge forwards to the same trivial upstream, which returns one fixed answer: in plaintext, or by mutual TLS
as a gateway of the mesh does.
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
import sysconfig
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import httpx
from bench.measurement.options import options
from bench.measurement.rounds import Measurement, Visit
from bench.measurement.visits import http_visit
from bench.setup.access_tokens import TokenKey
from bench.setup.processes import Server, free_port, serving
from bench.traffic.http_client import request
from support.mesh.authority import Authority
from support.stack_under_test import RunningStack, eventually

from chassis.mesh.names import spiffe_id
from stack.mesh.operator_leaf import Leaf

Config = dict[str, Any]
TRAEFIK, ENVOY, OURS, IN_MESH = "plain Traefik", "plain Envoy", "edge", "edge in the mesh"
BODY = json.dumps({"id": "0190a000-0000-7000-8000-000000000001", "status": "confirmed", "lines": [{"sku": "tea"}] * 5})
PATH = "/v1/orders/0190a000-0000-7000-8000-000000000001"
USERS, ALL_OF_THEM = 50, 1_000_000
EDGE = "edge"  # the name of the part


def program(name: str) -> str:
    """Returns a program of this environment; raises SystemExit if it is not installed."""
    places = {"envoy": Path(sysconfig.get_path("purelib")) / "envoy" / "_bin" / "envoy"}
    path = places.get(name, Path(sysconfig.get_path("scripts")) / name)
    if not path.exists():
        sys.exit(f"{name} is not installed; install the peers of the benchmarks: uv sync --group bench")
    return str(path)


def of_the_running_stack() -> Config:
    """Returns the configuration of the stack's Envoy as JSON, from its admin socket."""
    running = RunningStack()
    (alloc,) = running.allocations("edge")
    socket = running.folder(alloc, "edge") / "secrets" / "admin.sock"
    with httpx.Client(transport=httpx.HTTPTransport(uds=str(socket)), base_url="http://admin") as admin:
        dumped = admin.get("/config_dump").raise_for_status().json()
    found: Config = next(each["bootstrap"] for each in dumped["configs"] if "bootstrap" in each)
    return found


def fixed_cluster(name: str, port: int) -> Config:
    """Returns a cluster of one instance."""
    address = {"socket_address": {"address": "127.0.0.1", "port_value": port}}
    instances = [{"lb_endpoints": [{"endpoint": {"address": address}}]}]
    return {"name": name, "type": "STATIC", "load_assignment": {"cluster_name": name, "endpoints": instances}}


class EdgeConfig:
    """Our configuration on a port of its own, with one instance; each `without_…` switches a feature off."""

    def __init__(self, found: Config, port: int, upstream: int) -> None:
        self.config, self._gateways = copy.deepcopy(found), list[Config]()
        self.config["node"] = {"id": "bench", "cluster": "bench"}
        self.config.pop("admin", None)
        listeners = {each["name"]: each for each in self._resources["listeners"]}
        listener = listeners["http"]
        self._resources["listeners"] = [listener, listeners["recorded"]]
        listener["address"]["socket_address"] |= {"address": "127.0.0.1", "port_value": port}
        self.manager: Config = listener["filter_chains"][0]["filters"][0]["typed_config"]
        for cluster in self._resources["clusters"]:
            if cluster.get("type") == "EDS":
                self._fix(cluster, upstream)
        for limit in self._limits():
            for each in (limit, *limit.get("descriptors", ())):
                each["token_bucket"] |= {"max_tokens": ALL_OF_THEM, "tokens_per_fill": ALL_OF_THEM}

    @property
    def _resources(self) -> Config:
        found: Config = self.config["static_resources"]
        return found

    def _fix(self, cluster: Config, upstream: int) -> None:
        del cluster["eds_cluster_config"]
        cluster.pop("transport_socket", None)
        cluster |= fixed_cluster(cluster["name"], upstream)
        self._gateways.append(cluster)

    @property
    def _routes(self) -> list[Config]:
        (host,) = self.manager["route_config"]["virtual_hosts"]
        found: list[Config] = host["routes"]
        return found

    def _limits(self) -> list[Config]:
        """Returns the limits of requests; that of recorded traces keeps its rate."""
        made = (each["typed_config"] for each in self.manager["http_filters"] if "ratelimit" in each["name"])
        return [limit for limit in made if limit["stat_prefix"] != "traces"]

    def _remove_filters(self, is_removed: Callable[[Config], bool]) -> None:
        self.manager["http_filters"] = [each for each in self.manager["http_filters"] if not is_removed(each)]

    def join_mesh(self, authority: Authority) -> None:
        """Makes it speak mutual TLS to the instances, which must have the certificate of a gateway."""
        name = {"san_type": "URI", "matcher": {"exact": spiffe_id("gateway", authority.trust_domain)}}
        for cluster in self._gateways:
            cluster["transport_socket"] = tls("Upstream", authority.leaf(EDGE), match_typed_subject_alt_names=[name])

    def without_limits(self) -> None:
        limits = self._limits()
        self._remove_filters(lambda each: each["typed_config"] in limits)

    def without_retries(self) -> None:
        (host,) = self.manager["route_config"]["virtual_hosts"]
        for each in (host, *(route.get("route", {}) for route in self._routes)):
            each.pop("retry_policy", None)

    def without_buffer(self) -> None:
        self._remove_filters(lambda each: "buffer" in each["name"])
        for route in self._routes:
            route.pop("typed_per_filter_config", None)

    def without_log(self) -> None:
        for listener in self._resources["listeners"]:
            listener["filter_chains"][0]["filters"][0]["typed_config"].pop("access_log", None)

    def without_traces(self) -> None:
        self._remove_filters(lambda each: each["typed_config"].get("stat_prefix") == "traces")
        (host,) = self.manager["route_config"]["virtual_hosts"]
        host["routes"] = [route for route in self._routes if route.get("route", {}).get("cluster") != "recorded"]


FEATURES: dict[str, Callable[[EdgeConfig], None]] = {
    "limits per client": EdgeConfig.without_limits,
    "retries": EdgeConfig.without_retries,
    "buffered bodies": EdgeConfig.without_buffer,
    "access log": EdgeConfig.without_log,
    "traces": EdgeConfig.without_traces,
}


@contextmanager
def envoy(config: Config, port: int) -> Iterator[Server]:
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        json.dump(config, file)
        file.flush()
        command = [program("envoy"), "--config-path", file.name, "--concurrency", "2", "--disable-hot-restart",
                   "--log-level", "error", "--use-dynamic-base-id"]  # fmt: skip
        with serving(command, port) as server:
            yield server


@contextmanager
def our_edge(found: Config, upstream: int, change: Callable[[EdgeConfig], None] | None = None) -> Iterator[Server]:
    port = free_port()
    made = EdgeConfig(found, port, upstream)
    if change:
        change(made)
    with envoy(made.config, port) as server:
        yield server


def tls(side: str, leaf: Leaf, **validation: Any) -> Config:
    """Returns the end of a connection by mutual TLS: Upstream or Downstream."""
    text = lambda pem: {"inline_string": pem.decode()}  # noqa: E731
    context = {
        "tls_params": {"tls_minimum_protocol_version": "TLSv1_3", "tls_maximum_protocol_version": "TLSv1_3"},
        "tls_certificates": [{"certificate_chain": text(leaf.chain), "private_key": text(leaf.key)}],
        "validation_context": {"trusted_ca": text(leaf.roots), **validation},
    }
    kind = f"type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.{side}TlsContext"
    found: Config = {"@type": kind, "common_tls_context": context}
    if side == "Downstream":
        found["require_client_certificate"] = True
    return {"name": "envoy.transport_sockets.tls", "typed_config": found}


@contextmanager
def plain_envoy(route: Config, clusters: list[Config], **of_connections: Config) -> Iterator[Server]:
    """An Envoy with one route for every request, and nothing else."""
    port = free_port()
    kinds = "type.googleapis.com/envoy.extensions.filters"
    router = {"name": "router", "typed_config": {"@type": f"{kinds}.http.router.v3.Router"}}
    host = {"name": "all", "domains": ["*"], "routes": [{"match": {"prefix": "/"}} | route]}
    manager = {
        "@type": f"{kinds}.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "plain",
        "http_filters": [router],
        "route_config": {"virtual_hosts": [host]},
    }
    listener = {
        "address": {"socket_address": {"address": "127.0.0.1", "port_value": port}},
        "filter_chains": [{"filters": [{"name": "http", "typed_config": manager}], **of_connections}],
    }
    with envoy({"static_resources": {"listeners": [listener], "clusters": clusters}}, port) as server:
        yield server


def upstream(**of_connections: Config) -> AbstractContextManager[Server]:
    """An Envoy that answers every request itself: it costs less than any edge in front of it."""
    return plain_envoy({"direct_response": {"status": 200, "body": {"inline_string": BODY}}}, [], **of_connections)


def forwarding(upstream: int) -> AbstractContextManager[Server]:
    """An Envoy that forwards, and does nothing else."""
    return plain_envoy({"route": {"cluster": "all"}}, [fixed_cluster("all", upstream)])


@contextmanager
def traefik(upstream: int) -> Iterator[Server]:
    """A Traefik with one router and one service, and nothing else."""
    port = free_port()
    routers = {"all": {"rule": "PathPrefix(`/`)", "service": "all", "entryPoints": ["http"]}}
    services = {"all": {"loadBalancer": {"servers": [{"url": f"http://127.0.0.1:{upstream}"}]}}}
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        # JSON is YAML, and Traefik goes by the name of the file.
        path = Path(file.name).with_suffix(".yaml")
        path.write_text(json.dumps({"http": {"routers": routers, "services": services}}))
        command = [program("traefik"), f"--entrypoints.http.address=127.0.0.1:{port}",
                   f"--providers.file.filename={path}", "--log.level=ERROR", "--global.sendanonymoususage=false",
                   "--global.checknewversion=false"]  # fmt: skip
        try:
            with serving(command, port) as server:
                yield server
        finally:
            path.unlink()


def check(name: str, server: Server, token: str) -> None:
    """Raises SystemExit unless the edge passes the answer of the upstream on."""

    def answer() -> httpx.Response | None:
        reply = httpx.get(
            f"http://{server.address}{PATH}", headers={"Authorization": f"Bearer {token}"}, timeout=20, trust_env=False
        )
        return reply if reply.status_code == httpx.codes.OK else None

    found = eventually(f"{name} forwards", answer, 20)
    if found.text != BODY:
        raise SystemExit(f"{name} answers otherwise: {found.text}")


def measure(chosen: argparse.Namespace) -> None:
    found = of_the_running_stack()
    key = TokenKey()
    tokens = [key.token() for _ in range(USERS)]
    requests = [request("GET", PATH, {"Authorization": f"Bearer {token}"}) for token in tokens]
    with ExitStack() as stack:
        behind = stack.enter_context(upstream()).port
        ways = {TRAEFIK: traefik(behind), ENVOY: forwarding(behind), OURS: our_edge(found, behind)}
        ways |= {f"edge without {name}": our_edge(found, behind, without) for name, without in FEATURES.items()}
        authority = Authority()
        gateway = tls("Downstream", authority.leaf("gateway"))
        by_tls = stack.enter_context(upstream(transport_socket=gateway)).port
        ways[IN_MESH] = our_edge(found, by_tls, lambda made: made.join_mesh(authority))
        visits: dict[str, Callable[[], Visit]] = {}
        for name, way in ways.items():
            server = stack.enter_context(way)
            check(name, server, tokens[0])
            parts = {EDGE: server.pids()}
            http_visit(server.port, parts, requests, chosen.connections, chosen.seconds)  # warms it up
            visits[name] = partial(http_visit, server.port, parts, requests, chosen.connections, chosen.seconds)
        result = Measurement.run(visits, chosen.rounds)
    print(result.table(EDGE))
    for way, peer in ((OURS, TRAEFIK), (OURS, ENVOY), (IN_MESH, OURS)):
        print(f"{way} / {peer}: {result.ratio(way, peer, lambda visit: visit.microseconds(EDGE)).text(2)}")


if __name__ == "__main__":
    parser = options("edge", rounds=5, seconds=2.0)
    parser.add_argument("--connections", type=int, default=8, help="of the closed loop (default 8)")
    measure(parser.parse_args())
