"""What Nomad runs: every job healthy, every service in Consul, every identity narrow, every login short-lived."""

from __future__ import annotations

import json
import os
import re
import signal
import time
from collections.abc import Iterator
from typing import Any

import hvac
import psycopg
import pytest
from hvac.exceptions import Forbidden, VaultError
from support.database_access import value
from support.stack_under_test import RunningStack, environment, eventually
from support.traffic.targets import Form, forms

from stack.cluster import nomad

SERVICES = {
    "user-service": 2,
    "order-service": 2,
    "order-service-worker": 2,
    "gateway": 2,
    "edge": 1,
    "postgres": 1,
    "artifacts": 1,
}
JOBS = ("user-service", "order-service", "gateway")


@pytest.mark.parametrize("job", nomad.names())
def test_a_job_runs_with_every_instance_it_asks_for(running: RunningStack, job: str) -> None:
    if job == "telemetry" and job not in running.clients.nomad.job:
        pytest.skip("the telemetry UI was left out: this machine has no C++ compiler")
    found = running.clients.nomad.job.get_job(job)
    assert found["Status"] == "running"
    assert len(running.allocations(job)) == sum(group["Count"] for group in found["TaskGroups"])


@pytest.mark.parametrize("job", nomad.names())
def test_what_a_task_says_can_be_followed(running: RunningStack, job: str) -> None:
    """By `nomad alloc logs -f` and the UI, which ask for both streams at once, whoever writes them."""
    if job == "telemetry" and job not in running.clients.nomad.job:
        pytest.skip("the telemetry UI was left out: this machine has no C++ compiler")
    read = running.clients.nomad.client.stream_logs.stream
    asked = [(alloc["ID"], task) for alloc in running.allocations(job) for task in alloc["TaskStates"]]
    said = {task: [read(alloc, task, stream, plain=True) for stream in ("stdout", "stderr")] for alloc, task in asked}
    assert job in said
    assert "".join(said[job])


@pytest.mark.parametrize("job", JOBS)
def test_the_newest_deployment_of_a_service_succeeded(running: RunningStack, job: str) -> None:
    assert running.clients.nomad.job.get_deployment(job)["Status"] == "successful"


@pytest.mark.parametrize(("service", "count"), SERVICES.items())
def test_a_service_is_in_consul_with_passing_checks(running: RunningStack, service: str, count: int) -> None:
    eventually(f"{count} pass their checks", lambda: len(running.instances(service)) == count)
    instances = running.instances(service)
    own_checks = [check for entry in instances for check in entry["Checks"] if check["ServiceName"] == service]
    assert len(own_checks) >= count
    assert {check["Status"] for check in own_checks} == {"passing"}


@pytest.mark.parametrize("job", JOBS)
@forms(1, 3)
def test_a_killed_instance_is_replaced_within_ten_seconds(running: RunningStack, form: Form, job: str) -> None:
    for _ in range(form.times):
        before = running.pids(job)
        os.kill(before[0], signal.SIGKILL)
        killed = time.monotonic()
        eventually(f"{job} runs again", lambda: len(set(running.pids(job)) - {before[0]}) == len(before), 30)  # noqa: B023
        eventually(f"{job} passes its checks", lambda: len(running.instances(job)) == SERVICES[job], 30)
        assert time.monotonic() - killed < form.bound(10.0, 30.0)


@pytest.fixture
def identity(running: RunningStack) -> Any:
    """Logs in to Vault with the workload identity of a running instance of a job."""

    def login(job: str, role: str) -> hvac.Client:
        alloc = running.allocations(job)[0]
        token = (running.folder(alloc, job) / "secrets" / "nomad_vault.jwt").read_text()
        client = hvac.Client(url=running.url("vault"))
        client.auth.jwt.jwt_login(role, token, path="jwt-nomad")
        return client

    return login


def test_a_service_reads_its_own_secret(identity: Any) -> None:
    secret = identity("user-service", "user-service").read("secret/data/user-service")
    assert secret["data"]["data"]["password_pepper"]


@pytest.mark.parametrize(
    ("job", "path"),
    [
        ("order-service", "secret/data/user-service"),
        ("gateway", "secret/data/user-service"),
        ("user-service", "secret/data/postgres"),
        ("user-service", "database/creds/order-service"),
        ("order-service", "database/creds/user-service"),
        ("gateway", "database/creds/user-service"),
    ],
)
def test_a_service_reads_nobody_elses_secret(identity: Any, job: str, path: str) -> None:
    client = identity(job, job)
    with pytest.raises(Forbidden):
        client.read(path)


