"""Blocking queries: the rules of Consul's index, failed queries, hidden results and expired tokens."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from support.waiting import until

from chassis.errors import ConfigurationError
from chassis.platform import consul
from chassis.platform.consul import ConsulClient, next_index, watch

Result = tuple[int, Any] | Exception


@pytest.fixture(autouse=True)
def _short_backoff(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(consul, "_BACKOFF_SECONDS", (0.001, 0.002))


class Script:
    """A query with the given results, which then blocks."""

    def __init__(self, *results: Result) -> None:
        self._results = iter(results)
        self.indexes: list[int | None] = []

    async def __call__(self, index: int | None) -> tuple[int, Any]:
        self.indexes.append(index)
        result = next(self._results, None)
        if result is None:
            await asyncio.Event().wait()
        if isinstance(result, Exception):
            raise result
        assert result is not None
        return result


async def take(values: AsyncIterator[Any], count: int) -> list[Any]:
    async with asyncio.timeout(5):
        return [await anext(values) for _ in range(count)]


@pytest.mark.parametrize(("index", "new", "following"), [(0, 7, 7), (7, 7, 7), (7, 9, 9), (9, 3, 0), (0, 0, 1)])
def test_the_next_index_is_at_least_one_and_zero_after_it_went_backwards(index: int, new: int, following: int) -> None:
    assert next_index(index, new) == following


async def test_an_unchanged_value_is_not_yielded_again() -> None:
    script = Script((5, "a"), (6, "a"), (7, "b"))
    assert await take(watch("w", script), 2) == ["a", "b"]
    assert script.indexes == [None, 5, 6]


async def test_a_missing_key_is_a_value() -> None:
    assert await take(watch("w", Script((5, None), (6, "b"), (7, None))), 3) == [None, "b", None]


async def test_the_query_does_not_block_after_the_index_went_backwards() -> None:
    script = Script((50, "a"), (3, "b"), (3, "c"))
    assert await take(watch("w", script), 3) == ["a", "b", "c"]
    assert script.indexes == [None, 50, None]


async def test_a_watch_survives_failed_queries_and_reports_each() -> None:
    outages: list[int] = []
    script = Script((5, "a"), httpx.ConnectError("refused"), httpx.ReadTimeout("late"), (6, "a"), (7, "b"))
    assert await take(watch("w", script, lambda: outages.append(1)), 2) == ["a", "b"]
    assert len(outages) == 2
    assert script.indexes == [None, 5, 5, 5, 6]


class Agent:
    """A Consul agent's HTTP API with tokens, as an httpx transport."""

    def __init__(self) -> None:
        self.tokens: set[str] = set()
        self.logins: list[dict[str, str]] = []
        self.requests: list[httpx.Request] = []
        self.hides = False
        self.denies = False
        self.asked: list[httpx.Request] = []
        self.answer: Any = [{"Key": "k", "Value": "dg=="}]

    def __call__(self, request: httpx.Request) -> httpx.Response:
        if request.url.path == "/v1/acl/login":
            self.logins.append(json.loads(request.content))
            token = f"token-{len(self.logins)}"
            self.tokens.add(token)
            times = {"CreateTime": "2026-01-01T00:00:00.123456789Z", "ExpirationTime": "2026-01-01T01:00:00.123456789Z"}
            return httpx.Response(200, json={"SecretID": token} | times)
        if request.headers.get("x-consul-token") not in self.tokens:
            return httpx.Response(403, text="ACL not found")
        if request.url.path == "/v1/acl/token/self":
            self.asked.append(request)
            return httpx.Response(200, json={})
        if self.denies:
            return httpx.Response(403, text="Permission denied: token lacks permission 'key:read' on \"k\"")
        self.requests.append(request)
        if self.hides:
            filtered = {} if "index" in request.url.params else {"X-Consul-Results-Filtered-By-ACLs": "true"}
            return httpx.Response(200, headers={"X-Consul-Index": "5"} | filtered, json=[])
        return httpx.Response(200, headers={"X-Consul-Index": "5"}, json=self.answer)


@pytest.fixture
def agent(monkeypatch: pytest.MonkeyPatch) -> Agent:
    made = Agent()
    original: Callable[..., httpx.AsyncClient] = httpx.AsyncClient
    monkeypatch.setattr(
        httpx, "AsyncClient", lambda **options: original(**options, transport=httpx.MockTransport(made))
    )
    return made


@pytest.fixture
def identity(tmp_path: Path) -> Path:
    file = tmp_path / "nomad_consul.jwt"
    file.write_text("jwt-1\n")
    return file


async def test_a_missing_workload_identity_is_a_configuration_error(agent: Agent, tmp_path: Path) -> None:
    client = ConsulClient("http://127.0.0.1:1", tmp_path / "nomad_consul.jwt")
    with pytest.raises(ConfigurationError, match=r"nomad_consul\.jwt"):
        await client.connect()


