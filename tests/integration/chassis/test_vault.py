"""Secrets, signatures and database logins of a real OpenBao and a real Postgres."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import grpc
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from support.postgres.private_postgres import Postgres
from support.waiting import until

from chassis.errors import RpcError
from chassis.platform.vault import Vault
from chassis.postgres.database import Database
from chassis.process import Process
from chassis.settings import ProcessSettings
from chassis.testing import FakeConsul, process, process_settings

from .identities import Issuer, allow_login, trust_in_vault
from .servers import Server

SETTINGS = process_settings()
POLICY = """
path "database/creds/user-service" { capabilities = ["read"] }
path "secret/data/user-service" { capabilities = ["read"] }
path "transit/sign/tokens" { capabilities = ["update"] }
path "transit/keys/tokens" { capabilities = ["read"] }
"""
JOB, SCHEMA = "user-service", "user_service"


@pytest.fixture(scope="module")
def identity(bao: Server, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Create the policy and the secrets of job `user-service`; returns the folder of its identities."""
    issuer = Issuer()
    trust_in_vault(bao, issuer, JOB, POLICY)
    bao.call("POST", "/v1/sys/mounts/transit", {"type": "transit"})
    bao.call("POST", "/v1/transit/keys/tokens", {"type": "ed25519"})
    bao.call("POST", "/v1/secret/data/user-service", {"data": {"pepper": "salt"}})
    return issuer.write(tmp_path_factory.mktemp("identity"), "user-service")


@pytest.fixture
async def vault(bao: Server, identity: Path) -> Vault:
    allow_login(bao, JOB)
    made = process("user-service", SETTINGS, vault_addr=bao.url, identity_dir=identity)
    return made.vault


async def test_a_request_outside_the_policy_is_denied(vault: Vault) -> None:
    with pytest.raises(Exception, match="permission denied"):
        await vault.read_secret("order-service")


async def test_an_unreachable_vault_is_reported_as_unavailable(identity: Path) -> None:
    vault = process("user-service", SETTINGS, vault_addr="http://127.0.0.1:9", identity_dir=identity).vault
    with pytest.raises(RpcError) as raised:
        await vault.read_secret("user-service")
    assert (raised.value.code, raised.value.reason) == (grpc.StatusCode.UNAVAILABLE, "VAULT_UNAVAILABLE")


async def test_a_secret_is_read(vault: Vault) -> None:
    assert await vault.read_secret("user-service") == {"pepper": "salt"}


async def test_a_signature_is_verified_with_the_public_key_of_its_version(vault: Vault, bao: Server) -> None:
    first, version = await vault.sign("tokens", b"claims")
    bao.call("POST", "/v1/transit/keys/tokens/rotate")
    second, newer = await vault.sign("tokens", b"claims")
    keys = await vault.public_keys("tokens")
    Ed25519PublicKey.from_public_bytes(keys[version]).verify(first, b"claims")
    Ed25519PublicKey.from_public_bytes(keys[newer]).verify(second, b"claims")
    assert newer == version + 1


async def test_a_revoked_token_is_replaced_without_an_error(vault: Vault, bao: Server) -> None:
    await vault.read_secret("user-service")
    logins: list[int] = []
    vault.on_login(lambda: logins.append(1))
    assert vault._client is not None
    bao.call("POST", "/v1/auth/token/revoke", {"token": vault._client.token})
    assert await vault.read_secret("user-service") == {"pepper": "salt"}
    assert logins == [1]


async def test_a_token_is_renewed_and_replaced_before_it_expires(bao: Server, identity: Path) -> None:
    allow_login(bao, JOB, token_ttl="3s", token_max_ttl="6s")
    vault = process("user-service", SETTINGS, vault_addr=bao.url, identity_dir=identity).vault
    await vault.read_secret("user-service")
    logins: list[int] = []
    vault.on_login(lambda: logins.append(1))
    ends_at = time.monotonic() + 13
    while time.monotonic() < ends_at:
        assert vault._client is not None
        await asyncio.to_thread(vault._client.auth.token.lookup_self)
        await asyncio.sleep(0.1)
    assert len(logins) >= 2


