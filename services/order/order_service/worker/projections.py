"""Projects events to tables: `orders` for lists, and `outbox` for the pending calls to the User Service.

Invariant: rows and position of a projection change in one transaction, under a lock, so each event is applied once, in
order.
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
from chassis.settings import Live
from chassis.telemetry.metrics import meter
from chassis.telemetry.traces import continued
from order_service.domain import STATUS_AFTER, OrderPlaced
from order_service.settings import Settings
from order_service.storage import event_codec
from order_service.storage.upcasts import UnknownEvent, upcast
from order_service.worker import wakeup
from order_service.worker.outbox import ENTRY_KINDS

if TYPE_CHECKING:
    from chassis.postgres.database import Database

log = structlog.get_logger(__name__)

Connection = AsyncConnection[DictRow]
_lag = meter().create_histogram(
    "projection.lag.seconds",
    "s",
    "time from the decision of an event until it is visible in the rows of a projection",
    explicit_bucket_boundaries_advisory=[0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 60],
)


@dataclass(frozen=True)
class Projection:
    """A name, under which the position is stored, and a function that applies an event.

    The function returns a cursor if the event has to change a row.
    """

    name: str
    apply: Callable[[Connection, int, RecordedEvent], Awaitable[AsyncCursor[DictRow] | None]]


async def project_orders(connection: Connection, _: int, recorded: RecordedEvent) -> AsyncCursor[DictRow]:
    """Inserts or updates the row of the order."""
    event = event_codec.decode(recorded)
    if isinstance(event, OrderPlaced):
        order = event_codec.advance(None, recorded)
        values = vars(order) | {"lines": Jsonb(event_codec.lines_to_json(order.lines))}
        return await connection.execute(_INSERT, values)
    return await connection.execute(_UPDATE, (STATUS_AFTER[type(event)], recorded.version, recorded.stream))


async def project_outbox(connection: Connection, position: int, recorded: RecordedEvent) -> None:
    """Adds the outbox entry that the event needs."""
    kind = ENTRY_KINDS.get(recorded.type)
    if kind:
        traceparent = recorded.meta.get("traceparent", "")
        await connection.execute(_ADD_ENTRY, (position, recorded.stream, kind, traceparent))


ORDERS = Projection("orders", project_orders)
OUTBOX = Projection("outbox", project_outbox)

_INSERT = """INSERT INTO orders (id, user_id, status, currency, lines, total, version, placed_at)
             VALUES (%(id)s, %(user_id)s, %(status)s, %(currency)s, %(lines)s, %(total)s, %(version)s, %(placed_at)s)"""
_UPDATE = "UPDATE orders SET status = %s, version = %s WHERE id = %s"
_ADD_ENTRY = "INSERT INTO outbox (position, order_id, kind, traceparent) VALUES (%s, %s, %s, %s)"
_LOCK = "SELECT pg_try_advisory_xact_lock(hashtext(current_schema()), hashtext(%s)) AS locked"
# A worker that is stopped within a batch keeps its connection, so the database has to end its transaction and lock.
_TRANSACTION_TIMEOUT = "SELECT set_config('transaction_timeout', %s, true)"
_SINGLE_EVENT_SECONDS = 30.0
_POSITION = "SELECT position FROM projections WHERE name = %s"
ADVANCE = """INSERT INTO projections (name, position) VALUES (%s, %s)
              ON CONFLICT (name) DO UPDATE SET position = excluded.position"""


class BatchSize:
    """The number of events in the next batch, at most the setting.

    It halves after each failure: a batch that takes longer than a term is rolled back, and so would be its repetitions.
    """

    def __init__(self) -> None:
        self._divisor = 1

    def current(self, settings: Settings) -> int:
        """Returns the number of events, 1 or more."""
        return max(1, settings.projection_batch_size // self._divisor)

    def halve(self, size: int) -> None:
        """Makes the batch after a failed one of `size` events smaller."""
        if size > 1:
            self._divisor *= 2

    def double(self) -> None:
        """Makes the batch after a successful one larger, up to the setting."""
        self._divisor = max(1, self._divisor // 2)


def _longest_batch(settings: Settings, size: int) -> float:
    """Returns the seconds after which the database ends the transaction of a batch; the smallest one gets more."""
    term = settings.leadership_term_seconds
    return term if size > 1 else max(term, _SINGLE_EVENT_SECONDS)


class Projector:
    """Keeps one projection up to date. Set `wakeup` when there may be new events.

    Stops before an event of a newer version, because skipping it would lose it; `readiness` names it.
    """

    def __init__(
        self,
        projection: Projection,
        store: EventLog,
        database: Database,
        settings: Live[Settings],
        on_projected: Callable[[], None] = lambda: None,
    ) -> None:
        self._projection = projection
        self._store = store
        self._database = database
        self._settings = settings
        self._on_projected = on_projected
        self.wakeup = asyncio.Event()
        self._stopped_by: UnknownEvent | None = None
        self._failure = ""
        self._batch_size = BatchSize()

    def readiness(self) -> str:
        """Readiness probe: returns "ok", the event at which the projection stopped, or the error that ended it."""
        return f"stopped before: {self._stopped_by}" if self._stopped_by else self._failure or "ok"

    async def run(self, stopping: asyncio.Event) -> None:
        """Projects new events until `stopping` is set. Afterwards another worker may pass what has stopped this one."""
        name = self._projection.name
        while not stopping.is_set():
            self.wakeup.clear()
            try:
                projected = await self._project_batch()
                self._record_lag(projected)
            except RpcError as error:
                log.warning("projection cannot read or write, retrying", projection=name, error=str(error))
                projected = []
            except UnknownEvent as error:
                reason = str(error)
                log.error("projection stopped at an event of a newer version", projection=name, error=reason)  # noqa: TRY400
                projected = []
            except Exception as error:
                self._failure = f"failed: {type(error).__name__}: {error}"
                raise
            if projected:
                self._on_projected()
            else:
                await wakeup.wait(self.wakeup, self._settings.value.worker_poll_seconds)
        self._stopped_by, self._failure = None, ""

    async def step(self) -> int:
        """Projects a batch and returns its size, 0 also while another worker holds the lock; raises UnknownEvent."""
        return len(await self._project_batch())

    async def _project_batch(self) -> list[tuple[int, RecordedEvent]]:
        size = self._batch_size.current(self._settings.value)
        try:
            batch = await self._project(size)
        except RpcError:
            self._batch_size.halve(size)
            raise
        if batch:
            self._batch_size.double()
        return batch

    async def _project(self, size: int) -> list[tuple[int, RecordedEvent]]:
        name = self._projection.name
        async with self._database.connection() as connection:
            await connection.execute(_TRANSACTION_TIMEOUT, (f"{_longest_batch(self._settings.value, size)}s",))
            if not await _value(connection, _LOCK, name, "locked"):
                return []
            position = await _value(connection, _POSITION, name, "position") or 0
            batch = self._decodable(await self._store.since(position, size))
            # One round trip for all statements of a batch, which keeps the lag of lists short.
            async with connection.pipeline():
                changed = [await self._apply(connection, position, event) for position, event in batch]
                if batch:
                    await connection.execute(ADVANCE, (name, batch[-1][0]))
        for (_, event), cursor in zip(batch, changed, strict=True):
            if cursor is not None and cursor.rowcount == 0:
                # A damaged order must not stop the others; the consistency check names it, a rebuild repairs it.
                log.error("table orders has no row for this order", order_id=str(event.stream), version=event.version)
        self._failure = ""
        return batch

    def _record_lag(self, batch: Sequence[tuple[int, RecordedEvent]]) -> None:
        """Records the lag of events that just became visible, from their decision some milliseconds before commit."""
        now = datetime.now(UTC)
        for _, event in batch:
            seconds = max(0.0, (now - event_codec.occurred_at(event)).total_seconds())
            _lag.record(seconds, {"projection": self._projection.name})

    def _decodable(self, batch: Sequence[tuple[int, RecordedEvent]]) -> list[tuple[int, RecordedEvent]]:
        """Returns the events before the first unknown one, upcast; raises UnknownEvent if there are none."""
        decodable: list[tuple[int, RecordedEvent]] = []
        self._stopped_by = None
        for position, event in batch:
            try:
                decodable.append((position, upcast(event)))
            except UnknownEvent as error:
                self._stopped_by = error
                if not decodable:
                    raise
                break
        return decodable

    async def _apply(self, connection: Connection, position: int, event: RecordedEvent) -> AsyncCursor[DictRow] | None:
        title = f"project {event.type} onto {self._projection.name}"
        with continued(event.meta.get("traceparent", ""), title, {"event.position": position}):
            return await self._projection.apply(connection, position, event)


async def _value(connection: Connection, statement: str, name: str, column: str) -> int | None:
    row = await (await connection.execute(statement.encode(), (name,))).fetchone()
    return None if row is None else row[column]
