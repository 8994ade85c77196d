"""Implements shop.user.v1.UserService: converts messages to domain types and back."""
# ruff: noqa: N802 - the contract defines the names of the methods

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from uuid import UUID

import grpc

from chassis.auth.acting_user import OPERATOR, ActsFor
from chassis.errors import RpcError
from shop.user.v1 import user_pb2 as wire
from shop.user.v1.user_pb2_grpc import UserServiceServicer
from user_service import domain
from user_service.commands import Commands
from user_service.domain import User
from user_service.passwords import TooBusy
from user_service.queries import Queries

SERVICE = wire.DESCRIPTOR.services_by_name["UserService"].full_name
_OPERATOR, _ORDERS = frozenset({OPERATOR}), frozenset({OPERATOR, "order-service"})
# Credit is reserved and released after an order was placed, by its recorded event: its user may be signed out by then.
ACTS_FOR: Mapping[str, ActsFor | None] = {
    "RegisterUser": None,
    "CreateSession": None,
    "GetUser": ActsFor("user_id", _OPERATOR),
    "ReserveCredit": ActsFor("user_id", _ORDERS),
    "ReleaseCredit": ActsFor("user_id", _ORDERS),
}
"""The user for whom each method acts in the mesh."""
Context = grpc.aio.ServicerContext[object, object]

_REASONS: dict[type[Exception], tuple[grpc.StatusCode, str]] = {
    domain.Invalid: (grpc.StatusCode.INVALID_ARGUMENT, "INVALID"),
    domain.EmailTaken: (grpc.StatusCode.ALREADY_EXISTS, "EMAIL_TAKEN"),
    domain.BadCredentials: (grpc.StatusCode.UNAUTHENTICATED, "BAD_CREDENTIALS"),
    domain.UserUnknown: (grpc.StatusCode.NOT_FOUND, "USER_UNKNOWN"),
    domain.CreditExceeded: (grpc.StatusCode.FAILED_PRECONDITION, "CREDIT_EXCEEDED"),
    domain.CurrencyMismatch: (grpc.StatusCode.FAILED_PRECONDITION, "CURRENCY_MISMATCH"),
    domain.ReservationConflict: (grpc.StatusCode.FAILED_PRECONDITION, "RESERVATION_CONFLICT"),
    domain.ReservationReleased: (grpc.StatusCode.FAILED_PRECONDITION, "RESERVATION_RELEASED"),
}


class UserRpc(UserServiceServicer):
    """The gRPC servicer of the User Service."""

    def __init__(self, commands: Commands, queries: Queries) -> None:
        self._commands = commands
        self._queries = queries

    async def RegisterUser(self, request: wire.RegisterUserRequest, _: Context) -> wire.RegisterUserResponse:
        with _domain_errors_as_rpc_errors():
            user = await self._commands.register_user(request.email, request.name, request.password)
        return wire.RegisterUserResponse(user=_user(user))

    async def CreateSession(self, request: wire.CreateSessionRequest, _: Context) -> wire.CreateSessionResponse:
        with _domain_errors_as_rpc_errors():
            session = await self._commands.create_session(request.email, request.password)
        response = wire.CreateSessionResponse(access_token=session.token)
        response.expires_in.FromSeconds(session.lifetime)
        return response

    async def GetUser(self, request: wire.GetUserRequest, _: Context) -> wire.GetUserResponse:
        with _domain_errors_as_rpc_errors():
            return wire.GetUserResponse(user=_user(await self._queries.get_user(_id("user_id", request.user_id))))

    async def ReserveCredit(self, request: wire.ReserveCreditRequest, _: Context) -> wire.ReserveCreditResponse:
        with _domain_errors_as_rpc_errors():
            order_id, user_id = _id("order_id", request.order_id), _id("user_id", request.user_id)
            if request.amount < 0:
                raise domain.Invalid({"amount": "must not be negative"})
            await self._commands.reserve_credit(order_id, user_id, request.currency, request.amount)
        return wire.ReserveCreditResponse()

    async def ReleaseCredit(self, request: wire.ReleaseCreditRequest, _: Context) -> wire.ReleaseCreditResponse:
        with _domain_errors_as_rpc_errors():
            order_id, user_id = _id("order_id", request.order_id), _id("user_id", request.user_id)
            await self._commands.release_credit(order_id, user_id)
        return wire.ReleaseCreditResponse()


@contextmanager
def _domain_errors_as_rpc_errors() -> Iterator[None]:
    try:
        yield
    except domain.DomainError as error:
        code, reason = _REASONS[type(error)]
        fields = error.fields if isinstance(error, domain.Invalid) else None
        raise RpcError(code, reason, str(error), fields) from None
    except TooBusy as error:
        raise RpcError(grpc.StatusCode.RESOURCE_EXHAUSTED, "OVERLOADED", str(error), retry_after=1) from None


def _id(field: str, text: str) -> UUID:
    try:
        return UUID(text)
    except ValueError:
        raise domain.Invalid({field: "must be a UUID"}) from None


def _user(user: User) -> wire.User:
    credit = wire.Credit(currency=user.credit.currency, limit=user.credit.limit, available=user.credit.available)
    return wire.User(id=str(user.id), email=user.email, name=user.name, credit=credit)
