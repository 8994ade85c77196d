"""A cluster for `mesh show`: Consul, Nomad and OpenBao as their clients show them, and real servers."""

from __future__ import annotations

import json
import ssl
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from types import SimpleNamespace
from typing import Any, cast

import grpc
from grpc_reflection.v1alpha import reflection
from hvac.exceptions import InvalidPath
from support.mesh.authority import TRUST_DOMAIN, Authority

from chassis.mesh.ssl_context import load_leaf
from shop.order.v1 import order_pb2
from stack.cluster.clients import Clients
from stack.mesh.operator_leaf import Leaf
from stack.mesh.overview import Overview

ORDERS = order_pb2.DESCRIPTOR.services_by_name["OrderService"].full_name
HEALTH = "grpc.health.v1.Health"
HOST = "127.0.0.1"


class Cluster:
    """Consul, Nomad and OpenBao as their clients show them, and instances of the Order Service."""

    def __init__(self) -> None:
        self.authority = Authority()
        self.mesh: dict[str, str] = dict.fromkeys(("gateway", "order-service", "user-service"), "on")
        self.intentions: dict[str, list[dict[str, Any]]] = {}
        self.settings = {"order-service": '{"mesh": {"enforce": true}}'}
        self.ports: list[int] = []
        self.gateway_ports: list[int] = []
        self.https_port = 0
        self.servers: list[grpc.Server] = []
        self.http_servers: list[ThreadingHTTPServer] = []
        self.is_sealed = False

    def instance(self, leaf: Leaf | None = None, reflects: bool = True) -> int:
        """Starts an instance that presents a leaf, that of the Order Service by default; returns its port."""
        made = leaf or self.authority.leaf("order-service")
        credentials = grpc.ssl_server_credentials([(made.key, made.chain)], made.roots, require_client_auth=True)
        return self._start(reflects, lambda server: server.add_secure_port(f"{HOST}:0", credentials))

    def gateway(self, leaf: Leaf | None = None) -> int:
        """Starts a gateway with an OpenAPI document, in the mesh if it has a leaf; returns its port."""
        self.gateway_ports.append(self.serve(leaf, of_callers=True))
        return self.gateway_ports[-1]

    def edge(self) -> int:
        """Starts the edge, which shows its certificate to anybody; returns its port."""
        self.mesh["edge"] = "on"
        self.https_port = self.serve(self.authority.leaf("edge"), of_callers=False)
        return self.https_port

    def serve(self, leaf: Leaf | None, of_callers: bool) -> int:
        """Starts an HTTP server by TLS with a leaf, or in plaintext; returns its port."""
        server = ThreadingHTTPServer((HOST, 0), Documented)
        if leaf is not None:
            context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cadata=leaf.roots.decode())
            context.verify_mode = ssl.CERT_REQUIRED if of_callers else ssl.CERT_NONE
            load_leaf(context, leaf.key, leaf.chain)
            server.socket = context.wrap_socket(server.socket, server_side=True)
        Thread(target=server.serve_forever, daemon=True).start()
        self.http_servers.append(server)
        return server.server_address[1]

    def plaintext_instance(self) -> int:
        """Starts an instance outside of the mesh."""
        return self._start(True, lambda server: server.add_insecure_port(f"{HOST}:0"))

    def _start(self, reflects: bool, bind: Any) -> int:
        server = grpc.server(ThreadPoolExecutor(2))
        if reflects:
            reflection.enable_server_reflection((ORDERS, HEALTH, reflection.SERVICE_NAME), server)
        self.ports.append(bind(server))
        self.servers.append(server)
        server.start()
        return self.ports[-1]

    @property
    def clients(self) -> Clients:
        roots = [{"ID": "3f:8f", "Active": True, "NotAfter": "2036-11-27T09:49:05Z", "RootCert": self.authority.root}]
        consul = SimpleNamespace(
            config=SimpleNamespace(list=lambda _kind: [{"Name": name} for name in self.intentions]),
            connect=SimpleNamespace(
                certificates=SimpleNamespace(list=lambda: {"TrustDomain": TRUST_DOMAIN, "Roots": roots}),
                intentions=SimpleNamespace(list_match=lambda _by, name: {name: self.intentions.get(name)}),
            ),
            health=SimpleNamespace(service=self._healthy),
            kv=SimpleNamespace(get=lambda key: (1, self._value(key))),
        )
        pki = SimpleNamespace(sign_certificate=self._sign)
        vault = SimpleNamespace(secrets=SimpleNamespace(pki=pki))
        nomad, stack = SimpleNamespace(job=Jobs(self.mesh)), SimpleNamespace(port=lambda _name: self.https_port)
        return cast(Clients, SimpleNamespace(consul=consul, vault=vault, nomad=nomad, stack=stack))

    def _healthy(self, name: str, passing: bool) -> tuple[int, list[dict[str, Any]]]:
        assert passing
        ports = {"order-service": self.ports, "gateway": self.gateway_ports}.get(name, [])
        return 1, [{"Service": {"Address": HOST, "Port": port}} for port in ports]

    def _value(self, key: str) -> dict[str, str] | None:
        found = self.settings.get(key.removeprefix("config/"))
        return {"Value": found} if found is not None else None

    def _sign(self, _name: str, csr: str, _common_name: str, mount_point: str) -> dict[str, Any]:
        if self.is_sealed:
            raise InvalidPath(f"no handler for route {mount_point}/sign/operator")
        return {"data": self.authority.signed(csr)}

    def read(self) -> dict[str, Any]:
        return Overview(self.clients).read()

    def orders(self) -> dict[str, Any]:
        """What the overview says of the Order Service."""
        (found,) = (each for each in self.read()["services"] if each["name"] == "order-service")
        return cast(dict[str, Any], found)


class Documented(BaseHTTPRequestHandler):
    """Answers with an OpenAPI document, or with the path of the request."""

    def do_GET(self) -> None:
        document: dict[str, Any] = {"paths": {"/v1/orders": {"post": {}, "get": {}}, "/livez": {"get": {}}}}
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps(document if self.path == "/openapi.json" else {"path": self.path}).encode())

    def log_message(self, *_: Any) -> None:
        """Prints nothing."""


class Jobs(dict[str, str]):
    """The jobs of Nomad, by name, with the mesh on or off."""

    def get_job(self, name: str) -> dict[str, Any]:
        task = (
            {"Env": None, "Meta": {"mesh": self[name]}}
            if name == "edge"
            else {"Env": {"MESH": self[name]}, "Meta": None}
        )
        return {"TaskGroups": [{"Tasks": [task]}]}
