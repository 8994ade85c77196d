"""A state machine of the saga: only confirmed orders hold credit, whatever fails and whenever an order is cancelled.

Outbox entries fail, or are processed twice or late. Once all faults have ended and no entry is pending, the sum of
held credit is exact.
"""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass
from types import MappingProxyType
from uuid import UUID

from behaviour.order.support.faulty_ports import Fault, Worker, outage
from behaviour.order.support.interleaved import Interleaved
from behaviour.order.support.service import ADA, Service, Storage, shipped
from behaviour.order.support.state_machine import Machine
from behaviour.order.support.storages import MemoryStorage
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, invariant, rule

from order_service.domain import Line, Order, OrderClosed, Status
from order_service.worker.outbox import ENTRY_KINDS, OutboxEntry
from order_service.worker.process_manager import ProcessManager
from order_service.worker.user_credit import FakeUserCredit

CREDIT = 1000
ROUNDS = 20
HISTORIES = [
    ["OrderPlaced", "OrderConfirmed"],
    ["OrderPlaced", "OrderRejected"],
    ["OrderPlaced", "OrderCancelled"],
    ["OrderPlaced", "OrderConfirmed", "OrderCancelled"],
]

LIKELY_FAULTS = [Fault.CALL_LATE, Fault.KILLED_DURING_CALL] * 2
faults = st.lists(st.sampled_from([*Fault, *LIKELY_FAULTS]), min_size=1, max_size=4)
seldom = st.integers(0, 3).map(lambda drawn: drawn == 0)
seeds = st.integers(0, 2**16)


@dataclass(frozen=True)
class Turn:
    """The random parameters of one turn of the workers."""

    faults: list[Fault]
    twice: bool = False
    """Two workers process each entry at the same time."""
    behind: bool = False
    """The projection lags behind the last events."""
    outage: bool = False
    """The User Service is unavailable."""
    seed: int = 0


turns = st.builds(Turn, faults, st.booleans(), seldom, seldom, seeds)


class Saga(Machine):
    """Orders of one user, and workers with any fault."""

    orders: Bundle[Order] = Bundle("orders")
    user_credit_class: type[FakeUserCredit] = FakeUserCredit
    process_manager_class: type[ProcessManager] = ProcessManager

    def __init__(self) -> None:
        super().__init__()
        self.user_credit = self.user_credit_class(CREDIT)
        self.service = Service(shipped(), self.storage, self.user_credit)
        self.rng = random.Random(0)
        self.service.commands._store = Interleaved(self.storage.store, self.rng)
        self.worker = Worker(self.service, self.rng, self.process_manager_class)
        self.placed: list[Order] = []

    def teardown(self) -> None:
        try:
            self.run(self._recover(late_last=True))
            self.no_credit_is_leaked()
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
        """Adds every outbox entry that the order ever needed once more."""
        for kind in {ENTRY_KINDS[each] for each in self.run(self.service.types(order.id)) if each in ENTRY_KINDS}:
            self.run(self.storage.add_entry(order.id, kind))

    @rule(cancelled=st.lists(orders, max_size=1), turn=turns)
    def work(self, cancelled: list[Order], turn: Turn) -> None:
        """Attempts every pending entry while a user cancels orders."""
        self.rng.seed(turn.seed)
        self.user_credit.failure = outage() if turn.outage else None
        if not turn.behind:
            self.run(self.storage.project())
        self.run(self._work([*turn.faults], turn.twice, [order.id for order in cancelled]))

    @rule(seed=seeds)
    def let_late_calls_arrive(self, seed: int) -> None:
        self.rng.seed(seed)
        self.run(self.worker.user_credit.arrive())

    @rule(late_last=st.booleans())
    def end_all_faults(self, late_last: bool) -> None:
        self.run(self._recover(late_last))
        self.no_credit_is_leaked()

    @invariant()
    def confirmed_orders_hold_their_total(self) -> None:
        for order in self._now():
            if order.status is Status.CONFIRMED:
                assert self.user_credit.held.get(order.id) == order.total

    @invariant()
    def no_credit_is_held_twice(self) -> None:
        assert self.user_credit.available + sum(self.user_credit.held.values()) == CREDIT
        assert self.user_credit.available >= 0

    def no_credit_is_leaked(self) -> None:
        orders = self._now()
        assert {order.id: order.total for order in orders if order.status is Status.CONFIRMED} == self.user_credit.held
        for order in orders:
            assert self.run(self.service.types(order.id)) in HISTORIES

    def _now(self) -> list[Order]:
        return [self.run(self.service.queries.get_order(ADA, order.id)) for order in self.placed]

    async def _cancel(self, order_id: UUID) -> None:
        try:
            await self.service.commands.cancel_order(ADA, order_id, [])
        except OrderClosed:
            return

    async def _work(self, drawn: list[Fault], twice: bool = False, cancelled: list[UUID] | None = None) -> None:
        entries = []
        for _ in range(1 + twice):
            await self.storage.pass_time()
            entries += await self.storage.outbox.claim(1000, 60)
        self.rng.shuffle(entries)
        drawn += [Fault.NONE] * (len(entries) - len(drawn))
        attempts = [self.worker.attempt(entry, drawn.pop(0)) for entry in entries]
        await asyncio.gather(*attempts, *(self._cancel(order_id) for order_id in cancelled or []))

    async def _recover(self, late_last: bool) -> None:
        """Ends all faults and lets the workers process every entry."""
        self.user_credit.failure = None
        for _ in range(ROUNDS):
            if not late_last:
                await self.worker.user_credit.arrive()
            await self.storage.project()
            if not await self.storage.pending_entries():
                break
            await self._work([])
        assert await self.storage.pending_entries() == 0
        await self.worker.user_credit.arrive()


def planted(bug: str) -> type[Saga]:
    """Returns a saga without one of its safeguards."""

    class Forgets(FakeUserCredit):
        async def release(self, order_id: UUID, user_id: UUID) -> None:
            await super().release(order_id, user_id)
            self.released.discard(order_id)

    class Doubles(FakeUserCredit):
        async def reserve(self, order_id: UUID, user_id: UUID, currency: str, amount: int) -> None:
            known = order_id in self.held
            await super().reserve(order_id, user_id, currency, amount)
            self.available -= amount if known else 0

    class KeepsRejected(MemoryStorage):
        kinds = MappingProxyType({event: kind for event, kind in ENTRY_KINDS.items() if event != "OrderRejected"})

    class CompletesFirst(ProcessManager):
        async def _process(self, entry: OutboxEntry) -> None:
            await self._outbox.complete(entry)
            await super()._process(entry)

    class Planted(Saga):
        user_credit_class = {"a release is forgotten": Forgets, "a repeat reserves again": Doubles}.get(
            bug, FakeUserCredit
        )
        process_manager_class = (
            CompletesFirst if bug == "an entry is completed before it is processed" else ProcessManager
        )

        def open(self) -> Storage:
            storage = super().open()
            return KeepsRejected() if bug == "a rejected order releases nothing" else storage

    return Planted


FREQUENT_BUGS = ["a repeat reserves again", "an entry is completed before it is processed"]
"""Found within some ten examples."""
RARE_BUGS = ["a release is forgotten", "a rejected order releases nothing"]
"""Found within some hundred examples."""
