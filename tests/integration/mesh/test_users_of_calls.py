"""The certificate of the gateway alone acts for nobody on a running stack: the attack table of users' tokens."""

from __future__ import annotations

import asyncio
import time
from base64 import b64decode, b64encode
from collections.abc import Callable, Sequence
from typing import Any
from uuid import UUID

import grpc
import httpx
import pytest
from google.protobuf.message_factory import GetMessageClass
from support.kv_settings import changed_settings
from support.mesh.access_tokens import TokenKey
from support.mesh.channels import mesh_channel
from support.stack_under_test import RunningStack, eventually
from support.traffic.api_user import ApiUser, register

from chassis.auth.acting_user import OPERATOR, token_metadata
from order_service import rpc as order_rpc
from shop.order.v1 import order_pb2
from shop.user.v1 import user_pb2
from stack.mesh.dial import instances
from user_service import rpc as user_rpc
from user_service.access_token_issuer import AccessTokenIssuer

UNAUTHENTICATED, DENIED = grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED
Metadata = Sequence[tuple[str, str]]
GET_USER = "GetUser"
# What the gateway may call by intention, and only for a user.
METHODS = {
    "user-service": (user_pb2.DESCRIPTOR.services_by_name["UserService"], [GET_USER]),
    "order-service": (order_pb2.DESCRIPTOR.services_by_name["OrderService"], list(order_rpc.ACTS_FOR)),
}


@pytest.fixture
def victim(http: httpx.Client) -> ApiUser:
    """A user who does not call."""
    return register(http)


class VaultKey:
    """Signs with the token key of a running Vault, as the User Service does."""

    def __init__(self, running: RunningStack) -> None:
        self._sign = running.clients.vault.secrets.transit.sign_data

    async def sign(self, key: str, payload: bytes) -> tuple[bytes, int]:
        found = self._sign(key, hash_input=b64encode(payload).decode())["data"]["signature"]
        _, version, signature = found.split(":")
        return b64decode(signature), int(version.removeprefix("v"))


def token_until(running: RunningStack, user: ApiUser, seconds: int) -> str:
    """A token of a user that ends in so many seconds, or has ended if they are negative."""
    issuer = AccessTokenIssuer(VaultKey(running), lambda: time.time() + min(0, seconds) - 1)
    return asyncio.run(issuer.issue(UUID(user.id), "EUR", max(0, seconds) + 1))


def call(channel: grpc.Channel, service: str, method: str, user_id: str, metadata: Metadata = ()) -> Any:
    """Calls a method for a user, with nothing else in its request; returns the first answer, or the error."""
    described = METHODS[service][0].methods_by_name[method]
    message = GetMessageClass(described.input_type)(user_id=user_id)
    # This kind of call fits methods of every kind.
    made: Any = channel.stream_stream(f"/{METHODS[service][0].full_name}/{method}")
    try:
        answer = next(made(iter([message.SerializeToString()]), timeout=10, metadata=metadata))
    except grpc.RpcError as error:
        return error
    return GetMessageClass(described.output_type).FromString(answer)


ATTACKS: dict[str, tuple[Callable[[RunningStack, ApiUser, ApiUser], Metadata], grpc.StatusCode]] = {
    "the certificate alone": (lambda *_: (), UNAUTHENTICATED),
    "forged metadata": (
        lambda _, victim, __: (("user_id", victim.id), ("x-user-id", victim.id), ("mesh-caller", OPERATOR)),
        UNAUTHENTICATED,
    ),
    "forged token": (lambda _, victim, __: token_metadata(TokenKey().token(victim.id)), UNAUTHENTICATED),
    "expired token": (lambda running, victim, _: token_metadata(token_until(running, victim, -60)), UNAUTHENTICATED),
    "token of another user": (lambda _, __, attacker: token_metadata(attacker.token), DENIED),
}


@pytest.mark.parametrize("service", METHODS)
@pytest.mark.parametrize("attack", ATTACKS)
def test_the_certificate_of_the_gateway_without_the_users_token_is_refused_by_every_method(
    running: RunningStack, victim: ApiUser, user: ApiUser, service: str, attack: str
) -> None:
    made, code = ATTACKS[attack]
    metadata = made(running, victim, user)
    with mesh_channel(running.clients, service, as_="gateway") as channel:
        found = {method: call(channel, service, method, victim.id, metadata) for method in METHODS[service][1]}
    assert {method: error.code() for method, error in found.items()} == dict.fromkeys(found, code)


@pytest.mark.parametrize("service", METHODS)
def test_the_users_token_reaches_every_method_of_the_same_channel(
    running: RunningStack, victim: ApiUser, service: str
) -> None:
    """The control: certificate, address and request are right."""
    with mesh_channel(running.clients, service, as_="gateway") as channel:
        for method in METHODS[service][1]:
            found = call(channel, service, method, victim.id, token_metadata(victim.token))
            assert not isinstance(found, grpc.RpcError) or found.code() not in {UNAUTHENTICATED, DENIED}, method


