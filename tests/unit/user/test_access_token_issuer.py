"""Access tokens have the right claims and name the key that signed them."""

from __future__ import annotations

from typing import TYPE_CHECKING
from uuid import uuid4

import jwt
import pytest

from user_service.access_token_issuer import AccessTokenIssuer

if TYPE_CHECKING:
    from .conftest import Service


async def test_a_key_that_is_rotated_at_each_signature_raises_an_error(service: Service) -> None:
    class RotatingSigner:
        version = 1

        async def sign(self, key: str, payload: bytes) -> tuple[bytes, int]:
            self.version += 1
            return b"", self.version

    with pytest.raises(RuntimeError):
        await AccessTokenIssuer(RotatingSigner()).issue(uuid4(), "EUR", 60)


async def test_a_token_claims_its_user_and_its_lifetime(service: Service) -> None:
    user_id = uuid4()
    token = await AccessTokenIssuer(service.signer, clock=lambda: 1000.9).issue(user_id, "EUR", 60)
    claims = jwt.decode(token, options={"verify_signature": False})
    assert claims == {
        "sub": str(user_id),
        "credit_currency": "EUR",
        "iat": 1000,
        "exp": 1060,
        "iss": "waypost",
        "aud": "gateway",
    }


async def test_a_token_verifies_under_the_key_its_header_names_also_after_a_rotation(service: Service) -> None:
    issuer = AccessTokenIssuer(service.signer)
    for version in (1, 2, 3):
        token = await issuer.issue(uuid4(), "EUR", 60)
        assert jwt.get_unverified_header(token) == {"alg": "EdDSA", "typ": "JWT", "kid": str(version)}
        public = service.signer.keys[version].public_key()
        jwt.decode(token, public, algorithms=["EdDSA"], audience="gateway", issuer="waypost")
        service.signer.rotate()
