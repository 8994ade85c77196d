"""Only valid access tokens of the User Service are accepted, whether Vault is available or not."""

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
from ..running_gateway import running

if TYPE_CHECKING:
    from ..running_gateway import RunningGateway

UNAVAILABLE = unavailable("VAULT_UNAVAILABLE", "vault is unavailable", 1)


def token(vault: FakeVault, kid: str = "1", key: Ed25519PrivateKey | None = None, **changes: Any) -> str:
    """Returns a valid token, or an invalid one by `changes`, of which None removes a claim."""
    now = int(time.time())
    claims = {"sub": str(uuid4()), "iat": now, "exp": now + 60, "iss": "waypost", "aud": "gateway"} | changes
    claims = {name: value for name, value in claims.items() if value is not None}
    return jwt.encode(claims, key or vault.keys[1], algorithm="EdDSA", headers={"kid": kid})


def unsigned() -> str:
    parts = ('{"alg":"none","kid":"1"}', f'{{"sub":"x","exp":{int(time.time()) + 60}}}')
    return ".".join(urlsafe_b64encode(part.encode()).decode().rstrip("=") for part in parts) + "."


def symmetric(vault: FakeVault) -> str:
    # A known attack: the public key, which is no secret, used as the key of an HMAC.
    claims = {"sub": str(uuid4()), "iat": 0, "exp": 2**33, "iss": "waypost", "aud": "gateway"}
    secret = vault.keys[1].public_key().public_bytes_raw()
    return jwt.encode(claims, secret, algorithm="HS256", headers={"kid": "1"})


async def me(gateway: RunningGateway, authorization: str) -> int:
    response = await gateway.http.get("/v1/users/me", headers={"authorization": authorization})
    if response.status_code == 401:
        assert response.headers["www-authenticate"] == "Bearer"
        assert response.json()["type"] == "/problems/unauthenticated"
    return response.status_code


@pytest.mark.parametrize("authorization", ["", "Bearer", "Basic YTpi", "Bearer x", "Bearer a.b.c", "Bearer ä"])
async def test_a_malformed_token_is_rejected(gateway: RunningGateway, authorization: str) -> None:
    response = await gateway.http.get("/v1/users/me", headers={b"authorization": authorization.encode()})
    assert response.status_code == 401


async def test_a_token_without_the_currency_claim_places_orders(gateway: RunningGateway) -> None:
    headers = {"authorization": f"Bearer {token(gateway.vault)}"}
    assert (await gateway.place(headers, currency="USD")).status_code == 201


async def test_forged_tokens_are_rejected(gateway: RunningGateway) -> None:
    vault, stranger = gateway.vault, Ed25519PrivateKey.generate()
    forged = [
        unsigned(),
        symmetric(vault),
        token(vault, key=stranger),
        token(vault, kid="9"),
        token(vault, kid="../1"),
        token(vault)[:-4] + "AAAA",
    ]
    assert [await me(gateway, f"Bearer {each}") for each in forged] == [401] * len(forged)


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
        {"sub": "\ud800"},
        {"sub": "\udcff" + str(uuid4())[1:]},
        {"sub": str(uuid4()) + "\ud800"},
        {"sub": str(uuid4()) + "\n"},
        {"sub": "\x00"},
        {"sub": ""},
        {"sub": "nobody"},
        {"sub": "\u0660" * 8 + str(uuid4())[8:]},
        {"sub": [str(uuid4())]},
        {"iss": "\ud800"},
        {"aud": "\ud800"},
        {"aud": ["gateway", "\ud800", 7]},
        {"credit_currency": "\ud800"},
        {"credit_currency": "EU\udcff"},
        {"credit_currency": "EUR\n"},
        {"credit_currency": "euro"},
        {"credit_currency": ""},
        {"credit_currency": 978},
        {"credit_currency": ["EUR"]},
        {"exp": "\ud800"},
        {"exp": "9" * 12},
        {"exp": [2**33]},
        {"exp": {}},
        {"exp": True},
        {"exp": float("inf")},
        {"exp": float("nan")},
        {"exp": 10**400},
        {"nbf": float("inf")},
        {"nbf": float("nan")},
        {"nbf": []},
        {"nbf": "\ud800"},
    ],
)
async def test_a_token_with_a_wrong_claim_is_rejected(gateway: RunningGateway, changes: dict[str, Any]) -> None:
    assert await me(gateway, f"Bearer {token(gateway.vault, **changes)}") == 401


