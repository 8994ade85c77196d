"""Sixteen concurrent writers: each version of an order has one winner, and no reader skips or repeats an event."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator
from uuid import UUID, uuid4

import pytest
from behaviour.order.support.service import ADA, TEA, Service, shipped
from behaviour.order.support.storages import PostgresStorage, on_postgres
from support.postgres.private_postgres import Postgres

from chassis.events.port import EventLog, VersionConflict
from chassis.events.record import RecordedEvent
from chassis.postgres import event_recorder
from chassis.postgres.event_store import EventStore
from chassis.settings import Live
from order_service import domain
from order_service.domain import Order, OrderClosed, Status, VersionMismatch
from order_service.storage import event_codec, idempotency_keys
from order_service.storage.event_codec import Cause
from order_service.worker.projections import Batch, Connection, Projection
from order_service.worker.projector import Projector

from .gate import GATE, closed, waiting_session

WRITERS = 16
SLOW = "Slow"
COMMITS = f"""
CREATE FUNCTION commit_late() RETURNS trigger LANGUAGE plpgsql SET lock_timeout = 0 AS $$ BEGIN
    IF new.topic = '{SLOW}' THEN PERFORM pg_advisory_xact_lock({GATE});
    ELSIF random() < 0.2 THEN PERFORM pg_sleep(random() * 0.005);
    END IF;
    RETURN NULL;
END $$;
CREATE CONSTRAINT TRIGGER late AFTER INSERT ON events
    DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION commit_late();
