"""The commands of the Justfile against a running stack: what a user at the terminal sees."""

from __future__ import annotations

import os
import re
import shlex
import subprocess

import httpx
import pytest
from support.operator_commands import run, words
from support.stack_under_test import RunningStack, eventually
from support.traffic.api_user import ApiUser

from stack.cluster import nomad
from stack.config import ROOT


def test_a_second_deploy_changes_nothing_and_says_so_within_thirty_seconds(running: RunningStack) -> None:
    again = run("deploy")
    assert again.returncode == 0, again.stdout + again.stderr
    said = re.search(r"no change: .*\((\d+\.\d) s\)", again.stdout)
    assert said, again.stdout
    assert float(said[1]) <= 30


def test_a_plan_without_changes_is_empty(running: RunningStack) -> None:
    plan = run("plan")
    assert (plan.returncode, plan.stdout.strip()) == (0, "no change")


def test_a_plan_shows_what_a_deploy_would_put_back(running: RunningStack) -> None:
    running.clients.consul.kv.delete("config/user-service")
    try:
        plan = run("plan")
        assert plan.returncode == 2
        assert "+ consul kv config/user-service" in plan.stdout
        assert "initial_credit" in plan.stdout
    finally:
        assert run("deploy").returncode == 0
    assert run("plan").returncode == 0


def test_the_shell_of_another_cluster_does_not_lead_astray(
    running: RunningStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("NOMAD_ADDR", "CONSUL_HTTP_ADDR", "VAULT_ADDR", "HTTP_PROXY", "http_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("NOMAD_TOKEN", "CONSUL_HTTP_TOKEN", "VAULT_TOKEN", "NOMAD_REGION"):
        monkeypatch.setenv(name, "somebody-elses")
    plan = run("plan")
    assert (plan.returncode, plan.stdout.strip()) == (0, "no change"), plan.stderr


def test_a_stack_that_does_not_run_is_refused_and_leaves_nothing(
    running: RunningStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WAYPOST_STACK", "never")
    monkeypatch.setenv("WAYPOST_SLOT", str(running.stack.slot))
    for command in (("env",), ("plan",), ("status",), ("logs", "gateway")):
        refused = run(*command)
        assert refused.returncode == 1
        assert "stack 'never' is not running" in refused.stderr
    assert not (ROOT / ".waypost" / "never").exists()


def test_status_shows_agents_jobs_instances_and_breakers(running: RunningStack) -> None:
    status = run("status")
    assert status.returncode == 0, status.stderr
    for name in ("nomad", "consul", "vault", *nomad.names(), "breaker user-service"):
        assert name in status.stdout


def test_env_gives_a_shell_the_operators_addresses_and_tokens(running: RunningStack) -> None:
    script = 'eval "$0"; curl -sf -H "X-Nomad-Token: $NOMAD_TOKEN" "$NOMAD_ADDR/v1/jobs" && '
    script += 'curl -sf -H "X-Consul-Token: $CONSUL_HTTP_TOKEN" "$CONSUL_HTTP_ADDR/v1/agent/self" && '
    script += 'curl -sf -H "X-Vault-Token: $VAULT_TOKEN" "$VAULT_ADDR/v1/sys/mounts"'
    exports = run("env")
    assert exports.returncode == 0
    answer = subprocess.run(["sh", "-c", script, exports.stdout], capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stderr


@pytest.mark.parametrize("name", ["user-service", "gateway", "edge", "postgres", "nomad"])
def test_logs_show_what_a_part_said(running: RunningStack, name: str) -> None:
    said = run("logs", name)
    assert said.returncode == 0
    assert name == "nomad" or f"--- {name} " in said.stdout
    assert [line for line in said.stdout.splitlines() if not line.startswith("---")]


def test_logs_for_a_reader_that_goes_end_quietly(running: RunningStack) -> None:
    command = shlex.join(words("logs", "gateway"))
    read = subprocess.run(["sh", "-c", f"{command} | true"], capture_output=True, text=True, check=False)
    assert (read.returncode, read.stderr) == (0, "")


def test_logs_of_nobody_name_those_that_exist() -> None:
    refused = run("logs", "nobody")
    assert refused.returncode == 1
    assert "user-service" in refused.stderr


def test_a_trace_is_shown_as_a_waterfall(running: RunningStack, user: ApiUser) -> None:
    if "telemetry" not in running.clients.nomad.job:
        pytest.skip("the telemetry UI was left out: this machine has no C++ compiler")
    trace_id = user.get("/v1/users/me").headers["traceresponse"].split("-")[1]

    def whole() -> bool:
        shown = run("trace", trace_id).stdout
        return "GET /v1/users/me" in shown and "user-service" in shown

    eventually("the trace is shown with the spans of two services", whole, 20)


def test_something_that_is_no_trace_id_is_refused() -> None:
    assert "32 hex digits" in run("trace", "nonsense").stderr


def test_an_unknown_command_names_the_known_ones() -> None:
    refused = run("explode")
    assert refused.returncode == 64
    assert "deploy" in refused.stderr


def test_a_stack_whose_port_is_taken_says_by_whom(running: RunningStack) -> None:
    env = os.environ | {"WAYPOST_STACK": "squatter", "WAYPOST_SLOT": str(running.stack.slot)}
    command = words("deploy")
    try:
        refused = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=120, check=False)
        assert refused.returncode == 1
        assert f"port {running.stack.port('vault')} (vault) is taken" in refused.stderr
        assert "WAYPOST_SLOT" in refused.stderr
    finally:
        subprocess.run([*command[:-1], "destroy"], cwd=ROOT, env=env, capture_output=True, check=True)
    assert httpx.get(running.url("gateway") + "/livez").is_success
