"""Requests to one gateway: in the mesh by TLS, under its own name, and its health without a certificate."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any, cast

import httpx
import pytest
from nomad.api.exceptions import URLNotFoundNomadException

from stack.cluster.clients import Clients
from stack.mesh import gateway_instance

from .deployed_mesh import HOST, Cluster

ALLOCATION = "18e8ad49-e12e-8b00-ba74-3afa153af204"
INSTANCE = f"_nomad-task-{ALLOCATION}-group-api-gateway-http"


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    made = Cluster()
    yield made
    for http in made.http_servers:
        http.shutdown()
        http.server_close()


def clients(cluster: Cluster, **ports: int) -> Clients:
    """Those of the cluster, and a Nomad that knows one allocation with these ports."""

    def get_allocation(name: str) -> dict[str, Any]:
        if name != ALLOCATION:
            raise URLNotFoundNomadException(SimpleNamespace(text="not found"))
        listed = [{"Label": label, "HostIP": HOST, "Value": value} for label, value in ports.items()]
        return {"AllocatedResources": {"Shared": {"Ports": listed}}}

    made: Any = cluster.clients
    made.nomad.allocation = SimpleNamespace(get_allocation=get_allocation)
    return cast(Clients, made)


def service(port: int, instance: str = INSTANCE) -> dict[str, Any]:
    return {"ID": instance, "Address": HOST, "Port": port}


def test_in_the_mesh_the_readiness_comes_from_the_port_of_the_checks(cluster: Cluster) -> None:
    health = cluster.serve(cluster.authority.leaf("gateway"), of_callers=False)
    found = gateway_instance.readiness(clients(cluster, http=1, health=health), service(1))
    assert found == {"path": "/readyz"}


def test_outside_of_the_mesh_it_comes_from_the_port_of_all_requests(cluster: Cluster) -> None:
    cluster.mesh["gateway"] = "off"
    assert gateway_instance.readiness(clients(cluster), service(cluster.gateway())) == {"path": "/readyz"}


def test_whoever_is_not_a_gateway_is_asked_for_nothing(cluster: Cluster) -> None:
    health = cluster.serve(cluster.authority.leaf("user-service"), of_callers=False)
    with pytest.raises(httpx.ConnectError, match="mismatch"):
        gateway_instance.readiness(clients(cluster, health=health), service(1))


@pytest.mark.parametrize("instance", ["by-hand", INSTANCE.replace("18e8", "ffff"), INSTANCE])
def test_an_instance_without_a_port_for_checks_is_an_error(cluster: Cluster, instance: str) -> None:
    with pytest.raises(ValueError, match=f"{instance} is no allocation of Nomad with a port for checks"):
        gateway_instance.readiness(clients(cluster, http=1), service(1, instance))


def test_a_client_of_the_mesh_shows_the_leaf_of_the_operator(cluster: Cluster) -> None:
    port = cluster.gateway(cluster.authority.leaf("gateway"))
    with gateway_instance.client((HOST, port), cluster.authority.leaf("operator")) as http:
        assert http.get("/v1/users/me").json() == {"path": "/v1/users/me"}
    with gateway_instance.client((HOST, port), None) as http, pytest.raises(httpx.TransportError):
        http.get("/v1/users/me")
