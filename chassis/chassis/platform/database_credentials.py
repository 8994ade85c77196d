"""Database credentials that never expire: the Vault lease is renewed, and replaced when Vault stops renewing it.

Migrations use another login, which owns the schema and is revoked when they are applied.
Invariant: new credentials are in use while the old ones still work, so open connections can finish. Credentials that
were revoked early are replaced as soon as Postgres rejects them.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from typing import Protocol

import structlog

from chassis.platform.validity import CHECK_SECONDS
from chassis.platform.vault import RENEWED_RATIO, Lease, Vault, retry

log = structlog.get_logger(__name__)

# If Postgres rejects every login, each rejection must not request yet another one from Vault.
_MIN_AGE_SECONDS = 5.0
_MIN_WAIT_SECONDS = 0.1

OwnerLogin = Callable[[], AbstractAsyncContextManager[Lease]]
"""Issues a login that owns the schema, for the length of a block."""


class CredentialsSource(Protocol):
    """The part of the Vault client that is needed here."""

    async def database_login(self, database_role: str) -> Lease: ...

    async def renew(self, lease: Lease) -> Lease: ...

    def on_login(self, callback: Callable[[], None]) -> None: ...


class DatabaseCredentials:
    """The current user and password of a Vault database role; `maintain()` must run in the background."""

    def __init__(self, vault: CredentialsSource, database_role: str) -> None:
        self._vault = vault
        self._database_role = database_role
        self._lease: Lease | None = None
        self._full_duration = 0.0
        self._first = asyncio.Event()
        self._callbacks: list[Callable[[], object]] = []
        self._replace_now = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        vault.on_login(self._replace_now.set)

    @property
    def lease(self) -> Lease | None:
        """The credentials to connect with now; None before the first ones were issued."""
        return self._lease

    async def ready(self) -> None:
        """Waits for the first credentials."""
        await self._first.wait()

    def on_replaced(self, callback: Callable[[], object]) -> None:
        """Calls `callback` after user and password changed, so that connections of the old user can be closed."""
        self._callbacks.append(callback)

    def login_rejected(self, message: str) -> None:
        """Requests new credentials if the error message of Postgres names the current user. Thread-safe."""
        lease = self._lease
        if lease and lease.username in message and time.monotonic() - lease.acquired > _MIN_AGE_SECONDS:
            log.warning("database login rejected, replacing it", database_role=self._database_role, user=lease.username)
            self._loop.call_soon_threadsafe(self._replace_now.set)

    async def maintain(self) -> None:
        """Renews or replaces the lease, without end. While Vault is unavailable the last credentials stay in use."""
        while True:
            await self._wait()
            if self._lease is None or self._replace_now.is_set() or not await self._renewed(self._lease):
                await self._replace()

    async def _wait(self) -> None:
        """Waits until half of the lease is over, Postgres rejected it, or a new Vault token will end it early."""
        while self._lease is not None and not self._replace_now.is_set():
            due = self._lease.left() - self._lease.duration / 2
            with suppress(TimeoutError):
                await asyncio.wait_for(self._replace_now.wait(), min(max(due, _MIN_WAIT_SECONDS), CHECK_SECONDS))
            if self._lease.left() <= self._lease.duration / 2:
                return

    async def _renewed(self, lease: Lease) -> bool:
        try:
            granted = await self._vault.renew(lease)
        except Exception as error:
            log.info("database lease not renewed", database_role=self._database_role, error=type(error).__name__)
            return False
        if granted.duration < self._full_duration * RENEWED_RATIO:
            return False
        self._lease = granted
        return True

    async def _issued(self) -> Lease:
        # Before each attempt: one that fails may last longer than the token, whose successor sets it again.
        self._replace_now.clear()
        return await self._vault.database_login(self._database_role)

    async def _replace(self) -> None:
        self._lease = await retry("database login", self._issued)
        self._full_duration = self._lease.duration
        log.info(
            "database login issued",
            database_role=self._database_role,
            user=self._lease.username,
            seconds=self._full_duration,
        )
        if self._first.is_set():
            for callback in self._callbacks:
                callback()
        self._first.set()


@asynccontextmanager
async def owner_login(vault: Vault, database_role: str) -> AsyncIterator[Lease]:
    """Issues a login of a database role and revokes it at the end of the block, together with the token of `vault`."""
    try:
        yield await retry("database login of the owner", lambda: vault.database_login(database_role))
    finally:
        await vault.close()
