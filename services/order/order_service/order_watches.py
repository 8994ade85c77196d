"""Streams the changes of orders to watchers; all watches of a process share one subscription to the events.

Invariant: a watch yields each event of its order once and in order, starting after the version that the caller names. A
watch that is too slow, or whose instance stops, ends with an error; its caller reconnects with the last version it has
received.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from uuid import UUID

import grpc

from chassis.deadline import at_most
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
_RETRY_AFTER_SECONDS = 1.0
_open = meter().create_up_down_counter("order.watches", description="watches that are open")


@dataclass(frozen=True)
class Change:
    """An event and the order after it; without an event if a watch begins and has none to replay."""

    order: Order
    event: RecordedEvent | None


class OrderWatches:
    """The open watches of this process. Without any, it does not subscribe to the events."""

    def __init__(self, process: Process[Settings], store: EventLog, queries: Queries, backlog: int = _BACKLOG) -> None:
        self._process = process
        self._store = store
        self._queries = queries
        self._backlog = backlog
        self._relay = _EventRelay(store)
        self._relaying: asyncio.Task[None] | None = None
        process.supervise("end of watches", self._end_all)

    @property
    def count(self) -> int:
        """The number of open watches."""
        return sum(map(len, self._relay.subscriptions.values()))

    async def watch(self, user_id: UUID, order_id: UUID, after: int) -> AsyncGenerator[Change, None]:
        """Yields every change after a version, until the order is final or `max_watch_seconds` have passed.

        Raises OrderUnknown, Invalid and UnknownEvent before the first change, and RpcError: WATCHERS_FULL, DRAINING,
        WATCHER_SLOW.
        """
        ends_at = time.monotonic() + self._process.settings.value.max_watch_seconds
        with self._subscribed(order_id) as subscription:
            past = await self._past(user_id, order_id, after)
            order: Order | None = None
            for recorded in past:
                order = event_codec.advance(order, recorded)
                if recorded.version > after:
                    yield Change(order, recorded)
            if order and order.version == after:
                yield Change(order, None)
            while order and not order.status.final and (event := await subscription.next(ends_at)):
                if event.version > order.version:
                    order = event_codec.advance(order, event)
                    yield Change(order, event)

    async def _past(self, user_id: UUID, order_id: UUID, after: int) -> list[RecordedEvent]:
        """Reads the events so far. The relay runs by then, so every later event reaches the subscription."""
        await self._relay.started()
        past = await self._queries.list_order_events(user_id, order_id)
        if not 0 <= after <= len(past):
            raise Invalid({"after_version": f"must be 0 to {len(past)}, the version of the order"})
        return past

    @contextmanager
    def _subscribed(self, order_id: UUID) -> Iterator[_Subscription]:
        if self._process.stopping.is_set():
            raise _draining()
        if self.count >= self._process.settings.value.max_watches:
            words = "as many orders are watched here as this instance takes"
            raise RpcError(grpc.StatusCode.RESOURCE_EXHAUSTED, "WATCHERS_FULL", words, retry_after=_RETRY_AFTER_SECONDS)
        relay, subscription = self._relay, _Subscription(self._backlog)
        self._relaying = self._relaying or self._process.supervise("watched events", relay.run)
        relay.subscriptions.setdefault(order_id, set()).add(subscription)
        _open.add(1)
        try:
            yield subscription
        finally:
            _open.add(-1)
            relay.subscriptions[order_id].discard(subscription)
            if not relay.subscriptions[order_id]:
                del relay.subscriptions[order_id]
            self._stop_unused_relay()

    def _stop_unused_relay(self) -> None:
        """Stops the relay after the last watch; the next watch starts a new one at the head of the events."""
        if self._relaying and not self._relay.subscriptions:
            self._relaying.cancel()
            self._relaying, self._relay = None, _EventRelay(self._store)

    async def _end_all(self) -> None:
        await self._process.stopping.wait()
        for subscriptions in self._relay.subscriptions.values():
            for subscription in subscriptions:
                subscription.end(_draining())


class _EventRelay:
    """Passes the events of the store to subscriptions. It keeps its position, so that a restart skips no event."""

    def __init__(self, store: EventLog) -> None:
        self.subscriptions: dict[UUID, set[_Subscription]] = {}
        self._store = store
        self._position: int | None = None
        self._started = asyncio.Event()

    async def started(self) -> None:
        """Returns when every event recorded from now on is relayed; raises RpcError(UNAVAILABLE)."""
        try:
            await asyncio.wait_for(self._started.wait(), at_most(_READY_SECONDS))
        except TimeoutError:
            raise unavailable("UNAVAILABLE", "the events cannot be read now", _RETRY_AFTER_SECONDS) from None

    async def run(self) -> None:
        if self._position is None:
            self._position = await self._store.head()
        self._started.set()
        async for position, recorded in self._store.subscribe(self._position):
            self._position = position
            for subscription in self.subscriptions.get(recorded.stream, ()):
                subscription.offer(recorded)


class _Subscription:
    """The queue of events that one watch has not yielded yet."""

    def __init__(self, backlog: int) -> None:
        self._queue: asyncio.Queue[RecordedEvent | RpcError] = asyncio.Queue(backlog)

    def offer(self, recorded: RecordedEvent) -> None:
        """Queues an event; if the queue is full, ends the watch as too slow."""
        if not self._queue.full():
            self._queue.put_nowait(recorded)
        else:
            self.end(RpcError(grpc.StatusCode.RESOURCE_EXHAUSTED, "WATCHER_SLOW", "more happened than was taken"))

    def end(self, error: RpcError) -> None:
        """Replaces all queued events by an error."""
        while not self._queue.empty():
            self._queue.get_nowait()
        self._queue.put_nowait(error)

    async def next(self, ends_at: float) -> RecordedEvent | None:
        """Returns the next event, None at the end time; raises the error that ended the watch."""
        try:
            found = await asyncio.wait_for(self._queue.get(), ends_at - time.monotonic())
        except TimeoutError:
            return None
        if isinstance(found, RpcError):
            raise found
        return found


def _draining() -> RpcError:
    return unavailable("DRAINING", "this instance ends, another one goes on", _RETRY_AFTER_SECONDS)
