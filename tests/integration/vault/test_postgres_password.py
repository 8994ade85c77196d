"""OpenBao alone knows the password of its Postgres login; a deploy gives it a new one only if it cannot log in."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import hvac
import psycopg
import pytest
from hvac.exceptions import VaultError
from support.postgres.private_postgres import Postgres

from stack.cluster import vault
from stack.cluster.clients import Clients
from stack.cluster.planned_changes import Change, apply_all
from stack.config import Stack
from stack.console import StackError

from ..chassis.servers import ROOT_TOKEN, Server

CONNECTION = "vault database/config/postgres"
NOTE = "OpenBao cannot log in to Postgres: it gets a new password"


@pytest.fixture(scope="module")
def roles(postgres: Postgres) -> None:
    """Creates the roles of job `postgres`; only the one of OpenBao has to give a password."""
    access = postgres.folder / "data" / "pg_hba.conf"
    access.write_text(f"host all vault 127.0.0.1/32 scram-sha-256\n{access.read_text()}")
    postgres.execute("SELECT pg_reload_conf()", "CREATE ROLE vault LOGIN CREATEROLE")
    for service in ("user_service", "order_service"):
        postgres.make_schema(service)
        for role in (service, f"{service}_runtime"):
            postgres.execute(f"GRANT {role} TO vault WITH ADMIN OPTION")


@pytest.fixture
def deployed(
    bao: Server, postgres: Postgres, roles: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[vault.Vault]:
    """The database engine as after a first deploy."""
    bao.call("POST", "/v1/sys/mounts/database", {"type": "database"})
    (tmp_path / "vault").mkdir()
    stack = SimpleNamespace(state=tmp_path, port=lambda _: postgres.port, url=lambda _: "http://127.0.0.1:1")
    clients = SimpleNamespace(vault=hvac.Client(bao.url, token=ROOT_TOKEN))

    def as_superuser(_stack: Stack, _programs: Path, database: str, statements: str) -> str:
        try:
            postgres.execute(statements, dbname=database)
        except psycopg.Error as error:
            raise StackError("Postgres rejected the statement", str(error), "") from error
        return ""

    monkeypatch.setattr(vault.postgres_socket, "execute", as_superuser)
    made = vault.Vault(cast(Stack, stack), cast(Clients, clients))
    assert CONNECTION in [change.where for change in planned(made)]
    apply_all(made.database_changes())
    yield made
    # Without its leases, so that no login of this test is revoked later.
    bao.call("PUT", "/v1/sys/leases/revoke-force/database")
    bao.call("DELETE", "/v1/sys/mounts/database")


def planned(made: vault.Vault) -> list[Change]:
    return list(made.database_changes())


def login(bao: Server, role: str = "order-service") -> str:
    return str(bao.call("GET", f"/v1/database/creds/{role}")["data"]["username"])


def accepted(postgres: Postgres, password: str) -> bool:
    try:
        psycopg.connect(postgres.dsn(user="vault", password=password)).close()
    except psycopg.OperationalError:
        return False
    return True


@pytest.mark.parametrize("role", ["order-service", "order-service-owner", "user-service", "user-service-owner"])
def test_a_deployed_connection_issues_logins_and_differs_in_nothing(
    deployed: vault.Vault, bao: Server, postgres: Postgres, role: str
) -> None:
    assert planned(deployed) == []
    name = login(bao, role)
    service = role.removesuffix("-owner").replace("-", "_")
    member = service if role.endswith("-owner") else f"{service}_runtime"
    query = f"SELECT pg_has_role('{name}', '{member}', 'MEMBER'), pg_has_role('{name}', '{service}', 'MEMBER')"
    assert postgres.rows(query) == [(True, role.endswith("-owner"))]


def test_after_a_rotation_by_hand_logins_are_issued_and_nothing_differs(deployed: vault.Vault, bao: Server) -> None:
    bao.call("POST", "/v1/database/rotate-root/postgres")
    assert planned(deployed) == []
    assert login(bao)


@pytest.mark.parametrize("by_hand", ["PASSWORD 'by-hand'", "PASSWORD NULL"])
def test_a_login_that_fails_is_planned_with_the_reason_and_repaired(
    deployed: vault.Vault, bao: Server, postgres: Postgres, by_hand: str
) -> None:
    postgres.execute(f"ALTER ROLE vault {by_hand}")
    (change,) = planned(deployed)
    assert (change.where, change.notes) == (CONNECTION, (NOTE,))
    change.apply()
    assert planned(deployed) == []
    assert login(bao)
    assert not accepted(postgres, "by-hand")


def test_without_what_the_stack_remembers_a_rotated_password_stays(
    deployed: vault.Vault, bao: Server, tmp_path: Path
) -> None:
    bao.call("POST", "/v1/database/rotate-root/postgres")
    (tmp_path / "vault" / "written.json").unlink()
    assert {note for change in planned(deployed) for note in change.notes} == set()
    apply_all(deployed.database_changes())
    assert planned(deployed) == []
    assert login(bao)


def test_a_connection_with_another_address_gets_its_address_back(deployed: vault.Vault, bao: Server) -> None:
    wrong: dict[str, Any] = {
        "plugin_name": "postgresql-database-plugin",
        "connection_url": "postgresql://{{username}}:{{password}}@127.0.0.1:1/postgres",
        "verify_connection": False,
    }
    bao.call("POST", "/v1/database/config/postgres", wrong)
    assert [change.where for change in planned(deployed)] == [CONNECTION]
    apply_all(deployed.database_changes())
    assert planned(deployed) == []
    assert login(bao)


def test_the_copy_of_the_password_that_earlier_versions_kept_is_worthless_and_removed(
    deployed: vault.Vault, bao: Server, postgres: Postgres
) -> None:
    postgres.execute("ALTER ROLE vault PASSWORD 'known'")
    bao.call("POST", "/v1/database/config/postgres", {"plugin_name": "postgresql-database-plugin", "password": "known"})
    bao.call("POST", "/v1/secret/data/postgres", {"data": {"password": "known"}})
    assert accepted(postgres, "known")
    assert [change.where for change in planned(deployed)] == ["vault secret/postgres"]
    apply_all(deployed.database_changes())
    assert not accepted(postgres, "known")
    assert planned(deployed) == []
    assert login(bao)


def test_a_postgres_that_does_not_run_is_no_reason_for_a_new_password(
    deployed: vault.Vault, bao: Server, postgres: Postgres
) -> None:
    postgres.stop()
    try:
        assert planned(deployed) == []
        with pytest.raises(VaultError):
            deployed.api.write_data("database/reset/postgres", data={})
    finally:
        postgres.start()
    assert planned(deployed) == []
    assert login(bao)
