"""Postgres notifications: LISTEN on a channel wakes readers immediately; without a connection they only poll."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import structlog
from psycopg import AsyncConnection, OperationalError
from psycopg.sql import SQL, Identifier

from chassis.backoff import backoff

if TYPE_CHECKING:
    from chassis.postgres.database import Database

log = structlog.get_logger(__name__)

_BACKOFF_SECONDS = (0.5, 2.0)
_READ_SECONDS = 0.05


class Wakeup:
    """One-shot event that a notification sets."""

    def __init__(self) -> None:
        self._event = asyncio.Event()

    def set(self) -> None:
        """Wakes all waiting readers."""
        self._event.set()

    async def wait(self, timeout: float) -> None:  # noqa: ASYNC109 - returns, never raises
        """Waits until it is set, at most `timeout` seconds."""
        try:
            await asyncio.wait_for(self._event.wait(), timeout)
        except TimeoutError:
            return


class Notifications:
    """Listens on one channel with a connection of its own, shared by all readers of the process."""

    def __init__(self, database: Database, channel: str) -> None:
        self._database = database
        self._channel = channel
        self._wakeup = Wakeup()
        self._started = False
        self._event = asyncio.Event()
        self.listening = False
        """True while notifications arrive; otherwise readers have to poll."""
        self._replacing = False

    def start(self) -> None:
        """Starts to listen; only the first call has an effect."""
        if not self._started:
            self._started = True
            self._database.supervise(f"listen {self._channel}", self._listen)
            self._database.on_credentials_replaced(self._reconnect)

    def wakeup(self) -> Wakeup:
        """Returns the next wake-up. Obtain it before you query, so that a row that arrives meanwhile is not missed."""
        return self._wakeup

    async def _listen(self) -> None:
        delays = backoff(*_BACKOFF_SECONDS)
        while True:
            self.listening = self._replacing = False
            try:
                await self._follow()
            except OperationalError as error:
                if self._replacing:
                    continue
                log.debug("LISTEN failed, readers poll", channel=self._channel, error=type(error).__name__)
                if self.listening:
                    delays = backoff(*_BACKOFF_SECONDS)
                self.listening = False
                self._wake()  # readers poll from now on
                await asyncio.sleep(next(delays))

    async def _follow(self) -> None:
        keywords = self._database.login().keywords()
        async with await AsyncConnection.connect(**keywords, autocommit=True) as connection:
            await connection.execute(SQL("LISTEN {}").format(Identifier(self._channel)))
            self.listening = True
            while not self._replacing:
                self._wake()
                await self._readable_or_replacing(connection.fileno())
                # Without a limit psycopg would look for notifications ten times a second.
                async for _ in connection.notifies(timeout=_READ_SECONDS, stop_after=1):
                    pass

    def _wake(self) -> None:
        self._wakeup.set()
        self._wakeup = Wakeup()

    async def _readable_or_replacing(self, descriptor: int) -> None:
        loop = asyncio.get_running_loop()
        self._event.clear()
        loop.add_reader(descriptor, self._event.set)
        try:
            await self._event.wait()
        finally:
            loop.remove_reader(descriptor)

    def _reconnect(self) -> None:
        """Ends the connection of the old login, which makes `_listen` open a new one."""
        self._replacing = True
        self._event.set()
