"""The process manager: takes each placed order through a reservation to confirmed or rejected, and gives the credit
of a cancelled one back.

Invariant: an errand may be run any number of times with the effect of once; one that fails holds up no other.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable

import structlog

from chassis.deadline import deadline
from chassis.errors import RpcError
from chassis.events.port import EventLog
from chassis.telemetry.traces import continued
from order_service.commands import Commands
from order_service.domain import Order, Status
from order_service.settings import Settings
from order_service.storage import event_codec
from order_service.worker.outbox import Errand, Errands
from order_service.worker.user_credit import CreditRefused, Users
from order_service.worker.wakeup import heard

log = structlog.get_logger(__name__)


class Fulfilment:
    """Runs errands; `settings` gives the settings of the moment. Set `news` when there may be a new errand."""

    def __init__(
        self,
        errands: Errands,
        store: EventLog,
        commands: Commands,
        users: Users,
        settings: Callable[[], Settings],
    ) -> None:
        self._errands = errands
        self._store = store
        self._commands = commands
        self._users = users
        self._settings = settings
        self._running: set[asyncio.Task[None]] = set()
        self.news = asyncio.Event()

    async def follow(self, stopping: asyncio.Event) -> None:
        """Run what is due until told to stop; what is running then gets to its end.

        Begins with what others had claimed: who runs this is the active worker, and they are not any more.
        """
        taken_over = False
        while not stopping.is_set():
            try:
                if not taken_over:
                    await self._take_over()
                    taken_over = True
                await self._next()
            except RpcError as error:
                log.warning("errands cannot be claimed, trying again", error=str(error))
                await asyncio.sleep(self._settings().poll_seconds)
        if self._running:
            await asyncio.wait(self._running)

    async def _take_over(self) -> None:
        if taken := await self._errands.take_over():
            log.info("errands taken over", errands=taken)

    async def _next(self) -> None:
        self.news.clear()
        settings = self._settings()
        free = settings.errands_at_once - len(self._running)
        claimed = await self._errands.claim(free, settings.errand_seconds) if free > 0 else []
        self._running |= {asyncio.create_task(self.attempt(errand)) for errand in claimed}
        if len(claimed) < free:
            await heard(self.news, settings.poll_seconds)
        elif self._running:
            await asyncio.wait(self._running, return_when=asyncio.FIRST_COMPLETED)
        self._running = {task for task in self._running if not task.done()}

    async def attempt(self, errand: Errand) -> None:
        """Try an errand once, in the trace of its event; when it fails it is tried again later."""
        with continued(errand.traceparent, f"{errand.kind} credit", {"order.id": str(errand.order_id)}):
            try:
                with deadline(self._settings().errand_seconds):
                    await self._run(errand)
                    await self._errands.finish(errand)
            except RpcError as error:
                await self._postpone(errand, error.reason)
            except Exception as error:
                log.exception("errand failed", order_id=str(errand.order_id), kind=errand.kind)
                await self._postpone(errand, type(error).__name__)

    async def _run(self, errand: Errand) -> None:
        order = event_codec.fold(await self._store.read(errand.order_id))
        if order is None:
            raise LookupError(f"order {errand.order_id} has no history")
        await (self._reserve(order, errand) if errand.kind == "reserve" else self._release(order))

    async def _reserve(self, order: Order, errand: Errand) -> None:
        if order.status is not Status.PENDING:
            return
        try:
            await self._users.reserve(order.id, order.user_id, order.currency, order.total)
        except CreditRefused as refusal:
            await self._commands.reject_order(order.id, refusal.reason, errand.command_id)
        else:
            # Cancelled meanwhile? Then nothing is confirmed, and the errand of the cancellation gives back.
            await self._commands.confirm_order(order.id, errand.command_id)

    async def _release(self, order: Order) -> None:
        await self._users.release(order.id, order.user_id)

    async def _postpone(self, errand: Errand, reason: str) -> None:
        settings = self._settings()
        longest = min(settings.retry_longest_seconds, settings.retry_first_seconds * 2 ** min(errand.tries - 1, 16))
        seconds = longest * random.uniform(0.5, 1.0)  # noqa: S311
        log.warning(
            "errand postponed",
            order_id=str(errand.order_id),
            kind=errand.kind,
            reason=reason,
            tries=errand.tries,
            seconds=round(seconds, 2),
        )
        try:
            await self._errands.postpone(errand, seconds)
        except RpcError as error:
            # Not lost: it is due again when the claim ends.
            log.warning("errand not postponed", order_id=str(errand.order_id), error=str(error))
