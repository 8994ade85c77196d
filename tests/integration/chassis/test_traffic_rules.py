"""Calls follow traffic rules of a real Consul: shares, methods, limits, a canary, and changes under load."""

from __future__ import annotations

import asyncio
import json
import re
import statistics
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import httpx
import pytest
from consul import Consul
from support.waiting import until

from chassis.calls import client
from chassis.calls.client import Channel
from chassis.calls.client_settings import ClientSettings
from chassis.errors import RpcError
from chassis.platform.consul import ConsulClient
from chassis.process import Process
from chassis.settings import Live, ProcessSettings
from chassis.testing import environment, process_settings
from stack.build import tools
from stack.cluster.mesh import config_entries
from stack.cluster.mesh.config_entries import ConfigEntries
from stack.cluster.planned_changes import apply_all
from stack.config import ROOT

from .identities import Issuer, trust_in_consul
from .servers import ROOT_TOKEN, Server, consul

SERVICE = "user-service"
METHODS = "/shop.user.v1.UserService"
RECORDED = ROOT / "tests" / "unit" / "chassis" / "calls" / "routing" / "discovery_chains.json"
DEFAULTS = {"Kind": "service-defaults", "Name": SERVICE, "Protocol": "grpc"}
VERSIONS = {f"v{number}": {"Filter": f'Service.Meta.version == "{number}"'} for number in (1, 2)}
RESOLVER = {"Kind": "service-resolver", "Name": SERVICE, "Subsets": VERSIONS}
SETTINGS = ClientSettings(
    deadline_seconds=5.0, calls_at_once=1000, failure_ratio=0.5, reset_seconds=0.3, attempts=2, attempt_seconds=5.0,
    retry_budget_ratio=0.1, ejection_seconds=1.0,
)  # fmt: skip


def splitter(first: int) -> dict[str, Any]:
    shares = {"v1": first, "v2": 100 - first}
    splits = [{"Weight": weight, "ServiceSubset": subset} for subset, weight in shares.items()]
    return {"Kind": "service-splitter", "Name": SERVICE, "Splits": splits}


class Instance:
    """A gRPC server that answers each method with its name, after `pause` seconds."""

    def __init__(self, name: str, pause: float = 0.0) -> None:
        self._name = name
        self.pause = pause
        self.server: grpc.aio.Server | None = None

    async def start(self) -> int:
        """Starts to serve; returns the port."""
        self.server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
        self.server.add_generic_rpc_handlers([self])  # type: ignore[list-item]
        port = self.server.add_insecure_port("127.0.0.1:0")
        await self.server.start()
        return port

    def service(self, _call: Any) -> Any:
        """For grpc: the handler of any method."""
        return grpc.unary_unary_rpc_method_handler(self._answer)

    async def _answer(self, _request: bytes, _context: Any) -> bytes:
        await asyncio.sleep(self.pause)
        return self._name.encode()