CREATE TABLE seen (place bigserial, position bigint NOT NULL, projector integer NOT NULL);
"""


@pytest.fixture
async def storage(postgres: Postgres, tables: str) -> AsyncIterator[PostgresStorage]:
    async with on_postgres(postgres, tables, connections=WRITERS) as opened:
        yield opened


@pytest.fixture(scope="module")
def late_commits(postgres: Postgres, tables: str) -> None:
    """Delays some commits from now on; that of a SLOW event waits at the GATE."""
    postgres.execute("SET search_path = order_service", f"SET ROLE {tables}", COMMITS, dbname=tables)


def event(stream: UUID, version: int, kind: str) -> RecordedEvent:
    return RecordedEvent(stream, version, kind, {})


async def test_each_race_for_a_version_of_one_stream_has_one_winner(storage: PostgresStorage) -> None:
    races, stream = 50, uuid4()
    logs = [storage.store, await EventStore.open(storage.database, write_rows=idempotency_keys.insert_key, max_size=8)]
    for version in range(races):
        tries = [event(stream, version + 1, f"By{writer}") for writer in range(WRITERS)]
        appends = (logs[number % 2].append(stream, version, [each]) for number, each in enumerate(tries))
        outcomes = await asyncio.gather(*appends, return_exceptions=True)
        assert sum(isinstance(outcome, VersionConflict) for outcome in outcomes) == WRITERS - 1, outcomes
        winner = outcomes.index(None)
        assert [each.type for each in await storage.store.read(stream, version)] == [f"By{winner}"]
    print(f"\n{races} races of {WRITERS} writers for one stream: one winner each")


async def test_each_race_to_decide_on_a_hot_order_has_one_winner(storage: PostgresStorage) -> None:
    races, won, service = 15, Counter[str](), Service(shipped(), storage)
    for number in range(races):
        order = await service.place(f"k{number}")
        tries = ["cancel", "confirm"][:: 1 if number % 2 else -1] * (WRITERS // 2)
        outcomes = await asyncio.gather(*(decide(service, order, verb) for verb in tries), return_exceptions=True)
        assert len(await service.types(order.id)) == 2
        status = (await service.queries.get_order(ADA, order.id)).status
        won[status.value] += 1
        winners = [
            answer for verb, answer in zip(tries, outcomes, strict=True) if (verb, type(answer)) == ("cancel", Order)
        ]
        assert len(winners) == (1 if status is Status.CANCELLED else 0)
        assert {type(answer) for answer in outcomes} <= {Order, OrderClosed, VersionMismatch}
        if status is Status.CONFIRMED:
            again = (service.commands.cancel_order(ADA, order.id, []) for _ in range(WRITERS))
            outcomes = await asyncio.gather(*again, return_exceptions=True)
            assert Counter(map(type, outcomes)) == {Order: 1, OrderClosed: WRITERS - 1}
    print(f"\n{races} races of {WRITERS} writers for an order: {dict(won)}, one winner each")


async def decide(service: Service, order: Order, verb: str) -> Order:
    if verb == "confirm":
        return await service.commands.confirm_order(order.id)
    return await service.commands.cancel_order(ADA, order.id, [order.version])


async def types(log: EventLog, position: int) -> list[str]:
    return [found.type for _, found in await log.since(position)]


async def test_an_event_that_commits_late_is_not_overtaken(
    storage: PostgresStorage, postgres: Postgres, tables: str, late_commits: None
) -> None:
    slow, quick = uuid4(), uuid4()
    with closed(postgres, tables):
        first = asyncio.create_task(storage.store.append(slow, 0, [event(slow, 1, SLOW)]))
        await waiting_session(postgres)
        second = asyncio.create_task(storage.store.append(quick, 0, [event(quick, 1, "Quick")]))
        await waiting_session(postgres, "relation")
        assert await types(storage.store, 0) == []
    await asyncio.gather(first, second)
    assert await types(storage.store, 0) == [SLOW, "Quick"]


async def test_without_the_table_lock_it_would_be_overtaken_and_skipped(
    storage: PostgresStorage, postgres: Postgres, tables: str, late_commits: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(event_recorder, "_LOCK", "SELECT 1")
    slow, quick = uuid4(), uuid4()
    with closed(postgres, tables):
        first = asyncio.create_task(storage.store.append(slow, 0, [event(slow, 1, SLOW)]))
        await waiting_session(postgres)
        await storage.store.append(quick, 0, [event(quick, 1, "Quick")])
        assert await types(storage.store, 0) == ["Quick"]
        position = await storage.store.head()
    await first
    assert await types(storage.store, position) == []
    assert SLOW in await types(storage.store, 0)


async def write(store: EventStore, streams: int) -> None:
    """Writes orders, each with three events in two transactions."""
    placed, cause = domain.place(ADA, "EUR", [TEA]), Cause(str(ADA), uuid4())
    for _ in range(streams):
        order_id = uuid4()
        await store.append(order_id, 0, event_codec.encode(order_id, 0, [placed], cause))
        rest = [domain.OrderConfirmed(), domain.OrderCancelled()]
        await store.append(order_id, 1, event_codec.encode(order_id, 1, rest, cause))


def projector(storage: PostgresStorage, number: int) -> Projector:
    async def onto_seen(connection: Connection, batch: Batch) -> None:
        for position, _ in batch:
            await connection.execute("INSERT INTO seen (position, projector) VALUES (%s, %s)", (position, number))

    projection = Projection("seen", onto_seen)
    return Projector(projection, storage.store, storage.database, Live(shipped(worker_poll_seconds=0.05)))


async def write_and_read(storage: PostgresStorage, events: int, seconds: float) -> None:
    """Runs writers, two workers at one projection and a subscriber, until each event was seen."""
    await storage._execute("DELETE FROM seen")
    started_at, stopping, received = time.monotonic(), asyncio.Event(), list[int]()
    projectors = [projector(storage, number) for number in range(2)]
    following = [asyncio.create_task(each.run(stopping)) for each in projectors]

    async def subscribe() -> None:
        async for position, _ in storage.store.subscribe(0):
            received.append(position)
            for each in projectors:
                each.wakeup.set()
            if len(received) == events:
                return

    async with asyncio.timeout(seconds):
        subscriber = asyncio.create_task(subscribe())
        await asyncio.gather(*(write(storage.store, events // 3 // WRITERS) for _ in range(WRITERS)))
        await subscriber
        while (await rows(storage, "SELECT count(*) FROM seen"))[0][0] < events:
            await asyncio.sleep(0.05)
    stopping.set()
    await asyncio.gather(*following)
    seen = await rows(storage, "SELECT position, projector FROM seen ORDER BY place")
    recorded = [row[0] for row in await rows(storage, "SELECT notification_id FROM events ORDER BY 1")]
    assert len(recorded) == events
    assert received == recorded
    assert [row[0] for row in seen] == recorded
    shares = Counter(row[1] for row in seen)
    print(
        f"\n{events} events by {WRITERS} writers in {time.monotonic() - started_at:.0f} s: the subscriber and the "
        f"projection saw each once and in order (two workers at it: {shares[0]} and {shares[1]} events)"
    )


async def rows(storage: PostgresStorage, query: str) -> list[tuple[int, ...]]:
    schema = storage.database.name
    options = {"dbname": schema, "options": f"-csearch_path={schema}"}
    return await asyncio.to_thread(storage.server.vault.postgres.rows, query, **options)


@pytest.mark.timeout(300)
async def test_no_reader_skips_or_repeats_an_event(storage: PostgresStorage, late_commits: None) -> None:
    await write_and_read(storage, 32 * 3 * WRITERS, seconds=280)


@pytest.mark.long
@pytest.mark.timeout(1800)
async def test_no_reader_skips_or_repeats_one_of_100_000_events(storage: PostgresStorage, late_commits: None) -> None:
    await write_and_read(storage, 2084 * 3 * WRITERS, seconds=1700)
