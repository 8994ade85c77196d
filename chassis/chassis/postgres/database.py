"""The Postgres database of a service: a small connection pool with credentials from Vault, and its migrations.

Invariant: each connection is opened with the current credentials. After they are replaced, old connections finish their
transaction and are closed. While the database is unavailable, callers get RpcError(UNAVAILABLE) within their deadline.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, LiteralString

import psycopg
import structlog
from grpc import StatusCode
from psycopg import AsyncConnection
from psycopg.rows import DictRow, dict_row
from psycopg_pool import PoolTimeout

from chassis.backoff import backoff
from chassis.deadline import remaining
from chassis.errors import RpcError, deadline_exceeded, unavailable, unstorable_value
from chassis.platform.database_credentials import DatabaseCredentials, OwnerLogin, owner_login
from chassis.platform.vault import Lease, Vault
from chassis.postgres.connectivity import Connectivity
from chassis.postgres.cursors import TracedAsyncCursor, reset_timeout
from chassis.postgres.migrate import MigrationBlocked, is_migrated, migrate
from chassis.postgres.pool import Pool

if TYPE_CHECKING:
    from chassis.platform.discovery import Endpoint, Endpoints
    from chassis.process import Process

log = structlog.get_logger(__name__)

Supervise = Callable[[str, Callable[[], Awaitable[None]]], object]
UNAVAILABLE_BACKOFF_SECONDS = (0.2, 2.0)
# While a migration waits for a lock, all later statements on the table wait too; between attempts they catch up.
_BLOCKED_BACKOFF_SECONDS = (1.0, 5.0)
_STATEMENT_SECONDS = 10
# A stopped (SIGSTOP) process keeps its connections, and with them every lock of an open transaction.
_IDLE_IN_TRANSACTION_SECONDS = 3
_RETRY_AFTER_SECONDS = 1.0
_CLOSE_SECONDS = 1.0
IDLE_IN_TRANSACTION = (psycopg.errors.IdleInTransactionSessionTimeout, psycopg.errors.TransactionTimeout)
"""The server has closed a connection whose transaction was open for too long."""
CONNECTION_LOST = (psycopg.OperationalError, psycopg.InterfaceError, *IDLE_IN_TRANSACTION)
"""The connection was lost, none could be obtained, or the server could not execute a statement."""


@dataclass(frozen=True)
class Login:
    """Address and credentials to connect with at this moment."""

    host: str
    port: int
    dbname: str
    user: str
    password: str = field(repr=False)

    def keywords(self) -> dict[str, Any]:
        """Returns the keywords for psycopg.connect, with limits for connecting, dead peers, statements and idleness."""
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
            f" -c idle_in_transaction_session_timeout={_IDLE_IN_TRANSACTION_SECONDS}s",
            "application_name": self.dbname,
            "row_factory": dict_row,
        }


class Database:
    """A database and its schema, both called `name`. Created by `open`, closed with the process.

    Connections use the runtime role, which reads and writes rows; `migrate` uses the owner of the schema.
    """

    def __init__(
        self,
        name: str,
        credentials: DatabaseCredentials,
        owner: OwnerLogin,
        servers: Endpoints,
        *,
        supervise: Supervise,
        max_size: int,
    ) -> None:
        self.name = name
        self.supervise = supervise
        self.connectivity = Connectivity(credentials.login_rejected)
        self._credentials = credentials
        self._owner = owner
        self._servers = servers
        self._server: Endpoint | None = None
        self.pool = Pool(
            self.connectivity,
            max_size,
            kwargs=lambda: {**self.login().keywords(), "cursor_factory": TracedAsyncCursor},
            configure=self._configure,
            name=name,
        )
        self.on_credentials_replaced(lambda: supervise("database drain", self.pool.drain))

    @classmethod
    async def open(cls, process: Process[Any], *, name: str, max_size: int = 5) -> Database:
        """Connects to database `name` with the Vault database role named like the process; waits for credentials.

        The Vault database role of the owner, and the Vault role that may request it, are named <process>-owner.
        """
        credentials = DatabaseCredentials(process.vault, process.name)
        servers = process.discovery.endpoints("postgres")
        owner, environment = f"{process.name}-owner", process.environment

        def login_as_owner() -> AbstractAsyncContextManager[Lease]:
            # Its token lasts an hour and is not renewed.
            vault = Vault(
                environment.vault_addr, owner, environment.identity_dir, lambda *_: None, environment.vault_cacert
            )
            return owner_login(vault, owner)

        database = cls(name, credentials, login_as_owner, servers, supervise=process.supervise, max_size=max_size)
        process.supervise("database credentials", credentials.maintain)
        await asyncio.gather(credentials.ready(), servers.ready(None))
        await database.pool.open()
        process.on_close(database.close)
        process.add_readiness("postgres", database.check)
        return database

    def login(self) -> Login:
        """Returns what to connect with now. Raises psycopg.OperationalError if there is no server or no credentials."""
        return self._login_with(self._credentials.lease)

    def _login_with(self, lease: Lease | None) -> Login:
        # Without a healthy server the last one is used: there is only one, and it may answer again before its check.
        self._server = next(iter(self._servers.current), self._server)
        if lease is None or self._server is None:
            raise psycopg.OperationalError("no database credentials" if self._server else "no database server found")
        host, _, port = self._server.address.rpartition(":")
        return Login(host, int(port), self.name, lease.username, lease.password)

    def on_credentials_replaced(self, callback: Callable[[], object]) -> None:
        """Calls `callback` when connections of the old user should be replaced."""
        self._credentials.on_replaced(callback)

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[AsyncConnection[DictRow]]:
        """Borrows a connection for one transaction: committed at the end of the block, rolled back by an exception.

        Raises RpcError: UNAVAILABLE if the database is unavailable, DEADLINE_EXCEEDED after the deadline,
        INVALID_ARGUMENT for a value that Postgres cannot store.
        """
        with _rpc_errors():
            async with self.pool.borrowed(autocommit=False) as connection, connection:
                reset_timeout(connection)
                yield connection

    async def fetch(self, query: LiteralString, params: Sequence[object] | Mapping[str, object] = ()) -> list[DictRow]:
        """Returns the rows of a statement that only reads, in one round trip; repeats it if the connection is lost.

        Raises RpcError as `connection` does.
        """
        try:
            with _rpc_errors():
                return await self.pool.fetch(query, params, row_factory=dict_row)
        except RpcError as error:
            if not isinstance(error.__cause__, CONNECTION_LOST) or isinstance(error.__cause__, PoolTimeout):
                raise
        with _rpc_errors():
            return await self.pool.fetch(query, params, row_factory=dict_row)

    async def change(self, query: LiteralString, params: Sequence[object] = ()) -> list[DictRow]:
        """Returns what a statement that changes rows returns; it is one transaction, in one round trip.

        Raises RpcError as `connection` does.
        """
        with _rpc_errors():
            return await self.pool.fetch(query, params, row_factory=dict_row)

    async def migrate(self, *packages: str) -> None:
        """Applies the SQL files in `<package>/migrations/`; repeats until the database and all locks are available.

        Raises ConfigurationError with the name of a migration that was edited after it had been applied.
        """
        delays, blocked_delays = backoff(*UNAVAILABLE_BACKOFF_SECONDS), backoff(*_BLOCKED_BACKOFF_SECONDS)
        while True:
            try:
                return await self._migrate(packages)
            except MigrationBlocked as error:
                log.warning("migrations wait for a lock, trying again", packages=packages, reason=str(error))
                await asyncio.sleep(next(blocked_delays))
            except RpcError as error:
                log.warning("database unavailable, retrying the migrations", packages=packages, error=str(error))
                await asyncio.sleep(next(delays))

    async def _migrate(self, packages: Sequence[str]) -> None:
        async with self.connection() as connection:
            if await is_migrated(connection, packages):
                return
        async with self._owner() as lease:
            try:
                async with await AsyncConnection.connect(**self._login_with(lease).keywords()) as connection:
                    for package in packages:
                        async with connection.transaction():
                            await migrate(connection, package)
            except CONNECTION_LOST as error:
                raise to_rpc_error(error) from error

    async def check(self) -> None:
        """Raises unless the database answers."""
        await self.fetch("SELECT 1")

    async def close(self) -> None:
        """Closes the connections; one in use is closed when it is returned."""
        await self.pool.close(timeout=_CLOSE_SECONDS)

    async def _configure(self, connection: AsyncConnection[DictRow]) -> None:
        # A pool that is drained at that moment would keep the connection, although its user is about to be dropped.
        if connection.info.user != self.login().user:
            raise psycopg.OperationalError("the credentials were replaced while the connection was opened")


@contextmanager
def _rpc_errors() -> Iterator[None]:
    try:
        yield
    except CONNECTION_LOST as error:
        raise to_rpc_error(error) from error
    except psycopg.DataError as error:
        if error.sqlstate:
            raise
        raise unstorable_value() from error


def to_rpc_error(error: BaseException) -> RpcError:
    """Returns the error for the caller when a connection is lost or missing, or when the disk is full."""
    # The timeout of a statement is the deadline, but the server's timer may fire slightly before ours.
    timed_out = isinstance(error, psycopg.errors.QueryCanceled) and remaining() is not None
    if timed_out or remaining() == 0:
        return deadline_exceeded()
    if isinstance(error, psycopg.errors.DiskFull):
        # Not UNAVAILABLE: that would open the callers' breakers, and reads still work.
        full = "the storage is full"
        return RpcError(StatusCode.RESOURCE_EXHAUSTED, "STORAGE_FULL", full, retry_after=_RETRY_AFTER_SECONDS)
    return unavailable("DATABASE_UNAVAILABLE", f"database: {type(error).__name__}", _RETRY_AFTER_SECONDS)