ROUTES = [("GET", "/v1/users/me"), ("GET", "/v1/orders"), ("POST", "/v1/orders"), ("GET", "/v1/orders/{}"),
          ("POST", "/v1/orders/{}/cancel"), ("GET", "/v1/orders/{}/events"),
          ("GET", "/v1/orders/{}/watch")]  # fmt: skip


@pytest.mark.parametrize("changes", [{"sub": "\ud800"}, {"credit_currency": "\ud800"}])
@pytest.mark.parametrize(("verb", "path"), ROUTES)
async def test_a_token_with_a_lone_surrogate_is_rejected_by_every_route(
    gateway: RunningGateway, verb: str, path: str, changes: dict[str, Any]
) -> None:
    headers = {"authorization": f"Bearer {token(gateway.vault, **changes)}", "idempotency-key": "k"}
    body = {"currency": "EUR", "lines": [{"sku": "tea", "quantity": 1, "unit_price": 1}]}
    response = await gateway.http.request(verb, path.format(uuid4()), headers=headers, json=body)
    assert (response.status_code, response.json()["type"]) == (401, "/problems/unauthenticated")


@pytest.mark.parametrize("part", [b'{"kid":"\\ud800"}', b'{"kid":["1"]}', b'{"kid":null}', b"[" * 4000, b"7", b"\xff"])
async def test_a_token_with_an_impossible_header_is_rejected(gateway: RunningGateway, part: bytes) -> None:
    rest = token(gateway.vault).partition(".")[2]
    assert await me(gateway, f"Bearer {urlsafe_b64encode(part).decode().rstrip('=')}.{rest}") == 401


@pytest.mark.parametrize("payload", [b"[" * 4000, b"7", b"\xff", b"null", b'{"sub":"\xff"}'])
async def test_a_signed_token_with_an_impossible_payload_is_rejected(gateway: RunningGateway, payload: bytes) -> None:
    signed = jwt.PyJWS().encode(payload, gateway.vault.keys[1], algorithm="EdDSA", headers={"kid": "1"})
    assert await me(gateway, f"Bearer {signed}") == 401


async def test_a_token_is_rejected_from_the_second_it_expires(gateway: RunningGateway, monkeypatch: Any) -> None:
    header = (await gateway.token())["authorization"]
    assert await me(gateway, header) == 200
    now = time.time()
    monkeypatch.setattr("chassis.auth.access_token_verifier.time.time", lambda: now + 3601)
    assert await me(gateway, header) == 401


async def test_a_token_of_a_user_who_does_not_exist_is_rejected(gateway: RunningGateway) -> None:
    assert await me(gateway, f"Bearer {token(gateway.vault)}") == 401


async def test_a_rotated_key_is_read_when_its_first_token_arrives(gateway: RunningGateway) -> None:
    await gateway.token()
    gateway.vault.rotate()
    gateway.process.settings.replace(
        gateway.process.settings.value.model_copy(update={"token_keys_retry_seconds": 0.0})
    )
    assert await me(gateway, (await gateway.token("eve@example.com"))["authorization"]) == 200


async def test_unknown_keys_do_not_become_calls_to_vault(gateway: RunningGateway) -> None:
    header = (await gateway.token())["authorization"]
    await me(gateway, header)
    gateway.change(token_keys_retry_seconds=60.0)
    await me(gateway, f"Bearer {token(gateway.vault, kid='2')}")
    reads = gateway.vault.reads
    for number in range(2, 20):
        assert await me(gateway, f"Bearer {token(gateway.vault, kid=str(number))}") == 401
    assert gateway.vault.reads == reads


async def test_known_keys_stay_in_use_while_vault_is_unavailable(gateway: RunningGateway) -> None:
    header = (await gateway.token())["authorization"]
    assert await me(gateway, header) == 200
    gateway.vault.error = UNAVAILABLE
    assert await me(gateway, f"Bearer {token(gateway.vault, kid='9')}") == 401
    assert await me(gateway, header) == 200


async def test_without_any_key_a_request_with_a_token_is_503(spans: object) -> None:
    vault = FakeVault()
    vault.error = UNAVAILABLE
    async with running(vault) as gateway:
        response = await gateway.http.get("/v1/users/me", headers={"authorization": f"Bearer {token(vault)}"})
    assert (response.status_code, response.json()["type"]) == (503, "/problems/unavailable")
    assert int(response.headers["retry-after"]) >= 1
