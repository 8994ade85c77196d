"""What a program of the node can try at the port of a gateway, past the edge, and how it fails."""

from __future__ import annotations

import ssl
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import httpx
import pytest
from support.kv_settings import changed_settings
from support.mesh.bad_leaves import ended_leaf, foreign_leaf, trust_domain
from support.mesh.intentions import without_source
from support.stack_under_test import RunningStack, eventually
from support.traffic.api_user import ApiUser

from chassis.mesh.names import spiffe_id
from stack.mesh import gateway_instance
from stack.mesh.dial import Address, instances
from stack.mesh.operator_leaf import Leaf, issue

ME = "/v1/users/me"
OK, FORBIDDEN = httpx.codes.OK, httpx.codes.FORBIDDEN
OTHERS = ("gateway", "order-service", "user-service")


def gateways(running: RunningStack) -> list[Address]:
    found = instances(running.clients, "gateway")
    assert found
    return found


@contextmanager
def callers(running: RunningStack, leaf: Leaf | None) -> Iterator[list[httpx.Client]]:
    """A client of each gateway, which shows a leaf, or speaks plaintext."""
    clients = [gateway_instance.client(address, leaf) for address in gateways(running)]
    try:
        yield clients
    finally:
        for client in clients:
            client.close()


def statuses(clients: list[httpx.Client], path: str, headers: dict[str, str] | None = None) -> set[int]:
    return {client.get(path, headers=headers).status_code for client in clients}


def is_refused(client: httpx.Client, user: ApiUser) -> bool:
    try:
        client.get(ME, headers=user.headers)
    except httpx.TransportError:
        return True
    return False


@pytest.mark.parametrize("attack", ["plaintext", "a certificate of a foreign authority", "one that has ended"])
def test_without_a_valid_certificate_no_request_is_answered(running: RunningStack, user: ApiUser, attack: str) -> None:
    """Not even with the token of a user."""
    leaves: dict[str, Callable[[], Leaf | None]] = {
        "plaintext": lambda: None,
        "a certificate of a foreign authority": lambda: foreign_leaf(running.clients, "edge"),
        "one that has ended": lambda: ended_leaf(running.clients, "edge"),
    }
    with callers(running, leaves[attack]()) as clients:
        assert [is_refused(client, user) for client in clients] == [True] * len(clients)


def test_without_any_certificate_no_request_is_answered(running: RunningStack, user: ApiUser) -> None:
    context = ssl.create_default_context(cadata=issue(running.clients).roots.decode())
    for address in gateways(running):
        url, name = "https://{}:{}".format(*address), {"sni_hostname": "gateway.mesh"}
        with httpx.Client(base_url=url, verify=context) as client, pytest.raises(httpx.TransportError):
            client.get(ME, headers=user.headers, extensions=name)


def test_the_edge_and_the_operator_are_answered(running: RunningStack, user: ApiUser) -> None:
    """The control: the addresses are right, and the gateways serve."""
    for name in ("edge", "operator"):
        with callers(running, issue(running.clients, name)) as clients:
            assert statuses(clients, ME, headers=user.headers) == {OK}


@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.parametrize("path", ["/livez", ME, "/docs", "/nowhere"])
def test_another_service_gets_a_problem_whatever_it_asks_for(
    running: RunningStack, user: ApiUser, name: str, path: str
) -> None:
    with callers(running, issue(running.clients, name)) as clients:
        for client in clients:
            reply = client.get(path, headers=user.headers)
            problem = reply.json()
            assert (reply.status_code, problem["type"], problem["instance"]) == (FORBIDDEN, "/problems/forbidden", path)
            assert problem["trace_id"] == reply.headers["traceresponse"].split("-")[1]


def test_headers_that_name_the_edge_change_nothing(running: RunningStack, user: ApiUser) -> None:
    forged = {
        "x-forwarded-client-cert": f"URI={spiffe_id('edge', trust_domain(running.clients))}",
        "x-forwarded-for": "127.0.0.1",
        "x-edge-recorded": "1",
    }
    with callers(running, issue(running.clients, "user-service")) as clients:
        assert statuses(clients, ME, headers=user.headers | forged) == {FORBIDDEN}


def test_with_the_check_switched_off_the_same_request_gets_through(running: RunningStack, user: ApiUser) -> None:
    """The control: it is the check that denies it."""
    with callers(running, issue(running.clients, "user-service")) as clients:
        assert statuses(clients, ME, headers=user.headers) == {FORBIDDEN}
        with changed_settings(running, "gateway", {"mesh": {"enforce": False}}):
            eventually("it gets through", lambda: statuses(clients, ME, headers=user.headers) == {OK}, 5)
        eventually("it is denied again", lambda: statuses(clients, ME, headers=user.headers) == {FORBIDDEN}, 5)


def test_without_its_intention_the_edge_gets_no_answer_for_anybody(running: RunningStack, user: ApiUser) -> None:
    assert user.get(ME).status_code == OK
    with without_source(running.clients, "gateway", "edge"):
        eventually("the edge is denied", lambda: user.get(ME).status_code == FORBIDDEN, 5)
    eventually("the edge is allowed again", lambda: {user.get(ME).status_code for _ in range(8)} == {OK}, 5)


def test_a_denied_request_is_logged_by_its_caller(running: RunningStack) -> None:
    began = time.time()

    def logged() -> bool:
        """Asks again, because a denial is logged once in ten seconds."""
        with callers(running, issue(running.clients, "order-service")) as clients:
            statuses(clients, "/livez")
        found = running.logged("gateway", began, "no intention allows the call", '"caller":"order-service"')
        return bool(found) and all(found)

    eventually("each gateway has logged it", logged, 20, every=1)


def test_the_port_of_the_checks_tells_anybody_the_health_and_serves_nothing_else(running: RunningStack) -> None:
    context = ssl.create_default_context(cadata=issue(running.clients).roots.decode())
    for entry in running.instances("gateway"):
        address = gateway_instance.health_address(running.clients, entry["Service"]["ID"])
        url, name = "https://{}:{}".format(*address), {"sni_hostname": "gateway.mesh"}
        with httpx.Client(base_url=url, verify=context) as client:
            assert client.get("/readyz", extensions=name).json()["status"] == "ready"
            for path in (ME, "/v1/orders", "/docs", "/openapi.json", "/problems/forbidden"):
                assert client.get(path, extensions=name).status_code == httpx.codes.NOT_FOUND
