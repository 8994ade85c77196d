"""The process manager: processes outbox entries by reserving and releasing credit at the User Service.

A pending order is confirmed if its credit is reserved, and rejected if not. A cancelled or rejected order releases it.
Invariant: an entry may be processed several times with the same effect as once, and a failing entry delays no other.
"""

from __future__ import annotations

import asyncio

import structlog

from chassis import backoff
from chassis.deadline import deadline
from chassis.errors import RpcError
from chassis.events.port import EventLog
from chassis.settings import Live
from chassis.telemetry.traces import continued
from order_service.commands import Commands
from order_service.domain import Order, Status
from order_service.settings import Settings
from order_service.storage import event_codec
from order_service.worker import wakeup
from order_service.worker.outbox import Outbox, OutboxEntry
from order_service.worker.user_credit import CreditDenied, UserCredit

log = structlog.get_logger(__name__)

# An attempt ends before its claim, also if the deadline ends it late and the entry has to be postponed.
_ATTEMPTS_PER_CLAIM = 2


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
        self.wakeup = asyncio.Event()

    async def run(self, stopping: asyncio.Event) -> None:
        """Processes due entries until `stopping` is set, then waits for those in progress.

        First it takes over all claimed entries. Nobody works on them: only the leader runs this, and however a run
        ends, its entries in progress have ended too.
        """
        try:
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
                await asyncio.sleep(self._settings.value.worker_poll_seconds)

    async def _cancel_running(self) -> None:
        running, self._running = self._running, {}
        for task in running.values():
            task.cancel()
        if running:
            await asyncio.wait(running.values())

    async def _take_over(self) -> None:
        if taken := await self._outbox.take_over():
            log.info("outbox entries taken over", entries=taken)

    async def _process_due(self) -> None:
        self.wakeup.clear()
        settings = self._settings.value
        free = settings.outbox_concurrency - len(self._running)
        claim_seconds = settings.outbox_attempt_seconds * _ATTEMPTS_PER_CLAIM
        claimed = await self._outbox.claim(free, claim_seconds) if free > 0 else []
        # A claim that has expired meanwhile is only renewed: one entry is never processed twice at the same time.
        new = [entry for entry in claimed if entry.position not in self._running]
        self._running |= {entry.position: asyncio.create_task(self.attempt(entry)) for entry in new}
        if len(new) < free:
            await wakeup.wait(self.wakeup, settings.worker_poll_seconds)
        elif self._running:
            await asyncio.wait(self._running.values(), return_when=asyncio.FIRST_COMPLETED)
        self._running = {position: task for position, task in self._running.items() if not task.done()}

    async def attempt(self, entry: OutboxEntry) -> None:
        """Processes an entry once, in the trace of its event; after a failure it is retried later."""
        with continued(entry.traceparent, f"{entry.kind} credit", {"order.id": str(entry.order_id)}):
            try:
                with deadline(self._settings.value.outbox_attempt_seconds):
                    await self._process(entry)
                    await self._outbox.complete(entry)
            except RpcError as error:
                await self._postpone(entry, error.reason)
            except Exception as error:
                log.exception("outbox entry failed", order_id=str(entry.order_id), kind=entry.kind)
                await self._postpone(entry, type(error).__name__)

    async def _process(self, entry: OutboxEntry) -> None:
        order = event_codec.fold(await self._store.read(entry.order_id))
        if order is None:
            raise LookupError(f"order {entry.order_id} has no events")
        await (self._reserve(order, entry) if entry.kind == "reserve" else self._release(order))

    async def _reserve(self, order: Order, entry: OutboxEntry) -> None:
        if order.status is not Status.PENDING:
            return
        try:
            await self._user_credit.reserve(order.id, order.user_id, order.currency, order.total)
        except CreditDenied as denied:
            await self._commands.reject_order(order.id, denied.reason, entry.command_id)
        else:
            # A cancelled order is not confirmed, and the entry of its cancellation releases the credit.
            await self._commands.confirm_order(order.id, entry.command_id)

    async def _release(self, order: Order) -> None:
        await self._user_credit.release(order.id, order.user_id)

    async def _postpone(self, entry: OutboxEntry, reason: str) -> None:
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
        except RpcError as error:
            # It is not lost: it is due again when its claim ends.
            log.warning("outbox entry not postponed", order_id=str(entry.order_id), error=str(error))
