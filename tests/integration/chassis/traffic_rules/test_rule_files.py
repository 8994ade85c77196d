"""Files with traffic rules, those of the documentation and the chains of the unit tests, on a real Consul."""

from __future__ import annotations

import asyncio
import json
import re
import time
from pathlib import Path

import httpx
import pytest
from consul import Consul
from support.waiting import until

from chassis.errors import RpcError
from stack.cluster.mesh import config_entries
from stack.cluster.mesh.config_entries import ConfigEntries
from stack.cluster.planned_changes import apply_all
from stack.config import ROOT

from ..servers import ROOT_TOKEN, Server
from .routed_caller import DEFAULTS, RESOLVER, SERVICE, Caller, forget_rules, splitter

RECORDED = ROOT / "tests" / "unit" / "chassis" / "calls" / "routing" / "discovery_chains.json"


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
    await until("it gets calls", lambda: caller.reaches(2))
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
