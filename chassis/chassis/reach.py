"""Whether the database can be connected to, as each attempt of a pool to open a connection tells.

Invariant: when an attempt fails, who waits for a connection is sent away; for a moment nobody else begins to wait.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import psycopg
from psycopg import AsyncConnection, Connection
from psycopg.rows import DictRow

_BELIEVED_SECONDS = 0.3
_NOBODY = ("connection refused", "starting up", "shutting down")
_REFUSED = "the database refuses connections"


class Reach:
    """Shared by the pools of one database; `failed`, `worked` and `check` may come from any thread."""

    def __init__(self) -> None:
        self._believed_until = 0.0
        self._waiting: dict[asyncio.Timeout, asyncio.AbstractEventLoop] = {}

    def failed(self, error: psycopg.Error) -> None:
        """An attempt to connect has failed; only one that found no server counts: a login may be refused by mistake."""
        if not any(sign in str(error).lower() for sign in _NOBODY):
            return
        self._believed_until = time.monotonic() + _BELIEVED_SECONDS
        for wait, loop in list(self._waiting.items()):
            loop.call_soon_threadsafe(self._send_away, wait)

    def worked(self) -> None:
        """A connection was opened."""
        self._believed_until = 0.0

    def check(self) -> None:
        """Raise psycopg.OperationalError when an attempt has just failed."""
        if time.monotonic() < self._believed_until:
            raise psycopg.OperationalError(_REFUSED)

    @asynccontextmanager
    async def patience(self, idle: int) -> AsyncIterator[None]:
        """Around waiting for a connection, of which `idle` are free: psycopg.OperationalError when there is no hope."""
        if not idle:
            self.check()
        try:
            async with asyncio.timeout(None) as wait:
                self._waiting[wait] = asyncio.get_running_loop()
                try:
                    yield
                finally:
                    self._waiting.pop(wait, None)
        except TimeoutError:
            raise psycopg.OperationalError(_REFUSED) from None

    def noticed(self) -> type[AsyncConnection[DictRow]]:
        """A class of connections whose opening is noticed here."""
        reach = self

        class Noticed(AsyncConnection[DictRow]):
            @classmethod
            async def connect(cls, *args: Any, **options: Any) -> Any:
                try:
                    connection = await super().connect(*args, **options)
                except psycopg.Error as error:
                    reach.failed(error)
                    raise
                reach.worked()
                return connection

        return Noticed

    def noticed_sync(self) -> type[Connection[DictRow]]:
        """The same for sync connections."""
        reach = self

        class Noticed(Connection[DictRow]):
            @classmethod
            def connect(cls, *args: Any, **options: Any) -> Any:
                try:
                    connection = super().connect(*args, **options)
                except psycopg.Error as error:
                    reach.failed(error)
                    raise
                reach.worked()
                return connection

        return Noticed

    def _send_away(self, wait: asyncio.Timeout) -> None:
        # Taken out here: two attempts may fail before who waits has left, and a wait ends once.
        if self._waiting.pop(wait, None):
            wait.reschedule(asyncio.get_running_loop().time())
