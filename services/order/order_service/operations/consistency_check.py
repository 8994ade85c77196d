"""`audit`: what this service can prove about its own store, and what it says about each order for the rest.

Reads one moment and changes nothing. Prints JSON lines: `finding`, then `order` for each, then `counts` at the end; who
compares them with the credit at the User Service stands outside of both services.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, LiteralString
from uuid import UUID

from chassis.events.record import RecordedEvent
from chassis.postgres.database import Database
from chassis.process import Process
from order_service import domain
from order_service.domain import Order, Status
from order_service.operations import projection_check
from order_service.operations.projection_check import Connection
from order_service.settings import Settings
from order_service.storage import event_codec
from order_service.storage.upcasts import UnknownEvent
from order_service.worker.outbox import KINDS

_REBUILD = "./justw projection-rebuild orders"
_HISTORY = "events are never changed by this system: look for who wrote to table events, restore it from a backup"
_DOUBLED = "ask the user and cancel the other; all is well if idempotency_ttl_seconds was shorter at the first order"
# From when an order is decided until its key is written, and between the clocks of two instances.
_MARGIN = timedelta(seconds=30)
_MAY_FOLLOW: Mapping[Status | None, frozenset[str]] = {
    None: frozenset({"OrderPlaced"}),
    Status.PENDING: frozenset({"OrderConfirmed", "OrderRejected", "OrderCancelled"}),
    Status.CONFIRMED: frozenset({"OrderCancelled"}),
    Status.REJECTED: frozenset(),
    Status.CANCELLED: frozenset(),
}


@dataclass
class Story:
    """One order while its events go by: what it is, what the read table should say, and which errands it needed."""

    order: Order | None = None
    version: int = 0
    visible: str = ""
    placed_by: str = ""
    needed: dict[int, str] = field(default_factory=dict)
    broken: tuple[str, str] | None = None


@dataclass(frozen=True)
class Kept:
    """What stands in the tables beside the events."""

    positions: Mapping[str, int]
    rows: Mapping[UUID, str]
    errands: Mapping[int, UUID]
    keys: list[tuple[UUID, str, UUID]]


async def compose(process: Process[Settings]) -> int:
    """Print the findings and all orders; 0, whatever is found: the one who compares decides."""
    database = await Database.open(process, name="order_service")
    stories, kept, events = await look(database)
    ttl = timedelta(seconds=process.settings.value.idempotency_ttl_seconds)
    for order_id, rule, found, wanted, next_step in (*findings(stories, kept), *doubled(stories, ttl)):
        _say("finding", order=str(order_id), rule=rule, found=found, wanted=wanted, next=next_step)
    for order_id, story in stories.items():
        if story.order:
            owes = [kind for position, kind in story.needed.items() if _open(position, kept)]
            user_id, status = str(story.order.user_id), story.order.status
            _say("order", id=str(order_id), user_id=user_id, status=status, total=story.order.total, owes=owes)
    _say("counts", orders=len(stories), events=events, keys=len(kept.keys), errands=len(kept.errands))
    return 0


async def look(database: Database) -> tuple[dict[UUID, Story], Kept, int]:
    """All orders and all that is kept beside them, in one moment, with the number of events."""
    stories: dict[UUID, Story] = {}
    count = 0
    async with database.connection() as connection:
        await projection_check.snapshot(connection)
        kept = await _kept(connection)
        async for position, event in projection_check.events(connection, 2**62):
            count += 1
            story = stories.setdefault(event.stream, Story())
            tell(story, position, event)
            if position <= kept.positions["orders"] and story.order:
                story.visible = projection_check.line(story.order)
    return stories, kept, count


def tell(story: Story, position: int, event: RecordedEvent) -> None:
    """Go on with a story by one event; what cannot follow is remembered as what broke it, and nothing after it."""
    if story.broken:
        return
    status = story.order.status if story.order else None
    if event.version != story.version + 1:
        story.broken = f"version {event.version} after {story.version}", f"version {story.version + 1}"
    elif event.type not in _MAY_FOLLOW[status]:
        story.broken = f"{event.type} after {status}", f"one of {sorted(_MAY_FOLLOW[status]) or 'nothing'}"
    else:
        try:
            story.order = domain.apply(
                story.order, event_codec.recall(event), event.stream, event_codec.occurred_at(event)
            )
        except (UnknownEvent, LookupError, ValueError) as error:
            story.broken = f"unreadable: {error}", "an event that this version can read"
    if event.type == "OrderPlaced":
        story.placed_by = event.meta.get("command_id", "")
    story.version = event.version
    if kind := KINDS.get(event.type):
        story.needed[position] = kind


def findings(stories: Mapping[UUID, Story], kept: Kept) -> Iterator[tuple[UUID, str, str, str, str]]:
    """Order, rule, what is, what should be, and what to do next."""
    for order_id, story in stories.items():
        if story.broken:
            yield order_id, "history", *story.broken, _HISTORY
        elif story.visible != kept.rows.get(order_id, ""):
            found, wanted = kept.rows.get(order_id, "no row"), story.visible or "no row"
            yield order_id, "read table", found, wanted, _REBUILD
        yield from _lost(order_id, story, kept)
    for order_id in kept.rows.keys() - stories.keys():
        yield order_id, "read table", kept.rows[order_id], "no row", _REBUILD
    yield from _wrong_keys(stories, kept)


def doubled(stories: Mapping[UUID, Story], ttl: timedelta) -> Iterator[tuple[UUID, str, str, str, str]]:
    """Orders that a repeat of a key has placed while it was to find the first one; told like `findings`."""
    first: dict[str, Order] = {}
    for order_id, story in stories.items():
        # Nothing is known of orders from before commands were recorded.
        if not story.order or not story.placed_by:
            continue
        before = first.get(story.placed_by)
        if before and story.order.placed_at - before.placed_at < ttl - _MARGIN:
            found = f"placed by the same key as order {before.id}, {story.order.placed_at - before.placed_at} later"
            yield order_id, "doubled", found, "one order of a key", _DOUBLED
        first[story.placed_by] = story.order


def _lost(order_id: UUID, story: Story, kept: Kept) -> Iterator[tuple[UUID, str, str, str, str]]:
    if story.order and story.order.status is Status.PENDING:
        for position, kind in story.needed.items():
            if not _open(position, kept):
                again = f"owe it again in table errands: position {position}, this order, kind {kind}, traceparent ''"
                yield order_id, "errand", "pending without an errand", f"an errand to {kind}", again


def _wrong_keys(stories: Mapping[UUID, Story], kept: Kept) -> Iterator[tuple[UUID, str, str, str, str]]:
    first: dict[UUID, str] = {}
    look_up = "find in table idempotency_keys which of them its user was answered with, and delete the other"
    for user_id, key, order_id in kept.keys:
        story = stories.get(order_id)
        if story is None:
            yield order_id, "key", f"key {key} stands for an order without events", "an order with a history", _HISTORY
        elif story.order and story.order.user_id != user_id:
            yield order_id, "key", f"key {key} of user {user_id}", f"a key of user {story.order.user_id}", look_up
        if order_id in first:
            yield order_id, "key", f"two keys, {first[order_id]} and {key}", "one key at most", look_up
        first[order_id] = key


def _open(position: int, kept: Kept) -> bool:
    return position in kept.errands or position > kept.positions["errands"]


async def _kept(connection: Connection) -> Kept:
    async def every(statement: LiteralString) -> list[dict[str, Any]]:
        return list(await (await connection.execute(statement)).fetchall())

    positions = {row["name"]: row["position"] for row in await every("SELECT name, position FROM projections")}
    errands = {row["position"]: row["order_id"] for row in await every("SELECT position, order_id FROM errands")}
    keys = await every("SELECT user_id, key, order_id FROM idempotency_keys ORDER BY user_id, key")
    return Kept(
        {"orders": 0, "errands": 0} | positions,
        await projection_check.rows(connection),
        errands,
        [(row["user_id"], row["key"], row["order_id"]) for row in keys],
    )


def _say(what: str, **fields: Any) -> None:
    print(json.dumps({what: fields}))  # noqa: T201 - an operator's command
