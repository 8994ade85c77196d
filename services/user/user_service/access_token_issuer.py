"""Issues access tokens: JWTs signed with a key that never leaves Vault.

Invariant: `kid` names the version of the key that made the signature.
"""

from __future__ import annotations

import json
import time
from base64 import urlsafe_b64encode
from collections.abc import Callable, Mapping
from typing import Protocol
from uuid import UUID

from shop_contract.access_tokens import ALGORITHM, AUDIENCE, CREDIT_CURRENCY_CLAIM, ISSUER, KEY_NAME

_MAX_ATTEMPTS = 3


class Signer(Protocol):
    """Signs with a key of Vault; `chassis.platform.vault.Vault` implements it."""

    async def sign(self, key: str, payload: bytes) -> tuple[bytes, int]:
        """Returns the signature and the version of the key that made it."""


class AccessTokenIssuer:
    """Issues signed access tokens."""

    def __init__(self, signer: Signer, clock: Callable[[], float] = time.time) -> None:
        self._signer = signer
        self._clock = clock
        self._key_version = 1

    async def issue(self, user_id: UUID, credit_currency: str, lifetime: int) -> str:
        """Returns a token for the user that is valid for `lifetime` seconds from now.

        It carries the currency of the user's credit, which never changes, so that an order in another currency is
        rejected without a call. Raises RuntimeError if the key is rotated at each attempt.
        """
        now = int(self._clock())
        claims = {
            "sub": str(user_id),
            CREDIT_CURRENCY_CLAIM: credit_currency,
            "iss": ISSUER,
            "aud": AUDIENCE,
            "iat": now,
            "exp": now + lifetime,
        }
        for _ in range(_MAX_ATTEMPTS):
            unsigned = self._unsigned(claims)
            signature, version = await self._signer.sign(KEY_NAME, unsigned)
            if version == self._key_version:
                return (unsigned + b"." + _base64url(signature)).decode()
            # The key was rotated. The header is signed too, so the token is signed again under the new version.
            self._key_version = version
        raise RuntimeError("the token key is rotated faster than tokens are signed")

    def _unsigned(self, claims: Mapping[str, object]) -> bytes:
        header = {"alg": ALGORITHM, "typ": "JWT", "kid": str(self._key_version)}
        return _base64url(_json(header)) + b"." + _base64url(_json(claims))


def _base64url(raw: bytes) -> bytes:
    return urlsafe_b64encode(raw).rstrip(b"=")


def _json(part: Mapping[str, object]) -> bytes:
    return json.dumps(part, separators=(",", ":")).encode()
