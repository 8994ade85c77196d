"""Orders followed live: one subscription of the process, handed out to everyone who watches here.

Invariant: a watcher is told each event of its order once and in sequence, those it missed first. One that cannot go on,
because it is too slow or this instance ends, is told so and begins again elsewhere after the last version it has.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from uuid import UUID

import grpc

from chassis.deadline import within
from chassis.errors import RpcError, unavailable
from chassis.events.port import EventLog
from chassis.events.record import RecordedEvent
from chassis.process import Process
from chassis.telemetry.metrics import meter
from order_service.domain import Invalid, Order
from order_service.queries import Queries
from order_service.settings import Settings
from order_service.storage import event_codec

_BACKLOG = 16
_READY_SECONDS = 2.0
_AGAIN_SECONDS = 1.0
_open = meter().create_up_down_counter("order.watchers", description="watches that are open")


@dataclass(frozen=True)
class Change:
    """An event and the order after it; no event where a watch begins and none is left to replay."""

    order: Order
    event: RecordedEvent | None


class Watchers:
    """Everyone who watches at this instance. While nobody does, nothing is asked of the store."""

    def __init__(self, process: Process[Settings], store: EventLog, queries: Queries, backlog: int = _BACKLOG) -> None:
        self._process = process
        self._store = store
        self._queries = queries
        self._backlog = backlog
        self._relay = _Relay(store)
        self._relaying: asyncio.Task[None] | None = None
        process.supervise("end of watches", self._end)

    @property
    def count(self) -> int:
        """Watches that are open."""
        return sum(map(len, self._relay.seats.values()))

    async def watch(self, user_id: UUID, order_id: UUID, after: int) -> AsyncGenerator[Change, None]:
        """Every change after a version, until the order is final or `watch_seconds` are over.

        Raises OrderUnknown, Invalid and UnknownEvent before anything is told, and RpcError: WATCHERS_FULL, DRAINING,
        WATCHER_SLOW.
        """
        ends_at = time.monotonic() + self._process.settings.value.watch_seconds
        with self._seat(order_id) as seat:
            past = await self._past(user_id, order_id, after)
            order: Order | None = None
            for recorded in past:
                order = event_codec.advance(order, recorded)
                if recorded.version > after:
                    yield Change(order, recorded)
            if order and order.version == after:
                yield Change(order, None)
            while order and not order.status.final and (news := await seat.next(ends_at)):
                if news.version > order.version:
                    order = event_codec.advance(order, news)
                    yield Change(order, news)

    async def _past(self, user_id: UUID, order_id: UUID, after: int) -> list[RecordedEvent]:
        """The history, read when everything that is recorded from then on arrives at the seat as well."""
        await self._relay.begun()
        past = await self._queries.list_order_events(user_id, order_id)
        if not 0 <= after <= len(past):
            raise Invalid({"after_version": f"must be 0 to {len(past)}, the version of the order"})
        return past

    @contextmanager
    def _seat(self, order_id: UUID) -> Iterator[_Seat]:
        if self._process.stopping.is_set():
            raise _draining()
        if self.count >= self._process.settings.value.watchers_at_most:
            words = "as many orders are watched here as this instance takes"
            raise RpcError(grpc.StatusCode.RESOURCE_EXHAUSTED, "WATCHERS_FULL", words, retry_after=_AGAIN_SECONDS)
        relay, seat = self._relay, _Seat(self._backlog)
        self._relaying = self._relaying or self._process.supervise("watched events", relay.run)
        relay.seats.setdefault(order_id, set()).add(seat)
        _open.add(1)
        try:
            yield seat
        finally:
            _open.add(-1)
            relay.seats[order_id].discard(seat)
            if not relay.seats[order_id]:
                del relay.seats[order_id]
            self._rest()

    def _rest(self) -> None:
        """End the subscription with its last watcher; the next one begins where the log stands by then."""
        if self._relaying and not self._relay.seats:
            self._relaying.cancel()
            self._relaying, self._relay = None, _Relay(self._store)

    async def _end(self) -> None:
        await self._process.stopping.wait()
        for seats in self._relay.seats.values():
            for seat in seats:
                seat.end(_draining())


class _Relay:
    """The subscription; it remembers its position, so that even one that is started again skips nothing."""

    def __init__(self, store: EventLog) -> None:
        self.seats: dict[UUID, set[_Seat]] = {}
        self._store = store
        self._position: int | None = None
        self._began = asyncio.Event()

    async def begun(self) -> None:
        """Return when everything recorded from now on is relayed; raises RpcError(UNAVAILABLE)."""
        try:
            await asyncio.wait_for(self._began.wait(), within(_READY_SECONDS))
        except TimeoutError:
            raise unavailable("UNAVAILABLE", "the events cannot be followed now", _AGAIN_SECONDS) from None

    async def run(self) -> None:
        if self._position is None:
            self._position = await self._store.head()
        self._began.set()
        async for position, recorded in self._store.subscribe(self._position):
            self._position = position
            for seat in self.seats.get(recorded.stream, ()):
                seat.offer(recorded)


class _Seat:
    """What one watcher has not been told yet."""

    def __init__(self, backlog: int) -> None:
        self._waiting: asyncio.Queue[RecordedEvent | RpcError] = asyncio.Queue(backlog)

    def offer(self, recorded: RecordedEvent) -> None:
        if not self._waiting.full():
            self._waiting.put_nowait(recorded)
        else:
            self.end(RpcError(grpc.StatusCode.RESOURCE_EXHAUSTED, "WATCHER_SLOW", "more happened than was taken"))

    def end(self, why: RpcError) -> None:
        """Tell the watcher this in the place of all that waits."""
        while not self._waiting.empty():
            self._waiting.get_nowait()
        self._waiting.put_nowait(why)

    async def next(self, ends_at: float) -> RecordedEvent | None:
        """The next event; None when the time is over. Raises why it has ended."""
        try:
            found = await asyncio.wait_for(self._waiting.get(), ends_at - time.monotonic())
        except TimeoutError:
            return None
        if isinstance(found, RpcError):
            raise found
        return found


def _draining() -> RpcError:
    return unavailable("DRAINING", "this instance ends, another one goes on", _AGAIN_SECONDS)
