"""What both sides of an access token agree on: the User Service signs it, the gateway and the services verify it.

Invariant: the key in Vault's transit engine is `vault/engines/transit/keys/<KEY_NAME>.json`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

ISSUER: Final = "waypost"
AUDIENCE: Final = "gateway"
"""The gateway, and the services that it passes a token on to."""
KEY_NAME: Final = "tokens"
ALGORITHM: Final = "EdDSA"
CREDIT_CURRENCY_CLAIM: Final = "credit_currency"
"""Private claim: the currency of the user's credit. Tokens issued before it was introduced do not carry it."""

_LATEST_DATE = 2**53
_USER_ID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.IGNORECASE)
_CURRENCY = re.compile(r"[A-Z]{3}")


@dataclass(frozen=True)
class Principal:
    """The user of a request, as the access token states it; valid until `expires_at` (Unix time).

    The currency is empty in a token that was issued before the claim existed.
    """

    user_id: str
    credit_currency: str
    expires_at: int


@dataclass(frozen=True)
class AccessTokenFormat:
    """What a verifier has to know (`chassis.auth.access_token_verifier.TokenFormat`)."""

    key_name: str = KEY_NAME
    algorithm: str = ALGORITHM
    issuer: str = ISSUER
    audience: str = AUDIENCE

    def principal(self, claims: Mapping[str, Any]) -> Principal:
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
