"""The live list of instances: kept during an outage of Consul, and an empty list is delayed right after one."""

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
    def supervise(_name: str, work: Callable[[], Awaitable[None]]) -> asyncio.Task[None]:
        tasks.append(asyncio.create_task(work()))  # type: ignore[arg-type]
        return tasks[-1]

    return Discovery(consul, supervise)


async def test_the_list_follows_consul(tasks: list[asyncio.Task[None]]) -> None:
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


async def test_a_service_is_watched_only_once(tasks: list[asyncio.Task[None]]) -> None:
    discovered = follow(FakeConsul(), tasks)
    assert discovered.endpoints("user-service") is discovered.endpoints("user-service")
    assert len(tasks) == 1


async def test_a_subset_is_watched_with_its_expression_until_it_is_stopped(tasks: list[asyncio.Task[None]]) -> None:
    consul = FakeConsul()
    consul.register("user-service", "127.0.0.1:1", "127.0.0.1:2")
    consul.register("user-service", "127.0.0.1:2", matching="Service.Meta.version == 2")
    subset = follow(consul, tasks).watch("v2.user-service", "user-service", "Service.Meta.version == 2")
    changes: list[int] = []
    subset.on_change(lambda: changes.append(len(subset.current)))
    await until("one instance", lambda: [each.address for each in subset.current] == ["127.0.0.1:2"])
    subset.stop()
    assert (subset.name, subset.current, changes) == ("v2.user-service", (), [1, 0])
    await until("the watch has ended", tasks[0].cancelled)


async def test_ready_waits_no_longer_than_its_timeout() -> None:
    with pytest.raises(TimeoutError):
        await Endpoints("user-service").ready(0.01)


async def test_an_empty_list_is_applied_immediately_without_an_outage() -> None:
    endpoints = Endpoints("user-service")
    endpoints.replace((ONE,))
    endpoints.replace(())
    assert endpoints.current == ()


async def test_an_empty_list_right_after_an_outage_is_applied_later(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(discovery, "EMPTY_DELAY_SECONDS", 0.05)
    endpoints = Endpoints("user-service")
    endpoints.replace((ONE, TWO))
    endpoints.outage()
    endpoints.replace(())
    assert endpoints.current == (ONE, TWO)
    await until("the empty list is applied", lambda: endpoints.current == ())


async def test_repeated_outages_keep_the_last_list(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(discovery, "EMPTY_DELAY_SECONDS", 0.2)
    endpoints = Endpoints("user-service")
    endpoints.replace((ONE, TWO))
    endpoints.outage()
    endpoints.replace(())
    for _ in range(4):
        await asyncio.sleep(0.1)
        endpoints.outage()
    assert endpoints.current == (ONE, TWO)
    await until("the empty list is applied", lambda: endpoints.current == ())


async def test_a_list_with_instances_after_an_outage_is_applied_immediately(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(discovery, "EMPTY_DELAY_SECONDS", 0.05)
    endpoints = Endpoints("user-service")
    endpoints.replace((ONE, TWO))
    endpoints.outage()
    endpoints.replace(())
    endpoints.replace((TWO,))
    await asyncio.sleep(0.1)
    assert endpoints.current == (TWO,)
