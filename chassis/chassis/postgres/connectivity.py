"""Database connectivity: remembers whether the pool's last attempt to connect found a server.

Invariant: if an attempt finds no server, all callers that wait for a connection fail immediately, and new callers fail
without waiting for a short time. With the pool alone, each of them would wait for its whole timeout.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import psycopg
from psycopg import AsyncConnection
from psycopg.rows import DictRow

C = TypeVar("C")

_FAILURE_VALID_SECONDS = 0.3
_NO_SERVER = ("connection refused", "starting up", "shutting down")  # fragile: psycopg-error-text
# Postgres answers the same for an unknown user. A failed attempt to connect has no SQLSTATE, so its text must do.
_LOGIN_REJECTED = "password authentication failed"  # fragile: psycopg-error-text
_UNREACHABLE = "the database refuses connections"


class Connectivity:
    """The state of one database; `login_rejected` is called with the error message when Postgres rejects a login."""

    def __init__(self, login_rejected: Callable[[str], None]) -> None:
        self._login_rejected = login_rejected
        self._failed_until = 0.0
        self._waiting: set[asyncio.Future[None]] = set()
        self._releasing: set[asyncio.Future[None]] = set()

    def connect_failed(self, error: psycopg.Error) -> None:
        """Records a failed attempt to connect; if it found no server, fails all callers that wait for a connection."""
        message = str(error)
        if _LOGIN_REJECTED in message:
            self._login_rejected(message)
        if not any(text in message.lower() for text in _NO_SERVER):
            return
        self._failed_until = time.monotonic() + _FAILURE_VALID_SECONDS
        for failure in list(self._waiting):
            if not failure.done():
                failure.set_result(None)

    def connect_succeeded(self) -> None:
        """Records that a connection was opened."""
        self._failed_until = 0.0

    def check(self) -> None:
        """Raises psycopg.OperationalError if an attempt has just failed."""
        if time.monotonic() < self._failed_until:
            raise psycopg.OperationalError(_UNREACHABLE)

    async def acquire(self, getting: asyncio.Task[C], release: Callable[[C], Awaitable[None]]) -> C:
        """Returns the result of `getting`. Raises psycopg.OperationalError as soon as an attempt to connect fails.

        `getting` is cancelled but not awaited, because psycopg's pool sometimes swallows a cancellation; a connection
        that it still obtains is passed to `release`.
        """
        failure = asyncio.get_running_loop().create_future()
        self._waiting.add(failure)
        obtained = False
        try:
            await asyncio.wait({getting, failure}, return_when=asyncio.FIRST_COMPLETED)
            obtained = getting.done()
        finally:
            self._waiting.discard(failure)
            if not obtained:
                getting.cancel()
                getting.add_done_callback(lambda task: self._release_late(task, release))
        if not obtained:
            raise psycopg.OperationalError(_UNREACHABLE)
        return getting.result()

    def connection_class(self) -> type[AsyncConnection[DictRow]]:
        """Returns a connection class for pools that reports each attempt to connect here."""
        connectivity = self

        class ReportingConnection(AsyncConnection[DictRow]):
            @classmethod
            async def connect(cls, *args: Any, **options: Any) -> Any:
                try:
                    connection = await super().connect(*args, **options)
                except psycopg.Error as error:
                    connectivity.connect_failed(error)
                    raise
                connectivity.connect_succeeded()
                return connection

        return ReportingConnection

    def _release_late(self, getting: asyncio.Task[C], release: Callable[[C], Awaitable[None]]) -> None:
        if not getting.cancelled() and getting.exception() is None:
            task = asyncio.ensure_future(release(getting.result()))
            self._releasing.add(task)
            task.add_done_callback(self._releasing.discard)
