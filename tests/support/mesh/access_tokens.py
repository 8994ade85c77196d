"""Access tokens as the User Service issues them, signed by a key of a test or of a measurement."""

from __future__ import annotations

import time
from typing import Any
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

    def token(self, user_id: str = "", kid: str = "1", **changes: Any) -> str:
        """Returns the access token of a user, of a new one if none is given; `changes` replace claims."""
        now = int(time.time())
        claims = {"sub": user_id or str(uuid4()), "iat": now, "exp": now + _LIFETIME_SECONDS, "iss": ISSUER,
                  "aud": AUDIENCE, CREDIT_CURRENCY_CLAIM: "EUR"}  # fmt: skip
        return jwt.encode(claims | changes, self._private, algorithm=ALGORITHM, headers={"kid": kid})
