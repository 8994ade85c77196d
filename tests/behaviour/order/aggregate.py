"""A state machine of orders: any sequence of commands, sequential or concurrent, has a result that a model allows.

The model is a table of the documented transitions. Concurrent commands must have the result of some sequence of them.
"""

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any
from uuid import UUID, uuid4

from behaviour.order.support.interleaved import Interleaved
from behaviour.order.support.service import ADA, EVE, TEA, Service, shipped
from behaviour.order.support.state_machine import Machine
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, invariant, rule

from order_service.commands import KeyReused
from order_service.domain import DomainError, Invalid, Line, Order, OrderClosed, OrderUnknown, Status, VersionMismatch

NEXT = {
    ("pending", "confirm"): "confirmed",
    ("pending", "reject"): "rejected",
    ("pending", "cancel"): "cancelled",
    ("confirmed", "cancel"): "cancelled",
}
EVENT = {"confirmed": "OrderConfirmed", "rejected": "OrderRejected", "cancelled": "OrderCancelled"}


@dataclass(frozen=True)
class Decision:
    """A command on an order; user and versions matter for a cancellation only."""

    verb: str
    user_id: UUID = ADA
    versions: tuple[int, ...] = ()


@dataclass(frozen=True)
class Expected:
    """An order of the model."""

    user_id: UUID
    status: str = "pending"
    types: tuple[str, ...] = ("OrderPlaced",)

    def after(self, decision: Decision) -> tuple[object, Expected]:
        """Returns the answer (status and version, or an error class) and the order afterwards."""
        status = NEXT.get((self.status, decision.verb))
        if decision.verb == "cancel":
            if decision.user_id != self.user_id:
                return OrderUnknown, self
            if decision.versions and len(self.types) not in decision.versions:
                return VersionMismatch, self
            if status is None:
                return OrderClosed, self
        then = replace(self, status=status, types=(*self.types, EVENT[status])) if status else self
        return (then.status, len(then.types)), then

    def sequences(self, decisions: Sequence[Decision]) -> Iterator[tuple[list[object], Expected]]:
        """Yields the outcome of each sequence of the decisions."""
        for sequence in itertools.permutations(range(len(decisions))):
            answers: dict[int, object] = {}
            order = self
            for number in sequence:
                answers[number], order = order.after(decisions[number])
            yield [answers[number] for number in range(len(decisions))], order


async def attempt(wanted: Coroutine[Any, Any, Order]) -> object:
    """Returns the order, or the class of the error."""
    try:
        return await wanted
    except DomainError as error:
        return type(error)


def comparable(answer: object) -> object:
    return (answer.status.value, answer.version) if isinstance(answer, Order) else answer


users = st.sampled_from([ADA, EVE])
keys = st.sampled_from(["k1", "k2"])
contents = st.sampled_from([(TEA,), (Line("cake", 1, 300), TEA)])
decisions = st.one_of(
    st.sampled_from([Decision("confirm"), Decision("reject")]),
    st.builds(Decision, st.just("cancel"), users, st.sampled_from([(), (1,), (2,), (1, 2), (3,), (9,)])),
)


