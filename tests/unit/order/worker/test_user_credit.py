"""The fake of the User Service behaves as the real one does through its gRPC adapter."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import grpc
import pytest
from behaviour.order.support import service as order
from behaviour.order.support.storages import MemoryStorage
from behaviour.user import service as user

from chassis.errors import RpcError
from chassis.settings import Live
from order_service.worker.user_credit import CreditDenied, FakeUserCredit, GrpcUserCredit, UserCredit
from user_service.rpc import UserRpc

from ..loopback import Loopback

LIMIT = 100_000
CONTRACT = Path(__file__).parents[4] / "protos" / "shop" / "user" / "v1" / "user.proto"


@dataclass
class Account:
    """The port, a user with a credit of LIMIT, and a function that returns the available credit."""

    user_credit: UserCredit
    ada: UUID
    available: Callable[[], Awaitable[int]]


async def fake() -> Account:
    user_credit = FakeUserCredit(LIMIT)

    async def available() -> int:
        return user_credit.available

    return Account(user_credit, uuid4(), available)


async def real() -> Account:
    service = user.Service(Live(user.shipped(initial_credit=LIMIT, currency="EUR")))
    ada = (await service.commands.register_user("ada@example.com", "Ada", "correct horse")).id

    async def available() -> int:
        return (await service.queries.get_user(ada)).credit.available

    return Account(GrpcUserCredit(Loopback(UserRpc(service.commands, service.queries))), ada, available)


@pytest.fixture(params=[fake, real])
async def account(request: pytest.FixtureRequest) -> Account:
    made: Account = await request.param()
    return made


async def denied(call: Awaitable[None]) -> str:
    with pytest.raises(CreditDenied) as caught:
        await call
    return caught.value.reason


async def test_a_reservation_above_the_available_credit_is_denied_and_holds_nothing(account: Account) -> None:
    assert await denied(account.user_credit.reserve(uuid4(), account.ada, "EUR", LIMIT + 1)) == "CREDIT_EXCEEDED"
    assert await account.available() == LIMIT


async def test_a_reservation_holds_once_however_often_it_is_made(account: Account) -> None:
    order_id = uuid4()
    for _ in range(3):
        await account.user_credit.reserve(order_id, account.ada, "EUR", 300)
    assert await account.available() == LIMIT - 300


async def test_a_release_has_effect_once_however_often_it_is_made(account: Account) -> None:
    order_id = uuid4()
    await account.user_credit.reserve(order_id, account.ada, "EUR", 300)
    for _ in range(3):
        await account.user_credit.release(order_id, account.ada)
    assert await account.available() == LIMIT


@pytest.mark.parametrize("held", [True, False])
async def test_an_order_that_was_released_never_reserves_again(account: Account, held: bool) -> None:
    order_id = uuid4()
    if held:
        await account.user_credit.reserve(order_id, account.ada, "EUR", 300)
    await account.user_credit.release(order_id, account.ada)
    assert await denied(account.user_credit.reserve(order_id, account.ada, "EUR", 300)) == "RESERVATION_RELEASED"
    assert await account.available() == LIMIT


class Failing:
    """A channel whose calls fail with this error."""

    def __init__(self, error: RpcError) -> None:
        self._error = error

    def unary_unary(self, *_: Any, **__: Any) -> Callable[[Any], Awaitable[Any]]:
        async def call(_: Any) -> Any:
            raise self._error

        return call


def reasons_in_contract() -> set[tuple[grpc.StatusCode, str]]:
    """Returns the code and reason of each error that the contract names at ReserveCredit."""
    comment = re.search(r"((?: *//.*\n)+) *rpc ReserveCredit", CONTRACT.read_text())
    assert comment
    words = re.findall(r"[A-Z]+_[A-Z_]+", comment[1])
    codes = {code.name: code for code in grpc.StatusCode}
    found, code = set(), grpc.StatusCode.UNKNOWN
    for word in words:
        if word in codes:
            code = codes[word]
        else:
            found.add((code, word))
    return found


def test_the_contract_names_five_denials() -> None:
    assert len(reasons_in_contract()) == 5


@pytest.mark.parametrize(("code", "reason"), sorted(reasons_in_contract(), key=str))
async def test_an_order_is_rejected_for_a_reason_of_the_contract(code: grpc.StatusCode, reason: str) -> None:
    assert await outcome(RpcError(code, reason)) == (["OrderPlaced", "OrderRejected"], 0)


@pytest.mark.parametrize("code", [code for code in grpc.StatusCode if code is not grpc.StatusCode.OK])
@pytest.mark.parametrize("reason", ["INVALID", "", "CREDIT_EXCEEDED", "USER_UNKNOWN"])
async def test_an_order_stays_pending_after_any_other_error(code: grpc.StatusCode, reason: str) -> None:
    if (code, reason) not in reasons_in_contract():
        assert await outcome(RpcError(code, reason or code.name)) == (["OrderPlaced"], 1)


async def outcome(error: RpcError) -> tuple[list[str], int]:
    """Returns the events of an order whose reservation fails with this error, and the number of pending entries."""
    service = order.Service(order.shipped(), MemoryStorage())
    service.process_manager._user_credit = GrpcUserCredit(Failing(error))
    placed = await service.place()
    await service.work()
    return await service.types(placed.id), await service.storage.pending_entries()


async def test_the_real_service_denies_an_unknown_user_and_another_currency() -> None:
    account = await real()
    assert await denied(account.user_credit.reserve(uuid4(), uuid4(), "EUR", 1)) == "USER_UNKNOWN"
    assert await denied(account.user_credit.reserve(uuid4(), account.ada, "USD", 1)) == "CURRENCY_MISMATCH"
    await account.user_credit.release(uuid4(), uuid4())
