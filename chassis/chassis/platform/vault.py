"""Vault (or OpenBao) client, logged in with the Nomad workload identity: secrets, signatures and database logins.

Invariant: the token is renewed, or replaced by a new login, while it is still valid; while Vault is unavailable, every
request fails without waiting for a login of the background. A request that a policy denies replaces nothing. No secret
is ever logged.
"""

from __future__ import annotations

import asyncio
import base64
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import copy_context
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import structlog

from chassis.backoff import backoff
from chassis.errors import ConfigurationError, RpcError, unavailable
from chassis.platform.identity import read_identity
from chassis.platform.single_flight import SingleFlight
from chassis.platform.validity import CHECK_SECONDS, Validity, elapsed, wall_clock

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
# Requests to a Vault that hangs occupy threads and the callers' permits. Further ones are rejected, and the threads are
# not those that other work needs.
_THREADS, _MOST_REQUESTS = 8, 16
RENEWED_RATIO = 0.75
"""Vault shortens renewals as a lease approaches its maximum; below this part of the first duration it is replaced."""


@dataclass(frozen=True)
class Lease:
    """A database login that expires `duration` seconds after `acquired` (time.monotonic) and `wall` (time.time)."""

    username: str
    password: str = field(repr=False)
    lease_id: str
    duration: float
    acquired: float
    wall: float = field(default_factory=wall_clock)

    def left(self) -> float:
        """Returns the seconds until it expires, by the clock that is ahead."""
        return self.duration - elapsed(self.acquired, self.wall)


