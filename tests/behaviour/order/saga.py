"""Errands that fail, die, come twice or late, and cancellations at any moment: credit is held by confirmed orders only.

Whatever happened, once everything has returned and no errand is open, the sum is exact.
"""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass
from types import MappingProxyType
from uuid import UUID

from behaviour.order.support.faulty_ports import Fate, Worker, away
from behaviour.order.support.interleaved import Interleaved
from behaviour.order.support.service import ADA, Service, Storage, shipped
from behaviour.order.support.state_machine import Machine
from behaviour.order.support.storages import MemoryStorage
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, invariant, rule

from order_service.domain import Line, Order, OrderClosed, Status
from order_service.worker.outbox import KINDS, Errand
from order_service.worker.process_manager import Fulfilment
from order_service.worker.user_credit import FakeUsers

CREDIT = 1000
ROUNDS = 20
LIVES = [
    ["OrderPlaced", "OrderConfirmed"],
    ["OrderPlaced", "OrderRejected"],
    ["OrderPlaced", "OrderCancelled"],
    ["OrderPlaced", "OrderConfirmed", "OrderCancelled"],
]

FREQUENT = [Fate.LATE, Fate.KILLED_DURING_CALL] * 2
fates = st.lists(st.sampled_from([*Fate, *FREQUENT]), min_size=1, max_size=4)
seldom = st.integers(0, 3).map(lambda drawn: drawn == 0)
seeds = st.integers(0, 2**16)


@dataclass(frozen=True)
class Turn:
    """What is drawn for one turn of the workers."""

    fates: list[Fate]
    twice: bool = False
    """Two workers have each errand at once."""
    behind: bool = False
    """The projection has not come to the last events."""
    gone: bool = False
    """The User Service is away."""
    seed: int = 0


turns = st.builds(Turn, fates, st.booleans(), seldom, seldom, seeds)


class Saga(Machine):
    """Orders of one user, and workers to whom everything may happen."""

    orders: Bundle[Order] = Bundle("orders")
    users_of: type[FakeUsers] = FakeUsers
    fulfilment_of: type[Fulfilment] = Fulfilment

    def __init__(self) -> None:
        super().__init__()
        self.users = self.users_of(CREDIT)
        self.service = Service(shipped(), self.storage, self.users)
        self.luck = random.Random(0)
        self.service.commands._store = Interleaved(self.storage.store, self.luck)
        self.worker = Worker(self.service, self.luck, self.fulfilment_of)
        self.placed: list[Order] = []

    def teardown(self) -> None:
        try:
            self.run(self._return(late_last=True))
            self.nothing_is_leaked()
        finally:
            super().teardown()

    @rule(target=orders, amount=st.sampled_from([300, 600, 1000]))
    def place(self, amount: int) -> Order:
        order = self.run(self.service.place(f"k{len(self.placed)}", ADA, Line("tea", 1, amount)))
        self.placed.append(order)
        return order

    @rule(order=orders)
    def cancel(self, order: Order) -> None:
        self.run(self._cancel(order.id))

    @rule(order=orders)
    def deliver_again(self, order: Order) -> None:
        """Every errand the order ever needed is owed once more."""
        for kind in {KINDS[each] for each in self.run(self.service.types(order.id)) if each in KINDS}:
            self.run(self.storage.owe(order.id, kind))

    @rule(cancelled=st.lists(orders, max_size=1), turn=turns)
    def work(self, cancelled: list[Order], turn: Turn) -> None:
        """Every open errand is tried while a user cancels."""
        self.luck.seed(turn.seed)
        self.users.away = away() if turn.gone else None
        if not turn.behind:
            self.run(self.storage.project())
        self.run(self._work([*turn.fates], turn.twice, [order.id for order in cancelled]))

    @rule(seed=seeds)
    def let_late_calls_arrive(self, seed: int) -> None:
        self.luck.seed(seed)
        self.run(self.worker.users.arrive())

    @rule(late_last=st.booleans())
    def let_everything_return(self, late_last: bool) -> None:
        self.run(self._return(late_last))
        self.nothing_is_leaked()

    @invariant()
    def what_is_confirmed_is_held(self) -> None:
        for order in self._now():
            if order.status is Status.CONFIRMED:
                assert self.users.held.get(order.id) == order.total

    @invariant()
    def nothing_is_held_twice(self) -> None:
        assert self.users.available + sum(self.users.held.values()) == CREDIT
        assert self.users.available >= 0

    def nothing_is_leaked(self) -> None:
        orders = self._now()
        assert {order.id: order.total for order in orders if order.status is Status.CONFIRMED} == self.users.held
        for order in orders:
            assert self.run(self.service.types(order.id)) in LIVES

    def _now(self) -> list[Order]:
        return [self.run(self.service.queries.get_order(ADA, order.id)) for order in self.placed]

    async def _cancel(self, order_id: UUID) -> None:
        try:
            await self.service.commands.cancel_order(ADA, order_id, [])
        except OrderClosed:
            return

    async def _work(self, drawn: list[Fate], twice: bool = False, cancelled: list[UUID] | None = None) -> None:
        errands = []
        for _ in range(1 + twice):
            await self.storage.pass_time()
            errands += await self.storage.errands.claim(1000, 60)
        self.luck.shuffle(errands)
        drawn += [Fate.FINE] * (len(errands) - len(drawn))
        attempts = [self.worker.attempt(errand, drawn.pop(0)) for errand in errands]
        await asyncio.gather(*attempts, *(self._cancel(order_id) for order_id in cancelled or []))

    async def _return(self, late_last: bool) -> None:
        """The User Service is back, nobody is killed any more, and every errand gets the time it needs."""
        self.users.away = None
        for _ in range(ROUNDS):
            if not late_last:
                await self.worker.users.arrive()
            await self.storage.project()
            if not await self.storage.open_errands():
                break
            await self._work([])
        assert await self.storage.open_errands() == 0
        await self.worker.users.arrive()


def planted(bug: str) -> type[Saga]:
    """A saga with one of its defences taken away."""

    class Forgets(FakeUsers):
        async def release(self, order_id: UUID, user_id: UUID) -> None:
            await super().release(order_id, user_id)
            self.released.discard(order_id)

    class Doubles(FakeUsers):
        async def reserve(self, order_id: UUID, user_id: UUID, currency: str, amount: int) -> None:
            known = order_id in self.held
            await super().reserve(order_id, user_id, currency, amount)
            self.available -= amount if known else 0

    class KeepsWhatIsRejected(MemoryStorage):
        kinds = MappingProxyType({event: kind for event, kind in KINDS.items() if event != "OrderRejected"})

    class FinishesFirst(Fulfilment):
        async def _run(self, errand: Errand) -> None:
            await self._errands.finish(errand)
            await super()._run(errand)

    class Planted(Saga):
        users_of = {"a release is forgotten": Forgets, "a repeat reserves again": Doubles}.get(bug, FakeUsers)
        fulfilment_of = FinishesFirst if bug == "an errand is finished before it is done" else Fulfilment

        def open(self) -> Storage:
            storage = super().open()
            return KeepsWhatIsRejected() if bug == "a rejected order gives nothing back" else storage

    return Planted


FREQUENT_BUGS = ["a repeat reserves again", "an errand is finished before it is done"]
"""Found within some ten lives."""
RARE_BUGS = ["a release is forgotten", "a rejected order gives nothing back"]
"""Found within some hundred lives."""
