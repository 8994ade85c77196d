"""Calls the User Service to reserve and release credit: the port, its gRPC adapter, and its fake for unit tests."""

from __future__ import annotations

from typing import Any, Protocol
from uuid import UUID

import grpc

from chassis.errors import RpcError
from shop.user.v1 import user_pb2
from shop.user.v1.user_pb2_grpc import UserServiceStub

_DENIALS = {
    (grpc.StatusCode.FAILED_PRECONDITION, "CREDIT_EXCEEDED"),
    (grpc.StatusCode.FAILED_PRECONDITION, "CURRENCY_MISMATCH"),
    (grpc.StatusCode.FAILED_PRECONDITION, "RESERVATION_CONFLICT"),
    (grpc.StatusCode.FAILED_PRECONDITION, "RESERVATION_RELEASED"),
    (grpc.StatusCode.NOT_FOUND, "USER_UNKNOWN"),
}
"""The errors of ReserveCredit in the contract. Any other one may be a defect of either service, so the call is retried:
a rejection is final."""


class CreditDenied(Exception):  # noqa: N818 - an answer, not a defect
    """The User Service denies the reservation, at each attempt; `reason` is its reason code."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class UserCredit(Protocol):
    """Port: the credit of users. Both calls are idempotent by order and raise RpcError if the call fails."""

    async def reserve(self, order_id: UUID, user_id: UUID, currency: str, amount: int) -> None:
        """Reserves an amount for an order; raises CreditDenied."""

    async def release(self, order_id: UUID, user_id: UUID) -> None:
        """Releases the credit that is reserved for an order."""


class GrpcUserCredit:
    """Calls shop.user.v1.UserService."""

    def __init__(self, channel: Any) -> None:
        self._stub: Any = UserServiceStub(channel)

    async def reserve(self, order_id: UUID, user_id: UUID, currency: str, amount: int) -> None:
        """See UserCredit."""
        request = user_pb2.ReserveCreditRequest(
            order_id=str(order_id), user_id=str(user_id), currency=currency, amount=amount
        )
        try:
            await self._stub.ReserveCredit(request)
        except RpcError as error:
            if (error.code, error.reason) in _DENIALS:
                raise CreditDenied(error.reason) from error
            raise

    async def release(self, order_id: UUID, user_id: UUID) -> None:
        """See UserCredit."""
        await self._stub.ReleaseCredit(user_pb2.ReleaseCreditRequest(order_id=str(order_id), user_id=str(user_id)))


class FakeUserCredit:
    """Fake for unit tests: one credit for all users; each call raises `failure` if it is set."""

    def __init__(self, credit: int = 100_000) -> None:
        self.available = credit
        self.held: dict[UUID, int] = {}
        self.released: set[UUID] = set()
        self.failure: Exception | None = None

    async def reserve(self, order_id: UUID, user_id: UUID, currency: str, amount: int) -> None:  # noqa: ARG002
        """See UserCredit."""
        self._fail_if_set()
        if order_id in self.released:
            raise CreditDenied("RESERVATION_RELEASED")
        if order_id not in self.held:
            if amount > self.available:
                raise CreditDenied("CREDIT_EXCEEDED")
            self.held[order_id] = amount
            self.available -= amount

    async def release(self, order_id: UUID, user_id: UUID) -> None:  # noqa: ARG002
        """See UserCredit."""
        self._fail_if_set()
        self.released.add(order_id)
        self.available += self.held.pop(order_id, 0)

    def _fail_if_set(self) -> None:
        if self.failure:
            raise self.failure