class Vault:
    """Client of the local Vault; logs in at the first use. Raises RpcError(UNAVAILABLE) while Vault is unavailable.

    The authorities in `ca_file` (PEM) are those that an https address is trusted by.
    """

    def __init__(
        self, address: str, auth_role: str, identity_dir: Path, supervise: Supervise, ca_file: Path | None = None
    ) -> None:
        self._address = address
        self._ca_file = ca_file
        self._auth_role = auth_role
        self._identity = identity_dir / "nomad_vault.jwt"
        self._supervise = supervise
        self._client: Client | None = None
        self._full_duration = 0.0
        self._validity = Validity.from_now(0)
        self._login: SingleFlight[Client] = SingleFlight(self._log_in, *_RETRY_SECONDS)
        self._denials: dict[str, SingleFlight[None]] = {}
        self._threads = ThreadPoolExecutor(_THREADS, "vault")
        self._requests: set[Future[Any]] = set()
        self._on_login: list[Callable[[], None]] = []

    async def read_secret(self, path: str) -> dict[str, str]:
        """Returns the fields of a KV v2 secret in the mount `secret`."""
        answer = await self._request(
            f"secret {path}",
            lambda c: c.secrets.kv.v2.read_secret_version(path, mount_point="secret", raise_on_deleted_version=True),
        )
        return dict(answer["data"]["data"])

    async def sign(self, key: str, payload: bytes) -> tuple[bytes, int]:
        """Signs with a transit key; returns the ed25519 signature and the version of the key."""
        text = base64.b64encode(payload).decode()
        answer = await self._request(f"sign {key}", lambda c: c.secrets.transit.sign_data(key, hash_input=text))
        _, version, signature = answer["data"]["signature"].split(":")
        return base64.b64decode(signature), int(version.removeprefix("v"))

    async def public_keys(self, key: str) -> dict[int, bytes]:
        """Returns the public keys of a transit key by version, 32 bytes of ed25519 each."""
        answer = await self._request(f"keys {key}", lambda c: c.secrets.transit.read_key(key))
        return {int(v): base64.b64decode(k["public_key"]) for v, k in answer["data"]["keys"].items()}

    async def database_login(self, database_role: str) -> Lease:
        """Issues a login for a Vault database role. It ends with its lease, or with the token that requested it."""
        acquired, wall = time.monotonic(), time.time()
        answer = await self._request(
            f"database login {database_role}", lambda c: c.secrets.database.generate_credentials(database_role)
        )
        login = answer["data"]
        return Lease(
            login["username"],
            login["password"],
            answer["lease_id"],
            float(answer["lease_duration"]),
            acquired,
            wall,
        )

    async def sign_certificate(self, role: str, request: str, seconds: float) -> tuple[str, float]:
        """Signs a certificate request (PEM) by a role of the mount `mesh`.

        Returns the certificate with its intermediates (PEM) and the seconds for which it is valid.
        """
        answer = await self._request(
            f"certificate {role}",
            lambda c: c.secrets.pki.sign_certificate(role, request, "", {"ttl": f"{seconds:.0f}s"}, "mesh"),
        )
        made = answer["data"]
        chain = [made["certificate"], *(made.get("ca_chain") or [made["issuing_ca"]])]
        return "\n".join(pem.strip() for pem in chain) + "\n", made["expiration"] - time.time()

    async def renew(self, lease: Lease) -> Lease:
        """Extends a lease; returns it with the duration that Vault granted, which may be shorter."""
        acquired, wall = time.monotonic(), time.time()
        answer = await self._request(
            "renew lease", lambda c: c.sys.renew_lease(lease.lease_id, increment=int(lease.duration))
        )
        return replace(lease, duration=float(answer["lease_duration"]), acquired=acquired, wall=wall)

    def on_login(self, callback: Callable[[], None]) -> None:
        """Calls `callback` after each login but the first: leases of the previous token end with that token."""
        self._on_login.append(callback)

    async def close(self) -> None:
        """Revokes the token, which ends all its leases; gives up after a second."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        if self._client is None:
            return
        try:
            await asyncio.wait_for(asyncio.to_thread(self._client.auth.token.revoke_self), _CLOSE_SECONDS)
        except Exception as error:
            log.debug("vault token not revoked", error=type(error).__name__)

    async def _request(self, name: str, request: Callable[[Client], Any]) -> Any:
        """Returns the answer; logs in again and repeats the request if Vault no longer knows the token.

        `name` identifies the request in the log and in the memory of denials.
        """
        from hvac import exceptions  # noqa: PLC0415 - 60 ms, and not every process needs Vault

        unavailable_errors = (OSError, exceptions.VaultDown, exceptions.InternalServerError, exceptions.BadGateway)
        client = await self._logged_in(None)
        try:
            try:
                return await self._in_thread(request, client)
            except exceptions.Forbidden:
                await self._require_rejected(name, client)
                return await self._in_thread(request, await self._logged_in(client))
        except unavailable_errors as error:
            raise _unavailable("vault", error) from error

    async def _require_rejected(self, name: str, client: Client) -> None:
        """Returns if the token of `client` has ended. Raises hvac's Forbidden if a policy denies the request.

        Vault answers 403 to both, so it is asked for the token itself, at most once per backoff and request.
        """
        if client is self._client:
            if name not in self._denials:
                self._denials[name] = SingleFlight(lambda: self._check_denial(name), *_RETRY_SECONDS)
            await self._denials[name]()

    async def _check_denial(self, name: str) -> None:
        from hvac import exceptions  # noqa: PLC0415 - as above

        client = await self._logged_in(None)
        try:
            await self._in_thread(lambda c: c.auth.token.lookup_self(), client)
        except exceptions.Forbidden:
            return
        log.warning("vault denies a request by policy", request=name)
        raise exceptions.Forbidden(f"permission denied by a policy of Vault: {name}")

    async def _in_thread(self, request: Callable[[Client], Any], client: Client) -> Any:
        if len(self._requests) >= _MOST_REQUESTS:
            raise unavailable("VAULT_UNAVAILABLE", "vault: too many requests wait for it", _RETRY_AFTER_SECONDS)
        future = self._threads.submit(copy_context().run, request, client)
        # It counts until its thread is free, also after the deadline of its caller.
        self._requests.add(future)
        future.add_done_callback(self._requests.discard)
        return await asyncio.wrap_future(future)

    async def _logged_in(self, rejected: Client | None) -> Client:
        """Returns the current client; logs in first if there is none or if the current one is the `rejected` one.

        Raises RpcError(UNAVAILABLE); after a failed login without another attempt until its backoff is over.
        """
        if self._client is None or self._client is rejected:
            return await self._login()
        return self._client

    async def _log_in(self) -> Client:
        """Replaces the client; calls the callbacks unless it is the first one."""
        is_first, validity = self._client is None, Validity.from_now(0)
        try:
            client, seconds = await asyncio.to_thread(self._new_client)
        except ConfigurationError:
            raise
        except Exception as error:
            # Vault may reject a valid identity when it cannot fetch Nomad's keys, or one that is just being rotated.
            raise _unavailable("vault login", error) from error
        self._client, self._full_duration = client, seconds
        self._validity = replace(validity, seconds=seconds)
        if is_first:
            self._supervise("vault token", self._keep_token)
        else:
            for callback in self._on_login:
                callback()
        return client

    def _new_client(self) -> tuple[Client, float]:
        import hvac  # noqa: PLC0415 - 60 ms, here in a thread
        import requests  # noqa: PLC0415 - loaded with hvac

        session = requests.Session()
        session.trust_env = False
        # hvac ignores its own `verify` where it is given a session.
        session.verify = str(self._ca_file) if self._ca_file else True
        client = hvac.Client(self._address, token="", timeout=_TIMEOUT_SECONDS, session=session)
        answer = client.auth.jwt.jwt_login(self._auth_role, read_identity(self._identity), path=AUTH_MOUNT)
        return client, float(answer["auth"]["lease_duration"])

    async def _keep_token(self) -> None:
        """Renews the token after two thirds of its duration; logs in again if Vault clearly shortens the renewals."""
        while self._full_duration > 0:
            client, due = self._client, self._validity.left() - self._validity.seconds / 3
            if due > 0:
                await asyncio.sleep(min(due, CHECK_SECONDS))
            elif not await self._renewed(client):
                await retry("vault login", lambda rejected=client: self._logged_in(rejected))  # type: ignore[misc]

    async def _renewed(self, client: Any) -> bool:
        """Extends the token of `client`; returns False if Vault does not, or only for a clearly shorter time."""
        validity = Validity.from_now(0)
        try:
            answer = await self._in_thread(lambda c: c.auth.token.renew_self(), client)
        except Exception as error:
            log.info("vault token not renewed", error=type(error).__name__)
            return False
        granted = float(answer["auth"]["lease_duration"])
        if granted < self._full_duration * RENEWED_RATIO:
            return False
        if self._client is client:
            self._validity = replace(validity, seconds=granted)
        return True


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
