"""Verifies access tokens with the public keys of Vault, without a call per request.

Invariant: a token is accepted only with EdDSA, a known key and before `exp`. While Vault is unavailable, the known keys
stay in use.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import jwt
import structlog
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from chassis.errors import RpcError, unavailable
from chassis.settings import Live
from gateway.http.problems import Problem
from gateway.settings import Settings
from shop_contract.access_tokens import ALGORITHM, AUDIENCE, CREDIT_CURRENCY_CLAIM, ISSUER, KEY_NAME

log = structlog.get_logger(__name__)

_REQUIRED_CLAIMS = ["sub", "iat", "exp", "iss", "aud"]
_MAX_CACHED = 10_000
_LATEST_DATE = 2**53
_USER_ID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.IGNORECASE)
_CURRENCY = re.compile(r"[A-Z]{3}")
# PyJWT converts dates with int() and parses JSON without a limit of its depth, and raises all of these.
_INVALID = (jwt.PyJWTError, ValueError, TypeError, OverflowError, RecursionError)


class PublicKeySource(Protocol):
    """Reads public keys; `chassis.platform.vault.Vault` implements it."""

    async def public_keys(self, key: str) -> dict[int, bytes]:
        """Returns the 32 bytes of each version of an ed25519 key."""


@dataclass(frozen=True)
class Principal:
    """The user of a request, as the access token states it; valid until `expires_at` (Unix time).

    The currency is empty in a token that was issued before the claim existed.
    """

    user_id: str
    credit_currency: str
    expires_at: int


class AccessTokenVerifier:
    """Returns the principal of a valid token; keeps the public keys up to date."""

    def __init__(self, source: PublicKeySource, settings: Live[Settings]) -> None:
        self._source = source
        self._settings = settings
        self._keys: dict[str, Ed25519PublicKey] = {}
        self._keys_read_at = float("-inf")
        self._reading = asyncio.Lock()
        self._verified: dict[str, Principal] = {}

    @property
    def has_keys(self) -> bool:
        """True once a key was read; before that no token can be verified."""
        return bool(self._keys)

    def known(self, token: str) -> Principal | None:
        """Returns the principal of a token that was verified before and has not expired, otherwise None."""
        principal = self._verified.get(token)
        return principal if principal is not None and principal.expires_at > time.time() else None

    async def verify(self, token: str) -> Principal:
        """Returns the token's principal; raises Problem if it is not valid, RpcError if no key was read yet."""
        principal = self._verified.get(token)
        if principal is None:
            principal = await self._verify(token)
        if principal.expires_at <= time.time():
            self._verified.pop(token, None)
            raise Problem("UNAUTHENTICATED", "The access token has expired.")
        return principal

    async def refresh_keys(self) -> None:
        """Reads the keys repeatedly until it is cancelled."""
        while True:
            succeeded = await self._read_keys()
            settings = self._settings.value
            await asyncio.sleep(settings.token_keys_refresh_seconds if succeeded else settings.token_keys_retry_seconds)

    async def _verify(self, token: str) -> Principal:
        try:
            key = await self._key(jwt.get_unverified_header(token).get("kid"))
            claims = jwt.decode(
                token,
                key,
                algorithms=[ALGORITHM],
                issuer=ISSUER,
                audience=AUDIENCE,
                options={"require": _REQUIRED_CLAIMS, "verify_iat": False},
            )
            return self._cache(token, _principal(claims))
        except jwt.ExpiredSignatureError:
            raise Problem("UNAUTHENTICATED", "The access token has expired.") from None
        except _INVALID:
            raise Problem("UNAUTHENTICATED", "The access token is not valid.") from None

    def _cache(self, token: str, principal: Principal) -> Principal:
        if len(self._verified) >= _MAX_CACHED:
            self._verified.clear()
        self._verified[token] = principal
        return principal

    async def _key(self, kid: object) -> Ed25519PublicKey:
        name = str(kid)
        retry_seconds = self._settings.value.token_keys_retry_seconds
        if name not in self._keys:
            # An unknown key may be a new version; the interval keeps forged names from becoming calls to Vault.
            async with self._reading:
                if time.monotonic() - self._keys_read_at >= retry_seconds:
                    await self._read_keys()
        if not self._keys:
            raise unavailable("UNAVAILABLE", "no token key has been read yet", retry_seconds)
        if name not in self._keys:
            raise jwt.InvalidKeyError(name)
        return self._keys[name]

    async def _read_keys(self) -> bool:
        self._keys_read_at = time.monotonic()
        try:
            found = await self._source.public_keys(KEY_NAME)
        except RpcError as error:
            log.warning("token keys could not be read, the known keys stay in use", error=str(error))
            return False
        keys = {str(version): Ed25519PublicKey.from_public_bytes(raw) for version, raw in found.items()}
        if keys != self._keys:
            self._keys = keys
            self._verified.clear()
        return True


def _principal(claims: Mapping[str, Any]) -> Principal:
    """Returns the principal; raises ValueError if a claim has not the form in which the User Service issues it.

    A JSON string may hold characters that no protobuf string can, such as a lone surrogate.
    """
    user_id, currency, expires_at = claims["sub"], claims.get(CREDIT_CURRENCY_CLAIM), claims["exp"]
    if not isinstance(user_id, str) or not _USER_ID.fullmatch(user_id):
        raise ValueError("sub is not the id of a user")
    if currency is not None and not (isinstance(currency, str) and _CURRENCY.fullmatch(currency)):
        raise ValueError(f"{CREDIT_CURRENCY_CLAIM} is not a currency")
    if type(expires_at) not in (int, float) or expires_at > _LATEST_DATE:
        raise ValueError("exp is not a date")
    return Principal(user_id.lower(), currency or "", int(expires_at))
