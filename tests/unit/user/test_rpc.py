"""The gRPC interface of the User Service."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from uuid import UUID

import grpc
import pytest

from chassis.errors import RpcError
from shop.user.v1 import user_pb2
from user_service import domain, rpc
from user_service.rpc import UserRpc

if TYPE_CHECKING:
    from .conftest import Service, SettingsFactory

NO_CONTEXT: Any = None


def test_every_error_of_the_domain_has_its_own_reason() -> None:
    assert set(domain.DomainError.__subclasses__()) == set(rpc._REASONS)
    reasons = [reason for _, reason in rpc._REASONS.values()]
    assert len(set(reasons)) == len(reasons)


async def test_an_id_that_is_not_a_uuid_is_invalid(service: Service) -> None:
    with pytest.raises(RpcError) as error:
        await UserRpc(service.commands, service.queries).GetUser(user_pb2.GetUserRequest(user_id="7"), NO_CONTEXT)
    assert (error.value.code, error.value.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID")
    assert error.value.fields == {"user_id": "must be a UUID"}


async def test_a_negative_amount_is_invalid(service: Service) -> None:
    ids = {"order_id": str(UUID(int=1)), "user_id": str(UUID(int=2))}
    with pytest.raises(RpcError) as error:
        await UserRpc(service.commands, service.queries).ReserveCredit(
            user_pb2.ReserveCreditRequest(**ids, currency="EUR", amount=-1), NO_CONTEXT
        )
    assert list(error.value.fields) == ["amount"]


async def test_a_full_password_queue_is_overloaded_with_a_retry_time(
    service: Service, make_settings: SettingsFactory
) -> None:
    service.settings.replace(make_settings(password_threads=1, password_queue_size=0))
    server = UserRpc(service.commands, service.queries)
    service.commands._passwords._accepted = 1
    with pytest.raises(RpcError) as error:
        await server.CreateSession(user_pb2.CreateSessionRequest(email="a@b.c", password="x"), NO_CONTEXT)
    assert (error.value.reason, error.value.retry_after) == ("OVERLOADED", 1)


async def test_a_registered_user_is_returned_with_all_fields(service: Service) -> None:
    server = UserRpc(service.commands, service.queries)
    request = user_pb2.RegisterUserRequest(email="ada@example.com", name="Ada", password="correct horse")
    user = (await server.RegisterUser(request, NO_CONTEXT)).user
    assert (user.email, user.name, user.credit.available) == ("ada@example.com", "Ada", 100_000)
    response = await server.GetUser(user_pb2.GetUserRequest(user_id=user.id), NO_CONTEXT)
    assert response.user == user
