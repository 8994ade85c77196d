"""Whether the database can be connected to, as each attempt of a pool to open a connection tells.

Invariant: when an attempt fails, who waits for a connection is sent away; for a moment nobody else begins to wait.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import psycopg
from psycopg import AsyncConnection, Connection
from psycopg.rows import DictRow

C = TypeVar("C")

_BELIEVED_SECONDS = 0.3
_NOBODY = ("connection refused", "starting up", "shutting down")
_REFUSED = "the database refuses connections"
_LOGIN_REFUSED = "password authentication failed"  # also where there is no such user; a failed connect has no SQLSTATE


class Reach:
    """Shared by the pools of one database; `failed`, `worked` and `check` may come from any thread.

    `login_refused` is called, in such a thread, with the words in which Postgres refused a login.
    """

    def __init__(self, login_refused: Callable[[str], None]) -> None:
        self._login_refused = login_refused
        self._believed_until = 0.0
        self._waiting: set[asyncio.Future[None]] = set()
        self._returning: set[asyncio.Future[None]] = set()

    def failed(self, error: psycopg.Error) -> None:
        """An attempt to connect has failed; only one that found no server sends others away."""
        words = str(error)
        if _LOGIN_REFUSED in words:
            self._login_refused(words)
        if not any(sign in words.lower() for sign in _NOBODY):
            return
        self._believed_until = time.monotonic() + _BELIEVED_SECONDS
        for refused in list(self._waiting):
            refused.get_loop().call_soon_threadsafe(_send_away, refused)

    def worked(self) -> None:
        """A connection was opened."""
        self._believed_until = 0.0

    def check(self) -> None:
        """Raise psycopg.OperationalError when an attempt has just failed."""
        if time.monotonic() < self._believed_until:
            raise psycopg.OperationalError(_REFUSED)

    async def waited(self, getting: asyncio.Task[C], give_back: Callable[[C], Awaitable[None]]) -> C:
        """The connection that `getting` gets; raises psycopg.OperationalError as soon as there is no hope for it.

        A pool swallows a cancellation now and then: it is left to end by itself, and what it still gets is given back.
        """
        refused = asyncio.get_running_loop().create_future()
        self._waiting.add(refused)
        taken = False
        try:
            await asyncio.wait({getting, refused}, return_when=asyncio.FIRST_COMPLETED)
            taken = getting.done()
        finally:
            self._waiting.discard(refused)
            if not taken:
                getting.cancel()
                getting.add_done_callback(lambda late: self._return(late, give_back))
        if not taken:
            raise psycopg.OperationalError(_REFUSED)
        return getting.result()

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

    def _return(self, late: asyncio.Task[C], give_back: Callable[[C], Awaitable[None]]) -> None:
        if not late.cancelled() and late.exception() is None:
            task = asyncio.ensure_future(give_back(late.result()))
            self._returning.add(task)
            task.add_done_callback(self._returning.discard)


def _send_away(refused: asyncio.Future[None]) -> None:
    if not refused.done():
        refused.set_result(None)