async def test_requests_fail_without_waiting_while_vault_is_unavailable_for_longer_than_a_token_lives(
    bao: Server, identity: Path
) -> None:
    allow_login(bao, JOB, token_period="2s")
    vault = process("user-service", SETTINGS, vault_addr=bao.url, identity_dir=identity).vault
    await vault.sign("tokens", b"claims")
    with bao.sealed():
        ends_at = time.monotonic() + 6
        while time.monotonic() < ends_at:
            with pytest.raises(RpcError, match="vault"):
                await asyncio.wait_for(vault.sign("tokens", b"claims"), 2)
            await asyncio.sleep(0.05)
    await until("requests succeed again", lambda: _succeeds(vault), 15)


async def test_a_vault_that_hangs_occupies_few_callers_and_no_thread_of_other_work(bao: Server, vault: Vault) -> None:
    await vault.sign("tokens", b"claims")
    with bao.stopped():
        for most in (16, 8):
            calls = [asyncio.ensure_future(vault.sign("tokens", b"claims")) for _ in range(60)]
            failed, waiting = await asyncio.wait(calls, timeout=2)
            assert 0 <= len(waiting) <= most
            assert {call.exception().reason for call in failed} == {"VAULT_UNAVAILABLE"}  # type: ignore[union-attr]
            assert await asyncio.wait_for(asyncio.to_thread(lambda: True), 2)
            # The threads of the first callers still wait after their deadline, so they count for the next ones.
            for call in waiting:
                call.cancel()
    await until("requests succeed again", lambda: _succeeds(vault), 15)


async def _succeeds(vault: Vault) -> bool:
    try:
        await asyncio.wait_for(vault.sign("tokens", b"claims"), 2)
    except (RpcError, TimeoutError):
        return False
    return True


async def test_a_denial_by_policy_replaces_no_token(vault: Vault, bao: Server) -> None:
    await vault.read_secret("user-service")
    logins: list[int] = []
    vault.on_login(lambda: logins.append(1))
    client, tokens = vault._client, _tokens(bao)
    for _ in range(5):
        denied = await asyncio.gather(*(vault.read_secret("order-service") for _ in range(5)), return_exceptions=True)
        assert {type(error).__name__ for error in denied} == {"Forbidden"}
        await asyncio.sleep(0.3)
    assert (logins, vault._client, _tokens(bao) - tokens) == ([], client, set())


async def test_a_denial_hides_neither_a_token_that_has_ended_nor_a_policy_that_allows_it_now(
    vault: Vault, bao: Server
) -> None:
    bao.call("POST", "/v1/secret/data/order-service", {"data": {"key": "value"}})
    with pytest.raises(Exception, match="permission denied"):
        await vault.read_secret("order-service")
    assert vault._client is not None
    bao.call("POST", "/v1/auth/token/revoke", {"token": vault._client.token})
    assert await vault.read_secret("user-service") == {"pepper": "salt"}
    wider = POLICY + 'path "secret/data/order-service" { capabilities = ["read"] }'
    bao.call("PUT", "/v1/sys/policies/acl/user-service", {"policy": wider})
    try:
        assert await vault.read_secret("order-service") == {"key": "value"}
    finally:
        bao.call("PUT", "/v1/sys/policies/acl/user-service", {"policy": POLICY})