def profile(channel: grpc.Channel, user: ApiUser) -> str:
    """The email of a user, or the name of the error."""
    found = call(channel, "user-service", GET_USER, user.id)
    return found.code().name if isinstance(found, grpc.RpcError) else str(found.user.email)


def test_with_the_check_switched_off_the_certificate_alone_reads_the_profile_of_anybody(
    running: RunningStack, victim: ApiUser
) -> None:
    """The control: it is the check that refuses the call."""
    addresses = [f"{host}:{port}" for host, port in instances(running.clients, "user-service")]
    channels = [mesh_channel(running.clients, "user-service", "gateway", address) for address in addresses]

    def seen() -> set[str]:
        return {profile(channel, victim) for channel in channels}

    assert seen() == {"UNAUTHENTICATED"}
    with changed_settings(running, "user-service", {"mesh": {"enforce": False}}):
        eventually("the call gets through", lambda: seen() == {victim.email}, 5)
    eventually("it is refused again", lambda: seen() == {"UNAUTHENTICATED"}, 5)
    for channel in channels:
        channel.close()


def test_an_operator_acts_for_a_user_who_is_not_there(running: RunningStack, victim: ApiUser) -> None:
    with mesh_channel(running.clients, "user-service") as channel:
        assert profile(channel, victim) == victim.email


def test_the_order_service_acts_without_a_token_for_orders_that_were_placed_and_no_further(
    running: RunningStack, victim: ApiUser
) -> None:
    with mesh_channel(running.clients, "user-service", as_="order-service") as channel:
        for method in ("ReserveCredit", "ReleaseCredit"):
            # It has no order, so nothing changes.
            assert call(channel, "user-service", method, victim.id).code() is grpc.StatusCode.INVALID_ARGUMENT
        assert profile(channel, victim) == DENIED.name


def test_orders_of_a_signed_in_user_are_placed_and_decided(user: ApiUser) -> None:
    """The control for the whole way: edge, gateway, both services and the worker."""
    order = user.place().json()["id"]
    assert user.settled(order)["status"] == "confirmed"
    assert user.cancel(order).json()["status"] == "cancelled"


def test_a_refused_call_is_logged_with_caller_method_and_reason_and_without_its_token(
    running: RunningStack, victim: ApiUser, user: ApiUser
) -> None:
    began, path = time.time(), f"/{METHODS['user-service'][0].full_name}/{GET_USER}"
    words = ("no signed-in user is behind the call", '"caller":"gateway"', path, "CALLER_HAS_OTHER_USER")

    def logged() -> bool:
        """Calls again, because the line is limited to one in ten seconds."""
        with mesh_channel(running.clients, "user-service", as_="gateway") as channel:
            call(channel, "user-service", GET_USER, victim.id, token_metadata(user.token))
        return any(running.logged("user-service", began, *words))

    eventually("it is logged", logged, 30, every=1)
    for job in ("gateway", "user-service", "order-service"):
        for part in user.token.split(".")[1:]:
            assert not any(running.logged(job, 0, part)), job


def test_a_watch_ends_with_the_token_of_its_user(running: RunningStack, user: ApiUser) -> None:
    order, seconds = user.place().json()["id"], 8
    token, began = token_until(running, user, seconds), time.time()
    message = order_pb2.WatchOrderRequest(user_id=user.id, order_id=order).SerializeToString()
    with mesh_channel(running.clients, "order-service", as_="gateway") as channel:
        watch: Any = channel.unary_stream("/shop.order.v1.OrderService/WatchOrder")
        messages: list[bytes] = []
        try:
            for each in watch(message, timeout=60, metadata=token_metadata(token)):
                messages.append(each)  # noqa: PERF402 - those before the error count
            pytest.fail("the watch has ended without an error")
        except grpc.RpcError as raised:
            error: Any = raised
    assert error.code() is UNAUTHENTICATED
    assert messages
    assert seconds - 1 <= time.time() - began < seconds + 20


def test_a_method_for_nobody_needs_no_token(running: RunningStack) -> None:
    registration = user_pb2.RegisterUserRequest(email="no mail", name="", password="")
    assert user_rpc.ACTS_FOR["RegisterUser"] is None
    with mesh_channel(running.clients, "user-service", as_="gateway") as channel:
        method: Any = channel.unary_unary(f"/{METHODS['user-service'][0].full_name}/RegisterUser")
        with pytest.raises(grpc.RpcError) as raised:
            method(registration.SerializeToString(), timeout=10)
    error: Any = raised.value
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT


def test_after_a_rotation_of_the_token_key_new_and_old_tokens_are_accepted_everywhere(
    running: RunningStack, http: httpx.Client, user: ApiUser
) -> None:
    running.clients.vault.secrets.transit.rotate_key("tokens")
    # Each request may reach another gateway, and each gateway another instance; none of them knows the version yet.
    for caller in (register(http), user):
        for path in ("/v1/users/me", "/v1/orders") * 6:
            assert caller.get(path).status_code == httpx.codes.OK
