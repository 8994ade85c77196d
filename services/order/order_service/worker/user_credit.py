"""The User Service as the Order Service needs it: the port, gRPC behind it, and the fake of the unit tests."""

from __future__ import annotations

from typing import Any, Protocol
from uuid import UUID

import grpc

from chassis.errors import RpcError
from shop.user.v1 import user_pb2
from shop.user.v1.user_pb2_grpc import UserServiceStub

_REFUSALS = (grpc.StatusCode.FAILED_PRECONDITION, grpc.StatusCode.NOT_FOUND, grpc.StatusCode.INVALID_ARGUMENT)


class CreditRefused(Exception):  # noqa: N818 - an answer, not a defect
    """The User Service says no, and will say so again; `reason` is its word for it."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class Users(Protocol):
    """Credit of users. Both calls are idempotent by order; both raise RpcError when they could not be made."""

    async def reserve(self, order_id: UUID, user_id: UUID, currency: str, amount: int) -> None:
        """Hold an amount for an order; raises CreditRefused."""

    async def release(self, order_id: UUID, user_id: UUID) -> None:
        """Give back what an order holds."""


class GrpcUsers:
    """shop.user.v1.UserService."""

    def __init__(self, channel: Any) -> None:
        self._stub: Any = UserServiceStub(channel)

    async def reserve(self, order_id: UUID, user_id: UUID, currency: str, amount: int) -> None:
        """See Users."""
        call = user_pb2.ReserveCreditRequest(
            order_id=str(order_id), user_id=str(user_id), currency=currency, amount=amount
        )
        try:
            await self._stub.ReserveCredit(call)
        except RpcError as error:
            if error.code in _REFUSALS:
                raise CreditRefused(error.reason) from error
            raise

    async def release(self, order_id: UUID, user_id: UUID) -> None:
        """See Users."""
        await self._stub.ReleaseCredit(user_pb2.ReleaseCreditRequest(order_id=str(order_id), user_id=str(user_id)))


class FakeUsers:
    """The User Service of unit tests: one credit for all; `away` makes each call raise it."""

    def __init__(self, credit: int = 100_000) -> None:
        self.available = credit
        self.held: dict[UUID, int] = {}
        self.released: set[UUID] = set()
        self.away: Exception | None = None

    async def reserve(self, order_id: UUID, user_id: UUID, currency: str, amount: int) -> None:  # noqa: ARG002
        """See Users."""
        self._answer()
        if order_id in self.released:
            raise CreditRefused("RESERVATION_RELEASED")
        if order_id not in self.held:
            if amount > self.available:
                raise CreditRefused("CREDIT_EXCEEDED")
            self.held[order_id] = amount
            self.available -= amount

    async def release(self, order_id: UUID, user_id: UUID) -> None:  # noqa: ARG002
        """See Users."""
        self._answer()
        self.released.add(order_id)
        self.available += self.held.pop(order_id, 0)

    def _answer(self) -> None:
        if self.away:
            raise self.away
