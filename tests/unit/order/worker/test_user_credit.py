"""The fake of the User Service does what the real one does, as the Order Service sees it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any
from uuid import UUID, uuid4

import pytest
from behaviour.user import service as user

from order_service.worker.user_credit import CreditRefused, FakeUsers, GrpcUsers, Users
from user_service.rpc import UserRpc

LIMIT = 100_000


class Loopback:
    """A channel to a servicer in this process: the messages are those of the wire, the network is left out."""

    def __init__(self, servicer: Any) -> None:
        self._servicer = servicer

    def unary_unary(
        self, path: str, request_serializer: Any, response_deserializer: Any, **_: Any
    ) -> Callable[[Any], Awaitable[Any]]:
        method = getattr(self._servicer, path.rpartition("/")[2])

        async def call(request: Any) -> Any:
            sent = type(request).FromString(request_serializer(request))
            return response_deserializer((await method(sent, None)).SerializeToString())

        return call


@dataclass
class Market:
    """The port, one user with a credit of LIMIT, and how much of it is left."""

    users: Users
    ada: UUID
    available: Callable[[], Awaitable[int]]


async def fake() -> Market:
    users = FakeUsers(LIMIT)

    async def available() -> int:
        return users.available

    return Market(users, uuid4(), available)


async def real() -> Market:
    service = user.Service(user.shipped(initial_credit=LIMIT, currency="EUR"))
    ada = (await service.commands.register_user("ada@example.com", "Ada", "correct horse")).id

    async def available() -> int:
        return (await service.queries.get_user(ada)).credit.available

    return Market(GrpcUsers(Loopback(UserRpc(service.commands, service.queries))), ada, available)


@pytest.fixture(params=[fake, real])
async def market(request: pytest.FixtureRequest) -> Market:
    made: Market = await request.param()
    return made


async def refused(call: Awaitable[None]) -> str:
    with pytest.raises(CreditRefused) as refusal:
        await call
    return refusal.value.reason


async def test_more_than_there_is_is_refused_and_holds_nothing(market: Market) -> None:
    assert await refused(market.users.reserve(uuid4(), market.ada, "EUR", LIMIT + 1)) == "CREDIT_EXCEEDED"
    assert await market.available() == LIMIT


async def test_a_reservation_holds_once_however_often_it_is_made(market: Market) -> None:
    order_id = uuid4()
    for _ in range(3):
        await market.users.reserve(order_id, market.ada, "EUR", 300)
    assert await market.available() == LIMIT - 300


async def test_a_release_gives_back_once_however_often_it_is_made(market: Market) -> None:
    order_id = uuid4()
    await market.users.reserve(order_id, market.ada, "EUR", 300)
    for _ in range(3):
        await market.users.release(order_id, market.ada)
    assert await market.available() == LIMIT


@pytest.mark.parametrize("held", [True, False])
async def test_what_was_released_never_reserves_again(market: Market, held: bool) -> None:
    order_id = uuid4()
    if held:
        await market.users.reserve(order_id, market.ada, "EUR", 300)
    await market.users.release(order_id, market.ada)
    assert await refused(market.users.reserve(order_id, market.ada, "EUR", 300)) == "RESERVATION_RELEASED"
    assert await market.available() == LIMIT


async def test_the_real_one_refuses_a_user_it_does_not_know_and_another_currency() -> None:
    market = await real()
    assert await refused(market.users.reserve(uuid4(), uuid4(), "EUR", 1)) == "USER_UNKNOWN"
    assert await refused(market.users.reserve(uuid4(), market.ada, "USD", 1)) == "CURRENCY_MISMATCH"
    await market.users.release(uuid4(), uuid4())