async def test_a_token_that_ended_while_the_machine_slept_is_replaced_without_a_request(
    bao: Server, identity: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    allow_login(bao, JOB, token_period="1h")
    vault = process("user-service", SETTINGS, vault_addr=bao.url, identity_dir=identity).vault
    await vault.read_secret("user-service")
    logins: list[int] = []
    vault.on_login(lambda: logins.append(1))
    assert vault._client is not None
    bao.call("POST", "/v1/auth/token/revoke", {"token": vault._client.token})
    clock = time.time
    monkeypatch.setattr(time, "time", lambda: clock() + 7200)
    await until("it is replaced", lambda: logins == [1], 15)


def _tokens(bao: Server) -> set[str]:
    return set(bao.call("LIST", "/v1/auth/token/accessors")["data"]["keys"])


async def test_closing_revokes_the_token(bao: Server, vault: Vault) -> None:
    await vault.read_secret("user-service")
    assert vault._client is not None
    token = vault._client.token
    await vault.close()
    with pytest.raises(Exception, match="403"):
        bao.call("POST", "/v1/auth/token/lookup", {"token": token})


@pytest.fixture(scope="module")
def logins(bao: Server, identity: Path, postgres: Postgres) -> Server:
    """Configure the database engine for the private Postgres: logins of 4 s that cannot be renewed."""
    postgres.execute("CREATE ROLE user_service NOLOGIN", f"CREATE DATABASE {SCHEMA}")
    postgres.execute(f"CREATE SCHEMA {SCHEMA} AUTHORIZATION user_service", dbname=SCHEMA)
    engine = {
        "plugin_name": "postgresql-database-plugin",
        "allowed_roles": "user-service",
        "connection_url": f"postgresql://postgres@127.0.0.1:{postgres.port}/postgres?sslmode=disable",
    }
    role = {
        "db_name": "postgres",
        "default_ttl": "4s",
        "max_ttl": "4s",
        "creation_statements": [
            "CREATE ROLE \"{{name}}\" LOGIN PASSWORD '{{password}}' VALID UNTIL '{{expiration}}' IN ROLE user_service;",
            "ALTER ROLE \"{{name}}\" SET role = 'user_service';",
        ],
        "revocation_statements": [
            'ALTER ROLE "{{name}}" NOLOGIN;',
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = '{{name}}';",
            'DROP ROLE IF EXISTS "{{name}}";',
        ],
    }
    bao.call("POST", "/v1/sys/mounts/database", {"type": "database"})
    bao.call("POST", "/v1/database/config/postgres", engine)
    bao.call("POST", "/v1/database/roles/user-service", role)
    return bao


async def test_credentials_expire_under_load_and_no_request_fails(
    logins: Server, identity: Path, postgres: Postgres
) -> None:
    """Leases of at most 4 s: the user changes every 2 s, and Vault closes the connections of the old users."""
    allow_login(logins, JOB)
    consul = FakeConsul()
    consul.register("postgres", f"127.0.0.1:{postgres.port}")
    made = process("user-service", SETTINGS, consul, vault_addr=logins.url, identity_dir=identity)
    database = await Database.open(made, name=SCHEMA)
    users: set[str] = set()
    done, stop = 0, asyncio.Event()

    async def query() -> None:
        nonlocal done
        while not stop.is_set():
            async with database.connection() as connection:
                row = await (await connection.execute("SELECT session_user, current_user")).fetchone()
            assert row is not None
            assert row["current_user"] == "user_service"
            users.add(row["session_user"])
            done += 1
            await asyncio.sleep(0.002)

    work = [asyncio.create_task(query()) for _ in range(4)]
    await until("five users were used", lambda: len(users) >= 5 or any(task.done() for task in work), 30)
    stop.set()
    await asyncio.gather(*work)
    assert done > 100
    await made.close()


async def test_a_closed_process_leaves_no_database_login(logins: Server, identity: Path, postgres: Postgres) -> None:
    allow_login(logins, JOB)
    made: Process[ProcessSettings] = process("user-service", SETTINGS, vault_addr=logins.url, identity_dir=identity)
    lease = await made.vault.database_login("user-service")
    query = f"SELECT 1 FROM pg_roles WHERE rolname = '{lease.username}'"
    assert postgres.rows(query)
    await made.close()
    await until("the login is gone", lambda: not postgres.rows(query))
