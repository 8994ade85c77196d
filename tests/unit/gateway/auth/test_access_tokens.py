"""Access tokens: everything but a living one of our own is refused, Vault or no Vault."""

from __future__ import annotations

import time
from base64 import urlsafe_b64encode
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from chassis.errors import unavailable

from ..backend_services import FakeVault
from ..system import running

if TYPE_CHECKING:
    from ..system import System

AWAY = unavailable("VAULT_UNAVAILABLE", "vault is away", 1)


def token(vault: FakeVault, kid: str = "1", key: Ed25519PrivateKey | None = None, **changes: Any) -> str:
    """A token of ours, or with `changes` (None leaves a claim out) one that is not."""
    now = int(time.time())
    claims = {"sub": str(uuid4()), "iat": now, "exp": now + 60, "iss": "waypost", "aud": "gateway"} | changes
    claims = {name: value for name, value in claims.items() if value is not None}
    return jwt.encode(claims, key or vault.keys[1], algorithm="EdDSA", headers={"kid": kid})


def unsigned() -> str:
    parts = ('{"alg":"none","kid":"1"}', f'{{"sub":"x","exp":{int(time.time()) + 60}}}')
    return ".".join(urlsafe_b64encode(part.encode()).decode().rstrip("=") for part in parts) + "."


def symmetric(vault: FakeVault) -> str:
    # The classic: the public key, which anyone may know, used as the secret of an HMAC.
    claims = {"sub": str(uuid4()), "iat": 0, "exp": 2**33, "iss": "waypost", "aud": "gateway"}
    secret = vault.keys[1].public_key().public_bytes_raw()
    return jwt.encode(claims, secret, algorithm="HS256", headers={"kid": "1"})


async def me(system: System, authorization: str) -> int:
    answer = await system.http.get("/v1/users/me", headers={"authorization": authorization})
    if answer.status_code == 401:
        assert answer.headers["www-authenticate"] == "Bearer"
        assert answer.json()["type"] == "/problems/unauthenticated"
    return answer.status_code


@pytest.mark.parametrize("authorization", ["", "Bearer", "Basic YTpi", "Bearer x", "Bearer a.b.c", "Bearer ä"])
async def test_what_is_no_token_is_refused(system: System, authorization: str) -> None:
    answer = await system.http.get("/v1/users/me", headers={b"authorization": authorization.encode()})
    assert answer.status_code == 401


async def test_a_token_from_before_the_currency_was_told_places_orders(system: System) -> None:
    headers = {"authorization": f"Bearer {token(system.vault)}"}
    assert (await system.place(headers, currency="USD")).status_code == 201


async def test_forged_tokens_are_refused(system: System) -> None:
    vault, stranger = system.vault, Ed25519PrivateKey.generate()
    forged = [
        unsigned(),
        symmetric(vault),
        token(vault, key=stranger),
        token(vault, kid="9"),
        token(vault, kid="../1"),
        token(vault)[:-4] + "AAAA",
    ]
    assert [await me(system, f"Bearer {each}") for each in forged] == [401] * len(forged)


@pytest.mark.parametrize(
    "changes",
    [
        {"exp": 1},
        {"exp": None},
        {"iat": None},
        {"sub": None},
        {"iss": "else"},
        {"iss": None},
        {"aud": "else"},
        {"aud": None},
        {"nbf": 2**33},
        {"sub": 7},
    ],
)
async def test_a_token_with_a_wrong_claim_is_refused(system: System, changes: dict[str, Any]) -> None:
    assert await me(system, f"Bearer {token(system.vault, **changes)}") == 401


async def test_a_token_is_refused_from_the_second_it_expires(system: System, monkeypatch: Any) -> None:
    header = (await system.token())["authorization"]
    assert await me(system, header) == 200
    now = time.time()
    monkeypatch.setattr("gateway.auth.access_tokens.time.time", lambda: now + 3601)
    assert await me(system, header) == 401


async def test_a_token_of_a_user_who_is_gone_is_refused(system: System) -> None:
    assert await me(system, f"Bearer {token(system.vault)}") == 401


async def test_a_rotated_key_is_learned_when_its_first_token_comes(system: System) -> None:
    await system.token()
    system.vault.rotate()
    system.process.settings.replace(system.process.settings.value.model_copy(update={"unknown_key_seconds": 0.0}))
    assert await me(system, (await system.token("eve@example.com"))["authorization"]) == 200


async def test_unknown_keys_do_not_become_calls_to_vault(system: System) -> None:
    header = (await system.token())["authorization"]
    await me(system, header)
    system.change(unknown_key_seconds=60.0)
    reads = system.vault.reads
    for number in range(2, 20):
        assert await me(system, f"Bearer {token(system.vault, kid=str(number))}") == 401
    assert system.vault.reads == reads


async def test_while_vault_is_away_known_keys_stay(system: System) -> None:
    header = (await system.token())["authorization"]
    assert await me(system, header) == 200
    system.vault.away = AWAY
    assert await me(system, f"Bearer {token(system.vault, kid='9')}") == 401
    assert await me(system, header) == 200


async def test_without_any_key_a_token_can_not_be_judged(spans: object) -> None:
    vault = FakeVault()
    vault.away = AWAY
    async with running(vault) as system:
        answer = await system.http.get("/v1/users/me", headers={"authorization": f"Bearer {token(vault)}"})
    assert (answer.status_code, answer.json()["type"]) == (503, "/problems/unavailable")
    assert int(answer.headers["retry-after"]) >= 1
