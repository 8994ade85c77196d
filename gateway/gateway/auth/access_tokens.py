"""Access tokens, checked here with the public keys of Vault: no call for a request.

Invariant: only EdDSA, only known keys, never past `exp`; while Vault is away the keys already known stay.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import jwt
import structlog
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from chassis.errors import RpcError, unavailable
from gateway.http.problems import Problem
from gateway.settings import Settings

log = structlog.get_logger(__name__)

KEY = "tokens"
ISSUER = "waypost"
AUDIENCE = "gateway"
_REQUIRED = ["sub", "iat", "exp", "iss", "aud"]
_REMEMBERED = 10_000


class PublicKeys(Protocol):
    """Where keys come from: `chassis.platform.vault.Vault` is one. Version to 32 bytes of ed25519."""

    async def public_keys(self, key: str) -> dict[int, bytes]: ...


@dataclass(frozen=True)
class Holder:
    """Who a token was issued to, until `ends_at` (unix time); no currency in tokens from before it was told."""

    user_id: str
    credit_currency: str
    ends_at: int


class Tokens:
    """Tells who a token belongs to; `settings` gives the settings of the moment."""

    def __init__(self, source: PublicKeys, settings: Callable[[], Settings]) -> None:
        self._source = source
        self._settings = settings
        self._keys: dict[str, Ed25519PublicKey] = {}
        self._looked_at = float("-inf")
        self._looking = asyncio.Lock()
        self._verified: dict[str, Holder] = {}

    @property
    def known(self) -> bool:
        """Whether Vault has told a key: without one, nobody can be recognised."""
        return bool(self._keys)

    async def holder_of(self, token: str) -> Holder:
        """The user a token was issued to; raises Problem, RpcError when no key was ever read."""
        known = self._verified.get(token)
        if known is None:
            known = await self._verify(token)
        if known.ends_at <= time.time():
            self._verified.pop(token, None)
            raise Problem("UNAUTHENTICATED", "The access token has expired.")
        return known

    async def follow(self) -> None:
        """Read the keys again and again, for ever."""
        while True:
            fresh = await self._look()
            settings = self._settings()
            await asyncio.sleep(settings.keys_seconds if fresh else settings.unknown_key_seconds)

    async def _verify(self, token: str) -> Holder:
        try:
            key = await self._key(jwt.get_unverified_header(token).get("kid"))
            claims = jwt.decode(
                token,
                key,
                algorithms=["EdDSA"],
                issuer=ISSUER,
                audience=AUDIENCE,
                options={"require": _REQUIRED, "verify_iat": False},
            )
        except jwt.ExpiredSignatureError:
            raise Problem("UNAUTHENTICATED", "The access token has expired.") from None
        except (jwt.PyJWTError, ValueError):
            raise Problem("UNAUTHENTICATED", "The access token is not valid.") from None
        return self._remember(token, claims)

    def _remember(self, token: str, claims: Mapping[str, Any]) -> Holder:
        if len(self._verified) >= _REMEMBERED:
            self._verified.clear()
        currency = str(claims.get("credit_currency", ""))
        self._verified[token] = Holder(str(claims["sub"]), currency, int(claims["exp"]))
        return self._verified[token]

    async def _key(self, kid: object) -> Ed25519PublicKey:
        name = str(kid)
        if name not in self._keys:
            async with self._looking:
                if time.monotonic() - self._looked_at >= self._settings().unknown_key_seconds:
                    await self._look()
        if not self._keys:
            raise unavailable("UNAVAILABLE", "no token key is known", self._settings().unknown_key_seconds)
        if name not in self._keys:
            raise jwt.InvalidKeyError(name)
        return self._keys[name]

    async def _look(self) -> bool:
        self._looked_at = time.monotonic()
        try:
            found = await self._source.public_keys(KEY)
        except RpcError as error:
            log.warning("token keys not read, the known ones stay", error=str(error))
            return False
        keys = {str(version): Ed25519PublicKey.from_public_bytes(raw) for version, raw in found.items()}
        if keys != self._keys:
            self._keys = keys
            self._verified.clear()
        return True
