"""Access tokens as the User Service issues them, signed by a key of the measurement."""

from __future__ import annotations

import time
from uuid import uuid4

import jwt
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from shop_contract.access_tokens import ALGORITHM, AUDIENCE, CREDIT_CURRENCY_CLAIM, ISSUER

_LIFETIME_SECONDS = 86_400


class TokenKey:
    """An Ed25519 key; `public` has its 32 public bytes."""

    def __init__(self) -> None:
        self._private = Ed25519PrivateKey.generate()
        self.public = self._private.public_key().public_bytes_raw()

    def token(self) -> str:
        """Returns the access token of a new user."""
        now = int(time.time())
        claims = {"sub": str(uuid4()), "iat": now, "exp": now + _LIFETIME_SECONDS, "iss": ISSUER, "aud": AUDIENCE,
                  CREDIT_CURRENCY_CLAIM: "EUR"}  # fmt: skip
        return jwt.encode(claims, self._private, algorithm=ALGORITHM, headers={"kid": "1"})
