"""Vault (or OpenBao) by workload identity: secrets, signatures and database logins, each with its lease.

Invariant: a token is renewed, or replaced by a new login, while the old one is still good; nothing is logged of either.
"""

from __future__ import annotations

import asyncio
import base64
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import structlog

from chassis.backoff import backoff
from chassis.errors import ConfigurationError, RpcError, unavailable
from chassis.platform.identity import read_identity

if TYPE_CHECKING:
    from hvac import Client

log = structlog.get_logger(__name__)

T = TypeVar("T")
MOUNT = "jwt-nomad"
_TIMEOUT_SECONDS = 5
_RETRY_AFTER_SECONDS = 2.0
_RETRY_SECONDS = (0.2, 3.0)
CLEARLY_LESS = 0.75


@dataclass(frozen=True)
class Lease:
    """A database login with an end: `duration` seconds after `acquired` (time.monotonic) it stops working."""

    username: str
    password: str = field(repr=False)
    lease_id: str
    duration: float
    acquired: float

    def left(self) -> float:
        """Seconds until it ends."""
        return self.acquired + self.duration - time.monotonic()


Supervise = Callable[[str, Callable[[], Awaitable[None]]], object]


class Vault:
    """The Vault beside this process; logs in at the first use. A Vault that is away: RpcError(UNAVAILABLE)."""

    def __init__(self, address: str, role: str, identity_dir: Path, supervise: Supervise) -> None:
        self._address = address
        self._role = role
        self._identity = identity_dir / "nomad_vault.jwt"
        self._supervise = supervise
        self._client: Client | None = None
        self._logging_in = asyncio.Lock()
        self._on_login: list[Callable[[], None]] = []

    async def read_secret(self, path: str) -> dict[str, str]:
        """The fields of a KV v2 secret under mount `secret`."""
        answer = await self._ask(
            lambda c: c.secrets.kv.v2.read_secret_version(path, mount_point="secret", raise_on_deleted_version=True)
        )
        return dict(answer["data"]["data"])

    async def sign(self, key: str, payload: bytes) -> tuple[bytes, int]:
        """An ed25519 signature by a transit key, with the version of the key that made it."""
        text = base64.b64encode(payload).decode()
        answer = await self._ask(lambda c: c.secrets.transit.sign_data(key, hash_input=text))
        _, version, signature = answer["data"]["signature"].split(":")
        return base64.b64decode(signature), int(version.removeprefix("v"))

    async def public_keys(self, key: str) -> dict[int, bytes]:
        """The public halves of a transit key: version to 32 bytes of ed25519."""
        answer = await self._ask(lambda c: c.secrets.transit.read_key(key))
        return {int(v): base64.b64decode(k["public_key"]) for v, k in answer["data"]["keys"].items()}

    async def database_login(self, role: str) -> Lease:
        """A fresh login of a database role. It ends with its lease, or with the token that asked for it."""
        acquired = time.monotonic()
        answer = await self._ask(lambda c: c.secrets.database.generate_credentials(role))
        login = answer["data"]
        return Lease(
            login["username"],
            login["password"],
            answer["lease_id"],
            float(answer["lease_duration"]),
            acquired,
        )

    async def renew(self, lease: Lease) -> Lease:
        """The same login with a new end, as late as Vault grants it."""
        acquired = time.monotonic()
        answer = await self._ask(lambda c: c.sys.renew_lease(lease.lease_id, increment=int(lease.duration)))
        return Lease(lease.username, lease.password, lease.lease_id, float(answer["lease_duration"]), acquired)

    def on_login(self, callback: Callable[[], None]) -> None:
        """Call `callback` after each later login: leases of the token before it end when that token does."""
        self._on_login.append(callback)

    async def close(self) -> None:
        """End the token, and with it every lease it holds; a Vault that is away is not waited for."""
        if self._client is None:
            return
        try:
            await asyncio.wait_for(asyncio.to_thread(self._client.auth.token.revoke_self), 1.0)
        except Exception as error:
            log.debug("vault token was not revoked", error=type(error).__name__)

    async def _ask(self, request: Callable[[Client], Any]) -> Any:
        from hvac import exceptions  # noqa: PLC0415 - 60 ms, and not every process needs Vault

        away = (OSError, exceptions.VaultDown, exceptions.InternalServerError, exceptions.BadGateway)
        client = await self._login(None)
        try:
            try:
                return await asyncio.to_thread(request, client)
            except exceptions.Forbidden:
                # A token that ended early looks the same as a denial, so a fresh login settles which it was.
                return await asyncio.to_thread(request, await self._login(client))
        except away as error:
            raise _away("vault", error) from error

    async def _login(self, refused: Client | None) -> Client:
        """The client in use; a newly logged in one when there is none yet or the one in use was `refused`."""
        async with self._logging_in:
            if self._client is None:
                self._client, ttl = await self._fresh_client()
                self._supervise("vault token", lambda: self._keep_token(ttl))
            elif self._client is refused:
                await self._replace_client()
            return self._client

    async def _replace_client(self) -> float:
        self._client, ttl = await self._fresh_client()
        for callback in self._on_login:
            callback()
        return ttl

    async def _fresh_client(self) -> tuple[Client, float]:
        try:
            return await asyncio.to_thread(self._log_in)
        except ConfigurationError:
            raise
        except Exception as error:
            # A refused login may be Vault not reaching Nomad's keys, or an identity about to be rotated.
            raise _away("vault login", error) from error

    def _log_in(self) -> tuple[Client, float]:
        import hvac  # noqa: PLC0415 - runs in a thread, off the start path
        import requests  # noqa: PLC0415

        session = requests.Session()
        session.trust_env = False
        client = hvac.Client(self._address, token="", timeout=_TIMEOUT_SECONDS, session=session)
        answer = client.auth.jwt.jwt_login(self._role, read_identity(self._identity), path=MOUNT)
        return client, float(answer["auth"]["lease_duration"])

    async def _keep_token(self, ttl: float) -> None:
        """Renew at two thirds of the token's life; log in again once Vault grants clearly less than at first."""
        full = granted = ttl
        while granted > 0:
            await asyncio.sleep(granted * 2 / 3)
            granted = await self._renewed_token(self._client)
            if granted < full * CLEARLY_LESS:
                async with self._logging_in:
                    full = granted = await retried("vault login", self._replace_client)

    async def _renewed_token(self, client: Any) -> float:
        """The seconds granted; 0 when Vault says no or nothing, which a fresh login answers better."""
        try:
            answer = await asyncio.to_thread(client.auth.token.renew_self)
            return float(answer["auth"]["lease_duration"])
        except Exception as error:
            log.info("vault token not renewed", error=type(error).__name__)
            return 0.0


def _away(what: str, error: Exception) -> RpcError:
    return unavailable("VAULT_UNAVAILABLE", f"{what}: {type(error).__name__}", _RETRY_AFTER_SECONDS)


async def retried(what: str, work: Callable[[], Awaitable[T]]) -> T:
    """Repeat `work` with growing pauses until it succeeds; each failure is logged by its kind, never its content."""
    for delay in backoff(*_RETRY_SECONDS):
        try:
            return await work()
        except Exception as error:
            log.warning("failed, trying again", what=what, error=type(error).__name__)
        await asyncio.sleep(delay)
    raise AssertionError("unreachable: backoff has no end")
