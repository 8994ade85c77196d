"""Settings and discovery on a real Consul with ACLs: changes arrive in two seconds, values outlast an outage."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from support.waiting import until

from chassis.platform.consul import ConsulClient
from chassis.platform.discovery import Discovery, Endpoints
from chassis.settings import Live, ProcessSettings, load_settings, watch_settings
from chassis.testing import process_settings

from .identities import Issuer, trust_in_consul
from .servers import Server

KEY = "config/gateway"
GOOD = process_settings(drain_seconds=1.0).model_dump()
POLICY = """
key "config/gateway" { policy = "read" }
service "user-service" { policy = "read" }
node_prefix "" { policy = "read" }
"""


@pytest.fixture(scope="module")
def identity(agent: Server, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workload identity of the gateway, whose role in Consul has the policy above."""
    issuer = Issuer()
    trust_in_consul(agent, issuer, "gateway", POLICY)
    return issuer.write(tmp_path_factory.mktemp("identity"), "gateway") / "nomad_consul.jwt"


@pytest.fixture
async def client(agent: Server, identity: Path) -> AsyncIterator[ConsulClient]:
    agent.call("PUT", f"/v1/kv/{KEY}", json.dumps(GOOD))
    made = ConsulClient(agent.url, identity)
    await made.connect()
    yield made
    await made.close()


@pytest.fixture
async def live(client: ConsulClient) -> AsyncIterator[Live[ProcessSettings]]:
    loaded = await load_settings(client, KEY, ProcessSettings)
    task = asyncio.create_task(watch_settings(client, KEY, loaded))
    yield loaded
    task.cancel()


@pytest.fixture
async def endpoints(client: ConsulClient) -> AsyncIterator[Endpoints]:
    discovery = Discovery(client, lambda _, work: asyncio.ensure_future(work()))
    found = discovery.endpoints("user-service")
    await found.ready(5)
    yield found
    found.stop()


def register(agent: Server, *ports: int) -> None:
    known = agent.call("GET", "/v1/agent/services")
    for name in known.keys() - {f"u{port}" for port in ports}:
        agent.call("PUT", f"/v1/agent/service/deregister/{name}")
    for port in ports:
        service = {"ID": f"u{port}", "Name": "user-service", "Address": "127.0.0.1", "Port": port}
        agent.call("PUT", "/v1/agent/service/register", service)


def _tokens(agent: Server) -> list[dict[str, Any]]:
    """The tokens of the workloads."""
    return [token for token in agent.call("GET", "/v1/acl/tokens") if token.get("AuthMethod") == "nomad-workloads"]


async def test_a_key_that_the_consul_role_may_not_read_is_not_returned(client: ConsulClient) -> None:
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(1):
            await client.read_key("config/order-service")


async def test_a_denied_read_keeps_the_token_and_a_deleted_token_is_replaced(
    agent: Server, client: ConsulClient
) -> None:
    before = client._api.token
    denied = asyncio.ensure_future(client.read_key("config/order-service"))
    await asyncio.sleep(2)
    assert client._api.token == before
    assert len(_tokens(agent)) == 1
    agent.call("DELETE", f"/v1/acl/token/{_tokens(agent)[0]['AccessorID']}")
    assert await client.read_key(KEY) is not None
    assert client._api.token != before
    denied.cancel()


async def test_a_changed_setting_is_applied_within_two_seconds(agent: Server, live: Live[ProcessSettings]) -> None:
    for seconds in (2.0, 3.0, 4.0):
        agent.call("PUT", f"/v1/kv/{KEY}", json.dumps(GOOD | {"drain_seconds": seconds}))
        await until("it is applied", lambda want=seconds: live.value.drain_seconds == want, 2.0)  # type: ignore[misc]


async def test_an_invalid_change_is_not_applied(agent: Server, live: Live[ProcessSettings]) -> None:
    agent.call("PUT", f"/v1/kv/{KEY}", json.dumps(GOOD | {"drain_seconds": -1}))
    agent.call("PUT", f"/v1/kv/{KEY}", json.dumps(GOOD | {"surprise": 1}))
    agent.call("DELETE", f"/v1/kv/{KEY}")
    agent.call("PUT", f"/v1/kv/{KEY}", json.dumps(GOOD | {"grace_seconds": 9.0}))
    await until("the valid one is applied", lambda: live.value.grace_seconds == 9.0, 10)
    assert live.value.drain_seconds == 1.0


async def test_registered_and_deregistered_instances_are_found(agent: Server, endpoints: Endpoints) -> None:
    register(agent, 1001, 1002)
    await until("two", lambda: {e.address for e in endpoints.current} == {"127.0.0.1:1001", "127.0.0.1:1002"}, 10)
    register(agent, 1002)
    await until("one", lambda: [e.address for e in endpoints.current] == ["127.0.0.1:1002"], 10)
    register(agent)
    await until("none", lambda: endpoints.current == (), 10)


async def test_values_stay_while_consul_is_dead_and_changes_arrive_after_its_restart(
    agent: Server, live: Live[ProcessSettings], endpoints: Endpoints
) -> None:
    register(agent, 1001)
    await until("one", lambda: len(endpoints.current) == 1, 10)
    agent.kill()
    await asyncio.sleep(1)
    assert (live.value.drain_seconds, len(endpoints.current)) == (1.0, 1)
    await asyncio.to_thread(agent.start)
    agent.call("PUT", f"/v1/kv/{KEY}", json.dumps(GOOD | {"drain_seconds": 7.0}))
    restarted_at = time.monotonic()
    await until("a change after the outage is applied", lambda: live.value.drain_seconds == 7.0, 6)
    assert time.monotonic() - restarted_at < 5
    register(agent, 1001, 1003)
    await until("a new instance after the outage", lambda: len(endpoints.current) == 2, 5)


async def test_a_watch_continues_after_its_token_was_deleted(agent: Server, live: Live[ProcessSettings]) -> None:
    for token in _tokens(agent):
        agent.call("DELETE", f"/v1/acl/token/{token['AccessorID']}")
    agent.call("PUT", f"/v1/kv/{KEY}", json.dumps(GOOD | {"drain_seconds": 8.0}))
    await until("a change is applied", lambda: live.value.drain_seconds == 8.0, 5)
