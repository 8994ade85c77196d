"""The live set of instances: what is kept while Consul is away, and what is not believed right after."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
from support.waiting import until

from chassis.platform import discovery
from chassis.platform.discovery import Discovery, Endpoint, Endpoints
from chassis.testing import FakeConsul

ONE, TWO = Endpoint("a", "127.0.0.1:1"), Endpoint("b", "127.0.0.1:2")


@pytest.fixture
async def tasks() -> AsyncIterator[list[asyncio.Task[None]]]:
    made: list[asyncio.Task[None]] = []
    yield made
    for task in made:
        task.cancel()


def follow(consul: FakeConsul, tasks: list[asyncio.Task[None]]) -> Discovery:
    def supervise(_name: str, work: Callable[[], Awaitable[None]]) -> None:
        tasks.append(asyncio.ensure_future(work()))

    return Discovery(consul, supervise)


async def test_the_set_follows_consul(tasks: list[asyncio.Task[None]]) -> None:
    consul = FakeConsul()
    endpoints = follow(consul, tasks).endpoints("user-service")
    changes: list[int] = []
    endpoints.on_change(lambda: changes.append(len(endpoints.current)))
    await endpoints.ready(1)
    assert endpoints.current == ()
    consul.register("user-service", "127.0.0.1:1", "127.0.0.1:2")
    await until("two instances", lambda: len(endpoints.current) == 2)
    consul.register("user-service")
    await until("none", lambda: endpoints.current == ())
    assert changes == [2, 0]


async def test_one_watch_serves_all_who_ask(tasks: list[asyncio.Task[None]]) -> None:
    found = follow(FakeConsul(), tasks)
    assert found.endpoints("user-service") is found.endpoints("user-service")
    assert len(tasks) == 1


async def test_ready_does_not_wait_longer_than_asked() -> None:
    with pytest.raises(TimeoutError):
        await Endpoints("user-service").ready(0.01)


async def test_an_empty_answer_is_believed_in_normal_times() -> None:
    endpoints = Endpoints("user-service")
    endpoints.replace((ONE,))
    endpoints.replace(())
    assert endpoints.current == ()


async def test_an_empty_answer_right_after_an_outage_is_not_believed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(discovery, "DISTRUST_SECONDS", 0.05)
    endpoints = Endpoints("user-service")
    endpoints.replace((ONE, TWO))
    endpoints.distrust()
    endpoints.replace(())
    assert endpoints.current == (ONE, TWO)
    await until("it is believed in the end", lambda: endpoints.current == ())


async def test_one_outage_after_another_does_not_lose_what_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(discovery, "DISTRUST_SECONDS", 0.2)
    endpoints = Endpoints("user-service")
    endpoints.replace((ONE, TWO))
    endpoints.distrust()
    endpoints.replace(())
    for _ in range(4):
        await asyncio.sleep(0.1)
        endpoints.distrust()
    assert endpoints.current == (ONE, TWO)
    await until("it is believed in the end", lambda: endpoints.current == ())


async def test_what_is_found_after_an_outage_replaces_what_was_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(discovery, "DISTRUST_SECONDS", 0.05)
    endpoints = Endpoints("user-service")
    endpoints.replace((ONE, TWO))
    endpoints.distrust()
    endpoints.replace(())
    endpoints.replace((TWO,))
    await asyncio.sleep(0.1)
    assert endpoints.current == (TWO,)
