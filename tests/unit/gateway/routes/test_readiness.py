"""The gateway is ready once token keys and addresses were read; later outages only degrade it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import TYPE_CHECKING, Any

from support.waiting import until

from chassis.errors import unavailable
from chassis.testing import FakeConsul

from ..backend_services import FakeVault
from ..running_gateway import running

if TYPE_CHECKING:
    from ..running_gateway import RunningGateway

UNAVAILABLE = unavailable("VAULT_UNAVAILABLE", "vault is unavailable", 1)


class SilentConsul(FakeConsul):
    """Does not answer for one service before `answering` is set, as if it were unavailable or denied."""

    def __init__(self, hidden: str) -> None:
        super().__init__()
        self._hidden, self.answering = hidden, asyncio.Event()

    async def watch_service(
        self, service: str, on_outage: Callable[[], None] | None = None, *, matching: str = ""
    ) -> AsyncIterator[list[dict[str, Any]]]:
        if service == self._hidden:
            await self.answering.wait()
        async for nodes in super().watch_service(service, on_outage, matching=matching):
            yield nodes


async def readiness(gateway: RunningGateway) -> tuple[int, str, dict[str, str]]:
    response = await gateway.http.get("/readyz")
    return response.status_code, response.json()["status"], response.json()["dependencies"]


async def test_without_a_token_key_the_gateway_is_not_ready_and_reports_the_reason(spans: object) -> None:
    vault = FakeVault(error=UNAVAILABLE)
    async with running(vault) as gateway:
        code, status, dependencies = await readiness(gateway)
        assert (code, status, dependencies["token keys"]) == (503, "starting", "none was read yet")
        assert (await gateway.http.get("/livez")).status_code == 200
        vault.error = None
        await until("the gateway has started", gateway.app.ctx.health.started)
        code, _, dependencies = await readiness(gateway)
        assert code == 200
        assert "token keys" not in dependencies


async def test_the_gateway_is_not_ready_before_consul_has_returned_the_addresses_of_each_service(spans: object) -> None:
    for name in ("user-service", "order-service"):
        consul = SilentConsul(name)
        async with running(consul=consul) as gateway:
            code, status, dependencies = await readiness(gateway)
            assert (code, status) == (503, "starting")
            assert dependencies[name] == "addresses not read from consul yet"
            consul.answering.set()
            await until("the gateway has started", gateway.app.ctx.health.started)
            assert (await readiness(gateway))[0] == 200


async def test_a_service_without_an_instance_only_degrades_the_gateway(spans: object) -> None:
    async with running() as gateway:
        await gateway.servers.stop("order-service")
        health = gateway.app.ctx.health
        await until("the instance is deregistered", lambda: health.dependencies()["order-service"] != "ok")
        code, status, dependencies = await readiness(gateway)
    assert (code, status, dependencies["order-service"]) == (200, "degraded", "no healthy instance")


async def test_a_ready_gateway_stays_ready_while_vault_is_unavailable(gateway: RunningGateway) -> None:
    reads = gateway.vault.reads
    gateway.vault.error = UNAVAILABLE
    gateway.process.supervise("token keys again", gateway.app.ctx.access_tokens.refresh_keys)
    await until("the keys are read again", lambda: gateway.vault.reads > reads)
    assert (await readiness(gateway))[:2] == (200, "degraded")
