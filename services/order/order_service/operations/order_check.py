"""`audit`: checks the store of this service, and prints each order so that it can be compared with reserved credit.

Reads one snapshot and changes nothing. Prints JSON lines: each `finding`, then each `order`, and `counts` at the end.
`stack.operations.consistency_check` compares them with the credit at the User Service.
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
from order_service.domain import TRANSITIONS, Order, Status
from order_service.operations import projection_check
from order_service.operations.projection_check import Connection
from order_service.settings import Settings
from order_service.storage import event_codec
from order_service.storage.upcasts import UnknownEvent
from order_service.worker.outbox import ENTRY_KINDS
from order_service.worker.projections import ORDERS, OUTBOX

_REBUILD = "./justw projection-rebuild orders"
_RESTORE = "events are never changed by this system: look for who wrote to table events, restore it from a backup"
_DUPLICATE = "ask the user and cancel the other; all is well if idempotency_ttl_seconds was shorter at the first order"
_KEY_OWNER = "find in table idempotency_keys which of them its user was answered with, and delete the other"
# Covers the time from the decision of an order until its key is written, and the clock skew of two instances.
_MARGIN = timedelta(seconds=30)

Finding = tuple[UUID, str, str, str, str]
"""Order, rule, actual value, expected value, next step."""


@dataclass
class OrderHistory:
    """An order folded from its events, with the row and the outbox entries that these require."""

    order: Order | None = None
    version: int = 0
    row: str = ""
    placing_command: str = ""
    entries: dict[int, str] = field(default_factory=dict)
    broken: tuple[str, str] | None = None


@dataclass(frozen=True)
class Snapshot:
    """The content of the tables beside the events."""

    positions: Mapping[str, int]
    rows: Mapping[UUID, str]
    outbox: Mapping[int, UUID]
    keys: list[tuple[UUID, str, UUID]]


async def compose(process: Process[Settings]) -> int:
    """Prints the findings and all orders; returns 0 with and without findings, because the caller decides."""
    database = await Database.open(process, name="order_service")
    histories, snapshot, events = await load(database)
    ttl = timedelta(seconds=process.settings.value.idempotency_ttl_seconds)
    for order_id, rule, found, wanted, next_step in (*findings(histories, snapshot), *duplicates(histories, ttl)):
        _print_line("finding", order=str(order_id), rule=rule, found=found, wanted=wanted, next=next_step)
    for order_id, history in histories.items():
        if history.order:
            pending = [kind for position, kind in history.entries.items() if _is_pending(position, snapshot)]
            user_id, status, total = str(history.order.user_id), history.order.status, history.order.total
            _print_line("order", id=str(order_id), user_id=user_id, status=status, total=total, pending=pending)
    counts = {"orders": len(histories), "events": events, "keys": len(snapshot.keys), "outbox": len(snapshot.outbox)}
    _print_line("counts", **counts)
    return 0


async def load(database: Database) -> tuple[dict[UUID, OrderHistory], Snapshot, int]:
    """Reads all orders, the tables beside the events and the number of events, all of one moment."""
    histories: dict[UUID, OrderHistory] = {}
    count = 0
    async with database.connection() as connection:
        await projection_check.begin_snapshot(connection)
        snapshot = await _read_tables(connection)
        async for position, event in projection_check.read_events(connection, 2**62):
            count += 1
            history = histories.setdefault(event.stream, OrderHistory())
            advance(history, position, event)
            if position <= snapshot.positions[ORDERS.name] and history.order:
                history.row = projection_check.expected_row(history.order)
    return histories, snapshot, count


def advance(history: OrderHistory, position: int, event: RecordedEvent) -> None:
    """Applies the next event. The first one that cannot follow marks the history as broken and ends the fold."""
    if history.broken:
        return
    history.broken = _apply(history, event)
    if event.type == "OrderPlaced":
        history.placing_command = event.meta.get("command_id", "")
    history.version = event.version
    if kind := ENTRY_KINDS.get(event.type):
        history.entries[position] = kind


def _apply(history: OrderHistory, event: RecordedEvent) -> tuple[str, str] | None:
    """Applies the event as the domain does, or returns what is wrong with it and what is expected."""
    if event.version != history.version + 1:
        return f"version {event.version} after {history.version}", f"version {history.version + 1}"
    try:
        decoded = event_codec.decode(event)
        status = history.order.status if history.order else None
        if type(decoded) not in TRANSITIONS[status]:
            allowed = sorted(kind.__name__ for kind in TRANSITIONS[status])
            return f"{event.type} after {status}", f"one of {allowed or 'nothing'}"
        history.order = event_codec.advance(history.order, event)
    except (UnknownEvent, LookupError, ValueError) as error:
        return f"unreadable: {error}", "an event that this version can read"
    return None


def findings(histories: Mapping[UUID, OrderHistory], snapshot: Snapshot) -> Iterator[Finding]:
    """Yields broken histories, wrong rows, missing outbox entries and wrong keys."""
    for order_id, history in histories.items():
        if history.broken:
            yield order_id, "history", *history.broken, _RESTORE
        elif history.row != snapshot.rows.get(order_id, ""):
            found, wanted = snapshot.rows.get(order_id, "no row"), history.row or "no row"
            yield order_id, "read table", found, wanted, _REBUILD
        yield from _missing_entries(order_id, history, snapshot)
    for order_id in snapshot.rows.keys() - histories.keys():
        yield order_id, "read table", snapshot.rows[order_id], "no row", _REBUILD
    yield from _wrong_keys(histories, snapshot)


def duplicates(histories: Mapping[UUID, OrderHistory], ttl: timedelta) -> Iterator[Finding]:
    """Yields orders that a repeat of a key placed although the key had not expired."""
    first: dict[str, Order] = {}
    for order_id, history in histories.items():
        # Events of early versions have no command, so their orders cannot be compared.
        if not history.order or not history.placing_command:
            continue
        before = first.get(history.placing_command)
        if before and history.order.placed_at - before.placed_at < ttl - _MARGIN:
            later = history.order.placed_at - before.placed_at
            found = f"placed by the same key as order {before.id}, {later} later"
            yield order_id, "doubled", found, "one order of a key", _DUPLICATE
        first[history.placing_command] = history.order


def _missing_entries(order_id: UUID, history: OrderHistory, snapshot: Snapshot) -> Iterator[Finding]:
    if history.order and history.order.status is Status.PENDING:
        for position, kind in history.entries.items():
            if not _is_pending(position, snapshot):
                add = f"insert it into table outbox: position {position}, this order, kind {kind}, traceparent ''"
                yield order_id, "outbox", "pending without an outbox entry", f"an outbox entry to {kind}", add


def _wrong_keys(histories: Mapping[UUID, OrderHistory], snapshot: Snapshot) -> Iterator[Finding]:
    first: dict[UUID, str] = {}
    for user_id, key, order_id in snapshot.keys:
        history = histories.get(order_id)
        if history is None:
            found = f"key {key} stands for an order without events"
            yield order_id, "key", found, "an order with a history", _RESTORE
        elif history.order and history.order.user_id != user_id:
            owner = history.order.user_id
            yield order_id, "key", f"key {key} of user {user_id}", f"a key of user {owner}", _KEY_OWNER
        if order_id in first:
            yield order_id, "key", f"two keys, {first[order_id]} and {key}", "one key at most", _KEY_OWNER
        first[order_id] = key


def _is_pending(position: int, snapshot: Snapshot) -> bool:
    return position in snapshot.outbox or position > snapshot.positions[OUTBOX.name]


async def _read_tables(connection: Connection) -> Snapshot:
    async def select(statement: LiteralString) -> list[dict[str, Any]]:
        return list(await (await connection.execute(statement)).fetchall())

    positions = {row["name"]: row["position"] for row in await select("SELECT name, position FROM projections")}
    outbox = {row["position"]: row["order_id"] for row in await select("SELECT position, order_id FROM outbox")}
    keys = await select("SELECT user_id, key, order_id FROM idempotency_keys ORDER BY user_id, key")
    return Snapshot(
        {ORDERS.name: 0, OUTBOX.name: 0} | positions,
        await projection_check.read_rows(connection),
        outbox,
        [(row["user_id"], row["key"], row["order_id"]) for row in keys],
    )


def _print_line(kind: str, **fields: Any) -> None:
    print(json.dumps({kind: fields}))  # noqa: T201 - an operator's command
