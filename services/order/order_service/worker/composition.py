"""The worker put together: projections and the process manager, side by side and each restarted alone.

Invariant: any number of workers may run; one is active, and locks and claims in the database keep even two apart.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import structlog

from chassis.calls import client
from chassis.errors import RpcError
from chassis.events.port import EventLog
from chassis.process import Process
from chassis.serving import server
from order_service.commands import Commands
from order_service.settings import Settings
from order_service.storage.databases import open_storage
from order_service.storage.idempotency_keys import Keys, PostgresKeys
from order_service.worker import projection_lag
from order_service.worker.leadership import Leadership
from order_service.worker.outbox import PostgresErrands
from order_service.worker.process_manager import Fulfilment
from order_service.worker.projections import ERRANDS, ORDERS, Projector
from order_service.worker.user_credit import GrpcUsers

log = structlog.get_logger(__name__)

_PURGE_SECONDS = 600


async def compose(process: Process[Settings]) -> None:
    settings: Callable[[], Settings] = lambda: process.settings.value  # noqa: E731 - read at each use
    database, store = await open_storage(process)
    keys = PostgresKeys(database)
    channel = client.connect(process, "user-service", settings=lambda: settings().users)
    commands = Commands(store, keys, settings)
    fulfilment = Fulfilment(PostgresErrands(database), store, commands, GrpcUsers(channel), settings)
    orders = Projector(ORDERS, store, database, settings)
    errands = Projector(ERRANDS, store, database, settings, after=fulfilment.news.set)
    for name, projector in {"projection orders": orders, "projection errands": errands}.items():
        process.add_readiness(name, projector.state)
    instance = process.environment.instance_id
    leadership = Leadership(database, instance, settings)
    parts = {"projection orders": orders.follow, "projection errands": errands.follow, "fulfilment": fulfilment.follow}
    loops = [
        process.supervise(name, lambda work=work: leadership.during(process.stopping, work))  # type: ignore[misc]
        for name, work in parts.items()
    ]
    wake = process.supervise("wake", lambda: _wake(store, orders.news, errands.news))
    process.supervise("leadership", lambda: leadership.stand(process.stopping))
    process.supervise("lag", lambda: projection_lag.follow(leadership, database, settings, instance))
    process.supervise("purge keys", lambda: _purge(keys))
    await server.serve(process, lambda _: None, [])
    wake.cancel()
    await asyncio.wait(loops, timeout=process.settings.value.grace_seconds)
    await leadership.resign()


async def _wake(store: EventLog, *sleepers: asyncio.Event) -> None:
    async for _ in store.subscribe(await store.head()):
        for sleeper in sleepers:
            sleeper.set()


async def _purge(keys: Keys) -> None:
    while True:
        try:
            if purged := await keys.purge():
                log.info("expired keys are forgotten", keys=purged)
        except RpcError as error:
            log.warning("expired keys stay for now", error=str(error))
        await asyncio.sleep(_PURGE_SECONDS)
