"""The process manager: processes outbox entries by reserving and releasing credit at the User Service.

A pending order is confirmed if its credit is reserved, and rejected if not. A cancelled or rejected order releases it.
Invariant: an entry may be processed several times with the same effect as once, and a failing entry delays no other
order. The entries of one order are processed one after the other, those of different orders at the same time.
"""

from __future__ import annotations

import asyncio
from uuid import UUID

import structlog

from chassis import backoff, wakeup
from chassis.deadline import deadline
from chassis.errors import RpcError
from chassis.events.port import EventLog
from chassis.events.record import RecordedEvent
from chassis.settings import Live
from chassis.telemetry.traces import continued
from order_service.commands import Commands
from order_service.domain import Order, Status
from order_service.settings import Settings
from order_service.storage import event_codec
from order_service.worker.back_pressure import BackPressure
from order_service.worker.outbox import Outbox, OutboxEntry
from order_service.worker.user_credit import CreditDenied, UserCredit

log = structlog.get_logger(__name__)

# An attempt ends before its claim, also if the deadline ends it late and the entry has to be postponed.
_ATTEMPTS_PER_CLAIM = 2
_RETRY_SECONDS = 0.5


class ProcessManager:
    """Processes outbox entries. Set `wakeup` when there may be a new entry."""

    def __init__(
        self,
        outbox: Outbox,
        store: EventLog,
        commands: Commands,
        user_credit: UserCredit,
        settings: Live[Settings],
    ) -> None:
        self._outbox = outbox
        self._store = store
        self._commands = commands
        self._user_credit = user_credit
        self._settings = settings
        self._running: dict[int, asyncio.Task[None]] = {}
        self._last_of_order: dict[UUID, asyncio.Task[None]] = {}
        self.back_pressure = BackPressure(settings)
        self.wakeup = asyncio.Event()

    async def run(self, stopping: asyncio.Event) -> None:
        """Processes due entries until `stopping` is set, then waits for those in progress.

        First it takes over all claimed entries. Nobody works on them: only the leader runs this, and however a run
        ends, its entries in progress have ended too.
        """
        self.back_pressure.begin()
        try:
            with wakeup.set_when(stopping, self.wakeup):
                await self._process_until(stopping)
            if self._running:
                await asyncio.wait(self._running.values())
        finally:
            await self._cancel_running()

    async def _process_until(self, stopping: asyncio.Event) -> None:
        taken_over = False
        while not stopping.is_set():
            try:
                if not taken_over:
                    await self._take_over()
                    taken_over = True
                await self._process_due()
            except RpcError as error:
                log.warning("outbox entries cannot be claimed, retrying", error=str(error))
                await asyncio.sleep(min(_RETRY_SECONDS, self._settings.value.worker_poll_seconds))

    async def _cancel_running(self) -> None:
        running = list(self._running.values())
        for task in running:
            task.cancel()
        if running:
            await asyncio.wait(running)

    async def _take_over(self) -> None:
        if taken := await self._outbox.take_over():
            log.info("outbox entries taken over", entries=taken)

    async def _process_due(self) -> None:
        """Claims entries for all free places and starts them; then waits until there may be more to do.

        Entries that end while others are claimed leave their places to the next claim, so under load a claim has many.
        """
        self.wakeup.clear()
        settings = self._settings.value
        free = settings.outbox_concurrency - len(self._running)
        claim_seconds = settings.outbox_attempt_seconds * _ATTEMPTS_PER_CLAIM
        claimed = await self._outbox.claim(free, claim_seconds) if free > 0 else []
        # A claim that has expired meanwhile is only renewed: one entry is never processed twice at the same time.
        for entry in claimed:
            if entry.position not in self._running:
                self._start(entry)
        all_claimed = len(claimed) < free
        self.back_pressure.claimed(all_due=all_claimed)
        if all_claimed:
            await wakeup.wait(self.wakeup, settings.worker_poll_seconds)
        else:
            await asyncio.wait(self._running.values(), return_when=asyncio.FIRST_COMPLETED)

    def _start(self, entry: OutboxEntry) -> None:
        before = self._last_of_order.get(entry.order_id)
        task = asyncio.create_task(self._attempt_after(before, entry))
        self._running[entry.position] = self._last_of_order[entry.order_id] = task
        task.add_done_callback(lambda _: self._ended(entry, task))

    def _ended(self, entry: OutboxEntry, task: asyncio.Task[None]) -> None:
        del self._running[entry.position]
        if self._last_of_order[entry.order_id] is task:
            del self._last_of_order[entry.order_id]

    async def _attempt_after(self, before: asyncio.Task[None] | None, entry: OutboxEntry) -> None:
        if before is not None:
            await asyncio.wait({before})
        await self.attempt(entry)

    async def attempt(self, entry: OutboxEntry) -> None:
        """Processes an entry once, in the trace of its event; after a failure it is retried later."""
        with continued(entry.traceparent, f"{entry.kind} credit", {"order.id": str(entry.order_id)}):
            try:
                with deadline(self._settings.value.outbox_attempt_seconds):
                    await self._process(entry)
                    await self._outbox.complete(entry)
                self.back_pressure.attempted(succeeded=True)
            except RpcError as error:
                await self._postpone(entry, error.reason)
            except Exception as error:
                log.exception("outbox entry failed", order_id=str(entry.order_id), kind=entry.kind)
                await self._postpone(entry, type(error).__name__)

    async def _process(self, entry: OutboxEntry) -> None:
        past = await self._store.read(entry.order_id)
        order = event_codec.fold(past)
        if order is None:
            raise LookupError(f"order {entry.order_id} has no events")
        await (self._reserve(order, past, entry) if entry.kind == "reserve" else self._release(order))

    async def _reserve(self, order: Order, past: list[RecordedEvent], entry: OutboxEntry) -> None:
        if order.status is not Status.PENDING:
            return
        try:
            await self._user_credit.reserve(order.id, order.user_id, order.currency, order.total)
        except CreditDenied as denied:
            await self._commands.reject_order(order.id, denied.reason, entry.command_id, past)
        else:
            # A cancelled order is not confirmed, and the entry of its cancellation releases the credit.
            await self._commands.confirm_order(order.id, entry.command_id, past)

    async def _release(self, order: Order) -> None:
        await self._user_credit.release(order.id, order.user_id)

    async def _postpone(self, entry: OutboxEntry, reason: str) -> None:
        self.back_pressure.attempted(succeeded=False)
        settings = self._settings.value
        seconds = backoff.delay(
            entry.attempts, settings.outbox_retry_first_seconds, settings.outbox_retry_longest_seconds
        )
        log.warning(
            "outbox entry postponed",
            order_id=str(entry.order_id),
            kind=entry.kind,
            reason=reason,
            attempts=entry.attempts,
            seconds=round(seconds, 2),
        )
        try:
            await self._outbox.postpone(entry, seconds)
            asyncio.get_running_loop().call_later(seconds, self.wakeup.set)
        except RpcError as error:
            # It is not lost: it is due again when its claim ends.
            log.warning("outbox entry not postponed", order_id=str(entry.order_id), error=str(error))
