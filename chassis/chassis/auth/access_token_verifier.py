"""Verifies access tokens with the public keys of Vault, without a call per request.

Invariant: a token is accepted only with the algorithm of its format, a known key and before `exp`. While Vault is
unavailable, the known keys stay in use.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from typing import Any, Generic, Protocol, TypeVar

import grpc
import jwt
import structlog
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from chassis.auth.acting_user import Principal, token_expired
from chassis.errors import RpcError, unavailable
from chassis.settings import Live, ProcessSettings

log = structlog.get_logger(__name__)

P = TypeVar("P", bound=Principal)
P_co = TypeVar("P_co", bound=Principal, covariant=True)
S = TypeVar("S", bound=ProcessSettings)

_REQUIRED_CLAIMS = ["sub", "iat", "exp", "iss", "aud"]
_MOST_CACHED = 10_000
# PyJWT converts dates with int() and parses JSON without a limit of its depth, and raises all of these.
_INVALID = (jwt.PyJWTError, ValueError, TypeError, OverflowError, RecursionError)


class PublicKeySource(Protocol):
    """Reads public keys; `chassis.platform.vault.Vault` implements it."""

    async def public_keys(self, key: str) -> dict[int, bytes]:
        """Returns the 32 bytes of each version of an ed25519 key."""


class TokenFormat(Protocol[P_co]):
    """What the tokens of a system look like."""

    @property
    def key_name(self) -> str:
        """The key of Vault's transit engine, whose version is the `kid` of a token."""

    @property
    def algorithm(self) -> str:
        """The only accepted `alg`."""

    @property
    def issuer(self) -> str:
        """The only accepted `iss`."""

    @property
    def audience(self) -> str:
        """What `aud` must name."""

    def principal(self, claims: Mapping[str, Any]) -> P_co:
        """Returns the user; raises ValueError if a claim has not the form in which tokens are issued."""


class AccessTokenVerifier(Generic[P]):
    """Returns the principal of a valid token; keeps the public keys up to date.

    A verified token is not verified again until it expires; at most 10,000 are remembered.
    """

    def __init__(self, source: PublicKeySource, token_format: TokenFormat[P], settings: Live[S]) -> None:
        self._source = source
        self._format = token_format
        self._settings = settings
        self._keys: dict[str, Ed25519PublicKey] = {}
        self._unknown_key_at = float("-inf")
        self._reading = asyncio.Lock()
        self._verified: dict[str, P] = {}

    def readiness(self) -> str | None:
        """Readiness probe: returns the reason while no token can be verified."""
        return None if self._keys else "none was read yet"

    def known(self, token: str) -> P | None:
        """Returns the principal of a token that was verified before and has not expired, otherwise None."""
        principal = self._verified.get(token)
        return principal if principal is not None and principal.expires_at > time.time() else None

    async def verify(self, token: str) -> P:
        """Returns the token's principal.

        Raises RpcError: UNAUTHENTICATED (TOKEN_INVALID, TOKEN_EXPIRED), or UNAVAILABLE if no key was read yet.
        """
        principal = self._verified.get(token)
        if principal is None:
            principal = await self._verify(token)
        if principal.expires_at <= time.time():
            self._verified.pop(token, None)
            raise token_expired()
        return principal

    async def refresh_keys(self) -> None:
        """Reads the keys repeatedly until it is cancelled."""
        while True:
            succeeded = await self._read_keys()
            settings = self._settings.value
            await asyncio.sleep(settings.token_keys_refresh_seconds if succeeded else settings.token_keys_retry_seconds)

    async def _verify(self, token: str) -> P:
        try:
            key = await self._key(jwt.get_unverified_header(token).get("kid"))
            claims = jwt.decode(
                token,
                key,
                algorithms=[self._format.algorithm],
                issuer=self._format.issuer,
                audience=self._format.audience,
                options={"require": _REQUIRED_CLAIMS, "verify_iat": False},
            )
            return self._cache(token, self._format.principal(claims))
        except jwt.ExpiredSignatureError:
            raise token_expired() from None
        except _INVALID:
            raise RpcError(grpc.StatusCode.UNAUTHENTICATED, "TOKEN_INVALID", "The access token is not valid.") from None

    def _cache(self, token: str, principal: P) -> P:
        if len(self._verified) >= _MOST_CACHED:
            del self._verified[next(iter(self._verified))]  # the oldest
        self._verified[token] = principal
        return principal

    async def _key(self, kid: object) -> Ed25519PublicKey:
        name = str(kid)
        retry_seconds = self._settings.value.token_keys_retry_seconds
        if name not in self._keys:
            async with self._reading:
                await self._read_unknown(name, retry_seconds)
        if not self._keys:
            raise unavailable("UNAVAILABLE", "no token key has been read yet", retry_seconds)
        if name not in self._keys:
            raise jwt.InvalidKeyError(name)
        return self._keys[name]

    async def _read_unknown(self, name: str, retry_seconds: float) -> None:
        """Reads the keys if an unknown one may be a new version; forged names cause no more than a call an interval.

        Only such reads count, so that the first token of a new version is accepted whenever the last refresh was.
        """
        if name not in self._keys and time.monotonic() - self._unknown_key_at >= retry_seconds:
            self._unknown_key_at = time.monotonic()
            await self._read_keys()

    async def _read_keys(self) -> bool:
        try:
            found = await self._source.public_keys(self._format.key_name)
        except Exception as error:  # Vault's own for a policy that denies it, for example
            log.warning("token keys could not be read, the known keys stay in use", error=repr(error)[:200])
            return False
        keys = {str(version): Ed25519PublicKey.from_public_bytes(raw) for version, raw in found.items()}
        if keys != self._keys:
            self._keys = keys
            self._verified.clear()
        return True
