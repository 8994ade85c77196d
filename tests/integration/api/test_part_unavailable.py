"""A part is killed or unavailable: calls fail clearly or are completed later, and nothing acknowledged is lost."""

from __future__ import annotations

import os
import signal
import statistics
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import Any

import httpx
import pytest
from support.stack_under_test import RunningStack, eventually
from support.traffic.api_user import ApiUser

from stack.build import tools
from stack.cluster import agents
from stack.machine import processes
from stack.mesh import gateway_instance
from stack.mesh.dial import is_on

TRACEPARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


@pytest.fixture(autouse=True)
def healthy(running: RunningStack) -> None:
    """Each test begins on a healthy stack."""
    running.wait_until_healthy()


@pytest.fixture
def no_user_service(running: RunningStack, user: ApiUser) -> Iterator[ApiUser]:
    """A user who signed in before the User Service was scaled to no instance."""
    running.scale("user-service", "api", 0)
    eventually("the User Service is gone", lambda: not running.pids("user-service"), 30)
    yield user
    running.scale("user-service", "api", 2)
    eventually("the User Service is back", lambda: len(running.instances("user-service")) == 2, 60)
    eventually("calls pass again", lambda: user.get("/v1/users/me").status_code == httpx.codes.OK, 10)


def _breakers(running: RunningStack, user: ApiUser) -> set[str]:
    """The states of the breaker for the User Service, after enough calls within its window, on a busy machine too."""
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda _: user.get("/v1/users/me"), range(32)))
    return running.breakers("user-service")


def test_without_the_user_service_calls_fail_as_unavailable_and_at_once_when_the_breaker_is_open(
    running: RunningStack, no_user_service: ApiUser
) -> None:
    reply = no_user_service.get("/v1/users/me")
    assert reply.status_code == httpx.codes.SERVICE_UNAVAILABLE
    assert reply.headers["content-type"].startswith("application/problem+json")
    assert int(reply.headers["retry-after"]) >= 1
    body = {"email": no_user_service.email, "password": no_user_service.password}
    assert no_user_service.http.post("/v1/sessions", json=body).status_code == httpx.codes.SERVICE_UNAVAILABLE

    eventually("the breaker is open in every gateway", lambda: _breakers(running, no_user_service) == {"open"}, 15)
    replies = [no_user_service.get("/v1/users/me") for _ in range(8)]
    assert {reply.status_code for reply in replies} == {httpx.codes.SERVICE_UNAVAILABLE}
    rejected = [reply.elapsed.total_seconds() for reply in replies if reply.json()["type"] == "/problems/breaker-open"]
    assert len(rejected) >= 4, "each of the two gateways may have tried now and then whether the service is back"
    assert statistics.median(rejected) < 0.5


def test_the_breaker_closes_once_the_service_is_back_and_accepted_orders_are_completed(
    running: RunningStack, no_user_service: ApiUser
) -> None:
    placed = no_user_service.place()
    assert (placed.status_code, placed.json()["status"]) == (httpx.codes.CREATED, "pending")
    eventually("the breaker is open in every gateway", lambda: _breakers(running, no_user_service) == {"open"}, 15)
    running.scale("user-service", "api", 2)
    eventually("an instance is back", lambda: running.instances("user-service"), 60)
    eventually("a call passes", lambda: no_user_service.get("/v1/users/me").status_code == httpx.codes.OK, 10)
    eventually("the breaker is closed", lambda: _breakers(running, no_user_service) == {"closed"}, 10)
    assert no_user_service.settled(placed.json()["id"], 60)["status"] == "confirmed"


@pytest.fixture
def no_gateway(running: RunningStack, http: httpx.Client) -> Iterator[httpx.Client]:
    running.scale("gateway", "api", 0)
    eventually("every gateway is gone", lambda: not running.pids("gateway"), 60)
    yield http
    running.scale("gateway", "api", 2)
    eventually("the edge has gateways again", lambda: http.get("/livez").status_code == httpx.codes.OK, 60)


def test_without_any_gateway_the_edge_answers_503_with_retry_after(no_gateway: httpx.Client) -> None:
    eventually("the edge answers 503", lambda: _unavailable(no_gateway.get("/livez")), 10)
    for method, path in (("GET", "/livez"), ("POST", "/v1/orders"), ("PUT", "/nowhere")):
        reply = no_gateway.request(method, path, params={"x": "1"}, content=b"{}", headers={"traceparent": TRACEPARENT})
        assert_problem(reply, 503, "/problems/unavailable", path)


