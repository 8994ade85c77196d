"""The Postgres of a service: a small pool that follows the lease, and migrations applied once.

Invariant: a connection is opened with the login that is current then; after a fresh login the old connections are
finished, not cut. A database that is away is RpcError(UNAVAILABLE), within the deadline.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

import psycopg
import structlog
from grpc import StatusCode
from psycopg import AsyncConnection
from psycopg.rows import DictRow, dict_row
from psycopg_pool import AsyncConnectionPool, PoolTimeout

from chassis.backoff import backoff
from chassis.deadline import remaining, within
from chassis.errors import RpcError, deadline_exceeded, unavailable, unwritable
from chassis.platform.database_credentials import LeasedLogin
from chassis.postgres.connectivity import Reach
from chassis.postgres.cursors import TracedAsyncCursor, alive, unlimited
from chassis.postgres.migrate import migrate

if TYPE_CHECKING:
    from chassis.platform.discovery import Endpoint, Endpoints
    from chassis.process import Process

log = structlog.get_logger(__name__)

T = TypeVar("T")
Supervise = Callable[[str, Callable[[], Awaitable[None]]], object]
_WAIT_SECONDS = 3.0
_RECONNECT_SECONDS = 2.0
_STATEMENT_SECONDS = 10
# A stopped process keeps its connections, and with them every lock of a transaction that it was in.
IDLE_IN_TRANSACTION_SECONDS = 3
# A pool gives back what it did not need for a while: a connection costs Postgres 2 to 3 MB.
IDLE_SECONDS = 60.0
_RETRY_AFTER_SECONDS = 1.0
SAT_THERE = (psycopg.errors.IdleInTransactionSessionTimeout, psycopg.errors.TransactionTimeout)
"""The server has ended a connection whose transaction went on for too long."""
_LOST = (psycopg.OperationalError, psycopg.InterfaceError, *SAT_THERE)


@dataclass(frozen=True)
class Login:
    """All it takes to connect, as of now."""

    host: str
    port: int
    dbname: str
    user: str
    password: str = field(repr=False)

    def parameters(self) -> dict[str, Any]:
        """Keywords for psycopg.connect: fails fast, notices a dead peer, ends what runs or sits there for too long."""
        return {
            "host": self.host,
            "port": self.port,
            "dbname": self.dbname,
            "user": self.user,
            "password": self.password,
            "connect_timeout": 3,
            "tcp_user_timeout": 5000,
            "keepalives_idle": 10,
            "options": f"-c search_path={self.dbname} -c statement_timeout={_STATEMENT_SECONDS}s"
            f" -c idle_in_transaction_session_timeout={IDLE_IN_TRANSACTION_SECONDS}s",
            "application_name": self.dbname,
            "row_factory": dict_row,
        }


class Database:
    """One database and its schema of the same name, `name`. Made by `open`, closed with the process."""

    def __init__(self, name: str, login: LeasedLogin, servers: Endpoints, supervise: Supervise, max_size: int) -> None:
        self.name = name
        self.supervise = supervise
        self._login = login
        self._servers = servers
        self._server: Endpoint | None = None
        self._closers: list[Callable[[], Awaitable[None]]] = []
        self.reach = Reach(login.refused)
        self._pool: AsyncConnectionPool[AsyncConnection[DictRow]] = AsyncConnectionPool(
            connection_class=self.reach.noticed(),
            kwargs=lambda: {**self.login().parameters(), "cursor_factory": TracedAsyncCursor},
            min_size=1,
            max_size=max_size,
            max_idle=IDLE_SECONDS,
            open=False,
            configure=self._configure,
            check=alive,
            timeout=_WAIT_SECONDS,
            reconnect_timeout=_RECONNECT_SECONDS,
            num_workers=1,
            name=name,
        )
        self.on_fresh_login(lambda: supervise("database drain", self._pool.drain))

    @classmethod
    async def open(cls, process: Process[Any], *, name: str, max_size: int = 5) -> Database:
        """The database `name` with logins of the Vault role named like the process; waits for the first one."""
        login = LeasedLogin(process.vault, process.name)
        servers = process.discovery.endpoints("postgres")
        database = cls(name, login, servers, process.supervise, max_size)
        process.supervise("database lease", login.keep)
        await asyncio.gather(login.ready(), servers.ready(None))
        await database._pool.open()
        process.on_close(database.close)
        process.add_readiness("postgres", database.check)
        return database

    def login(self) -> Login:
        """What to connect with now; raises psycopg.OperationalError when no server or no login is known."""
        lease = self._login.lease
        # A server that fails a health check is still the only one there is.
        self._server = next(iter(self._servers.current), self._server)
        if lease is None or self._server is None:
            raise psycopg.OperationalError("no database login" if self._server else "no database server is known")
        host, _, port = self._server.address.rpartition(":")
        return Login(host, int(port), self.name, lease.username, lease.password)

    def is_current(self, connection: psycopg.BaseConnection[Any]) -> None:
        """Raise psycopg.OperationalError when a fresh login came while this connection was being opened.

        A pool that is drained in that moment takes it for a new one, and would keep a login that is about to end.
        """
        if connection.info.user != self.login().user:
            raise psycopg.OperationalError("a fresh login came meanwhile")

    def on_fresh_login(self, callback: Callable[[], object]) -> None:
        """Call `callback` when connections of the old login should be replaced."""
        self._login.on_fresh(callback)

    def on_close(self, closer: Callable[[], Awaitable[None]]) -> None:
        """Call `closer` before the pool closes."""
        self._closers.append(closer)

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[AsyncConnection[DictRow]]:
        """A connection for one transaction: committed at the end of the block, rolled back by an exception.

        Raises RpcError: UNAVAILABLE when the database is away, DEADLINE_EXCEEDED when the time is over,
        INVALID_ARGUMENT for a value that cannot be sent to it.
        """
        try:
            async with self._borrowed() as connection:
                yield connection
        except _LOST as error:
            raise away(error) from error
        except psycopg.DataError as error:
            if error.sqlstate:
                raise
            raise unwritable() from error

    async def _configure(self, connection: AsyncConnection[DictRow]) -> None:
        self.is_current(connection)

    @asynccontextmanager
    async def _borrowed(self) -> AsyncIterator[AsyncConnection[DictRow]]:
        """A pooled connection; who waits for one is sent away as soon as the server refuses to be connected to."""
        if not self._pool.get_stats()["pool_available"]:
            self.reach.check()
        getting = asyncio.create_task(self._pool.getconn(within(_WAIT_SECONDS)))
        connection = await self.reach.waited(getting, self._pool.putconn)
        try:
            unlimited(connection)
            async with connection:
                yield connection
        finally:
            await self._pool.putconn(connection)

    async def read(self, work: Callable[[AsyncConnection[DictRow]], Awaitable[T]]) -> T:
        """The result of `work(connection)`, which only reads: it is done once more when the connection was lost."""
        try:
            async with self.connection() as connection:
                return await work(connection)
        except RpcError as error:
            if not isinstance(error.__cause__, _LOST) or isinstance(error.__cause__, PoolTimeout):
                raise
        async with self.connection() as connection:
            return await work(connection)

    async def migrate(self, package: str) -> None:
        """Apply `<package>/migrations/NNN_name.sql`, each once, whoever starts first; waits for the database.

        Raises ConfigurationError naming a migration that was edited after it had been applied.
        """
        for delay in backoff(0.2, 2.0):
            if await self._migrated(package):
                return
            await asyncio.sleep(delay)

    async def check(self) -> None:
        """Raise unless the database answers."""
        async with self.connection() as connection:
            await connection.execute("SELECT 1")

    async def _migrated(self, package: str) -> bool:
        try:
            async with self.connection() as connection:
                await migrate(connection, package)
        except RpcError as error:
            log.warning("database is away, migrations wait", package=package, error=str(error))
            return False
        return True

    async def close(self) -> None:
        """Close what stands on this database, then its connections."""
        for closer in reversed(self._closers):
            await closer()
        await self._pool.close(timeout=1.0)


def away(error: BaseException) -> RpcError:
    """What a lost or missing connection, or a database without room, means to the caller."""
    cause = error.__cause__ or error
    # A statement is cancelled by its time limit, which is the deadline; the server's clock may be a moment ahead.
    cancelled = isinstance(cause, psycopg.errors.QueryCanceled) and remaining() is not None
    if cancelled or remaining() == 0:
        return deadline_exceeded()
    if isinstance(cause, psycopg.errors.DiskFull):
        # It is alive: a breaker that opened for this would refuse the reads too, which it still answers.
        full = "no room to store anything new"
        return RpcError(StatusCode.RESOURCE_EXHAUSTED, "STORAGE_FULL", full, retry_after=_RETRY_AFTER_SECONDS)
    return unavailable("DATABASE_UNAVAILABLE", f"database: {type(error).__name__}", _RETRY_AFTER_SECONDS)
