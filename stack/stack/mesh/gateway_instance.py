"""Requests to one instance of the gateway, past the edge, which would choose one by itself."""

from __future__ import annotations

import re
import ssl
from typing import Any

import httpx
from nomad.api.exceptions import URLNotFoundNomadException

from chassis.mesh.names import server_name
from stack.cluster.clients import Clients
from stack.mesh import operator_leaf
from stack.mesh.dial import HOST, Address, is_on
from stack.mesh.operator_leaf import Leaf

GATEWAY = "gateway"
_SECONDS = 5
_ALLOCATION = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")


def client(address: Address, leaf: Leaf | None) -> httpx.Client:
    """Returns a client that shows a leaf of the mesh, or one that speaks plaintext; close it after use."""
    return _client(address, operator_leaf.tls_context(leaf) if leaf else None)


def readiness(clients: Clients, service: dict[str, Any]) -> Any:
    """Returns the readiness document of an instance, as Consul lists it; raises httpx.HTTPError or ValueError.

    In the mesh it comes from the port of the checks, so it needs no certificate of the operator.
    """
    address, context = (service["Address"] or HOST, service["Port"]), None
    if is_on(clients, GATEWAY):
        roots = "".join(root["RootCert"] for root in clients.consul.connect.certificates.list()["Roots"])
        address, context = health_address(clients, service["ID"]), ssl.create_default_context(cadata=roots)
    with _client(address, context) as http:
        return http.get("/readyz").json()


def health_address(clients: Clients, instance: str) -> Address:
    """Returns the address at which checks read the health of an instance in the mesh, given by its id in Consul.

    Raises ValueError if it is no allocation of Nomad with a port for them.
    """
    found = _ALLOCATION.search(instance)
    try:
        allocation = clients.nomad.allocation.get_allocation(found[0]) if found else {}
    except URLNotFoundNomadException:
        allocation = {}
    ports = allocation["AllocatedResources"]["Shared"]["Ports"] if allocation else ()
    for port in ports:
        if port["Label"] == "health":
            return port["HostIP"], port["Value"]
    raise ValueError(f"{instance} is no allocation of Nomad with a port for checks")


def _client(address: Address, context: ssl.SSLContext | None) -> httpx.Client:
    scheme, verify = ("https", context) if context else ("http", True)
    hooks: dict[str, list[Any]] = {"request": [_name] if context else []}
    url = "{}://{}:{}".format(scheme, *address)
    return httpx.Client(base_url=url, verify=verify, timeout=_SECONDS, trust_env=False, event_hooks=hooks)


def _name(request: httpx.Request) -> None:
    """Makes the server prove to be a gateway, which its address does not."""
    request.extensions = {**request.extensions, "sni_hostname": server_name(GATEWAY)}