class Orders(Machine):
    """Commands of two users with two keys each."""

    orders: Bundle[UUID] = Bundle("orders")

    def __init__(self) -> None:
        super().__init__()
        self.service = Service(shipped(), self.storage)
        self.rng = random.Random(0)
        self.service.commands._store = Interleaved(self.service.store, self.rng)
        self.known: dict[UUID, Expected] = {}
        self.placed: dict[tuple[UUID, str], tuple[tuple[Line, ...], Order]] = {}

    def at_once(self, seed: int, wanted: Sequence[Awaitable[object]]) -> list[object]:
        self.rng.seed(seed)

        async def together() -> list[object]:
            return list(await asyncio.gather(*wanted))

        return self.run(together())

    @rule(
        target=orders, user_id=users, key=keys, contents=st.lists(contents, min_size=1, max_size=4), seed=st.integers()
    )
    def place(self, user_id: UUID, key: str, contents: list[tuple[Line, ...]], seed: int) -> UUID:
        """Places with the same key in one or several concurrent calls: the content of the first decides for all."""
        answers = self.at_once(seed, [attempt(self.service.place(key, user_id, *lines)) for lines in contents])
        if (user_id, key) not in self.placed:
            order = next(answer for answer in answers if isinstance(answer, Order))
            assert order.lines in contents
            assert (order.user_id, order.version, order.status) == (user_id, 1, Status.PENDING)
            assert order.id not in self.known
            self.known[order.id] = Expected(user_id)
            self.placed[user_id, key] = order.lines, order
        content, order = self.placed[user_id, key]
        assert answers == [order if lines == content else KeyReused for lines in contents]
        return order.id

    @rule(user_id=users, key=keys)
    def place_an_invalid_order(self, user_id: UUID, key: str) -> None:
        answer = self.run(attempt(self.service.place(key, user_id, Line("tea", 0, 1))))
        assert answer is (KeyReused if (user_id, key) in self.placed else Invalid)

    @rule()
    def let_keys_expire(self) -> None:
        self.run(self.service.storage.expire_keys())
        self.placed.clear()

    @rule(order_id=orders, wanted=st.lists(decisions, min_size=1, max_size=4), seed=st.integers())
    def decide(self, order_id: UUID, wanted: list[Decision], seed: int) -> None:
        """Makes one or several concurrent decisions: answers and events must be those of some sequence of them."""
        answers = self.at_once(seed, [attempt(self._command(order_id, each)) for each in wanted])
        types = tuple(self.run(self.service.types(order_id)))
        outcomes = self.known[order_id].sequences(wanted)
        possible = [
            then for answer, then in outcomes if answer == list(map(comparable, answers)) and then.types == types
        ]
        assert possible, (self.known[order_id], wanted, answers, types)
        self.known[order_id] = possible[0]

    @rule(order_id=orders, user_id=users)
    def read_an_order_that_does_not_exist(self, order_id: UUID, user_id: UUID) -> None:
        stranger = EVE if self.known[order_id].user_id == ADA else ADA
        for whose, which in ((stranger, order_id), (user_id, uuid4())):
            assert self.run(attempt(self.service.queries.get_order(whose, which))) is OrderUnknown
            assert self.run(attempt(self.service.commands.cancel_order(whose, which, []))) is OrderUnknown

    @invariant()
    def every_order_equals_its_model(self) -> None:
        for order_id, expected in self.known.items():
            order = self.run(self.service.queries.get_order(expected.user_id, order_id))
            assert (order.status.value, order.version) == (expected.status, len(expected.types))
            past = self.run(self.service.queries.list_order_events(expected.user_id, order_id))
            assert tuple(event.type for event in past) == expected.types
            assert [event.version for event in past] == list(range(1, len(past) + 1))

    @invariant()
    def every_event_has_one_position(self) -> None:
        found = self.run(self.service.store.since(0, 10_000))
        positions = [position for position, _ in found]
        assert positions == sorted(set(positions))
        events = {(event.stream, event.version) for _, event in found}
        assert len(events) == len(found) == sum(len(expected.types) for expected in self.known.values())

    @invariant()
    def lists_equal_single_orders(self) -> None:
        self.run(self.service.project())
        for user_id in (ADA, EVE):
            own = sorted((each for each, order in self.known.items() if order.user_id == user_id), reverse=True)
            page = self.run(self.service.queries.list_orders(user_id, None, None, 100))
            assert page.orders == [self.run(self.service.queries.get_order(user_id, order_id)) for order_id in own]

    def _command(self, order_id: UUID, wanted: Decision) -> Coroutine[Any, Any, Order]:
        commands: dict[str, Callable[[], Coroutine[Any, Any, Order]]] = {
            "confirm": lambda: self.service.commands.confirm_order(order_id),
            "reject": lambda: self.service.commands.reject_order(order_id, "CREDIT_EXCEEDED"),
            "cancel": lambda: self.service.commands.cancel_order(wanted.user_id, order_id, wanted.versions),
        }
        return commands[wanted.verb]()
