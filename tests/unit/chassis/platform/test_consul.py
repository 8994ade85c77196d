"""Blocking queries: the rules of Consul's index, errors, and a login that is refused."""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from support.waiting import until

from chassis.errors import ConfigurationError
from chassis.platform import consul
from chassis.platform.consul import ConsulClient, blocking, next_index, trusted

Answer = tuple[int, Any] | Exception


@pytest.fixture(autouse=True)
def _hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(consul, "_BACKOFF_SECONDS", (0.001, 0.002))


class Script:
    """A query that gives scripted answers, then waits for ever."""

    def __init__(self, *answers: Answer) -> None:
        self._answers = iter(answers)
        self.asked: list[int | None] = []

    async def __call__(self, index: int | None) -> tuple[int, Any]:
        self.asked.append(index)
        answer = next(self._answers, None)
        if answer is None:
            await asyncio.Event().wait()
        if isinstance(answer, Exception):
            raise answer
        assert answer is not None
        return answer


async def values(watch: AsyncIterator[Any], count: int) -> list[Any]:
    async with asyncio.timeout(5):
        return [await anext(watch) for _ in range(count)]


@pytest.mark.parametrize(("index", "found", "following"), [(0, 7, 7), (7, 7, 7), (7, 9, 9), (9, 3, 0), (0, 0, 1)])
def test_the_index_is_at_least_one_and_starts_again_when_it_goes_backwards(
    index: int, found: int, following: int
) -> None:
    assert next_index(index, found) == following


async def test_a_return_is_no_proof_of_change() -> None:
    script = Script((5, "a"), (6, "a"), (7, "b"))
    assert await values(blocking("w", script), 2) == ["a", "b"]
    assert script.asked == [None, 5, 6]


async def test_nothing_found_is_a_value_too() -> None:
    assert await values(blocking("w", Script((5, None), (6, "b"), (7, None))), 3) == [None, "b", None]


async def test_an_index_that_went_backwards_is_asked_for_at_once() -> None:
    script = Script((50, "a"), (3, "b"), (3, "c"))
    assert await values(blocking("w", script), 3) == ["a", "b", "c"]
    assert script.asked == [None, 50, None]


async def test_errors_are_outlived_and_reported_each_time() -> None:
    outages: list[int] = []
    script = Script((5, "a"), httpx.ConnectError("refused"), httpx.ReadTimeout("late"), (6, "a"), (7, "b"))
    assert await values(blocking("w", script, lambda: outages.append(1)), 2) == ["a", "b"]
    assert len(outages) == 2
    assert script.asked == [None, 5, 5, 5, 6]


class Agent:
    """A Consul agent's HTTP API with tokens, as an httpx transport."""

    def __init__(self) -> None:
        self.tokens: set[str] = set()
        self.logins: list[dict[str, str]] = []
        self.answers: list[httpx.Request] = []
        self.hides = False

    def __call__(self, request: httpx.Request) -> httpx.Response:
        if request.url.path == "/v1/acl/login":
            self.logins.append(json.loads(request.content))
            token = f"token-{len(self.logins)}"
            self.tokens.add(token)
            return httpx.Response(200, json={"SecretID": token})
        if request.headers.get("x-consul-token") not in self.tokens:
            return httpx.Response(403, text="ACL not found")
        self.answers.append(request)
        if self.hides:
            said = {} if "index" in request.url.params else {"X-Consul-Results-Filtered-By-ACLs": "true"}
            return httpx.Response(200, headers={"X-Consul-Index": "5"} | said, json=[])
        return httpx.Response(200, headers={"X-Consul-Index": "5"}, json=[{"Key": "k", "Value": "dg=="}])


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


async def test_without_a_workload_identity_there_is_no_login(agent: Agent, tmp_path: Path) -> None:
    client = ConsulClient("http://127.0.0.1:1", tmp_path / "nomad_consul.jwt")
    with pytest.raises(ConfigurationError, match=r"nomad_consul\.jwt"):
        await client.reachable()


async def test_the_workload_identity_is_traded_for_a_token(agent: Agent, identity: Path) -> None:
    client = ConsulClient("http://127.0.0.1:1", identity)
    await client.login()
    assert agent.logins == [{"AuthMethod": "nomad-workloads", "BearerToken": "jwt-1"}]
    assert await client.read_key("k") == b"v"
    await client.close()


async def test_a_token_that_ended_is_replaced_once_for_all_who_use_it(agent: Agent, identity: Path) -> None:
    client = ConsulClient("http://127.0.0.1:1", identity)
    await client.login()
    agent.tokens.clear()
    identity.write_text("jwt-2")
    assert await asyncio.gather(*(client.read_key("k") for _ in range(5))) == [b"v"] * 5
    assert [login["BearerToken"] for login in agent.logins] == ["jwt-1", "jwt-2"]
    await client.close()


async def test_what_a_policy_hides_is_waited_for_and_never_taken_for_nothing(agent: Agent, identity: Path) -> None:
    client, outages = ConsulClient("http://127.0.0.1:1", identity), list[int]()
    await client.login()
    agent.hides = True
    watch = client.watch_service("k", lambda: outages.append(1))
    found = asyncio.ensure_future(anext(watch))
    await until("it was refused twice", lambda: len(outages) >= 2)
    agent.hides = False
    assert [entry["Key"] for entry in await asyncio.wait_for(found, 5)] == ["k"]
    await client.close()


async def test_what_is_known_stays_when_a_policy_hides_it(agent: Agent, identity: Path) -> None:
    client, outages = ConsulClient("http://127.0.0.1:1", identity), list[int]()
    await client.login()
    watch = client.watch_service("k", lambda: outages.append(1))
    assert len(await anext(watch)) == 1
    agent.hides = True
    found = asyncio.ensure_future(anext(watch))
    await until("it was refused twice", lambda: len(outages) >= 2)
    assert not found.done()
    found.cancel()
    await client.close()


async def test_a_token_of_the_environment_is_nobodys_identity(
    agent: Agent, identity: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CONSUL_HTTP_TOKEN", "operator")
    monkeypatch.setenv("CONSUL_HTTP_ADDR", "http://127.0.0.1:2")
    client = ConsulClient("http://127.0.0.1:1", identity)
    await client.login()
    await client.read_key("k")
    assert {(r.url.port, r.headers["x-consul-token"]) for r in agent.answers} == {(1, "token-1")}
    await client.close()


@pytest.mark.parametrize(
    ("urls", "anybody"), [(("http://a",), False), (("https://a",), True), (("http://a", "https://b"), True)]
)
def test_authorities_are_known_where_there_is_something_to_certify(urls: tuple[str, ...], anybody: bool) -> None:
    context = trusted(*urls)
    assert bool(context.get_ca_certs()) == anybody
    assert context.verify_mode is ssl.CERT_REQUIRED
