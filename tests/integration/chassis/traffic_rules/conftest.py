"""A real Consul with the rights of the gateway, and a channel that follows its traffic rules."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from chassis.calls import client
from chassis.calls.client_settings import ClientSettings
from chassis.platform.consul import ConsulClient
from chassis.process import Process
from chassis.settings import Live, ProcessSettings
from chassis.testing import environment, process_settings
from stack.config import ROOT

from ..identities import Issuer, trust_in_consul
from ..servers import Server
from .routed_caller import DEFAULTS, SERVICE, Caller, forget_rules

SETTINGS = ClientSettings(
    deadline_seconds=5.0, calls_at_once=1000, failure_ratio=0.5, reset_seconds=0.3, attempts=2, attempt_seconds=5.0,
    retry_budget_ratio=0.1, ejection_seconds=1.0,
)  # fmt: skip


@pytest.fixture(scope="module")
def identity(agent: Server, tmp_path_factory: pytest.TempPathFactory) -> Path:
    issuer = Issuer()
    trust_in_consul(agent, issuer, "gateway", (ROOT / "consul" / "policies" / "gateway.hcl").read_text())
    return issuer.write(tmp_path_factory.mktemp("identity"), "gateway") / "nomad_consul.jwt"


@pytest.fixture
async def caller(agent: Server, identity: Path) -> AsyncIterator[Caller]:
    consul_client = ConsulClient(agent.url, identity)
    await consul_client.connect()
    settings: Live[ProcessSettings] = Live(process_settings())
    process = Process("gateway", environment(consul_http_addr=agent.url), settings, consul_client)
    made = Caller(agent, client.connect(process, SERVICE, settings=Live(SETTINGS)))
    await made.put(DEFAULTS)
    yield made
    await process.close()
    for name, instance in made.instances.items():
        agent.call("PUT", f"/v1/agent/service/deregister/{name}")
        if instance.server is not None:
            await instance.server.stop(None)
    forget_rules(agent)
