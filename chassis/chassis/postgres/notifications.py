"""LISTEN on a Postgres channel, so that a reader wakes at once; while it cannot, readers poll."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import structlog
from psycopg import AsyncConnection, OperationalError
from psycopg.sql import SQL, Identifier

if TYPE_CHECKING:
    from chassis.postgres.database import Database

log = structlog.get_logger(__name__)

_RECONNECT_SECONDS = 1.0


class Bell:
    """Rings once, for whoever took it before the news."""

    def __init__(self) -> None:
        self._rung = asyncio.Event()

    def ring(self) -> None:
        """Wake everyone who waits."""
        self._rung.set()

    async def wait(self, longest: float) -> None:
        """Until it rings, at most `longest` seconds."""
        try:
            await asyncio.wait_for(self._rung.wait(), longest)
        except TimeoutError:
            return


class Listener:
    """One connection of its own for each process that follows a channel."""

    def __init__(self, database: Database, channel: str) -> None:
        self._database = database
        self._channel = channel
        self._bell = Bell()
        self._task: object = None
        self._connection: AsyncConnection[object] | None = None
        self._renewing = False

    def start(self) -> None:
        """Begin to listen, once."""
        if self._task is None:
            self._task = self._database.supervise(f"listen {self._channel}", self._listen)
            self._database.on_fresh_login(self._renew)

    def bell(self) -> Bell:
        """Take it before looking for news: what arrives while you look will ring it."""
        return self._bell

    async def _listen(self) -> None:
        while True:
            try:
                await self._follow()
            except OperationalError as error:
                if not self._renewing:
                    log.debug("not listening, readers poll", channel=self._channel, error=type(error).__name__)
                    await asyncio.sleep(_RECONNECT_SECONDS)

    async def _follow(self) -> None:
        self._renewing = False
        parameters = self._database.login().parameters()
        async with await AsyncConnection.connect(**parameters, autocommit=True) as connection:
            self._connection = connection
            await connection.execute(SQL("LISTEN {}").format(Identifier(self._channel)))
            async for _ in connection.notifies():
                self._bell.ring()
                self._bell = Bell()

    def _renew(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            self._renewing = True
            self._database.supervise(f"listen {self._channel} anew", connection.close)
