"""The three servers: led, closed to strangers, visible in a browser."""

from __future__ import annotations

import json
import signal

import httpx
import pytest
from support.stack_under_test import RunningStack, eventually

from stack.cluster import agents
from stack.machine import processes

AGENTS = ("nomad", "consul", "vault")


def test_nomad_has_elected_a_leader(running: RunningStack) -> None:
    assert running.clients.nomad.status.leader.get_leader() == f"127.0.0.1:{running.stack.port('nomad_rpc')}"


def test_consul_has_elected_a_leader(running: RunningStack) -> None:
    assert running.clients.consul.status.leader() == f"127.0.0.1:{running.stack.port('consul_server')}"


def test_vault_is_unsealed_and_active(running: RunningStack) -> None:
    health = running.clients.vault.sys.read_health_status(method="GET")
    assert health["initialized"] is True
    assert health["sealed"] is False
    assert health["standby"] is False


@pytest.mark.parametrize("agent", AGENTS)
def test_an_agent_runs_in_the_background_under_its_own_process(running: RunningStack, host, agent: str) -> None:  # type: ignore[no-untyped-def]
    pid_file = host.file(str(running.stack.logs / f"{agent}.pid"))
    daemons = host.process.get(pid=int(pid_file.content_string.split()[0]))
    assert int(daemons.pgid) == daemons.pid  # closing the terminal of the deploy does not reach it


@pytest.mark.parametrize(
    ("agent", "path"),
    [
        ("nomad", "/v1/jobs"),
        ("nomad", "/v1/nodes"),
        ("nomad", "/v1/acl/tokens"),
        ("consul", "/v1/kv/config/gateway"),
        ("consul", "/v1/acl/tokens"),
        ("consul", "/v1/agent/self"),
        ("vault", "/v1/secret/data/user-service"),
        ("vault", "/v1/database/creds/user-service"),
        ("vault", "/v1/sys/mounts"),
    ],
)
def test_an_anonymous_caller_is_refused(running: RunningStack, agent: str, path: str) -> None:
    assert httpx.get(running.url(agent) + path).status_code == httpx.codes.FORBIDDEN


def test_the_metrics_of_nomad_which_anybody_may_read_name_no_allocation(running: RunningStack) -> None:
    reply = httpx.get(running.url("nomad") + "/v1/metrics")
    allocations = [alloc["ID"] for alloc in running.clients.nomad.allocations.get_allocations()]
    assert allocations
    assert [alloc for alloc in allocations if alloc in reply.text] == []


def test_consul_works_with_a_token_of_its_node_and_nomad_with_one_of_its_own(running: RunningStack) -> None:
    acl, token = running.clients.consul.acl, running.clients.credentials.token
    config = json.loads((running.stack.state / "consul" / "stack.json").read_text())
    assert config["acl"]["tokens"]["agent"] == token("consul-agent")
    own = acl.tokens.self(token=token("consul-agent"))
    assert own["NodeIdentities"] == [{"NodeName": "waypost-1", "Datacenter": "dc1"}]
    assert not own.get("Policies")
    nomads = acl.tokens.self(token=token("consul-nomad-agent"))
    assert [policy["Name"] for policy in nomads["Policies"]] == ["nomad-agent"]
    assert not nomads.get("NodeIdentities")


def test_what_nomad_registers_a_service_with_does_not_end_and_what_a_task_logs_in_with_does(
    running: RunningStack,
) -> None:
    """Nomad cannot renew the first kind; when one ends, Consul goes on telling of its checks what it knew last."""
    services = [
        name for name in running.clients.consul.catalog.services()[1] if not name.startswith(("consul", "nomad"))
    ]
    instances = sum(len(running.instances(name)) for name in services)
    tokens = running.clients.consul.acl.tokens.list()
    ends = {
        method: [token.get("ExpirationTime") for token in tokens if token.get("AuthMethod") == method]
        for method in ("nomad-services", "nomad-workloads")
    }
    assert len(ends["nomad-services"]) >= instances > 0
    assert set(ends["nomad-services"]) == {None}
    assert ends["nomad-workloads"]
    assert None not in ends["nomad-workloads"]


def test_an_anonymous_caller_sees_no_service_and_changes_no_key(running: RunningStack) -> None:
    assert httpx.get(running.url("consul") + "/v1/catalog/services").json() == {}
    reply = httpx.put(running.url("consul") + "/v1/kv/config/gateway", content=b"{}")
    assert reply.status_code == httpx.codes.FORBIDDEN


@pytest.mark.parametrize(
    ("part", "path"),
    [("nomad", "/ui/"), ("consul", "/ui/"), ("vault", "/ui/"), ("telemetry", "/"), ("gateway", "/docs")],
)
def test_a_browser_gets_a_page(running: RunningStack, part: str, path: str) -> None:
    reply = httpx.get(running.url(part) + path, follow_redirects=True)
    assert reply.status_code == httpx.codes.OK
    assert "<html" in reply.text.lower()


def test_a_key_can_be_written_and_read_back(running: RunningStack) -> None:
    kv = running.clients.consul.kv
    assert kv.put("infra-test/greeting", "hello")
    try:
        assert kv.get("infra-test/greeting")[1]["Value"] == b"hello"
    finally:
        kv.delete("infra-test/greeting")
    eventually("the key is gone", lambda: kv.get("infra-test/greeting")[1] is None)


def test_the_audit_log_can_be_put_aside_while_vault_runs(running: RunningStack) -> None:
    log, pid = running.stack.state / "vault" / "audit.log", agents.daemon(running.stack, "vault").pid()
    assert pid is not None
    log.replace(log.with_suffix(".log.1"))
    processes.send(pid, signal.SIGHUP)
    eventually("a new one is there", log.exists)
    running.clients.vault.sys.list_policies()
    eventually("it goes on there", lambda: "sys/policy" in log.read_text())
    assert log.stat().st_mode & 0o777 == 0o600


def test_operator_secrets_are_readable_by_their_owner_only(running: RunningStack, host) -> None:  # type: ignore[no-untyped-def]
    folder = host.file(str(running.stack.secrets))
    assert folder.mode == 0o700
    for name in folder.listdir():
        assert host.file(f"{folder.path}/{name}").mode == 0o600, name
