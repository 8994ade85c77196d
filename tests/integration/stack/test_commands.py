"""The commands of the Justfile against a running stack: what a user at the terminal sees."""

from __future__ import annotations

import json
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


def test_a_second_deploy_reports_no_change_within_thirty_seconds(running: RunningStack) -> None:
    again = run("deploy")
    assert again.returncode == 0, again.stdout + again.stderr
    summary = re.search(r"no change: .*\((\d+\.\d) s\)", again.stdout)
    assert summary, again.stdout
    assert float(summary[1]) <= 30


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


def test_variables_of_another_cluster_in_the_shell_have_no_effect(
    running: RunningStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("NOMAD_ADDR", "CONSUL_HTTP_ADDR", "VAULT_ADDR", "HTTP_PROXY", "http_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("NOMAD_TOKEN", "CONSUL_HTTP_TOKEN", "VAULT_TOKEN", "NOMAD_REGION"):
        monkeypatch.setenv(name, "another-cluster")
    plan = run("plan")
    assert (plan.returncode, plan.stdout.strip()) == (0, "no change"), plan.stderr


def test_a_stack_that_does_not_run_is_an_error_and_leaves_no_files(
    running: RunningStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WAYPOST_STACK", "never")
    monkeypatch.setenv("WAYPOST_SLOT", str(running.stack.slot))
    for command in (("env",), ("plan",), ("status",), ("logs", "gateway")):
        failed = run(*command)
        assert failed.returncode == 1
        assert "stack 'never' is not running" in failed.stderr
    assert not (ROOT / ".waypost" / "never").exists()


def test_status_shows_agents_jobs_instances_and_breakers(running: RunningStack) -> None:
    status = run("status")
    assert status.returncode == 0, status.stderr
    for name in ("nomad", "consul", "vault", *nomad.names(), "breaker user-service"):
        assert name in status.stdout


def test_status_and_plan_in_json_hold_what_the_text_shows(running: RunningStack) -> None:
    status = json.loads(run("status", "--json").stdout)
    assert {row["name"] for row in status["agents"] if row["pid"]} == {"nomad", "consul", "vault"}
    assert {row["name"]: row["running"] for row in status["jobs"]} == {
        row["name"]: row["wanted"] for row in status["jobs"]
    }
    assert all(row["passing"] for row in status["instances"])
    assert {name for row in status["gateways"] for name in row["breakers"]} >= {"user-service", "order-service"}
    assert status["memory"]["processes"] > 10
    plan = run("plan", "--json")
    assert (plan.returncode, json.loads(plan.stdout)["changes"]) == (0, [])


def test_env_prints_working_addresses_and_tokens_of_the_operator(running: RunningStack) -> None:
    script = 'eval "$0"; curl -sf -H "X-Nomad-Token: $NOMAD_TOKEN" "$NOMAD_ADDR/v1/jobs" && '
    script += 'curl -sf -H "X-Consul-Token: $CONSUL_HTTP_TOKEN" "$CONSUL_HTTP_ADDR/v1/agent/self" && '
    script += 'curl -sf -H "X-Vault-Token: $VAULT_TOKEN" "$VAULT_ADDR/v1/sys/mounts"'
    exports = run("env")
    assert exports.returncode == 0
    answer = subprocess.run(["sh", "-c", script, exports.stdout], capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stderr


@pytest.mark.parametrize("name", ["user-service", "gateway", "edge", "postgres", "nomad"])
def test_logs_show_the_last_lines_of_a_part(running: RunningStack, name: str) -> None:
    shown = run("logs", name)
    assert shown.returncode == 0
    assert name == "nomad" or f"--- {name} " in shown.stdout
    assert [line for line in shown.stdout.splitlines() if not line.startswith("---")]


def test_logs_end_without_an_error_if_their_reader_ends(running: RunningStack) -> None:
    command = shlex.join(words("logs", "gateway"))
    read = subprocess.run(["sh", "-c", f"{command} | true"], capture_output=True, text=True, check=False)
    assert (read.returncode, read.stderr) == (0, "")


def test_logs_of_an_unknown_part_list_the_known_ones() -> None:
    failed = run("logs", "nobody")
    assert failed.returncode == 1
    assert "user-service" in failed.stderr


def test_a_trace_is_shown_as_a_waterfall(running: RunningStack, user: ApiUser) -> None:
    if "telemetry" not in running.clients.nomad.job:
        pytest.skip("the telemetry UI was left out: this machine has no C++ compiler")
    trace_id = user.get("/v1/users/me").headers["traceresponse"].split("-")[1]

    def whole() -> bool:
        shown = run("trace", trace_id).stdout
        return "GET /v1/users/me" in shown and "user-service" in shown

    eventually("the trace is shown with the spans of two services", whole, 20)


def test_an_invalid_trace_id_is_an_error() -> None:
    assert "32 hex digits" in run("trace", "nonsense").stderr


def test_an_unknown_command_lists_the_known_ones() -> None:
    failed = run("explode")
    assert failed.returncode == 64
    assert "deploy" in failed.stderr


def test_a_taken_port_is_an_error_with_its_process(running: RunningStack) -> None:
    env = os.environ | {"WAYPOST_STACK": "squatter", "WAYPOST_SLOT": str(running.stack.slot)}
    command = words("deploy")
    try:
        failed = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=120, check=False)
        assert failed.returncode == 1
        assert f"port {running.stack.port('vault')} (vault) is taken" in failed.stderr
        assert "WAYPOST_SLOT" in failed.stderr
    finally:
        subprocess.run([*command[:-1], "destroy"], cwd=ROOT, env=env, capture_output=True, check=True)
    assert httpx.get(running.url("gateway") + "/livez").is_success
