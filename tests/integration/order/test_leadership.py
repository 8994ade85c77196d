"""One worker is active at a time, and one that is gone has a successor within a term and one look of the others."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager

import pytest
from behaviour.order.support.service import shipped
from support.postgres.leased_database import started
from support.postgres.private_postgres import Postgres

from chassis.postgres.database import Database
from order_service.worker.leadership import Leadership

TERM = 2.0
LOOK = TERM / 5
# For the questions themselves, on a machine that does much else.
ROOM = 1.5


@pytest.fixture
async def database(postgres: Postgres, tables: str) -> AsyncIterator[Database]:
    async with started(postgres, tables) as world:
        async with world.database.connection() as connection:
            await connection.execute("DELETE FROM terms")
        yield world.database


@asynccontextmanager
async def standing(database: Database, holder: str, term: float = TERM) -> AsyncIterator[Leadership]:
    """A candidate until the block ends: then it falls silent and resigns nothing, as if it was killed."""
    candidate = Leadership(database, holder, lambda: shipped(term_seconds=term))
    task = asyncio.create_task(candidate.stand(asyncio.Event()))
    try:
        yield candidate
    finally:
        task.cancel()
        await asyncio.wait([task])


async def until(condition: Callable[[], bool], seconds: float = 20) -> float:
    """Seconds until it holds."""
    began = time.monotonic()
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.005)
    return time.monotonic() - began


async def test_a_candidate_that_falls_silent_has_a_successor_within_a_term_and_a_look(database: Database) -> None:
    async with AsyncExitStack() as first:
        silent = await first.enter_async_context(standing(database, "a"))
        await until(lambda: silent.active)
        async with standing(database, "b") as other:
            await asyncio.sleep(TERM)
            assert silent.active
            assert not other.active
            await first.aclose()
            assert await until(lambda: other.active) <= TERM + LOOK + ROOM


async def test_whoever_is_cut_off_no_two_are_ever_active(database: Database) -> None:
    async with AsyncExitStack() as stack:
        candidates = [await stack.enter_async_context(standing(database, name, 0.5)) for name in "abcd"]
        stopping = asyncio.Event()
        watching = asyncio.create_task(most_active(candidates, stopping))
        for _ in candidates[1:]:
            await until(lambda: any(candidate.active for candidate in candidates))
            holder = next(candidate for candidate in candidates if candidate.active)
            # It goes on asking and gets no answer, so its own clock has to end its term.
            holder._won = unanswered  # type: ignore[method-assign]
            await until(lambda: not holder.active)  # noqa: B023
        await until(lambda: any(candidate.active for candidate in candidates))
        stopping.set()
        assert await watching == 1


async def unanswered(_: float) -> bool:
    return await asyncio.Event().wait()


async def most_active(candidates: list[Leadership], stopping: asyncio.Event) -> int:
    """How many were active at one moment at most."""
    most = 0
    while not stopping.is_set():
        most = max(most, sum(candidate.active for candidate in candidates))
        await asyncio.sleep(0.001)
    return most


async def test_who_resigns_hands_over_at_the_next_look(database: Database) -> None:
    async with AsyncExitStack() as first:
        resigning = await first.enter_async_context(standing(database, "a", 5 * TERM))
        await until(lambda: resigning.active)
        async with standing(database, "b", 5 * TERM) as other:
            await first.aclose()
            await resigning.resign()
            assert not resigning.active
            assert await until(lambda: other.active) <= 5 * LOOK + ROOM


async def test_a_candidate_that_starts_again_goes_on_with_its_term_while_others_wait_for_its_end(
    database: Database,
) -> None:
    async with standing(database, "a", 5 * TERM) as before:
        await until(lambda: before.active)
    async with standing(database, "b", 5 * TERM) as other, standing(database, "a", 5 * TERM) as again:
        assert await until(lambda: again.active) <= ROOM
        await asyncio.sleep(LOOK)
        assert not other.active


async def test_work_is_told_when_its_term_is_over(database: Database) -> None:
    told, stopping = asyncio.Event(), asyncio.Event()

    async def work(over: asyncio.Event) -> None:
        await over.wait()
        told.set()

    async with standing(database, "a") as candidate:
        working = asyncio.create_task(candidate.during(stopping, work))
        await until(lambda: candidate.active)
        assert not told.is_set()
        candidate._won = unanswered  # type: ignore[method-assign]
        # A term ends between two looks, and a look is given up after half a term.
        assert await until(told.is_set) <= TERM + TERM / 2 + LOOK + ROOM
        stopping.set()
        await asyncio.wait_for(working, 20)
