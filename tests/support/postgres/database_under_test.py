"""A chassis Database on a private Postgres, without a process: a fake Vault issues users that exist in the server."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from support.postgres.private_postgres import Postgres

from chassis.platform.database_credentials import DatabaseCredentials, OwnerLogin
from chassis.platform.discovery import Endpoint, Endpoints
from chassis.platform.vault import Lease
from chassis.postgres.database import Database


class FakeVault:
    """Creates a database user for each login, valid for `seconds`; renews leases unless `renewable` is False."""

    def __init__(self, postgres: Postgres, seconds: float) -> None:
        self.postgres = postgres
        self.seconds = seconds
        self.renewable = True
        self.issued: list[Lease] = []
        self.new_token: Callable[[], None] = lambda: None
        self._numbers = itertools.count(int(time.time() * 1000) % 10**9)

    async def database_login(self, database_role: str) -> Lease:
        user = f"v_{next(self._numbers)}"
        await asyncio.to_thread(self.postgres.execute, f"CREATE ROLE {user} LOGIN IN ROLE {database_role}",
                                f"ALTER ROLE {user} SET role = '{database_role}'")  # fmt: skip
        lease = Lease(user, "unused", user, self.seconds, time.monotonic())
        self.issued.append(lease)
        return lease

    def owner_login(self, database_role: str) -> OwnerLogin:
        """Issues logins that own the schema, and deletes each as OpenBao does when it is given back."""

        @asynccontextmanager
        async def login() -> AsyncIterator[Lease]:
            lease = await self.database_login(database_role)
            try:
                yield lease
            finally:
                await asyncio.to_thread(self.postgres.execute, f"DROP ROLE {lease.username}")

        return login

    async def renew(self, lease: Lease) -> Lease:
        left = self.seconds if self.renewable else lease.left()
        return Lease(lease.username, lease.password, lease.lease_id, left, time.monotonic())

    def on_login(self, callback: Callable[[], None]) -> None:
        self.new_token = callback


class DatabaseUnderTest:
    """The Database with all it is made of: the fake Vault, the credentials, the server's address.

    `role` is the database role of its logins, by default the runtime role of the schema.
    """

    def __init__(
        self, postgres: Postgres, name: str, seconds: float = 3600, connections: int = 5, role: str = ""
    ) -> None:
        self.vault = FakeVault(postgres, seconds)
        self.servers = Endpoints("postgres")
        self.servers.replace((Endpoint("postgres", f"127.0.0.1:{postgres.port}"),))
        self.credentials = DatabaseCredentials(self.vault, role or f"{name}_runtime")
        self.tasks: list[asyncio.Task[None]] = []
        self.database = Database(
            name,
            self.credentials,
            self.vault.owner_login(name),
            self.servers,
            supervise=self.supervise,
            max_size=connections,
        )

    def supervise(self, _name: str, work: Callable[[], Awaitable[None]]) -> asyncio.Task[None]:
        async def run() -> None:
            await work()

        task = asyncio.create_task(run())
        self.tasks.append(task)
        return task

    async def start(self) -> None:
        self.supervise("database credentials", self.credentials.maintain)
        await self.credentials.ready()
        await self.database.pool.open()

    async def stop(self) -> None:
        await self.database.close()
        for task in self.tasks:
            task.cancel()
        await asyncio.wait(self.tasks)


@asynccontextmanager
async def database_under_test(
    postgres: Postgres, name: str, seconds: float = 3600, connections: int = 5, role: str = ""
) -> AsyncIterator[DatabaseUnderTest]:
    """Run one until the block ends. Its leases last `seconds`, its pool has at most `connections`."""
    made = DatabaseUnderTest(postgres, name, seconds, connections, role)
    await made.start()
    try:
        yield made
    finally:
        await made.stop()
