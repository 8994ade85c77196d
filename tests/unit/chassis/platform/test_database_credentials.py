"""Database credentials are renewed, replaced in time, and kept while Vault is unavailable."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable

import pytest
from support.waiting import until

from chassis.errors import unavailable
from chassis.platform import vault
from chassis.platform.database_credentials import DatabaseCredentials
from chassis.platform.vault import Lease


class FakeVault:
    """Issues leases of `seconds`, renewable up to `most` seconds after the login."""

    def __init__(self, seconds: float, most: float) -> None:
        self.seconds, self.most = seconds, most
        self.age = 0.0
        self.is_unavailable = False
        self.issued: list[Lease] = []
        self.renewed = 0
        self.new_token: Callable[[], None] = lambda: None

    async def database_login(self, database_role: str) -> Lease:
        self._check()
        lease = Lease(
            f"{database_role}-{len(self.issued)}", "x", str(len(self.issued)), self.seconds, time.monotonic() - self.age
        )
        self.issued.append(lease)
        return lease

    async def renew(self, lease: Lease) -> Lease:
        self._check()
        self.renewed += 1
        first = self.issued[int(lease.lease_id)]
        left = min(self.seconds, first.acquired + self.most - time.monotonic())
        return Lease(lease.username, lease.password, lease.lease_id, left, time.monotonic())

    async def refuse(self, lease: Lease) -> Lease:
        raise ValueError(f"lease {lease.lease_id} not found")

    def on_login(self, callback: Callable[[], None]) -> None:
        self.new_token = callback

    def _check(self) -> None:
        if self.is_unavailable:
            raise unavailable("VAULT_UNAVAILABLE", "unavailable", 1.0)


@pytest.fixture(autouse=True)
def _short_backoff(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vault, "_RETRY_SECONDS", (0.01, 0.02))


@pytest.fixture
async def start() -> AsyncIterator[Callable[[FakeVault], DatabaseCredentials]]:
    tasks: list[asyncio.Task[None]] = []

    def begin(source: FakeVault) -> DatabaseCredentials:
        credentials = DatabaseCredentials(source, "role")
        tasks.append(asyncio.create_task(credentials.maintain()))
        return credentials

    yield begin
    for task in tasks:
        task.cancel()


Start = Callable[[FakeVault], DatabaseCredentials]


async def test_new_credentials_are_in_use_while_the_old_ones_still_work(start: Start) -> None:
    source = FakeVault(seconds=0.4, most=0.4)
    credentials = start(source)
    moments: list[float] = []
    credentials.on_replaced(lambda: moments.append(source.issued[-2].left()))
    await until("four logins", lambda: len(source.issued) >= 4)
    assert all(left > 0.1 for left in moments), moments


async def test_a_lease_is_renewed_as_long_as_vault_allows(start: Start) -> None:
    source = FakeVault(seconds=0.2, most=1.0)
    credentials = start(source)
    await until("a second login", lambda: len(source.issued) == 2)
    assert source.renewed >= 4
    assert source.issued[1].acquired - source.issued[0].acquired > 0.7
    assert credentials.lease is not None
    assert credentials.lease.username == "role-1"


async def test_the_first_credentials_do_not_count_as_replaced(start: Start) -> None:
    calls: list[int] = []
    credentials = start(FakeVault(60, 60))
    credentials.on_replaced(lambda: calls.append(1))
    await credentials.ready()
    assert calls == []


async def test_credentials_are_kept_while_vault_is_unavailable_and_replaced_after(start: Start) -> None:
    source = FakeVault(seconds=0.3, most=0.3)
    credentials = start(source)
    await credentials.ready()
    source.is_unavailable = True
    await asyncio.sleep(0.5)
    assert credentials.lease is not None
    assert credentials.lease.username == "role-0"
    source.is_unavailable = False
    await until(
        "the next credentials", lambda: credentials.lease is not None and credentials.lease.username != "role-0", 1
    )


async def test_a_new_vault_token_leads_to_new_credentials(start: Start) -> None:
    source = FakeVault(60, 60)
    credentials = start(source)
    await credentials.ready()
    source.new_token()
    await until("the next credentials", lambda: len(source.issued) == 2, 1)


async def test_credentials_that_ended_while_the_machine_slept_are_replaced(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = FakeVault(seconds=3600, most=3600)
    credentials = start(source)
    await credentials.ready()
    clock = time.time
    monkeypatch.setattr(time, "time", lambda: clock() + 7200)
    monkeypatch.setattr(source, "renew", source.refuse)
    await until("the next credentials", lambda: len(source.issued) == 2, 15)


async def test_a_new_token_while_a_login_is_requested_leads_to_one_login(start: Start) -> None:
    source = FakeVault(60, 60)
    credentials = start(source)
    await credentials.ready()
    source.is_unavailable = True
    source.new_token()
    await asyncio.sleep(0.05)
    source.new_token()
    source.is_unavailable = False
    await until("the next credentials", lambda: len(source.issued) >= 2, 1)
    await asyncio.sleep(0.05)
    assert len(source.issued) == 2


def test_the_representation_of_a_lease_has_no_password() -> None:
    assert "hunter2" not in repr(Lease("user", "hunter2", "id", 60, 0))


@pytest.mark.parametrize(
    ("user", "age", "replaced"), [("role-0", 6.0, True), ("role-0", 4.0, False), ("other", 6.0, False)]
)
async def test_credentials_that_postgres_rejects_are_replaced_unless_they_are_new_or_others(
    start: Start, user: str, age: float, replaced: bool
) -> None:
    source = FakeVault(seconds=60, most=60)
    source.age = age
    credentials = start(source)
    await credentials.ready()
    assert credentials.lease is not None
    message = f'FATAL:  password authentication failed for user "{user}"'
    await asyncio.to_thread(credentials.login_rejected, message)
    if replaced:
        await until("other credentials", lambda: len(source.issued) == 2)
        assert credentials.lease.username == "role-1"
        credentials.login_rejected(message)
    await asyncio.sleep(0.05)
    assert len(source.issued) == 1 + replaced
