"""One database login that never ends: its lease is renewed, and replaced by a fresh one before Vault stops renewing.

Invariant: a fresh login is in use while the old one still works, so whoever holds a connection finishes in peace. One
that somebody took away before its time is replaced as soon as Postgres refuses it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Protocol

import structlog

from chassis.platform.vault import CLEARLY_LESS, Lease, retried

log = structlog.get_logger(__name__)

# A Postgres that refuses every login must not make us ask for one after the other.
_YOUNG_SECONDS = 5.0


class Lessor(Protocol):
    """What this needs of Vault."""

    async def database_login(self, role: str) -> Lease: ...

    async def renew(self, lease: Lease) -> Lease: ...

    def on_login(self, callback: Callable[[], None]) -> None: ...


class LeasedLogin:
    """The current login of a Vault database role; `keep()` must run in the background."""

    def __init__(self, vault: Lessor, role: str) -> None:
        self._vault = vault
        self._role = role
        self._lease: Lease | None = None
        self._full = 0.0
        self._first = asyncio.Event()
        self._callbacks: list[Callable[[], object]] = []
        self._hurry = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        vault.on_login(self._hurry.set)

    @property
    def lease(self) -> Lease | None:
        """The login to connect with now; None before the first one."""
        return self._lease

    async def ready(self) -> None:
        """Wait for the first login."""
        await self._first.wait()

    def on_fresh(self, callback: Callable[[], object]) -> None:
        """Call `callback` after user and password changed: connections of the old login should be let go."""
        self._callbacks.append(callback)

    def refused(self, words: str) -> None:
        """Postgres refuses to let somebody in, says an error: if it is this login, get another. From any thread."""
        lease = self._lease
        if lease and lease.username in words and time.monotonic() - lease.acquired > _YOUNG_SECONDS:
            log.warning("database login refused, asking for another", role=self._role, user=lease.username)
            self._loop.call_soon_threadsafe(self._hurry.set)

    async def keep(self) -> None:
        """Hold the login for ever; while Vault is away the lease stays in use to its end, and on."""
        while True:
            await self._wait()
            if self._lease is None or self._hurry.is_set() or not await self._renewed(self._lease):
                await self._replace()

    async def _wait(self) -> None:
        """Until half of the lease is over, it was refused, or a new Vault token ends the old one's leases early."""
        if self._lease is None:
            return
        try:
            await asyncio.wait_for(self._hurry.wait(), max(self._lease.left() / 2, 0.1))
        except TimeoutError:
            return

    async def _renewed(self, lease: Lease) -> bool:
        try:
            granted = await self._vault.renew(lease)
        except Exception as error:
            log.info("database lease not renewed", role=self._role, error=type(error).__name__)
            return False
        if granted.duration < self._full * CLEARLY_LESS:
            return False
        self._lease = granted
        return True

    async def _replace(self) -> None:
        self._hurry.clear()
        self._lease = await retried("database login", lambda: self._vault.database_login(self._role))
        self._full = self._lease.duration
        log.info("database login", role=self._role, user=self._lease.username, seconds=self._full)
        if self._first.is_set():
            for callback in self._callbacks:
                callback()
        self._first.set()
