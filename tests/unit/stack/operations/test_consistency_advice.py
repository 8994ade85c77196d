"""The next step of a finding about credit can be carried out, and then the finding is gone."""

from __future__ import annotations

import json
import re
from collections.abc import Awaitable, Callable
from contextlib import closing
from dataclasses import replace
from typing import Any
from uuid import UUID, uuid4

import pytest
from behaviour.order.support import service as order_support
from behaviour.order.support.storages import MemoryStorage
from behaviour.user import service as user_support
from google.protobuf import json_format

from chassis.errors import RpcError
from chassis.settings import Live
from chassis.testing import process
from order_service.domain import Line
from order_service.order_watches import OrderWatches
from order_service.rpc import OrderRpc
from order_service.worker.outbox import MemoryOutbox
from order_service.worker.user_credit import CreditDenied
from shop.order.v1 import order_pb2
from shop.user.v1 import user_pb2
from stack.operations.consistency_check import Finding, findings
from stack.operations.service_reports import Reports
from user_service.domain import State
from user_service.rpc import UserRpc
from user_service.user_repository import MemoryUserRepository

LIMIT = 1000
CALL = re.compile(r"call ([\w.]+)/(\w+) with (\{.*?\})")


class Stores:
    """Both services on memory, with one user: the servicers of their contracts, and a consistency check."""

    def __init__(self) -> None:
        self.user = user_support.Service(Live(user_support.shipped(initial_credit=LIMIT, currency="EUR")))
        self.order = order_support.Service(order_support.shipped(), MemoryStorage())
        self.order.process_manager._user_credit = self
        watches = OrderWatches(
            process("order-service", self.order.settings.value), self.order.store, self.order.queries
        )
        user_rpc = UserRpc(self.user.commands, self.user.queries)
        order_rpc = OrderRpc(self.order.commands, self.order.queries, watches)
        self.servicers = {"shop.user.v1.UserService": user_rpc, "shop.order.v1.OrderService": order_rpc}
        self.placed: list[UUID] = []
        self.ada = UUID(int=0)

    @property
    def repository(self) -> MemoryUserRepository:
        assert isinstance(self.user.users, MemoryUserRepository)
        return self.user.users

    async def reserve(self, order_id: UUID, user_id: UUID, currency: str, amount: int) -> None:
        request = {"order_id": str(order_id), "user_id": str(user_id), "currency": currency, "amount": amount}
        try:
            await self.call("shop.user.v1.UserService", "ReserveCredit", request)
        except RpcError as error:
            raise CreditDenied(error.reason) from error

    async def release(self, order_id: UUID, user_id: UUID) -> None:
        await self.call(
            "shop.user.v1.UserService", "ReleaseCredit", {"order_id": str(order_id), "user_id": str(user_id)}
        )

    async def call(self, service: str, method: str, request: dict[str, Any]) -> None:
        messages = user_pb2 if "user" in service else order_pb2
        message = json_format.ParseDict(request, getattr(messages, f"{method}Request")())
        await getattr(self.servicers[service], method)(message, None)

    async def place(self, price: int = 300) -> UUID:
        order = await self.order.place(uuid4().hex, self.ada, Line("tea", 1, price))
        self.placed.append(order.id)
        return order.id

    async def confirmed(self) -> UUID:
        order_id = await self.place()
        await self.order.work()
        return order_id

    async def cancelled(self) -> UUID:
        order_id = await self.confirmed()
        await self.order.commands.cancel_order(self.ada, order_id, [])
        await self.order.work()
        return order_id

    def forget(self, order_id: UUID) -> None:
        """Deletes a reservation as a restore of an older backup does."""
        gone = self.repository._reservations.pop(order_id)
        user = self.repository._users[self.ada]
        self.repository._users[self.ada] = replace(
            user, credit=replace(user.credit, held=user.credit.held - gone.amount)
        )

    def change(self, order_id: UUID, **changes: Any) -> None:
        """Changes a reservation, and the credit that its user holds with it."""
        before = self.repository._reservations[order_id]
        after = self.repository._reservations[order_id] = replace(before, **changes)
        user = self.repository._users[self.ada]
        held = user.credit.held + after.held_amount - before.held_amount
        self.repository._users[self.ada] = replace(user, credit=replace(user.credit, held=held))

    async def findings(self) -> list[Finding]:
        outbox, lines = self.order.outbox, list[dict[str, Any]]()
        assert isinstance(outbox, MemoryOutbox)
        lines += [{"user": {"id": str(user_id)}} for user_id in self.repository._users]
        pending = [*outbox._due.values(), *outbox._later.values()]
        for each in self.placed:
            order = await self.order.queries.get_order(self.ada, each)
            kinds = [entry.kind for entry in pending if entry.order_id == each]
            row = {"id": str(each), "user_id": str(self.ada), "status": str(order.status), "pending": kinds}
            lines.append({"order": row | {"currency": order.currency, "total": order.total}})
        for order_id, stored in self.repository._reservations.items():
            ids = {"order_id": str(order_id), "user_id": str(stored.user_id)}
            lines.append({"reservation": ids | {"amount": stored.amount, "state": str(stored.state)}})
        with closing(Reports()) as reports:
            reports.add(lines)
            return list(findings(reports))

    async def carry_out(self, advice: str) -> None:
        """Makes the first call of an advice, and the next one if that is denied."""
        calls = CALL.findall(advice)
        assert calls, advice
        for number, (service, method, request) in enumerate(calls, 1):
            try:
                await self.call(service, method, json.loads(request))
                break
            except RpcError:
                assert "if it is denied" in advice
                assert number < len(calls)


