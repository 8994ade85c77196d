"""Events to tables: what lists read (`orders`) and what is owed to the User Service (`errands`).

Invariant: rows and position of a projection change in one transaction, under a lock: once for each event, in order.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import structlog
from psycopg import AsyncConnection, AsyncCursor
from psycopg.rows import DictRow
from psycopg.types.json import Jsonb

from chassis.errors import RpcError
from chassis.events.port import EventLog
from chassis.events.record import RecordedEvent
from chassis.telemetry.metrics import meter
from chassis.telemetry.traces import continued
from order_service.domain import OrderPlaced, Status
from order_service.settings import Settings
from order_service.storage import event_codec
from order_service.storage.upcasts import UnknownEvent, upcast
from order_service.worker.outbox import KINDS
from order_service.worker.wakeup import heard

if TYPE_CHECKING:
    from chassis.postgres.database import Database

log = structlog.get_logger(__name__)

Connection = AsyncConnection[DictRow]
_visible = meter().create_histogram(
    "projection.lag.seconds",
    "s",
    "time from deciding an event to its being visible in the rows of a projection",
    explicit_bucket_boundaries_advisory=[0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 60],
)


@dataclass(frozen=True)
class Projection:
    """A name, under which its position is kept, and what it does with one event: a cursor, if a row has to change."""

    name: str
    apply: Callable[[Connection, int, RecordedEvent], Awaitable[AsyncCursor[DictRow] | None]]


async def onto_orders(connection: Connection, _: int, event: RecordedEvent) -> AsyncCursor[DictRow]:
    """Keep the row of the order up to date."""
    placed = event_codec.recall(event)
    if isinstance(placed, OrderPlaced):
        lines = Jsonb(event_codec.plain(placed.lines))
        at = event_codec.occurred_at(event)
        row = (event.stream, placed.user_id, Status.PENDING, placed.currency, lines, placed.total, 1, at)
        return await connection.execute(_INSERT, row)
    return await connection.execute(_UPDATE, (_STATUS[event.type], event.version, event.stream))


async def onto_errands(connection: Connection, position: int, event: RecordedEvent) -> None:
    """Owe the errand that the event needs."""
    kind = KINDS.get(event.type)
    if kind:
        traceparent = event.meta.get("traceparent", "")
        await connection.execute(_OWE, (position, event.stream, kind, traceparent))


ORDERS = Projection("orders", onto_orders)
ERRANDS = Projection("errands", onto_errands)

_STATUS = {
    "OrderConfirmed": Status.CONFIRMED,
    "OrderRejected": Status.REJECTED,
    "OrderCancelled": Status.CANCELLED,
}
_INSERT = """INSERT INTO orders (id, user_id, status, currency, lines, total, version, placed_at)
             VALUES (%s, %s, %s, %s, %s, %s, %s, %s)"""
_UPDATE = "UPDATE orders SET status = %s, version = %s WHERE id = %s"
_OWE = "INSERT INTO errands (position, order_id, kind, traceparent) VALUES (%s, %s, %s, %s)"
_LOCK = "SELECT pg_try_advisory_xact_lock(hashtext(current_schema()), hashtext(%s)) AS locked"
# A worker that is stopped in the middle of a batch keeps its connection; its lock has to end all the same.
_BOUNDED = "SELECT set_config('transaction_timeout', %s, true)"
_POSITION = "SELECT position FROM projections WHERE name = %s"
ADVANCE = """INSERT INTO projections (name, position) VALUES (%s, %s)
              ON CONFLICT (name) DO UPDATE SET position = excluded.position"""


class Projector:
    """Brings one projection up to date, again and again. Set `news` when there may be new events.

    It stops before an event that a newer version recorded, and says so: passing it by would lose it for ever.
    """

    def __init__(
        self,
        projection: Projection,
        store: EventLog,
        database: Database,
        settings: Callable[[], Settings],
        after: Callable[[], None] = lambda: None,
    ) -> None:
        self._projection = projection
        self._store = store
        self._database = database
        self._settings = settings
        self._after = after
        self.news = asyncio.Event()
        self._stopped_by: UnknownEvent | None = None
        self._trouble = ""

    def state(self) -> str:
        """The event before which it has stopped, the defect it has failed with, or "ok": a readiness probe."""
        return f"stopped before: {self._stopped_by}" if self._stopped_by else self._trouble or "ok"

    async def follow(self, stopping: asyncio.Event) -> None:
        """Bring it up to date until told to stop."""
        while not stopping.is_set():
            self.news.clear()
            try:
                projected = await self._project()
                self._tell(projected)
            except RpcError as error:
                log.warning("projection waits", projection=self._projection.name, error=str(error))
                projected = []
            except UnknownEvent as error:
                log.error("projection stopped", projection=self._projection.name, error=str(error))  # noqa: TRY400
                projected = []
            except Exception as error:
                self._trouble = f"failed: {type(error).__name__}: {error}"
                raise
            if projected:
                self._after()
            else:
                await heard(self.news, self._settings().poll_seconds)

    async def step(self) -> int:
        """Project one batch; the number of events, 0 also while another worker is at it. Raises UnknownEvent."""
        return len(await self._project())

    async def _project(self) -> list[tuple[int, RecordedEvent]]:
        name = self._projection.name
        async with self._database.connection() as connection:
            await connection.execute(_BOUNDED, (f"{self._settings().term_seconds}s",))
            if not await _value(connection, _LOCK, name, "locked"):
                return []
            position = await _value(connection, _POSITION, name, "position") or 0
            batch = self._known(await self._store.since(position, self._settings().batch_size))
            # All statements of a batch in one round trip: a list is behind by that much less.
            async with connection.pipeline():
                changed = [await self._apply(connection, position, event) for position, event in batch]
                if batch:
                    await connection.execute(ADVANCE, (name, batch[-1][0]))
        for (_, event), cursor in zip(batch, changed, strict=True):
            if cursor is not None and cursor.rowcount == 0:
                # One damaged order must not hold up all others; the audit names it, a rebuild mends it.
                log.error("the read table has no row of this order", order_id=str(event.stream), version=event.version)
        self._trouble = ""
        return batch

    def _tell(self, batch: Sequence[tuple[int, RecordedEvent]]) -> None:
        """Measure what has just become visible; an event's time is its decision's, some milliseconds before commit."""
        now = datetime.now(UTC)
        for _, event in batch:
            seconds = max(0.0, (now - event_codec.occurred_at(event)).total_seconds())
            _visible.record(seconds, {"projection": self._projection.name})

    def _known(self, batch: Sequence[tuple[int, RecordedEvent]]) -> list[tuple[int, RecordedEvent]]:
        """The events before the first that this version does not know, as they would be recorded today."""
        known: list[tuple[int, RecordedEvent]] = []
        self._stopped_by = None
        for position, event in batch:
            try:
                known.append((position, upcast(event)))
            except UnknownEvent as error:
                self._stopped_by = error
                if not known:
                    raise
                break
        return known

    async def _apply(self, connection: Connection, position: int, event: RecordedEvent) -> AsyncCursor[DictRow] | None:
        title = f"project {event.type} onto {self._projection.name}"
        with continued(event.meta.get("traceparent", ""), title, {"event.position": position}):
            return await self._projection.apply(connection, position, event)


async def _value(connection: Connection, statement: str, name: str, column: str) -> int | None:
    row = await (await connection.execute(statement.encode(), (name,))).fetchone()
    return None if row is None else row[column]
