"""`audit`: checks the store of this service, and prints each order so that it can be compared with reserved credit.

Reads one snapshot and changes nothing. Prints JSON lines: each `finding`, then each `order`, and `counts` at the end.
The tables are read side by side in the order of the orders' ids, so the memory in use does not grow with their number.
`stack.operations.consistency_check` compares the lines with the credit at the User Service.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, LiteralString
from uuid import UUID

from chassis.events.record import RecordedEvent
from chassis.postgres.database import Database
from chassis.process import Process
from order_service.domain import TRANSITIONS, Order, Status
from order_service.operations import projection_check
from order_service.operations.projection_check import Connection, Recorded
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
Positions = Mapping[str, int]
"""How far each projection has come, by its name."""


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
class StoredOrder:
    """All that the tables contain about one order: its history, its row, outbox positions, and keys with their user."""

    id: UUID
    history: OrderHistory | None = None
    row: str = ""
    outbox: Collection[int] = ()
    keys: Sequence[tuple[UUID, str]] = ()


async def compose(process: Process[Settings]) -> int:
    """Prints the findings and all orders; returns 0 with and without findings, because the caller decides."""
    database = await Database.open(process, name="order_service")
    await report(database, timedelta(seconds=process.settings.value.idempotency_ttl_seconds))
    return 0


async def report(database: Database, ttl: timedelta) -> None:
    """Prints the findings and all orders; `ttl` is the validity of an idempotency key."""
    counts = {"orders": 0, "events": 0, "keys": 0, "outbox": 0}
    async with database.connection() as connection:
        await projection_check.begin_snapshot(connection)
        positions = await _positions(connection)
        async for stored, events in read_orders(connection, positions):
            _print_findings(findings(stored, positions))
            _print_order(stored, positions)
            counts["orders"] += stored.history is not None
            counts["events"] += events
            counts["keys"] += len(stored.keys)
            counts["outbox"] += len(stored.outbox)
        async for finding in read_duplicates(connection, ttl):
            _print_findings([finding])
    _print_line("counts", **counts)


async def read_orders(connection: Connection, positions: Positions) -> AsyncIterator[tuple[StoredOrder, int]]:
    """Yields each order of any table with the number of its events; call `begin_snapshot` before."""
    sources = (
        projection_check.read_histories(connection, 2**62),
        projection_check.read_rows(connection),
        projection_check.grouped(projection_check.select(connection, _OUTBOX)),
        projection_check.grouped(projection_check.select(connection, _KEYS)),
    )
    async for order_id, (events, row, outbox, keys) in projection_check.joined(*sources):
        history = fold(events, positions) if events else None
        entries = {entry["position"] for entry in outbox or ()}
        owners = [(key["user_id"], key["key"]) for key in keys or ()]
        yield StoredOrder(order_id, history, row or "", entries, owners), len(events or ())


async def read_duplicates(connection: Connection, ttl: timedelta) -> AsyncIterator[Finding]:
    """Yields orders that a repeat of a key placed although the key had not expired."""
    before: tuple[str, Order] | None = None
    async for row in projection_check.select(connection, _SAME_COMMAND):
        history = fold([projection_check.recorded(row)], {})
        # Events of early versions have no command, so their orders cannot be compared.
        if history.order is None:
            continue
        if before and before[0] == history.placing_command and (found := duplicate(before[1], history.order, ttl)):
            yield found
        before = history.placing_command, history.order


def fold(events: Sequence[Recorded], positions: Positions) -> OrderHistory:
    """Returns the history of one order, with the row that the projection has to have at its position."""
    history, projected = OrderHistory(), None
    for position, event in events:
        advance(history, position, event)
        if position <= positions.get(ORDERS.name, 0):
            projected = history.order
    history.row = projection_check.expected_row(projected) if projected else ""
    return history


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


def findings(stored: StoredOrder, positions: Positions) -> Iterator[Finding]:
    """Yields a broken history, a wrong row, missing outbox entries and wrong keys of an order."""
    history = stored.history or OrderHistory()
    if history.broken:
        yield stored.id, "history", *history.broken, _RESTORE
    elif history.row != stored.row:
        yield stored.id, "read table", stored.row or "no row", history.row or "no row", _REBUILD
    yield from _missing_entries(stored, history, positions)
    yield from _wrong_keys(stored)


def duplicate(first: Order, second: Order, ttl: timedelta) -> Finding | None:
    """Returns a finding if two orders of the same command were placed before the key expired."""
    later = second.placed_at - first.placed_at
    if later >= ttl - _MARGIN:
        return None
    return (
        second.id,
        "doubled",
        f"placed by the same key as order {first.id}, {later} later",
        "one order of a key",
        (_DUPLICATE),
    )


def _missing_entries(stored: StoredOrder, history: OrderHistory, positions: Positions) -> Iterator[Finding]:
    if history.order and history.order.status is Status.PENDING:
        for position, kind in history.entries.items():
            if not _is_pending(position, stored, positions):
                add = f"insert it into table outbox: position {position}, this order, kind {kind}, traceparent ''"
                yield stored.id, "outbox", "pending without an outbox entry", f"an outbox entry to {kind}", add


def _wrong_keys(stored: StoredOrder) -> Iterator[Finding]:
    order, first = stored.history.order if stored.history else None, ""
    for user_id, key in stored.keys:
        if stored.history is None:
            found = f"key {key} stands for an order without events"
            yield stored.id, "key", found, "an order with a history", _RESTORE
        elif order and order.user_id != user_id:
            yield stored.id, "key", f"key {key} of user {user_id}", f"a key of user {order.user_id}", _KEY_OWNER
        if first:
            yield stored.id, "key", f"two keys, {first} and {key}", "one key at most", _KEY_OWNER
        first = key


def _is_pending(position: int, stored: StoredOrder, positions: Positions) -> bool:
    return position in stored.outbox or position > positions.get(OUTBOX.name, 0)


async def _positions(connection: Connection) -> dict[str, int]:
    rows = await (await connection.execute("SELECT name, position FROM projections")).fetchall()
    return {row["name"]: row["position"] for row in rows}


def _print_findings(found: Iterable[Finding]) -> None:
    for order_id, rule, actual, wanted, next_step in found:
        _print_line("finding", order=str(order_id), rule=rule, found=actual, wanted=wanted, next=next_step)


def _print_order(stored: StoredOrder, positions: Positions) -> None:
    if stored.history and stored.history.order:
        order, entries = stored.history.order, stored.history.entries
        pending = [kind for position, kind in entries.items() if _is_pending(position, stored, positions)]
        ids = {"id": str(order.id), "user_id": str(order.user_id)}
        money = {"currency": order.currency, "total": order.total}
        _print_line("order", **ids, status=order.status, **money, pending=pending)


def _print_line(kind: str, **fields: Any) -> None:
    print(json.dumps({kind: fields}))  # noqa: T201 - an operator's command


_OUTBOX: LiteralString = "SELECT order_id AS id, position FROM outbox ORDER BY order_id"
_KEYS: LiteralString = "SELECT order_id AS id, user_id, key FROM idempotency_keys ORDER BY order_id, user_id, key"
_SAME_COMMAND: LiteralString = """
    WITH placed AS (
        SELECT notification_id, convert_from(state, 'UTF8')::json #>> '{meta,command_id}' AS command
        FROM events WHERE topic = 'OrderPlaced'
    ), repeated AS (SELECT command FROM placed WHERE command <> '' GROUP BY command HAVING count(*) > 1)
    SELECT notification_id, originator_id AS id, originator_version, topic, state
    FROM repeated JOIN placed USING (command) JOIN events USING (notification_id) ORDER BY command, notification_id"""