@pytest.fixture
async def stores() -> Stores:
    made = Stores()
    made.ada = (await made.user.commands.register_user("ada@example.com", "Ada", "correct horse")).id
    return made


async def released_while_confirmed(stores: Stores) -> None:
    await stores.release(await stores.confirmed(), stores.ada)


async def forgotten_while_confirmed(stores: Stores) -> None:
    stores.forget(await stores.confirmed())


async def forgotten_and_the_credit_is_used_up(stores: Stores) -> None:
    stores.forget(await stores.confirmed())
    await stores.place(LIMIT)
    await stores.order.work()


async def another_amount_while_confirmed(stores: Stores) -> None:
    stores.change(await stores.confirmed(), amount=299)


async def another_amount_while_pending(stores: Stores) -> None:
    await stores.reserve(await stores.place(), stores.ada, "EUR", 299)


async def released_while_pending(stores: Stores) -> None:
    await stores.release(await stores.place(), stores.ada)


async def held_while_cancelled(stores: Stores) -> None:
    stores.change(await stores.cancelled(), state=State.HELD)


async def never_released_while_rejected(stores: Stores) -> None:
    await stores.place(LIMIT + 1)
    await stores.order.work()


async def held_without_an_order(stores: Stores) -> None:
    await stores.reserve(uuid4(), stores.ada, "EUR", 300)


Damage = Callable[[Stores], Awaitable[None]]
DAMAGES: list[Damage] = [
    released_while_confirmed,
    forgotten_while_confirmed,
    forgotten_and_the_credit_is_used_up,
    another_amount_while_confirmed,
    another_amount_while_pending,
    released_while_pending,
    held_while_cancelled,
    never_released_while_rejected,
    held_without_an_order,
]


@pytest.mark.parametrize("damage", DAMAGES)
async def test_the_next_step_of_a_finding_mends_it(stores: Stores, damage: Damage) -> None:
    await damage(stores)
    (finding,) = await stores.findings()
    await stores.carry_out(finding.next)
    for _ in range(2):
        await stores.order.work()
    assert await stores.findings() == []
    held = sum(each.held_amount for each in stores.repository._reservations.values())
    assert stores.repository._users[stores.ada].credit.held == held


async def test_without_the_next_step_the_finding_stays(stores: Stores) -> None:
    await released_while_confirmed(stores)
    for _ in range(2):
        await stores.order.work()
    assert len(await stores.findings()) == 1


async def test_a_reservation_of_another_user_is_moved_because_no_call_can_do_it(stores: Stores) -> None:
    order_id, bob = await stores.confirmed(), uuid4()
    stores.repository._reservations[order_id] = replace(stores.repository._reservations[order_id], user_id=bob)
    (finding,) = await stores.findings()
    assert f"UPDATE reservations SET user_id = '{stores.ada}' WHERE order_id = '{order_id}'" in finding.next
