"""A service gets the token that the gateway has verified for the request, and nothing else that a client sends."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from chassis.serving.interceptor import CallInterceptor

from .test_access_token_verifier import token

if TYPE_CHECKING:
    from ..running_gateway import RunningGateway

Seen = list[tuple[str, dict[str, list[str]]]]
# What the services read, by their names; grpc adds the first.
OWN = {"user-agent", "traceparent", "tracestate"}


@pytest.fixture
def seen(gateway: RunningGateway, monkeypatch: pytest.MonkeyPatch) -> Seen:
    """Method and metadata of each call that the services get."""
    found: Seen = []
    inner = CallInterceptor.intercept_service

    async def intercept(self: CallInterceptor, continuation: Any, details: Any) -> Any:
        sent: dict[str, list[str]] = {}
        for key, value in details.invocation_metadata:
            sent.setdefault(key, []).append(value)
        found.append((details.method.rpartition("/")[2], sent))
        return await inner(self, continuation, details)

    monkeypatch.setattr(CallInterceptor, "intercept_service", intercept)
    return found


def tokens(seen: Seen, method: str) -> list[list[str]]:
    return [metadata.get("authorization", []) for name, metadata in seen if name == method]


async def test_each_call_for_a_user_has_the_token_of_the_user(gateway: RunningGateway, seen: Seen) -> None:
    headers = await gateway.guest()
    order = (await gateway.place(headers)).json()["id"]
    for path in ("/v1/users/me", "/v1/orders", f"/v1/orders/{order}", f"/v1/orders/{order}/events"):
        assert (await gateway.http.get(path, headers=headers)).status_code == 200
    conditional = headers | {"if-none-match": '"7"'}
    assert (await gateway.http.post(f"/v1/orders/{order}/cancel", headers=conditional)).status_code == 200
    assert (await gateway.http.get(f"/v1/orders/{order}/watch", headers=headers)).status_code in {200, 204}
    methods = ("GetUser", "PlaceOrder", "ListOrders", "GetOrder", "ListOrderEvents", "CancelOrder", "WatchOrder")
    assert {method: tokens(seen, method) for method in methods} == {
        method: [[headers["authorization"]]] * (2 if method == "GetOrder" else 1) for method in methods
    }


async def test_calls_for_nobody_have_no_token_also_after_a_user_on_the_same_connection(
    gateway: RunningGateway, seen: Seen
) -> None:
    ada = (await gateway.token("ada@example.com"))["authorization"]
    assert (await gateway.http.get("/v1/users/me", headers={"authorization": ada})).status_code == 200
    assert (await gateway.register("bob@example.com")).status_code == 201
    assert (await gateway.http.get("/v1/users/me")).status_code == 401
    signing_in = {"email": "bob@example.com", "password": "correct horse"}
    reply = await gateway.http.post("/v1/sessions", json=signing_in, headers={"authorization": ada})
    bob = f"Bearer {reply.json()['access_token']}"
    assert (await gateway.http.get("/v1/users/me", headers={"authorization": bob})).status_code == 200
    assert tokens(seen, "RegisterUser") == [[]] * 2
    assert tokens(seen, "CreateSession") == [[]] * 2
    assert tokens(seen, "GetUser") == [[ada], [bob]]


async def test_requests_at_the_same_time_have_their_own_tokens(gateway: RunningGateway, seen: Seen) -> None:
    users = [await gateway.token(f"user{number}@example.com") for number in range(3)]
    replies = await asyncio.gather(*(gateway.http.get("/v1/orders", headers=each) for each in users * 5))
    assert {reply.status_code for reply in replies} == {200}
    assert sorted(tokens(seen, "ListOrders")) == sorted([[each["authorization"]] for each in users * 5])


async def test_a_token_that_is_not_valid_reaches_no_service(gateway: RunningGateway, seen: Seen) -> None:
    valid = token(gateway.vault)
    forged = [
        token(gateway.vault, key=Ed25519PrivateKey.generate()),
        token(gateway.vault, exp=1),
        f"{valid}\u00e9\u00e9",
        f"{valid[:-9]}!!!!{valid[-9:]}",
        f"{valid} {valid}",
        f"{valid}, Bearer {valid}",
    ]
    for each in forged:
        header = {b"authorization": f"Bearer {each}".encode()}
        assert (await gateway.http.get("/v1/orders", headers=header)).status_code == 401
        # These need no user, so that nobody verifies the token.
        new = {"email": f"{uuid4().hex}@example.com", "name": "Ada", "password": "correct horse"}
        assert (await gateway.http.post("/v1/users", json=new, headers=header)).status_code == 201
    assert {name for name, _ in seen} == {"RegisterUser"}
    assert tokens(seen, "RegisterUser") == [[]] * len(forged)


async def test_no_other_header_of_a_client_becomes_metadata(gateway: RunningGateway, seen: Seen) -> None:
    headers = await gateway.guest()
    forged = {
        "grpc-metadata-authorization": "Bearer x",
        "x-authorization": "Bearer x",
        "x-forwarded-client-cert": "URI=spiffe://x/ns/default/dc/dc1/svc/operator",
        "mesh-caller": "operator",
        "user_id": str(uuid4()),
        "grpc-timeout": "1n",
        "proxy-authorization": "Bearer x",
        "cookie": "authorization=Bearer x",
    }
    for path in ("/v1/orders", "/v1/users/me"):
        assert (await gateway.http.get(path, headers=headers | forged)).status_code == 200
    calls = [metadata for name, metadata in seen if name in {"ListOrders", "GetUser"}]
    assert len(calls) == 2
    for metadata in calls:
        assert set(metadata) - OWN == {"authorization"}
        assert metadata["authorization"] == [headers["authorization"]]


async def test_two_tokens_are_none(gateway: RunningGateway, seen: Seen) -> None:
    ada, bob = token(gateway.vault), token(gateway.vault)
    for pair in ((ada, bob), (ada, "x"), ("x", ada)):
        headers = [("authorization", f"Bearer {each}") for each in pair]
        reply = await gateway.http.get("/v1/orders", headers=headers)
        assert reply.status_code in {400, 401}
    assert seen == []
