"""Names both sides of an access token agree on: the User Service signs with them, the gateway verifies with them.

Invariant: the key in Vault's transit engine is `vault/engines/transit/keys/<KEY_NAME>.json`.
"""

from __future__ import annotations

from typing import Final

ISSUER: Final = "waypost"
AUDIENCE: Final = "gateway"
KEY_NAME: Final = "tokens"
ALGORITHM: Final = "EdDSA"
CREDIT_CURRENCY_CLAIM: Final = "credit_currency"
"""Private claim: the currency of the user's credit. Tokens issued before it was introduced do not carry it."""