async def test_the_workload_identity_is_exchanged_for_a_token(agent: Agent, identity: Path) -> None:
    client = ConsulClient("http://127.0.0.1:1", identity)
    await client.login()
    assert agent.logins == [{"AuthMethod": "nomad-workloads", "BearerToken": "jwt-1"}]
    assert await client.read_key("k") == b"v"
    await client.close()


async def test_an_expired_token_is_replaced_once_for_all_concurrent_reads(agent: Agent, identity: Path) -> None:
    client = ConsulClient("http://127.0.0.1:1", identity)
    await client.login()
    agent.tokens.clear()
    identity.write_text("jwt-2")
    assert await asyncio.gather(*(client.read_key("k") for _ in range(5))) == [b"v"] * 5
    assert [login["BearerToken"] for login in agent.logins] == ["jwt-1", "jwt-2"]
    await client.close()


async def test_a_denial_by_policy_makes_no_new_token_and_is_retried_with_backoff(agent: Agent, identity: Path) -> None:
    client = ConsulClient("http://127.0.0.1:1", identity)
    await client.login()
    agent.denies = True
    reads = [asyncio.ensure_future(client.read_key("k")) for _ in range(3)]
    await until("each read was denied again", lambda: len(agent.asked) >= 9)
    assert len(agent.logins) == 1
    agent.denies = False
    assert await asyncio.wait_for(asyncio.gather(*reads), 5) == [b"v"] * 3
    assert len(agent.logins) == 1
    await client.close()


async def test_a_token_is_replaced_when_half_of_its_time_is_over_by_the_wall_clock(
    agent: Agent, identity: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    client, now = ConsulClient("http://127.0.0.1:1", identity), time.time()
    await client.login()
    for hours, logins in ((0.4, 1), (0.6, 2), (2.6, 3), (2.6, 3)):
        monkeypatch.setattr(time, "time", lambda jump=hours: now + jump * 3600)
        assert await client.read_key("k") == b"v"
        assert len(agent.logins) == logins
    assert agent.requests[-1].headers["x-consul-token"] == "token-3"
    await client.close()


async def test_a_token_stays_in_use_while_it_cannot_be_replaced(
    agent: Agent, identity: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    client, now = ConsulClient("http://127.0.0.1:1", identity), time.time()
    await client.login()
    monkeypatch.setattr(time, "time", lambda: now + 0.6 * 3600)
    identity.unlink()
    assert await client.read_key("k") == b"v"
    assert len(agent.logins) == 1
    await client.close()


async def test_the_instances_of_a_subset_are_those_that_match_its_expression(agent: Agent, identity: Path) -> None:
    client = ConsulClient("http://127.0.0.1:1", identity)
    await client.login()
    for matching in ("", 'Service.Meta.version == "2"'):
        await anext(client.watch_service("shop", matching=matching))
        asked = agent.requests[-1].url
        assert (asked.path, dict(asked.params)) == (
            "/v1/health/service/shop",
            {"passing": "1"} | ({"filter": matching} if matching else {}),
        )
    await client.close()


async def test_the_traffic_rules_of_a_service_are_its_discovery_chain(agent: Agent, identity: Path) -> None:
    agent.answer = {"Chain": {"ServiceName": "shop"}}
    client = ConsulClient("http://127.0.0.1:1", identity)
    await client.login()
    assert await anext(client.watch_discovery_chain("shop")) == {"ServiceName": "shop"}
    assert agent.requests[-1].url.path == "/v1/discovery-chain/shop"
    await client.close()


async def test_a_result_that_a_policy_hides_is_waited_for(agent: Agent, identity: Path) -> None:
    client, outages = ConsulClient("http://127.0.0.1:1", identity), list[int]()
    await client.login()
    agent.hides = True
    values = client.watch_service("k", lambda: outages.append(1))
    found = asyncio.ensure_future(anext(values))
    await until("two queries failed", lambda: len(outages) >= 2)
    agent.hides = False
    assert [entry["Key"] for entry in await asyncio.wait_for(found, 5)] == ["k"]
    await client.close()


async def test_the_last_value_stays_when_a_policy_hides_the_result(agent: Agent, identity: Path) -> None:
    client, outages = ConsulClient("http://127.0.0.1:1", identity), list[int]()
    await client.login()
    values = client.watch_service("k", lambda: outages.append(1))
    assert len(await anext(values)) == 1
    agent.hides = True
    found = asyncio.ensure_future(anext(values))
    await until("two queries failed", lambda: len(outages) >= 2)
    assert not found.done()
    found.cancel()
    await client.close()


async def test_a_token_in_the_environment_is_not_used(
    agent: Agent, identity: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CONSUL_HTTP_TOKEN", "operator")
    monkeypatch.setenv("CONSUL_HTTP_ADDR", "http://127.0.0.1:2")
    client = ConsulClient("http://127.0.0.1:1", identity)
    await client.login()
    await client.read_key("k")
    assert {(r.url.port, r.headers["x-consul-token"]) for r in agent.requests} == {(1, "token-1")}
    await client.close()
