"""One worker leads at a time; after a leader is lost, another follows within a term and one renewal interval."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager

import pytest
from behaviour.order.support.service import shipped
from support.postgres.database_under_test import database_under_test
from support.postgres.private_postgres import Postgres

from chassis.postgres.database import Database
from chassis.settings import Live
from order_service.worker.leadership import Leadership

TERM = 2.0
RENEWAL = TERM / 5
# For the statements themselves, on a busy machine.
MARGIN = 1.5


@pytest.fixture
async def database(postgres: Postgres, tables: str) -> AsyncIterator[Database]:
    async with database_under_test(postgres, tables) as server:
        async with server.database.connection() as connection:
            await connection.execute("DELETE FROM leader_terms")
        yield server.database


@asynccontextmanager
async def campaigning(database: Database, instance: str, term: float = TERM) -> AsyncIterator[Leadership]:
    """Yields a candidate. At the end it stops without resigning, as if it was killed."""
    candidate = Leadership(database, instance, Live(shipped(leadership_term_seconds=term)))
    task = asyncio.create_task(candidate.campaign(asyncio.Event()))
    try:
        yield candidate
    finally:
        task.cancel()
        await asyncio.wait([task])


async def seconds_until(condition: Callable[[], bool], seconds: float = 20) -> float:
    """Returns the seconds until the condition is true."""
    began = time.monotonic()
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.005)
    return time.monotonic() - began


async def test_a_silent_leader_has_a_successor_within_a_term_and_a_renewal_interval(
    database: Database,
) -> None:
    async with AsyncExitStack() as first:
        silent = await first.enter_async_context(campaigning(database, "a"))
        await seconds_until(lambda: silent.is_leader)
        async with campaigning(database, "b") as other:
            await asyncio.sleep(TERM)
            assert silent.is_leader
            assert not other.is_leader
            await first.aclose()
            assert await seconds_until(lambda: other.is_leader) <= TERM + RENEWAL + MARGIN


async def test_two_candidates_never_lead_at_once_even_if_the_leader_is_cut_off(database: Database) -> None:
    async with AsyncExitStack() as stack:
        candidates = [await stack.enter_async_context(campaigning(database, name, 0.5)) for name in "abcd"]
        stopping = asyncio.Event()
        watching = asyncio.create_task(most_leaders(candidates, stopping))
        for _ in candidates[1:]:
            await seconds_until(lambda: any(candidate.is_leader for candidate in candidates))
            leader = next(candidate for candidate in candidates if candidate.is_leader)
            # It gets no more answers, so its own clock has to end its term.
            leader._take_term = unanswered  # type: ignore[method-assign]
            await seconds_until(lambda: not leader.is_leader)  # noqa: B023
        await seconds_until(lambda: any(candidate.is_leader for candidate in candidates))
        stopping.set()
        assert await watching == 1


async def unanswered(_: float) -> bool:
    return await asyncio.Event().wait()


async def most_leaders(candidates: list[Leadership], stopping: asyncio.Event) -> int:
    """Returns the highest number of leaders at one moment."""
    most = 0
    while not stopping.is_set():
        most = max(most, sum(candidate.is_leader for candidate in candidates))
        await asyncio.sleep(0.001)
    return most


async def test_after_a_resignation_another_candidate_leads_at_its_next_try(database: Database) -> None:
    async with AsyncExitStack() as first:
        resigning = await first.enter_async_context(campaigning(database, "a", 5 * TERM))
        await seconds_until(lambda: resigning.is_leader)
        async with campaigning(database, "b", 5 * TERM) as other:
            await first.aclose()
            await resigning.resign()
            assert not resigning.is_leader
            assert await seconds_until(lambda: other.is_leader) <= 5 * RENEWAL + MARGIN


async def test_a_leader_that_restarts_continues_its_term_while_others_wait_for_its_end(
    database: Database,
) -> None:
    async with campaigning(database, "a", 5 * TERM) as before:
        await seconds_until(lambda: before.is_leader)
    async with campaigning(database, "b", 5 * TERM) as other, campaigning(database, "a", 5 * TERM) as again:
        assert await seconds_until(lambda: again.is_leader) <= MARGIN
        await asyncio.sleep(RENEWAL)
        assert not other.is_leader


async def test_the_work_of_a_leader_that_is_cut_off_ends_before_its_successor_leads(database: Database) -> None:
    ended: list[str] = []

    async def returns(lost: asyncio.Event) -> None:
        await lost.wait()
        ended.append("returns")

    async def never_returns(_: asyncio.Event) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.append("never returns")

    async with campaigning(database, "a") as leader, campaigning(database, "b") as other:
        await seconds_until(lambda: leader.is_leader or other.is_leader)
        first, second = (leader, other) if leader.is_leader else (other, leader)
        working = [asyncio.create_task(first.while_leader(asyncio.Event(), each)) for each in (returns, never_returns)]
        await asyncio.sleep(RENEWAL)
        first._take_term = unanswered  # type: ignore[method-assign]
        await seconds_until(lambda: second.is_leader)
        assert ended == ["returns", "never returns"]
        await cancelled(working)


async def cancelled(tasks: list[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)


async def test_work_in_progress_when_the_worker_stops_is_finished_within_a_term_that_is_renewed(
    database: Database,
) -> None:
    stopping, started, finished = asyncio.Event(), asyncio.Event(), False

    async def work(ending: asyncio.Event) -> None:
        nonlocal finished
        started.set()
        await ending.wait()
        await asyncio.sleep(2 * TERM)
        finished = True

    async with campaigning(database, "a") as candidate:
        working = asyncio.create_task(candidate.while_leader(stopping, work))
        await seconds_until(started.is_set)
        stopping.set()
        await asyncio.wait_for(working, 20)
        assert finished
        assert candidate.is_leader


async def test_work_that_fails_is_reported_to_its_supervisor(database: Database) -> None:
    async def fails(_: asyncio.Event) -> None:
        raise LookupError("a defect")

    async with campaigning(database, "a") as candidate:
        with pytest.raises(LookupError, match="a defect"):
            await asyncio.wait_for(candidate.while_leader(asyncio.Event(), fails), 20)


async def test_work_is_notified_when_the_term_is_lost(database: Database) -> None:
    notified, stopping = asyncio.Event(), asyncio.Event()

    async def work(lost: asyncio.Event) -> None:
        await lost.wait()
        notified.set()

    async with campaigning(database, "a") as candidate:
        working = asyncio.create_task(candidate.while_leader(stopping, work))
        await seconds_until(lambda: candidate.is_leader)
        assert not notified.is_set()
        candidate._take_term = unanswered  # type: ignore[method-assign]
        # A term ends between two renewals, and a renewal times out after half a term.
        assert await seconds_until(notified.is_set) <= TERM + TERM / 2 + RENEWAL + MARGIN
        stopping.set()
        await asyncio.wait_for(working, 20)
