"""Ready is who was told once what no call can do without; from then on, what is away only degrades."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import TYPE_CHECKING, Any

from chassis.errors import unavailable
from chassis.testing import FakeConsul

from ..backend_services import FakeVault, until
from ..system import running

if TYPE_CHECKING:
    from ..system import System

AWAY = unavailable("VAULT_UNAVAILABLE", "vault is away", 1)


class SilentConsul(FakeConsul):
    """Says nothing of one service before it is `told`: it is away, or a policy hides that service."""

    def __init__(self, hidden: str) -> None:
        super().__init__()
        self._hidden, self.told = hidden, asyncio.Event()

    async def watch_service(
        self, service: str, on_outage: Callable[[], None] | None = None
    ) -> AsyncIterator[list[dict[str, Any]]]:
        if service == self._hidden:
            await self.told.wait()
        async for nodes in super().watch_service(service, on_outage):
            yield nodes


async def readiness(system: System) -> tuple[int, str, dict[str, str]]:
    answer = await system.http.get("/readyz")
    return answer.status_code, answer.json()["status"], answer.json()["dependencies"]


async def test_without_a_token_key_it_is_not_ready_and_says_so(spans: object) -> None:
    vault = FakeVault()
    vault.away = AWAY
    async with running(vault) as system:
        status, word, dependencies = await readiness(system)
        assert (status, word, dependencies["token keys"]) == (503, "starting", "none was read yet")
        assert (await system.http.get("/livez")).status_code == 200
        vault.away = None
        await until(lambda: system.app.ctx.health.started)
        status, _, dependencies = await readiness(system)
        assert status == 200
        assert "token keys" not in dependencies


async def test_a_service_that_consul_says_nothing_of_keeps_it_from_being_ready(spans: object) -> None:
    for name in ("user-service", "order-service"):
        consul = SilentConsul(name)
        async with running(consul=consul) as system:
            status, word, dependencies = await readiness(system)
            assert (status, word) == (503, "starting")
            assert dependencies[name] == "consul has not told yet where it is"
            consul.told.set()
            await until(lambda: system.app.ctx.health.started)
            assert (await readiness(system))[0] == 200


async def test_a_service_that_has_no_instance_does_not_keep_it_from_being_ready(spans: object) -> None:
    async with running() as system:
        await system.servers.stop("order-service")
        await until(lambda: not system.process.discovery.endpoints("order-service").current)
        status, word, dependencies = await readiness(system)
    assert (status, word, dependencies["order-service"]) == (200, "degraded", "no healthy instance")


async def test_once_ready_it_stays_so_while_vault_is_away(system: System) -> None:
    reads = system.vault.reads
    system.vault.away = AWAY
    system.process.supervise("token keys again", system.app.ctx.tokens.follow)
    await until(lambda: system.vault.reads > reads)
    assert (await readiness(system))[:2] == (200, "degraded")
