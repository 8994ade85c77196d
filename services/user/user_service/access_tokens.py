"""Access tokens: JWTs signed with a key that never leaves Vault.

Invariant: `kid` names the version of the key that made the signature.
"""

from __future__ import annotations

import json
import time
from base64 import urlsafe_b64encode
from collections.abc import Callable, Mapping
from typing import Protocol
from uuid import UUID

KEY = "tokens"
ISSUER = "waypost"
AUDIENCE = "gateway"
_ROTATIONS = 3


class Signer(Protocol):
    """What signs: `chassis.platform.vault.Vault` is one. Answers with the signature and the version of the key."""

    async def sign(self, key: str, payload: bytes) -> tuple[bytes, int]: ...


class Tokens:
    """Issues access tokens."""

    def __init__(self, signer: Signer, clock: Callable[[], float] = time.time) -> None:
        self._signer = signer
        self._clock = clock
        self._version = 1

    async def issue(self, user_id: UUID, credit_currency: str, lifetime: int) -> str:
        """A token for the user that is accepted for `lifetime` seconds from now.

        It tells the currency of the user's credit, which never changes, so that a wrong one is refused without a call.
        """
        now = int(self._clock())
        ends = {"iat": now, "exp": now + lifetime}
        claims = {"sub": str(user_id), "credit_currency": credit_currency, "iss": ISSUER, "aud": AUDIENCE, **ends}
        for _ in range(_ROTATIONS):
            text = self._text(claims)
            signature, version = await self._signer.sign(KEY, text)
            if version == self._version:
                return (text + b"." + _encoded(signature)).decode()
            # The key was rotated: the header, which is signed too, must name the new version.
            self._version = version
        raise RuntimeError("the token key is rotated faster than tokens are signed")

    def _text(self, claims: Mapping[str, object]) -> bytes:
        header = {"alg": "EdDSA", "typ": "JWT", "kid": str(self._version)}
        return _encoded(_json(header)) + b"." + _encoded(_json(claims))


def _encoded(raw: bytes) -> bytes:
    return urlsafe_b64encode(raw).rstrip(b"=")


def _json(part: Mapping[str, object]) -> bytes:
    return json.dumps(part, separators=(",", ":")).encode()
