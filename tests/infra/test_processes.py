"""Processes of the stack: their users, limits and environments."""

from __future__ import annotations

import re
from typing import Any

import pytest
from support.infrastructure.deployed_stack import DeployedStack

AGENTS = ("nomad", "consul", "vault")
SERVICES = ("user-service", "order-service", "gateway")
OPEN_FILES = 1024
LIKE_A_SECRET = re.compile(r"TOKEN|PASSWORD|SECRET_KEY|\beyJ[\w-]+\.eyJ|\b(hvs|s)\.[A-Za-z0-9]{20}")


@pytest.mark.parametrize("agent", AGENTS)
def test_an_agent_runs_in_a_session_of_its_own(deployed: DeployedStack, host: Any, agent: str) -> None:
    """Closing the terminal of the deploy does not end it."""
    process = host.process.get(pid=agent_pid(deployed, agent))
    assert int(process.pgid) == int(process.sid) == process.pid
    assert process.user == host.file(deployed.state).user


def agent_pid(deployed: DeployedStack, agent: str) -> int:
    return int(deployed.host.file(f"{deployed.state}/logs/{agent}.pid").content_string.split()[0])


def test_every_process_but_those_of_postgres_runs_as_the_user_who_deployed(deployed: DeployedStack, host: Any) -> None:
    owner = host.file(deployed.state).user
    processes = deployed.processes()
    assert {process.name for process in processes} >= {"nomad", "consul", "bao", "envoy"}
    others = [process for process in processes if process.user != owner and process.name != "postgres"]
    assert others == []


def test_postgres_does_not_run_as_root(deployed: DeployedStack) -> None:
    users = {process.user for process in deployed.processes() if process.name == "postgres"}
    assert users
    assert "root" not in users


def test_every_process_may_open_as_many_files_as_its_callers_need(deployed: DeployedStack, host: Any) -> None:
    pids = [agent_pid(deployed, agent) for agent in AGENTS]
    pids += [pid for job in (*SERVICES, "edge") for pid in deployed.pids(job)]
    rows = host.check_output(
        f"grep -h '^Max open files' {' '.join(f'/proc/{pid}/limits' for pid in pids)}"
    ).splitlines()
    limits = [row.removeprefix("Max open files").split()[0] for row in rows]
    assert len(limits) == len(pids)
    assert [limit for limit in limits if limit != "unlimited" and int(limit) < OPEN_FILES] == []


@pytest.mark.parametrize("job", SERVICES)
def test_no_secret_is_in_the_environment_of_a_service(
    deployed: DeployedStack, host: Any, secrets: set[str], job: str
) -> None:
    pids = deployed.pids(job)
    assert pids
    for pid in pids:
        environment = host.file(f"/proc/{pid}/environ").content_string
        assert "CONSUL_HTTP_ADDR" in environment
        assert not [secret for secret in secrets if secret in environment]
        assert not LIKE_A_SECRET.search(environment)


def test_the_edge_has_the_consul_token_of_its_templates_in_no_file_but_the_one_of_nomad(
    deployed: DeployedStack, host: Any
) -> None:
    folder = deployed.task_folder("edge")
    token = host.file(f"{folder}/secrets/consul_token").content_string.strip()
    assert token
    assert deployed.run("grep -rlF %s %s --exclude-dir=secrets || true", token, folder) == ""
    started = [host.file(f"/proc/{pid}/environ").content_string for pid in deployed.pids("edge")]
    assert len(started) == 2
    assert [text for text in started if "CONSUL" in text or "NOMAD" in text or token in text] == []
