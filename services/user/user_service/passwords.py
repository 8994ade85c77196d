"""Hashes and checks passwords with Argon2id and a pepper, in a few threads with a bounded queue.

Invariant: a check takes as long for an unknown user as for a known one, so the time does not reveal which users exist.
The pepper is a secret in Vault, without which hashes from a stolen database cannot be attacked (NIST SP 800-63B,
5.1.1.2).
"""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from argon2 import PasswordHasher
from argon2.exceptions import Argon2Error, InvalidHashError

from chassis.settings import Live
from user_service.settings import Settings

T = TypeVar("T")


class TooBusy(Exception):  # noqa: N818 - names a temporary state
    """The queue of passwords is full; a later attempt may succeed."""


class Passwords:
    """Hashes and checks passwords with one pepper."""

    def __init__(self, settings: Live[Settings], pepper: bytes) -> None:
        self._settings = settings
        self._pepper = pepper
        self._size = settings.value.password_threads
        self._threads = ThreadPoolExecutor(self._size, thread_name_prefix="passwords")
        self._accepted = 0

    async def hash(self, password: str) -> str:
        """Returns the encoded hash with its own salt; raises TooBusy."""
        return await self._run(lambda: self._hasher().hash(self._peppered(password)))

    async def matches(self, password: str, encoded: str | None) -> bool:
        """True if the password belongs to the hash; for None (an unknown user) it takes as long and returns False."""
        if encoded is None:
            await self.hash(password)
            return False
        return await self._run(lambda: _matches(encoded, self._peppered(password)))

    def outdated(self, encoded: str) -> bool:
        """True if the hash was made at another cost than that of the current settings."""
        return self._hasher().check_needs_rehash(encoded)

    async def _run(self, work: Callable[[], T]) -> T:
        settings = self._settings.value
        if self._accepted >= settings.password_threads + settings.password_queue_size:
            raise TooBusy("too many passwords are being checked")
        self._resize(settings.password_threads)
        self._accepted += 1
        loop = asyncio.get_running_loop()
        future = self._threads.submit(work)
        # Counted until the thread is free again, also if the caller was cancelled before.
        future.add_done_callback(lambda _: loop.call_soon_threadsafe(self._finished))
        return await asyncio.wrap_future(future)

    def _resize(self, size: int) -> None:
        """Applies a changed number of threads; the former threads still do the work that was queued for them."""
        if size != self._size:
            self._threads.shutdown(wait=False)
            self._size, self._threads = size, ThreadPoolExecutor(size, thread_name_prefix="passwords")

    def _peppered(self, password: str) -> bytes:
        return hmac.digest(self._pepper, password.encode(), "sha256")

    def _finished(self) -> None:
        self._accepted -= 1

    def _hasher(self) -> PasswordHasher:
        settings = self._settings.value
        return PasswordHasher(settings.password_passes, settings.password_memory_kib, parallelism=1)


def _matches(encoded: str, password: bytes) -> bool:
    try:
        return PasswordHasher().verify(encoded, password)
    except (Argon2Error, InvalidHashError):
        return False
