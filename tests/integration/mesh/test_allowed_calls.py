"""Who may call which method on a running stack: the table caller x method, and what happens to every other call."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import grpc
import pytest
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from support.kv_settings import changed_settings
from support.mesh.channels import mesh_channel
from support.mesh.intentions import without_source
from support.stack_under_test import RunningStack, eventually
from support.traffic.api_user import ApiUser

from shop.order.v1.order_pb2 import WatchOrderRequest
from shop.order.v1.order_pb2_grpc import OrderServiceStub

from .raw_calls import METHODS, REACHED, code_of, error_of

DENIED = grpc.StatusCode.PERMISSION_DENIED
CREDIT = {"/shop.user.v1.UserService/ReserveCredit", "/shop.user.v1.UserService/ReleaseCredit"}
# What each caller may call; nobody else may call anything.
ALLOWED = {
    ("gateway", "user-service"): set(METHODS["user-service"]) - CREDIT,
    ("gateway", "order-service"): set(METHODS["order-service"]),
    ("order-service", "user-service"): CREDIT,
    ("operator", "user-service"): set(METHODS["user-service"]),
    ("operator", "order-service"): set(METHODS["order-service"]),
}
CALLERS = ("gateway", "order-service", "user-service", "operator")


@pytest.mark.parametrize("service", METHODS)
@pytest.mark.parametrize("caller", CALLERS)
def test_a_caller_reaches_the_methods_that_it_may_call_and_no_other(
    running: RunningStack, caller: str, service: str
) -> None:
    with mesh_channel(running.clients, service, as_=caller) as channel:
        found = {path: code_of(channel, path) for path in METHODS[service]}
    allowed = ALLOWED.get((caller, service), set())
    assert found == {path: REACHED if path in allowed else DENIED for path in METHODS[service]}


def test_a_denied_call_says_why_and_is_logged_with_its_caller_and_method(running: RunningStack) -> None:
    path, began = "/shop.order.v1.OrderService/ListOrders", time.time()

    def logged() -> bool:
        """Calls again, because the line is limited to one in ten seconds."""
        with mesh_channel(running.clients, "order-service", as_="user-service") as channel:
            details = str(error_of(channel, path).details())
        assert "user-service" in details
        assert path in details
        words = ("no intention allows the call", '"caller":"user-service"', path)
        return any(running.logged("order-service", began, *words))

    eventually("it is logged", logged, 30, every=1)


@pytest.mark.parametrize("service", METHODS)
def test_the_operator_alone_may_ask_for_the_contract(running: RunningStack, service: str) -> None:
    with mesh_channel(running.clients, service) as channel:
        listed = ProtoReflectionDescriptorDatabase(channel).get_services()
    assert METHODS[service][0].split("/")[1] in listed
    with mesh_channel(running.clients, service, as_="gateway") as channel, pytest.raises(grpc.RpcError) as raised:
        ProtoReflectionDescriptorDatabase(channel).get_services()
    error: Any = raised.value
    assert error.code() is DENIED


@pytest.mark.parametrize(("caller", "code"), [("gateway", DENIED), ("operator", grpc.StatusCode.UNIMPLEMENTED)])
def test_a_method_that_does_not_exist_is_named_as_such_to_the_operator_alone(
    running: RunningStack, caller: str, code: grpc.StatusCode
) -> None:
    with mesh_channel(running.clients, "user-service", as_=caller) as channel:
        assert code_of(channel, "/shop.user.v1.UserService/DeleteEverything") is code


def addresses(running: RunningStack, service: str) -> list[str]:
    services = [entry["Service"] for entry in running.instances(service)]
    return [f"{service['Address']}:{service['Port']}" for service in services]


@contextmanager
def callers(running: RunningStack, service: str, caller: str) -> Iterator[list[grpc.Channel]]:
    """A channel of a caller to each instance of a service."""
    channels = [mesh_channel(running.clients, service, caller, address) for address in addresses(running, service)]
    assert len(channels) == 2
    try:
        yield channels
    finally:
        for channel in channels:
            channel.close()


def codes(channels: list[grpc.Channel], path: str) -> set[grpc.StatusCode]:
    return {code_of(channel, path) for channel in channels}


@pytest.mark.parametrize(
    ("caller", "service", "path"),
    [
        ("gateway", "user-service", "/shop.user.v1.UserService/ReleaseCredit"),
        ("user-service", "order-service", "/shop.order.v1.OrderService/GetOrder"),
    ],
)
def test_with_the_check_switched_off_the_same_call_gets_through(
    running: RunningStack, caller: str, service: str, path: str
) -> None:
    """The control: it is the check that denies the call."""
    with callers(running, service, caller) as channels:
        assert codes(channels, path) == {DENIED}
        with changed_settings(running, service, {"mesh": {"enforce": False}}):
            eventually("the call gets through", lambda: codes(channels, path) == {REACHED}, 5)
        eventually("it is denied again", lambda: codes(channels, path) == {DENIED}, 5)


def test_an_intention_that_is_taken_away_ends_calls_on_open_connections(running: RunningStack) -> None:
    path = "/shop.user.v1.UserService/GetUser"
    with callers(running, "user-service", "gateway") as channels:
        assert codes(channels, path) == {REACHED}
        with without_source(running.clients, "user-service", "gateway"):
            eventually("the call is denied", lambda: codes(channels, path) == {DENIED}, 5)
        eventually("the call is allowed again", lambda: codes(channels, path) == {REACHED}, 5)


def test_an_intention_that_is_taken_away_ends_a_running_stream(running: RunningStack, user: ApiUser) -> None:
    order_id = user.settled(user.place().json()["id"])["id"]
    with mesh_channel(running.clients, "order-service", as_="operator") as channel:
        watch: Any = OrderServiceStub(channel).WatchOrder(WatchOrderRequest(order_id=order_id, user_id=user.id))
        assert next(watch).version == 1
        with (
            without_source(running.clients, "order-service", "operator"),
            pytest.raises(grpc.RpcError) as raised,
        ):
            list(watch)
    error: Any = raised.value
    assert error.code() is DENIED