class Caller:
    """A channel of the gateway, with its rights in Consul, and the instances that it may call."""

    def __init__(self, agent: Server, channel: Channel) -> None:
        self.agent, self.channel = agent, channel
        self.instances: dict[str, Instance] = {}

    async def serve(self, name: str, pause: float = 0.0, service: str = SERVICE, **meta: str) -> None:
        """Starts an instance and registers it with its metadata, as Nomad does."""
        instance = self.instances[name] = Instance(name, pause)
        found = {"ID": name, "Name": service, "Address": "127.0.0.1", "Port": await instance.start(), "Meta": meta}
        await self.call_consul("PUT", "/v1/agent/service/register", found)

    async def put(self, *entries: dict[str, Any]) -> None:
        """Writes config entries."""
        for entry in entries:
            await self.call_consul("PUT", "/v1/config", entry)

    async def call_consul(self, method: str, path: str, body: Any = None) -> Any:
        """Sends a request to Consul while the event loop serves calls."""
        return await asyncio.to_thread(self.agent.call, method, path, body)

    async def call(self, method: str = "GetUser", **options: Any) -> str:
        """Makes a call; returns the name of the instance."""
        call = self.channel.unary_unary(f"{METHODS}/{method}", bytes, bytes)
        return bytes(await call(b"", **options)).decode()

    async def many(self, number: int) -> Counter[str]:
        """Makes calls, 20 at the same time; returns how many each instance got."""
        found: Counter[str] = Counter()

        async def some() -> None:
            for _ in range(number // 20):
                found[await self.call()] += 1

        await asyncio.gather(*(some() for _ in range(20)))
        return found

    async def until_at(self, *names: str) -> None:
        """Waits until twenty calls in a row go to these instances alone."""

        async def there() -> bool:
            with suppress(RpcError):
                return {await self.call() for _ in range(20)} <= set(names)
            return False

        await until(f"calls go to {names}", there)


@pytest.fixture(scope="module")
def agent(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    if tools.find("consul") is None:
        pytest.skip("needs Consul (./justw deploy builds it)")
    with consul(tmp_path_factory.mktemp("consul")) as server:
        yield server


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


def forget_rules(agent: Server) -> None:
    for kind in reversed(config_entries.FOLDERS):
        for entry in agent.call("GET", f"/v1/config/{kind}"):
            agent.call("DELETE", f"/v1/config/{kind}/{entry['Name']}")


async def test_without_rules_all_instances_get_calls(caller: Caller) -> None:
    await caller.serve("one", version="1")
    await caller.serve("two", version="2")
    await until("both are known", lambda: _both(caller))
    assert caller.channel.breakers() == {SERVICE: "closed"}


async def _both(caller: Caller) -> bool:
    with suppress(RpcError):
        return len({await caller.call() for _ in range(20)}) == 2
    return False


async def test_ten_thousand_calls_are_split_90_to_10(caller: Caller) -> None:
    await caller.serve("one", version="1")
    await caller.serve("two", version="2")
    await caller.put(RESOLVER, splitter(90))
    await until("the rules apply", lambda: len(caller.channel.breakers()) == 2)
    found = await caller.many(10_000)
    print(f"90/10 over {found.total()} calls: {found}")
    assert found.total() == 10_000
    assert 800 < found["two"] < 1200


async def test_a_change_applies_within_a_second_and_no_call_fails(caller: Caller) -> None:
    await caller.serve("v1", pause=0.02, version="1")
    await caller.serve("v2", pause=0.02, version="2")
    await caller.put(RESOLVER, splitter(100))
    await until("the rules apply", lambda: caller.channel.breakers().keys() == {"v1.user-service"})
    failed: list[RpcError] = []
    last, done, seconds = "", False, []

    async def load() -> None:
        nonlocal last
        while not done:
            try:
                last = await caller.call()
            except RpcError as error:
                failed.append(error)

    load_tasks = [asyncio.create_task(load()) for _ in range(10)]
    for wanted in ("v2", "v1") * 5:
        await caller.put(splitter(0 if wanted == "v2" else 100))
        began = time.monotonic()
        await until(f"{wanted} answers", lambda: last == wanted)  # noqa: B023
        seconds.append(time.monotonic() - began)
    done = True
    await asyncio.gather(*load_tasks)
    print(f"ten changes applied after {[round(each, 3) for each in seconds]} s")
    assert failed == []
    assert statistics.median(seconds) < 1


async def test_a_subset_whose_filter_consul_cannot_evaluate_keeps_the_last_rules(caller: Caller) -> None:
    """Consul accepts the entry, compiles the chain, and rejects the query for the instances."""
    await caller.serve("one", version="1")
    await caller.serve("two", version="2")
    await caller.put(RESOLVER | {"DefaultSubset": "v1"})
    await caller.until_at("one")
    await caller.put(RESOLVER | {"DefaultSubset": "v2", "Subsets": VERSIONS | {"v2": {"Filter": "Service.No == 1"}}})
    await asyncio.sleep(1.5)
    assert await caller.many(100) == {"one": 100}
    await caller.put(RESOLVER | {"DefaultSubset": "v2"})
    await caller.until_at("two")


async def test_a_chain_to_another_datacenter_keeps_the_last_rules(caller: Caller) -> None:
    await caller.serve("one", version="1")
    await caller.serve("two", version="2")
    await caller.put(RESOLVER | {"DefaultSubset": "v1"})
    await caller.until_at("one")
    await caller.put({"Kind": "service-resolver", "Name": SERVICE, "Redirect": {"Datacenter": "dc2"}})
    await asyncio.sleep(0.5)
    assert await caller.many(100) == {"one": 100}
    await caller.put(RESOLVER | {"DefaultSubset": "v2"})
    await caller.until_at("two")


async def test_rules_outlast_consul(caller: Caller) -> None:
    await caller.serve("one", version="1")
    await caller.serve("two", version="2")
    await caller.put(RESOLVER | {"DefaultSubset": "v2"})
    await caller.until_at("two")
    with caller.agent.stopped():
        assert await caller.many(100) == {"two": 100}


async def test_a_rule_for_a_service_that_the_caller_may_not_find_keeps_the_last_rules(caller: Caller) -> None:
    await caller.serve("one", version="1")
    await caller.serve("hidden", service="ledger")
    await caller.until_at("one")
    await caller.put({"Kind": "service-defaults", "Name": "ledger", "Protocol": "grpc"})
    await caller.put({"Kind": "service-resolver", "Name": SERVICE, "Redirect": {"Service": "ledger"}})
    await asyncio.sleep(0.5)
    assert await caller.many(100) == {"one": 100}


# --- the examples of the documentation


def examples() -> dict[str, str]:
    """The files in docs/traffic.md: path and content."""
    text = (ROOT / "docs" / "traffic.md").read_text()
    return dict(re.findall(r"```hcl\n# consul/([\w/.-]+\.hcl)\n(.*?)```", text, re.DOTALL))


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(config_entries, "FILES", tmp_path)
    defaults = f"config/service-defaults/{SERVICE}.hcl"
    for path, text in {**examples(), defaults: (ROOT / "consul" / defaults).read_text()}.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)
    return tmp_path


async def apply_files(agent: Server) -> int:
    api = Consul(port=int(agent.url.rpartition(":")[2]), token=ROOT_TOKEN)
    return await asyncio.to_thread(lambda: apply_all(ConfigEntries(api).changes()))


async def test_the_canary_of_the_documentation_gets_a_tenth_only_while_there_is_one(
    caller: Caller, files: Path
) -> None:
    await caller.serve("stable", version="1")
    assert await apply_files(caller.agent) == 3
    await until("the rules apply", lambda: "canary.user-service" in caller.channel.breakers())
    assert await caller.many(200) == {"stable": 200}
    assert caller.channel.dependency() == "ok"
    await caller.serve("canary", version="2", canary="true")
    await until("it gets calls", lambda: _both(caller))
    found = await caller.many(2000)
    print(f"canary of the documentation: {found}")
    assert 100 < found["canary"] < 300
    sessions = {await caller.call("CreateSession") for _ in range(100)}
    assert sessions == {"stable"}, "this method is routed to the stable instances"
    caller.instances["stable"].pause = 10
    began = time.monotonic()
    with pytest.raises(RpcError, match="Deadline Exceeded"):
        await caller.call("CreateSession")
    assert time.monotonic() - began < 4, "the route permits 1 s, the setting 5 s"


async def test_files_are_applied_once_and_their_rules_end_with_them(caller: Caller, files: Path) -> None:
    assert (await apply_files(caller.agent), await apply_files(caller.agent)) == (3, 0)
    for path in examples():
        (files / path).unlink()
    assert (await apply_files(caller.agent), await apply_files(caller.agent)) == (3, 0)


async def test_a_subset_is_removed_after_the_splitter_that_refers_to_it(caller: Caller, files: Path) -> None:
    await apply_files(caller.agent)
    (files / "config/service-router/user-service.hcl").unlink()
    (files / "config/service-splitter/user-service.hcl").unlink()
    resolver = 'Kind = "service-resolver"\nName = "user-service"\nRequestTimeout = "90s"\n'
    (files / "config/service-resolver/user-service.hcl").write_text(resolver)
    assert (await apply_files(caller.agent), await apply_files(caller.agent)) == (3, 0)


# --- what the unit tests use in place of Consul


@pytest.mark.parametrize("name", sorted(json.loads(RECORDED.read_text())))
def test_consul_compiles_the_chain_that_the_unit_tests_use(agent: Server, name: str) -> None:
    recorded = json.loads(RECORDED.read_text())[name]
    try:
        for entry in recorded["entries"]:
            agent.call("PUT", "/v1/config", entry)
        chain = agent.call("GET", f"/v1/discovery-chain/{SERVICE}")["Chain"]
    finally:
        forget_rules(agent)
    for target in chain["Targets"].values():
        del target["SNI"], target["Name"]
    del chain["AutoVirtualIPs"], chain["ManualVirtualIPs"]
    assert chain == recorded["chain"]


def test_consul_rejects_a_splitter_whose_weights_do_not_add_up(agent: Server) -> None:
    agent.call("PUT", "/v1/config", DEFAULTS)
    agent.call("PUT", "/v1/config", RESOLVER)
    try:
        with pytest.raises(httpx.HTTPStatusError):
            agent.call("PUT", "/v1/config", splitter(90) | {"Splits": splitter(90)["Splits"][:1]})
    finally:
        forget_rules(agent)
