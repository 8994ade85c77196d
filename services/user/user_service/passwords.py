"""Passwords as peppered Argon2id hashes, worked out in threads: a few at once, a few wait, the rest is refused.

Invariant: checking an unknown user costs as much as checking a known one whose hash is not outdated. The pepper is a
key in Vault, so that hashes stolen with the database cannot be guessed at (NIST SP 800-63B, 5.1.1.2).
"""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from argon2 import PasswordHasher
from argon2.exceptions import Argon2Error, InvalidHashError

from user_service.settings import Settings

T = TypeVar("T")


class TooBusy(Exception):  # noqa: N818 - an answer, not a defect
    """More passwords wait than may; trying again in a moment may help."""


class Passwords:
    """Hashes and checks with one pepper; `settings` gives the settings of the moment."""

    def __init__(self, settings: Callable[[], Settings], pepper: bytes) -> None:
        self._settings = settings
        self._pepper = pepper
        self._size = settings().password_concurrency
        self._threads = ThreadPoolExecutor(self._size, thread_name_prefix="passwords")
        self._accepted = 0

    async def hash(self, password: str) -> str:
        """The encoded hash with a salt of its own; raises TooBusy."""
        return await self._work(lambda: self._hasher().hash(self._peppered(password)))

    async def matches(self, password: str, known: str | None) -> bool:
        """Whether the password belongs to the hash; None (an unknown user) takes as long and is False."""
        if known is None:
            await self.hash(password)
            return False
        return await self._work(lambda: _matches(known, self._peppered(password)))

    def outdated(self, known: str) -> bool:
        """Whether a hash that has matched costs something else than the settings say now."""
        return self._hasher().check_needs_rehash(known)

    async def _work(self, work: Callable[[], T]) -> T:
        settings = self._settings()
        if self._accepted >= settings.password_concurrency + settings.password_waiting:
            raise TooBusy("too many passwords are being checked")
        self._resize(settings.password_concurrency)
        self._accepted += 1
        loop = asyncio.get_running_loop()
        future = self._threads.submit(work)
        # Counted until the thread is free again, also when the caller went away before.
        future.add_done_callback(lambda _: loop.call_soon_threadsafe(self._finished))
        return await asyncio.wrap_future(future)

    def _resize(self, size: int) -> None:
        """Follow the setting; what waits for the threads there were is done by them still."""
        if size != self._size:
            self._threads.shutdown(wait=False)
            self._size, self._threads = size, ThreadPoolExecutor(size, thread_name_prefix="passwords")

    def _peppered(self, password: str) -> bytes:
        return hmac.digest(self._pepper, password.encode(), "sha256")

    def _finished(self) -> None:
        self._accepted -= 1

    def _hasher(self) -> PasswordHasher:
        settings = self._settings()
        return PasswordHasher(settings.password_passes, settings.password_memory_kib, parallelism=1)


def _matches(known: str, password: bytes) -> bool:
    try:
        return PasswordHasher().verify(known, password)
    except (Argon2Error, InvalidHashError):
        return False
