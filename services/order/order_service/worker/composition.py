"""Starts the parts of the worker: projections, process manager, back-pressure, leadership and cleanup.

Each is restarted on its own.

Invariant: any number of workers may run, and only the leader works. If two lead for a moment, locks and claims in the
database keep the data correct.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from functools import partial

import structlog

from chassis.calls import client
from chassis.errors import RpcError
from chassis.postgres.event_store import EventStore
from chassis.process import FLUSH_SECONDS, Process
from chassis.serving import server
from order_service.commands import Commands
from order_service.settings import Settings
from order_service.storage.databases import open_storage
from order_service.storage.idempotency_keys import IdempotencyKeys, PostgresIdempotencyKeys
from order_service.storage.placing_pause import PostgresPlacingPause
from order_service.worker import projection_lag
from order_service.worker.leadership import Leadership
from order_service.worker.outbox import PostgresOutbox
from order_service.worker.process_manager import ProcessManager
from order_service.worker.projections import ORDERS, OUTBOX
from order_service.worker.projector import Projector
from order_service.worker.user_credit import GrpcUserCredit

log = structlog.get_logger(__name__)

_PURGE_SECONDS = 600
_NOT_LISTENING_POLL_SECONDS = 0.5
_LISTENING_POLL_SECONDS = 60.0


async def compose(process: Process[Settings]) -> None:
    """Runs the worker until the process stops, then resigns as leader."""
    settings = process.settings
    database, store = await open_storage(process)
    keys = PostgresIdempotencyKeys(database)
    channel = client.connect(process, "user-service", settings=settings.section(lambda now: now.users))
    commands = Commands(store, keys, settings)
    manager = ProcessManager(PostgresOutbox(database), store, commands, GrpcUserCredit(channel), settings)
    orders = Projector(ORDERS, store, database, settings)
    outbox = Projector(OUTBOX, store, database, settings, on_projected=manager.wakeup.set)
    instance = process.environment.instance_id
    leadership = Leadership(database, instance, settings)
    for name, projector in {"projection orders": orders, "projection outbox": outbox}.items():
        process.add_readiness(name, partial(readiness, leadership, projector))
    parts = {
        "projection orders": orders.run,
        "projection outbox": outbox.run,
        "process manager": manager.run,
        "back-pressure": partial(manager.back_pressure.run, pause=PostgresPlacingPause(database)),
    }
    loops = [
        process.supervise(name, lambda work=work: leadership.while_leader(process.stopping, work))  # type: ignore[misc]
        for name, work in parts.items()
    ]
    waking = process.supervise("wake-up", lambda: _wake(store, orders.wakeup, outbox.wakeup))
    resigning = asyncio.Event()
    campaigning = process.supervise("leadership", lambda: leadership.campaign(resigning))
    process.supervise("lag", lambda: projection_lag.run(leadership, database, settings, instance))
    process.supervise("purge keys", lambda: _purge(keys))
    await server.serve(process, lambda _: None, [])
    waking.cancel()
    # The term is renewed until the work has ended, so that no other worker starts it a second time meanwhile.
    _, unfinished = await asyncio.wait(loops, timeout=settings.value.grace_seconds)
    await _cancelled(unfinished)
    resigning.set()
    await asyncio.wait({campaigning}, timeout=FLUSH_SECONDS)
    await leadership.resign()


def readiness(leadership: Leadership, projector: Projector) -> str:
    """Returns "ok" for a worker that does not lead: another one may have passed what has stopped this one."""
    return projector.readiness() if leadership.is_leader else "ok"


async def _cancelled(tasks: Collection[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    if tasks:
        await asyncio.wait(tasks, timeout=FLUSH_SECONDS)


async def _wake(store: EventStore, *wakeups: asyncio.Event) -> None:
    """Sets the wake-ups after each append; without a connection that listens, at short intervals instead."""
    store.notifications.start()
    while True:
        appended = store.notifications.wakeup()
        for each in wakeups:
            each.set()
        listening = store.notifications.listening
        await appended.wait(_LISTENING_POLL_SECONDS if listening else _NOT_LISTENING_POLL_SECONDS)


async def _purge(keys: IdempotencyKeys) -> None:
    while True:
        try:
            if purged := await keys.purge():
                log.info("expired idempotency keys deleted", keys=purged)
        except RpcError as error:
            log.warning("expired idempotency keys not deleted", error=str(error))
        await asyncio.sleep(_PURGE_SECONDS)
