"""No user, account or client address takes the permits of others."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from support.waiting import until

from chassis.errors import RpcError
from chassis.settings import Live
from gateway.admission.client_limits import ClientLimits
from gateway.http.problems import Problem
from gateway.settings import ClientLimitSettings, Settings

from ..backend_services import KV, make_settings

if TYPE_CHECKING:
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    from ..running_gateway import RunningGateway

ANOTHER_ADDRESS = {"x-forwarded-for": "192.0.2.7"}


def limit(gateway: RunningGateway, **limits: Any) -> None:
    gateway.change(clients=gateway.process.settings.value.clients.model_copy(update=limits))


def rejected(response: httpx.Response) -> bool:
    """True for a 429; asserts that it says when to try again."""
    if response.status_code != 429:
        return False
    assert response.json()["type"] == "/problems/too-many-requests"
    assert int(response.headers["retry-after"]) >= 1
    return True


async def test_a_user_at_the_limit_of_calls_is_rejected_and_another_user_is_not(gateway: RunningGateway) -> None:
    ada, eve = await gateway.token(), await gateway.token("eve@example.com")
    limit(gateway, calls_per_user=2)
    gateway.servers.hanging.add("order-service")
    held = [asyncio.create_task(gateway.http.get("/v1/orders", headers=ada)) for _ in range(2)]
    await until("the requests are in progress", lambda: gateway.requests_in_progress() == 2)
    read = await gateway.http.get("/v1/users/me", headers=ada)
    assert (read.status_code, read.json()["type"], read.headers["retry-after"]) == (503, "/problems/overloaded", "1")
    assert rejected(await gateway.place(ada))
    assert (await gateway.http.get("/v1/users/me", headers=eve)).status_code == 200
    gateway.servers.hanging.clear()
    assert {(await request).status_code for request in held} == {200}
    assert (await gateway.http.get("/v1/users/me", headers=ada)).status_code == 200


async def test_a_user_at_the_limit_of_watches_is_rejected_until_one_ends(gateway: RunningGateway) -> None:
    ada, eve = await gateway.token(), await gateway.token("eve@example.com")
    placed = {user["authorization"]: (await gateway.place(user)).json()["id"] for user in (ada, eve)}
    limit(gateway, watches_per_user=2)

    async def status(stack: list[Any], user: dict[str, str]) -> int:
        path = f"/v1/orders/{placed[user['authorization']]}/watch"
        stream = gateway.http.stream("GET", path, headers=user)
        stack.append(stream)
        return int((await stream.__aenter__()).status_code)

    open_streams: list[Any] = []
    assert [await status(open_streams, ada) for _ in range(3)] == [200, 200, 429]
    assert await status(open_streams, eve) == 200
    await open_streams.pop(0).__aexit__(None, None, None)
    await until("the watch has ended", lambda: gateway.orders.open_watches() == 2)
    assert await status(open_streams, ada) == 200
    for stream in open_streams:
        await stream.__aexit__(None, None, None)


async def test_an_address_at_the_limit_of_watches_is_rejected_and_another_address_is_not(
    gateway: RunningGateway,
) -> None:
    ada = await gateway.token()
    path = f"/v1/orders/{(await gateway.place(ada)).json()['id']}/watch"
    limit(gateway, watches_per_address=1)
    async with gateway.http.stream("GET", path, headers=ada):
        assert rejected(await gateway.http.get(path, headers=ada))
        async with gateway.http.stream("GET", path, headers=ada | ANOTHER_ADDRESS) as other:
            assert other.status_code == 200


def sign_in(gateway: RunningGateway, email: str, password: str = "correct horse", **headers: str) -> Any:
    body = {"email": email, "password": password}
    return gateway.http.post("/v1/sessions", json=body, headers=headers)


async def test_sign_ins_to_one_account_leave_places_for_another_account(gateway: RunningGateway) -> None:
    for email in ("ada@example.com", "eve@example.com"):
        await gateway.register(email)
    limit(gateway, sign_ins_per_account=2)
    gateway.servers.hanging.add("user-service")
    crowd = [asyncio.create_task(sign_in(gateway, "ADA@example.com")) for _ in range(10)]
    await until("the others are rejected", lambda: sum(task.done() for task in crowd) == 8)
    other = asyncio.create_task(sign_in(gateway, "eve@example.com"))
    gateway.servers.hanging.clear()
    responses = await asyncio.gather(*crowd)
    assert Counter(response.status_code for response in responses) == {201: 2, 429: 8}
    assert sum(map(rejected, responses)) == 8
    assert (await other).status_code == 201


async def test_registrations_from_one_address_leave_places_for_another_address(gateway: RunningGateway) -> None:
    limit(gateway, passwords_per_address=2)
    gateway.servers.hanging.add("user-service")
    crowd = [asyncio.create_task(gateway.register(f"{number}@example.com")) for number in range(6)]
    await until("the others are rejected", lambda: sum(task.done() for task in crowd) == 4)
    assert rejected(await sign_in(gateway, "eve@example.com"))
    body = {"email": "eve@example.com", "name": "Eve", "password": "correct horse"}
    other = asyncio.create_task(gateway.http.post("/v1/users", json=body, headers=ANOTHER_ADDRESS))
    await until("it is in progress", lambda: gateway.requests_in_progress() == 3)
    gateway.servers.hanging.clear()
    assert Counter(response.status_code for response in await asyncio.gather(*crowd)) == {201: 2, 429: 4}
    assert (await other).status_code == 201


async def test_wrong_passwords_lock_an_account_for_their_own_address_only(gateway: RunningGateway) -> None:
    for email in ("ada@example.com", "eve@example.com"):
        await gateway.register(email)
    limit(gateway, failed_sign_ins_per_account=3)
    statuses = [(await sign_in(gateway, "ada@example.com", "wrong")).status_code for _ in range(5)]
    assert statuses == [401, 401, 401, 429, 429]
    locked = await sign_in(gateway, "ada@example.com")
    assert rejected(locked)
    assert 1 <= int(locked.headers["retry-after"]) <= 60
    assert (await sign_in(gateway, "eve@example.com")).status_code == 201
    assert (await sign_in(gateway, "ada@example.com", **ANOTHER_ADDRESS)).status_code == 201


async def test_right_passwords_are_not_counted_as_failures(gateway: RunningGateway) -> None:
    await gateway.register()
    limit(gateway, failed_sign_ins_per_account=2)
    assert [(await sign_in(gateway, "ada@example.com")).status_code for _ in range(4)] == [201] * 4


@pytest.mark.parametrize(
    ("proxies", "header", "address"),
    [
        (["127.0.0.0/8"], "192.0.2.7", "192.0.2.7"),
        (["127.0.0.0/8"], "203.0.113.9, 192.0.2.7", "192.0.2.7"),
        (["127.0.0.0/8"], "2001:DB8::1", "2001:db8::1"),
        (["127.0.0.0/8"], "nonsense", "127.0.0.1"),
        (["127.0.0.0/8"], "", "127.0.0.1"),
        (["198.51.100.0/24"], "192.0.2.7", "127.0.0.1"),
        ([], "192.0.2.7", "127.0.0.1"),
    ],
)
async def test_the_address_of_a_client_is_the_one_that_the_edge_appended(
    gateway: RunningGateway, spans: InMemorySpanExporter, proxies: list[str], header: str, address: str
) -> None:
    changed = json.loads((KV / "gateway.json").read_text()) | {"trusted_proxies": proxies}
    gateway.change(trusted_proxies=Settings.model_validate_json(json.dumps(changed)).trusted_proxies)
    spans.clear()
    await gateway.http.get("/nowhere", headers={"x-forwarded-for": header})
    (span,) = spans.get_finished_spans()
    assert (span.attributes or {})["client.address"] == address


# --- in memory


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def made(clock: Clock, **limits: Any) -> ClientLimits:
    shipped: ClientLimitSettings = make_settings("gateway", Settings).clients
    return ClientLimits(Live(shipped.model_copy(update=limits)), clock)


def fail(limits: ClientLimits, address: str = "192.0.2.7") -> None:
    with suppress(RpcError), limits.sign_in(address, "ada@example.com"):
        raise RpcError(Any, "BAD_CREDENTIALS")


def test_failures_are_forgotten_at_a_constant_rate() -> None:
    clock = Clock()
    limits = made(clock, failed_sign_ins_per_account=2, failed_sign_ins_seconds=60.0)
    fail(limits)
    fail(limits)
    with pytest.raises(Problem) as locked:
        fail(limits)
    assert locked.value.retry_after == 30
    clock.now += 30
    fail(limits)
    with pytest.raises(Problem):
        fail(limits)


def test_the_addresses_of_one_ipv6_network_are_one_client() -> None:
    limits = made(Clock(), passwords_per_address=1)
    with ExitStack() as calls:
        calls.enter_context(limits.password("2001:db8::1"))
        calls.enter_context(limits.password("2001:db8:0:1::1"))
        with pytest.raises(Problem):
            calls.enter_context(limits.password("2001:db8::2"))


def test_what_has_ended_is_not_counted_any_more() -> None:
    limits = made(Clock(), calls_per_user=2)
    for _ in range(5):
        with ExitStack() as calls:
            calls.enter_context(limits.call("ada"))
            calls.enter_context(limits.call("ada"))
            with pytest.raises(Problem), limits.call("ada"):
                pass
    with limits.call("ada"):
        pass