def assert_problem(reply: httpx.Response, status: int, kind: str, path: str) -> None:
    """Checks for a problem in the form of the gateway's own, in the trace of the caller."""
    problem = reply.json()
    assert (reply.status_code, problem["status"], problem["type"]) == (status, status, kind)
    assert reply.headers["content-type"] == "application/problem+json"
    assert problem["instance"] == path
    assert problem["title"]
    assert problem["detail"]
    assert problem["trace_id"] == reply.headers["traceresponse"].split("-")[1] == TRACEPARENT.split("-")[1]
    assert int(reply.headers["retry-after"]) >= 1


def test_a_request_whose_gateway_dies_gets_a_lost_answer_problem(running: RunningStack, user: ApiUser) -> None:
    victim = running.pids("gateway")[0]
    with ThreadPoolExecutor(8) as pool:
        # Opens connections to both: by TLS, a request is sent only after an answer to the handshake.
        list(pool.map(lambda _: _register_nobody(user), range(16)))
        os.kill(victim, signal.SIGSTOP)  # the kernel accepts requests, and nothing answers them
        asked = [pool.submit(_register_nobody, user) for _ in range(8)]
        eventually("some requests wait for the stopped gateway", lambda: any(not each.done() for each in asked))
        time.sleep(1)
        os.kill(victim, signal.SIGKILL)
        replies = [each.result(30) for each in asked]
    lost = [reply for reply in replies if reply.status_code != httpx.codes.UNPROCESSABLE_ENTITY]
    assert lost
    for reply in lost:
        assert_problem(reply, 502, "/problems/answer-lost", "/v1/users")


def test_a_read_whose_gateway_dies_is_answered_by_another(running: RunningStack, user: ApiUser) -> None:
    victim = running.pids("gateway")[0]
    os.kill(victim, signal.SIGSTOP)
    with ThreadPoolExecutor(8) as pool:
        asked = [pool.submit(user.get, "/v1/users/me") for _ in range(8)]
        eventually("some reads wait for the stopped gateway", lambda: any(not each.done() for each in asked))
        time.sleep(1)
        os.kill(victim, signal.SIGKILL)
        assert {each.result(30).status_code for each in asked} == {httpx.codes.OK}


def _register_nobody(user: ApiUser) -> httpx.Response:
    return user.http.post("/v1/users", json={}, headers={"traceparent": TRACEPARENT}, timeout=30)


def _unavailable(reply: httpx.Response) -> httpx.Response | None:
    return reply if reply.status_code == httpx.codes.SERVICE_UNAVAILABLE else None


@pytest.mark.parametrize("which", [min, max], ids=["launcher", "envoy"])
def test_a_killed_edge_is_started_again(
    running: RunningStack, user: ApiUser, which: Callable[[list[int]], int]
) -> None:
    before = running.pids("edge")
    os.kill(which(before), signal.SIGKILL)
    eventually("both processes are new", lambda: _replaced(running, before), 30)
    eventually("calls pass again", lambda: _status(user) == httpx.codes.OK, 30)


@contextmanager
def failing_checks(running: RunningStack, instances: list[dict[str, Any]]) -> Iterator[None]:
    """Consul's maintenance mode: for Consul the instances are critical, although they work."""
    service = running.clients.consul.agent.service
    for each in instances:
        service.maintenance(each["Service"]["ID"], enable=True)
    try:
        yield
    finally:
        for each in instances:
            service.maintenance(each["Service"]["ID"], enable=False)
        eventually("all gateways pass", lambda: len(running.instances("gateway")) == 2, 30)


def _listed_at_the_edge(running: RunningStack) -> int:
    (edge,) = running.allocations("edge")
    return (running.folder(edge, "edge") / "local" / "instances" / "gateway.json").read_text().count("port_value")


def test_gateways_that_all_fail_their_checks_are_asked_all_the_same(running: RunningStack, user: ApiUser) -> None:
    """So it is for a moment when Consul has started again. The control: one that fails beside another is left out."""
    gateways = running.instances("gateway")
    with failing_checks(running, gateways[:1]):
        eventually("one is left out", lambda: _listed_at_the_edge(running) == 1, 30)
    with failing_checks(running, gateways):
        eventually("no gateway passes", lambda: not running.instances("gateway"), 10)
        ends_at = time.monotonic() + 5
        while time.monotonic() < ends_at:
            assert _status(user) == httpx.codes.OK
        eventually("both are listed", lambda: _listed_at_the_edge(running) == 2, 30)