def test_a_service_cannot_take_the_role_of_another(identity: Any) -> None:
    with pytest.raises(VaultError, match="claim"):
        identity("gateway", "user-service")


def test_only_the_user_service_signs_tokens(identity: Any) -> None:
    with pytest.raises(Forbidden):
        identity("gateway", "gateway").secrets.transit.sign_data("tokens", hash_input="Zm9v")


@pytest.fixture
def login(identity: Any) -> Iterator[dict[str, Any]]:
    client = identity("user-service", "user-service")
    answer = client.read("database/creds/user-service")
    yield answer
    client.auth.token.revoke_self()


def _connect(running: RunningStack, login: dict[str, Any], database: str) -> psycopg.Connection[Any]:
    port = running.stack.port("postgres")
    user, password = login["data"]["username"], login["data"]["password"]
    return psycopg.connect(host="127.0.0.1", port=port, dbname=database, user=user, password=password, autocommit=True)


def test_a_database_login_ends_by_itself(running: RunningStack, login: dict[str, Any]) -> None:
    assert login["lease_duration"] <= 3600
    with _connect(running, login, "user_service") as connection:
        query = "SELECT extract(epoch FROM rolvaliduntil - now()) FROM pg_roles WHERE rolname = session_user"
        row = connection.execute(query).fetchone()
    assert row is not None
    assert 0 < row[0] <= 3600 + 60


def test_a_database_login_opens_no_other_database(running: RunningStack, login: dict[str, Any]) -> None:
    with pytest.raises(psycopg.OperationalError, match="permission denied"):
        _connect(running, login, "order_service")


def test_a_revoked_database_login_is_gone_at_once(running: RunningStack, login: dict[str, Any]) -> None:
    connection = _connect(running, login, "user_service")
    running.clients.vault.sys.revoke_lease(login["lease_id"])
    with pytest.raises(psycopg.OperationalError):
        connection.execute("SELECT 1")
    with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
        _connect(running, login, "user_service")


def test_postgres_does_not_run_as_root(running: RunningStack, host) -> None:  # type: ignore[no-untyped-def]
    # In one look: the process of a connection may end between one question and the next.
    users = set(host.check_output("ps -C postgres -o user=").split())
    assert users
    assert "root" not in users


def test_the_socket_of_postgres_makes_only_the_owner_of_the_stack_its_superuser(running: RunningStack) -> None:
    mapped = "SELECT string_agg(sys_name || ' is ' || pg_username, ', ') FROM pg_ident_file_mappings"
    assert value(running, "user_service", mapped) == f"{running.stack.state.owner()} is postgres"


@pytest.fixture
def secrets(running: RunningStack) -> set[str]:
    """Every secret there is: what the operator has, and what lies in Vault."""
    vault = running.clients.vault
    stored = [vault.read(f"secret/data/{name}") for name in vault.list("secret/metadata")["data"]["keys"]]
    values = {str(value) for secret in stored for value in secret["data"]["data"].values()}
    return values | {file.read_text().strip() for file in running.stack.secrets.iterdir() if file.is_file()}


_LIKE_A_SECRET = re.compile(r"TOKEN|PASSWORD|SECRET_KEY|\beyJ[\w-]+\.eyJ|\b(hvs|s)\.[A-Za-z0-9]{20}")


@pytest.mark.parametrize("job", JOBS)
def test_no_secret_is_in_the_environment_of_a_service(running: RunningStack, secrets: set[str], job: str) -> None:
    pids = running.pids(job)
    assert pids
    for pid in pids:
        told = environment(pid)
        assert "CONSUL_HTTP_ADDR" in told
        assert not [secret for secret in secrets if secret in told]
        assert not _LIKE_A_SECRET.search(told)


def test_no_job_carries_a_secret(running: RunningStack, secrets: set[str]) -> None:
    assert len(secrets) >= 5
    jobs = [job for job in nomad.names() if job in running.clients.nomad.job]
    assert set(JOBS) < set(jobs)
    for job in jobs:
        text = json.dumps(running.clients.nomad.job.get_job(job))
        assert not [secret for secret in secrets if secret in text]
