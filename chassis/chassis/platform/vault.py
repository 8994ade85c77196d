"""Vault (or OpenBao) client, logged in with the Nomad workload identity: secrets, signatures and database logins.

Invariant: the token is renewed, or replaced by a new login, while it is still valid. No secret is ever logged.
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
Supervise = Callable[[str, Callable[[], Awaitable[None]]], object]

AUTH_MOUNT = "jwt-nomad"
_TIMEOUT_SECONDS = 5
_RETRY_AFTER_SECONDS = 2.0
_RETRY_SECONDS = (0.2, 3.0)
_CLOSE_SECONDS = 1.0
RENEWED_RATIO = 0.75
"""Vault shortens renewals as a lease approaches its maximum; below this part of the first duration it is replaced."""


@dataclass(frozen=True)
class Lease:
    """A database login that expires `duration` seconds after `acquired` (time.monotonic)."""

    username: str
    password: str = field(repr=False)
    lease_id: str
    duration: float
    acquired: float

    def left(self) -> float:
        """Returns the seconds until it expires."""
        return self.acquired + self.duration - time.monotonic()


class Vault:
    """Client of the local Vault; logs in at the first use. Raises RpcError(UNAVAILABLE) while Vault is unavailable."""

    def __init__(self, address: str, auth_role: str, identity_dir: Path, supervise: Supervise) -> None:
        self._address = address
        self._auth_role = auth_role
        self._identity = identity_dir / "nomad_vault.jwt"
        self._supervise = supervise
        self._client: Client | None = None
        self._login_lock = asyncio.Lock()
        self._on_login: list[Callable[[], None]] = []

    async def read_secret(self, path: str) -> dict[str, str]:
        """Returns the fields of a KV v2 secret in the mount `secret`."""
        answer = await self._request(
            lambda c: c.secrets.kv.v2.read_secret_version(path, mount_point="secret", raise_on_deleted_version=True)
        )
        return dict(answer["data"]["data"])

    async def sign(self, key: str, payload: bytes) -> tuple[bytes, int]:
        """Signs with a transit key; returns the ed25519 signature and the version of the key."""
        text = base64.b64encode(payload).decode()
        answer = await self._request(lambda c: c.secrets.transit.sign_data(key, hash_input=text))
        _, version, signature = answer["data"]["signature"].split(":")
        return base64.b64decode(signature), int(version.removeprefix("v"))

    async def public_keys(self, key: str) -> dict[int, bytes]:
        """Returns the public keys of a transit key by version, 32 bytes of ed25519 each."""
        answer = await self._request(lambda c: c.secrets.transit.read_key(key))
        return {int(v): base64.b64decode(k["public_key"]) for v, k in answer["data"]["keys"].items()}

    async def database_login(self, database_role: str) -> Lease:
        """Issues a login for a Vault database role. It ends with its lease, or with the token that requested it."""
        acquired = time.monotonic()
        answer = await self._request(lambda c: c.secrets.database.generate_credentials(database_role))
        login = answer["data"]
        return Lease(
            login["username"],
            login["password"],
            answer["lease_id"],
            float(answer["lease_duration"]),
            acquired,
        )

    async def renew(self, lease: Lease) -> Lease:
        """Extends a lease; returns it with the duration that Vault granted, which may be shorter."""
        acquired = time.monotonic()
        answer = await self._request(lambda c: c.sys.renew_lease(lease.lease_id, increment=int(lease.duration)))
        return Lease(lease.username, lease.password, lease.lease_id, float(answer["lease_duration"]), acquired)

    def on_login(self, callback: Callable[[], None]) -> None:
        """Calls `callback` after each login but the first: leases of the previous token end with that token."""
        self._on_login.append(callback)

    async def close(self) -> None:
        """Revokes the token, which ends all its leases; gives up after a second."""
        if self._client is None:
            return
        try:
            await asyncio.wait_for(asyncio.to_thread(self._client.auth.token.revoke_self), _CLOSE_SECONDS)
        except Exception as error:
            log.debug("vault token not revoked", error=type(error).__name__)

    async def _request(self, request: Callable[[Client], Any]) -> Any:
        from hvac import exceptions  # noqa: PLC0415 - 60 ms, and not every process needs Vault

        unavailable_errors = (OSError, exceptions.VaultDown, exceptions.InternalServerError, exceptions.BadGateway)
        client = await self._login(None)
        try:
            try:
                return await asyncio.to_thread(request, client)
            except exceptions.Forbidden:
                # Vault answers 403 both to an expired token and to a denied request: retry once with a new token.
                return await asyncio.to_thread(request, await self._login(client))
        except unavailable_errors as error:
            raise _unavailable("vault", error) from error

    async def _login(self, rejected: Client | None) -> Client:
        """Returns the current client; logs in first if there is none or if the current one is the `rejected` one."""
        async with self._login_lock:
            if self._client is None:
                self._client, ttl = await self._new_client()
                self._supervise("vault token", lambda: self._keep_token(ttl))
            elif self._client is rejected:
                await self._replace_client()
            return self._client

    async def _replace_client(self) -> float:
        self._client, ttl = await self._new_client()
        for callback in self._on_login:
            callback()
        return ttl

    async def _new_client(self) -> tuple[Client, float]:
        try:
            return await asyncio.to_thread(self._log_in)
        except ConfigurationError:
            raise
        except Exception as error:
            # Vault may reject a valid identity when it cannot fetch Nomad's keys, or one that is just being rotated.
            raise _unavailable("vault login", error) from error

    def _log_in(self) -> tuple[Client, float]:
        import hvac  # noqa: PLC0415 - 60 ms, here in a thread
        import requests  # noqa: PLC0415 - loaded with hvac

        session = requests.Session()
        session.trust_env = False
        client = hvac.Client(self._address, token="", timeout=_TIMEOUT_SECONDS, session=session)
        answer = client.auth.jwt.jwt_login(self._auth_role, read_identity(self._identity), path=AUTH_MOUNT)
        return client, float(answer["auth"]["lease_duration"])

    async def _keep_token(self, ttl: float) -> None:
        """Renews the token after two thirds of its duration; logs in again once Vault clearly shortens the renewals."""
        full = granted = ttl
        while granted > 0:
            await asyncio.sleep(granted * 2 / 3)
            granted = await self._renewed_token(self._client)
            if granted < full * RENEWED_RATIO:
                async with self._login_lock:
                    full = granted = await retry("vault login", self._replace_client)

    async def _renewed_token(self, client: Any) -> float:
        """Returns the seconds that Vault granted; 0 if the renewal failed, which leads to a new login."""
        try:
            answer = await asyncio.to_thread(client.auth.token.renew_self)
            return float(answer["auth"]["lease_duration"])
        except Exception as error:
            log.info("vault token not renewed", error=type(error).__name__)
            return 0.0


def _unavailable(operation: str, error: Exception) -> RpcError:
    return unavailable("VAULT_UNAVAILABLE", f"{operation}: {type(error).__name__}", _RETRY_AFTER_SECONDS)


async def retry(operation: str, work: Callable[[], Awaitable[T]]) -> T:
    """Repeats `work` with backoff until it succeeds. Only the type of an error is logged: its text may hold secrets."""
    for delay in backoff(*_RETRY_SECONDS):
        try:
            return await work()
        except Exception as error:
            log.warning("vault request failed, retrying", operation=operation, error=type(error).__name__)
        await asyncio.sleep(delay)
    raise AssertionError("unreachable: backoff has no end")