@pytest.mark.long
@pytest.mark.timeout(180)
def test_an_edge_that_hangs_is_started_again(running: RunningStack, user: ApiUser) -> None:
    before = running.pids("edge")
    os.kill(max(before), signal.SIGSTOP)
    eventually("both processes are new", lambda: _replaced(running, before), 120)
    eventually("calls pass again", lambda: _status(user) == httpx.codes.OK, 30)


def _replaced(running: RunningStack, before: list[int]) -> bool:
    found = running.pids("edge")
    return len(found) == 2 and not set(found) & set(before)


def _status(user: ApiUser) -> int:
    try:
        return user.get("/v1/users/me").status_code
    except httpx.TransportError:
        return 0


def test_killed_postgres_comes_back_with_every_order(running: RunningStack, user: ApiUser) -> None:
    order = user.settled(user.place().json()["id"])
    os.kill(_postgres(running), signal.SIGKILL)
    eventually("orders can be read again", lambda: user.get(f"/v1/orders/{order['id']}").status_code == 200, 20)
    # Each instance recovers separately, so one good answer does not mean that the next is good.
    running.wait_until_healthy()
    assert user.order(order["id"]) == order
    assert user.place().status_code == httpx.codes.CREATED
    assert user.get("/v1/users/me").status_code == httpx.codes.OK


def _postgres(running: RunningStack) -> int:
    return int((running.stack.state / "postgres" / "data" / "postmaster.pid").read_text().splitlines()[0])


@pytest.fixture
def pids(running: RunningStack) -> dict[str, list[int]]:
    """The processes of the services, read before Nomad is killed."""
    return {job: running.pids(job) for job in ("user-service", "order-service", "gateway")}


@pytest.fixture
def killed_agent(running: RunningStack, request: pytest.FixtureRequest) -> Iterator[str]:
    """Kills an agent, yields its name, and starts it again afterwards."""
    pid = agents.daemon(running.stack, request.param).pid()
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    eventually(f"{request.param} is dead", lambda: processes.start_time(pid) is None)
    yield request.param
    _start_agents(running)


def _start_agents(running: RunningStack) -> None:
    for agent in agents.agents(running.stack, tools.ensure()):
        agents.start(running.stack, agent)
        agents.wait(running.stack, agent)


@pytest.mark.parametrize("killed_agent", ["vault"], indirect=True)
def test_a_gateway_that_starts_without_vault_gets_no_request_before_it_has_a_key(
    running: RunningStack, user: ApiUser, killed_agent: str
) -> None:
    os.kill(running.pids("gateway")[0], signal.SIGKILL)
    if is_on(running.clients, "gateway"):  # without a certificate it does not even serve its health
        eventually("it runs again", lambda: len(running.pids("gateway")) == 2, 20)
    else:
        new = eventually("it runs again, and is not ready", lambda: _starting(running), 20)
        assert new["dependencies"]["token keys"] == "none was read yet"
    eventually("the edge uses only the other one", lambda: len(running.instances("gateway")) == 1)
    assert {user.get("/v1/users/me").status_code for _ in range(20)} == {httpx.codes.OK}
    _start_agents(running)
    eventually("both are ready", lambda: len(running.instances("gateway")) == 2, 20)


def _starting(running: RunningStack) -> dict[str, Any] | None:
    """The readiness document of the gateway that is not ready."""
    for entry in running.clients.consul.health.service("gateway")[1]:
        with suppress(httpx.TransportError):
            found: dict[str, Any] = gateway_instance.readiness(running.clients, entry["Service"])
            if found["status"] == "starting":
                return found if found["dependencies"]["consul"] == "ok" else None
    return None


@pytest.mark.parametrize("killed_agent", ["nomad", "consul", "vault"], indirect=True)
def test_while_an_agent_is_dead_orders_are_placed_and_it_starts_again_without_a_loss(
    running: RunningStack, user: ApiUser, pids: dict[str, list[int]], killed_agent: str
) -> None:
    order = user.settled(user.place().json()["id"])
    assert order["status"] == "confirmed"
    _start_agents(running)
    eventually("KV is there", lambda: running.kv("config/gateway"), 10)
    assert running.clients.vault.read("secret/data/user-service")["data"]["data"]["password_pepper"]
    assert user.order(order["id"]) == order
    eventually("the tasks are still the same", lambda: {job: running.pids(job) for job in pids} == pids, 20)
