"""One login that never ends: renewed, replaced in time, kept while Vault is away."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable

import pytest
from support.waiting import until

from chassis.errors import unavailable
from chassis.platform import vault
from chassis.platform.database_credentials import LeasedLogin
from chassis.platform.vault import Lease


class FakeVault:
    """Leases of `seconds`, renewable up to `most` seconds after the login."""

    def __init__(self, seconds: float, most: float) -> None:
        self.seconds, self.most = seconds, most
        self.age = 0.0
        self.away = False
        self.issued: list[Lease] = []
        self.renewed = 0
        self.tell: Callable[[], None] = lambda: None

    async def database_login(self, role: str) -> Lease:
        self._answer()
        lease = Lease(
            f"{role}-{len(self.issued)}", "x", str(len(self.issued)), self.seconds, time.monotonic() - self.age
        )
        self.issued.append(lease)
        return lease

    async def renew(self, lease: Lease) -> Lease:
        self._answer()
        self.renewed += 1
        first = self.issued[int(lease.lease_id)]
        left = min(self.seconds, first.acquired + self.most - time.monotonic())
        return Lease(lease.username, lease.password, lease.lease_id, left, time.monotonic())

    def on_login(self, callback: Callable[[], None]) -> None:
        self.tell = callback

    def _answer(self) -> None:
        if self.away:
            raise unavailable("VAULT_UNAVAILABLE", "away", 1.0)


@pytest.fixture(autouse=True)
def _hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vault, "_RETRY_SECONDS", (0.01, 0.02))


@pytest.fixture
async def keep() -> AsyncIterator[Callable[[FakeVault], LeasedLogin]]:
    tasks: list[asyncio.Task[None]] = []

    def start(source: FakeVault) -> LeasedLogin:
        login = LeasedLogin(source, "role")
        tasks.append(asyncio.create_task(login.keep()))
        return login

    yield start
    for task in tasks:
        task.cancel()


Keep = Callable[[FakeVault], LeasedLogin]


async def test_a_fresh_login_is_in_use_while_the_old_one_still_works(keep: Keep) -> None:
    source = FakeVault(seconds=0.4, most=0.4)
    login = keep(source)
    moments: list[float] = []
    login.on_fresh(lambda: moments.append(source.issued[-2].left()))
    await until("four logins", lambda: len(source.issued) >= 4)
    assert all(left > 0.1 for left in moments), moments


async def test_a_lease_is_renewed_as_long_as_it_can_be(keep: Keep) -> None:
    source = FakeVault(seconds=0.2, most=1.0)
    login = keep(source)
    await until("a second login", lambda: len(source.issued) == 2)
    assert source.renewed >= 4
    assert source.issued[1].acquired - source.issued[0].acquired > 0.7
    assert login.lease is not None
    assert login.lease.username == "role-1"


async def test_the_first_login_is_not_news(keep: Keep) -> None:
    told: list[int] = []
    login = keep(FakeVault(60, 60))
    login.on_fresh(lambda: told.append(1))
    await login.ready()
    assert told == []


async def test_while_vault_is_away_the_lease_is_kept_and_then_replaced(keep: Keep) -> None:
    source = FakeVault(seconds=0.3, most=0.3)
    login = keep(source)
    await login.ready()
    source.away = True
    await asyncio.sleep(0.5)
    assert login.lease is not None
    assert login.lease.username == "role-0"
    source.away = False
    await until("the next login", lambda: login.lease is not None and login.lease.username != "role-0", 1)


async def test_a_new_vault_token_means_a_new_login_at_once(keep: Keep) -> None:
    source = FakeVault(60, 60)
    login = keep(source)
    await login.ready()
    source.tell()
    await until("the next login", lambda: len(source.issued) == 2, 1)


def test_a_lease_does_not_print_its_password() -> None:
    assert "hunter2" not in repr(Lease("user", "hunter2", "id", 60, 0))


@pytest.mark.parametrize(
    ("user", "age", "fresh"), [("role-0", 6.0, True), ("role-0", 4.0, False), ("other", 6.0, False)]
)
async def test_a_login_that_postgres_refuses_is_replaced_unless_it_is_young_or_another(
    keep: Keep, user: str, age: float, fresh: bool
) -> None:
    source = FakeVault(seconds=60, most=60)
    source.age = age
    login = keep(source)
    await login.ready()
    assert login.lease is not None
    words = f'FATAL:  password authentication failed for user "{user}"'
    await asyncio.to_thread(login.refused, words)
    if fresh:
        await until("another login", lambda: len(source.issued) == 2)
        assert login.lease.username == "role-1"
        login.refused(words)
    await asyncio.sleep(0.05)
    assert len(source.issued) == 1 + fresh
