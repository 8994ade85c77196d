"""Keeps a projection up to date with the events, in batches.

Invariant: rows and position of a projection change in one transaction, under a lock, so each event is applied once, in
order.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import structlog
from opentelemetry import trace
from opentelemetry.trace import SpanKind

from chassis import wakeup
from chassis.errors import RpcError
from chassis.events.port import EventLog
from chassis.events.record import RecordedEvent
from chassis.settings import Live
from chassis.telemetry.metrics import Durations
from chassis.telemetry.traces import remote_context, start_span
from order_service.settings import Settings
from order_service.storage import event_codec
from order_service.storage.upcasts import UnknownEvent, upcast
from order_service.worker.projections import Batch, Connection, Projection

if TYPE_CHECKING:
    from chassis.postgres.database import Database

log = structlog.get_logger(__name__)

_lag = Durations(
    "projection.lag.seconds",
    "s",
    "time from the decision of an event until it is visible in the rows of a projection",
    [0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 60],
)
_LOCK = "SELECT pg_try_advisory_xact_lock(hashtext(current_schema()), hashtext(%s)) AS locked"
# A worker that is stopped within a batch keeps its connection, so the database has to end its transaction and lock.
_TRANSACTION_TIMEOUT = "SELECT set_config('transaction_timeout', %s, true)"
_SINGLE_EVENT_SECONDS = 30.0
_POSITION = "SELECT position FROM projections WHERE name = %s"
ADVANCE = """INSERT INTO projections (name, position) VALUES (%s, %s)
              ON CONFLICT (name) DO UPDATE SET position = excluded.position"""
# Under load a batch starts this long after the one before, so that it has more than one event.
_INTERVAL_SECONDS = 0.02
_RETRY_SECONDS = 0.5


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
        self._lag = _lag.series({"projection": projection.name})

    def readiness(self) -> str:
        """Readiness probe: returns "ok", the event at which the projection stopped, or the error that ended it."""
        return f"stopped before: {self._stopped_by}" if self._stopped_by else self._failure or "ok"

    async def run(self, stopping: asyncio.Event) -> None:
        """Projects new events until `stopping` is set. Afterwards another worker may pass what has stopped this one."""
        with wakeup.set_when(stopping, self.wakeup):
            while not stopping.is_set():
                self.wakeup.clear()
                began = time.monotonic()
                longest = await self._project_and_report()
                if longest:
                    await wakeup.wait(self.wakeup, longest)
                    await asyncio.sleep(max(0.0, began + _INTERVAL_SECONDS - time.monotonic()))
        self._stopped_by, self._failure = None, ""

    async def _project_and_report(self) -> float:
        """Projects a batch; returns the longest time until the next one, 0 if there are more events."""
        name, poll = self._projection.name, self._settings.value.worker_poll_seconds
        size = self._batch_size.current(self._settings.value)
        try:
            projected = await self._project_batch(size)
        except RpcError as error:
            log.warning("projection cannot read or write, retrying", projection=name, error=str(error))
            return min(poll, _RETRY_SECONDS)
        except UnknownEvent as error:
            log.error("projection stopped at an event of a newer version", projection=name, error=str(error))  # noqa: TRY400
            return poll
        except Exception as error:
            self._failure = f"failed: {type(error).__name__}: {error}"
            raise
        if projected is None:
            return min(poll, _RETRY_SECONDS)
        if projected:
            self._on_projected()
            self._record_lag(projected)
        return poll if len(projected) < size else 0.0

    async def step(self) -> int:
        """Projects a batch and returns its size, 0 also while another worker holds the lock; raises UnknownEvent."""
        return len(await self._project_batch(self._batch_size.current(self._settings.value)) or ())

    async def _project_batch(self, size: int) -> Batch | None:
        try:
            batch = await self._project(size)
        except RpcError:
            self._batch_size.halve(size)
            raise
        if batch:
            self._batch_size.double()
        return batch

    async def _project(self, size: int) -> Batch | None:
        """Projects at most `size` events; returns None while another worker holds the lock."""
        name = self._projection.name
        async with self._database.connection() as connection:
            # One round trip for all statements of a pipeline, which keeps the lag of lists short.
            async with connection.pipeline():
                await connection.execute(_TRANSACTION_TIMEOUT, (f"{_longest_batch(self._settings.value, size)}s",))
                lock = await connection.execute(_LOCK, (name,))
                stored = await connection.execute(_POSITION, (name,))
            locked, position = await lock.fetchone(), await stored.fetchone()
            if not locked or not locked["locked"]:
                return None
            batch = self._decodable(await self._store.since(position["position"] if position else 0, size))
            if batch:
                await self._apply(connection, batch)
        self._failure = ""
        return batch

    async def _apply(self, connection: Connection, batch: Batch) -> None:
        with self._traced(batch):
            async with connection.pipeline():
                await connection.execute(ADVANCE, (self._projection.name, batch[-1][0]))
                missing = await self._projection.apply(connection, batch)
            for row in await missing.fetchall() if missing else ():
                # A damaged order must not stop the others; the consistency check names it, a rebuild repairs it.
                log.error("table orders has no row for this order", order_id=str(row["id"]), version=row["version"])

    @contextmanager
    def _traced(self, batch: Batch) -> Iterator[None]:
        """Adds a span to the recorded trace of each event; the statements are below the last one."""
        with ExitStack() as spans:
            for position, event in batch:
                context = remote_context(event.meta.get("traceparent", ""))
                if context and trace.get_current_span(context).get_span_context().trace_flags.sampled:
                    title = f"project {event.type} onto {self._projection.name}"
                    attributes = {"event.position": position}
                    span = start_span(title, parent=context, kind=SpanKind.CONSUMER, attributes=attributes)
                    spans.enter_context(trace.use_span(span, end_on_exit=True))
            yield

    def _record_lag(self, batch: Batch) -> None:
        """Records the lag of events that just became visible, from their decision some milliseconds before commit."""
        now = datetime.now(UTC)
        for _, event in batch:
            self._lag.record(max(0.0, (now - event_codec.occurred_at(event)).total_seconds()))

    def _decodable(self, batch: Batch) -> Batch:
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
