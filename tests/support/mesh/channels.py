"""gRPC channels to deployed services of the mesh: as the operator, in the name of a service, or to the health port."""

from __future__ import annotations

import re

import grpc
import grpc.aio

from chassis.mesh.names import server_name
from stack.cluster.clients import OPERATOR, Clients
from stack.mesh.dial import instances, is_on
from stack.mesh.operator_leaf import Leaf, issue

_ALLOCATION = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")


def mesh_channel(clients: Clients, service: str, as_: str = OPERATOR, address: str = "") -> grpc.Channel:
    """A channel to a healthy instance, or to the one at `address`, with a new leaf of `as_`; close it after use."""
    target = address or first_address(clients, service)
    if not is_on(clients, service):
        return grpc.insecure_channel(target)
    return grpc.secure_channel(target, caller_credentials(issue(clients, as_)), named(service))


def aio_mesh_channel(clients: Clients, service: str, as_: str = OPERATOR, address: str = "") -> grpc.aio.Channel:
    """The same for asyncio."""
    target = address or first_address(clients, service)
    if not is_on(clients, service):
        return grpc.aio.insecure_channel(target)
    return grpc.aio.secure_channel(target, caller_credentials(issue(clients, as_)), named(service))


def health_channel(clients: Clients, instance: str) -> grpc.Channel:
    """A channel without a certificate to the health port of an instance, given by its id in Consul."""
    found = _ALLOCATION.search(instance)
    assert found, f"{instance} is no allocation of Nomad"
    allocation = clients.nomad.allocation.get_allocation(found[0])
    ports = {port["Label"]: port for port in allocation["AllocatedResources"]["Shared"]["Ports"]}
    if "health" not in ports:  # the service is not in the mesh
        return grpc.insecure_channel(f"{ports['grpc']['HostIP']}:{ports['grpc']['Value']}")
    port = ports["health"]
    roots = "".join(root["RootCert"] for root in clients.consul.connect.certificates.list()["Roots"])
    credentials = grpc.ssl_channel_credentials(roots.encode())
    return grpc.secure_channel(f"{port['HostIP']}:{port['Value']}", credentials, named(allocation["JobID"]))


def first_address(clients: Clients, service: str) -> str:
    """Host and port of a healthy instance."""
    found = instances(clients, service)
    assert found, f"{service} has no healthy instance"
    return "{}:{}".format(*found[0])


def caller_credentials(leaf: Leaf) -> grpc.ChannelCredentials:
    """Mutual TLS with a leaf."""
    return grpc.ssl_channel_credentials(leaf.roots, leaf.key, leaf.chain)


def named(service: str) -> tuple[tuple[str, str]]:
    """The channel option by which the server must have the name of a service."""
    return (("grpc.ssl_target_name_override", server_name(service)),)
