"""The verifier reads keys rarely, remembers what it has verified, and goes on while Vault is unavailable."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any
from uuid import uuid4

import grpc
import pytest
from support.mesh.access_tokens import TokenKey
from support.waiting import until

from chassis.auth.access_token_verifier import AccessTokenVerifier
from chassis.errors import RpcError, unavailable
from chassis.settings import Live
from chassis.testing import process_settings
from shop_contract.access_tokens import AccessTokenFormat, Principal

from ..backends import error_of


class Keys:
    """Vault with the versions of the token key; reading them raises `failure` if it is set."""

    def __init__(self) -> None:
        self.versions = {1: TokenKey()}
        self.failure: Exception | None = None
        self.reads = 0

    async def public_keys(self, _: str) -> dict[int, bytes]:
        self.reads += 1
        if self.failure is not None:
            raise self.failure
        return {version: key.public for version, key in self.versions.items()}

    def rotate(self) -> str:
        """Adds a version, and returns a token that it has signed."""
        version = max(self.versions) + 1
        self.versions[version] = TokenKey()
        return self.versions[version].token(kid=str(version))


@pytest.fixture
def keys() -> Keys:
    return Keys()


def verifier_of(keys: Keys, **settings: float) -> AccessTokenVerifier[Principal]:
    return AccessTokenVerifier(keys, AccessTokenFormat(), Live(process_settings(**settings)))


async def reason(verifier: AccessTokenVerifier[Principal], token: str) -> tuple[grpc.StatusCode, str]:
    error = await error_of(verifier.verify(token))
    return error.code, error.reason


INVALID = (grpc.StatusCode.UNAUTHENTICATED, "TOKEN_INVALID")
EXPIRED = (grpc.StatusCode.UNAUTHENTICATED, "TOKEN_EXPIRED")


async def test_a_token_names_its_user_and_its_end(keys: Keys) -> None:
    user, ends = str(uuid4()), int(time.time()) + 60
    found = await verifier_of(keys).verify(keys.versions[1].token(user.upper(), exp=ends))
    assert found == Principal(user, "EUR", ends)


FORGERIES: dict[str, Callable[[Keys], str]] = {
    "signed by another key": lambda keys: TokenKey().token(),
    "of a version that does not exist": lambda keys: keys.versions[1].token(kid="7"),
    "of another issuer": lambda keys: keys.versions[1].token(iss="elsewhere"),
    "for another audience": lambda keys: keys.versions[1].token(aud="elsewhere"),
    "of no user": lambda keys: keys.versions[1].token(sub="nobody"),
    "with another user in it": lambda keys: _with_payload_of(keys.versions[1].token(), keys.versions[1].token()),
    "cut off": lambda keys: keys.versions[1].token()[:-2],
    "no JWT": lambda keys: "token",
    "empty": lambda keys: "",
}


def _with_payload_of(token: str, other: str) -> str:
    head, _, signature = token.split(".")
    return f"{head}.{other.split('.')[1]}.{signature}"


@pytest.mark.parametrize("how", FORGERIES)
async def test_a_token_is_invalid_if_it_is(keys: Keys, how: str) -> None:
    assert await reason(verifier_of(keys), FORGERIES[how](keys)) == INVALID


@pytest.mark.parametrize("extra", ["!!!!", "\n\n\n\n", "    ", "éé", "====", "\x00\x00\x00\x00", "%", "="])
@pytest.mark.parametrize("place", [30, -30, -1])
async def test_a_valid_token_with_further_characters_is_another_token(keys: Keys, extra: str, place: int) -> None:
    """A lenient decoder of base64 would skip them, and the call to a service could not carry some."""
    token = keys.versions[1].token()
    assert await reason(verifier_of(keys), token[:place] + extra + token[place:]) == INVALID


async def test_a_token_has_expired_from_its_second_on_whether_it_was_verified_before_or_not(keys: Keys) -> None:
    verifier, old = verifier_of(keys), keys.versions[1].token(exp=int(time.time()) - 1)
    assert await reason(verifier, old) == EXPIRED
    short = keys.versions[1].token(exp=int(time.time()) + 2)
    await verifier.verify(short)
    await until("it has expired", lambda: verifier.known(short) is None)
    assert await reason(verifier, short) == EXPIRED


async def test_a_verified_token_is_verified_once(keys: Keys, monkeypatch: pytest.MonkeyPatch) -> None:
    verifier, token = verifier_of(keys), keys.versions[1].token()
    assert verifier.known(token) is None
    first = await verifier.verify(token)
    monkeypatch.setattr("chassis.auth.access_token_verifier.jwt.decode", None)
    assert verifier.known(token) is await verifier.verify(token) is first


async def test_of_more_tokens_than_are_remembered_the_oldest_are_forgotten(
    keys: Keys, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("chassis.auth.access_token_verifier._MOST_CACHED", 3)
    verifier, tokens = verifier_of(keys), [keys.versions[1].token() for _ in range(5)]
    for token in tokens:
        await verifier.verify(token)
    assert [verifier.known(token) is not None for token in tokens] == [False, False, True, True, True]


# --- keys


async def test_before_a_key_was_read_a_token_cannot_be_verified_and_the_process_is_not_ready(keys: Keys) -> None:
    keys.failure = unavailable("VAULT_UNAVAILABLE", "vault is unavailable", 1)
    verifier = verifier_of(keys)
    assert (await reason(verifier, keys.versions[1].token()))[0] is grpc.StatusCode.UNAVAILABLE
    assert verifier.readiness() == "none was read yet"
    keys.failure = None
    reading = asyncio.create_task(verifier.refresh_keys())
    await until("the keys are read", lambda: verifier.readiness() is None)
    reading.cancel()
    assert verifier.readiness() is None


async def test_known_keys_stay_while_vault_is_unavailable(keys: Keys) -> None:
    verifier = verifier_of(keys)
    await verifier.verify(keys.versions[1].token())
    keys.failure = unavailable("VAULT_UNAVAILABLE", "vault is unavailable", 1)
    await verifier.verify(keys.versions[1].token())
    assert await reason(verifier, keys.versions[1].token(kid="7")) == INVALID
    assert verifier.readiness() is None


async def test_the_first_token_of_a_new_version_is_valid_right_after_a_refresh(keys: Keys) -> None:
    verifier = verifier_of(keys, token_keys_retry_seconds=60.0)
    reading = asyncio.create_task(verifier.refresh_keys())
    await until("the keys are read", lambda: verifier.readiness() is None)
    rotated = keys.rotate()
    found = await asyncio.gather(*(verifier.verify(token) for token in (rotated, rotated)))
    reading.cancel()
    assert found[0] == found[1]
    assert keys.reads == 2


async def test_unknown_versions_cause_one_read_in_the_interval(keys: Keys) -> None:
    verifier = verifier_of(keys, token_keys_retry_seconds=60.0)
    await verifier.verify(keys.versions[1].token())
    forged = [keys.versions[1].token(kid=str(number)) for number in range(2, 20)]
    assert {await reason(verifier, token) for token in forged} == {INVALID}
    assert keys.reads == 1


async def test_a_version_that_vault_has_no_longer_is_unknown_also_for_tokens_that_were_verified(keys: Keys) -> None:
    verifier = verifier_of(keys, token_keys_retry_seconds=0.01)
    token = keys.versions[1].token()
    await verifier.verify(token)
    await asyncio.sleep(0.02)
    rotated = keys.rotate()
    del keys.versions[1]
    await verifier.verify(rotated)
    assert verifier.known(token) is None
    assert await reason(verifier, token) == INVALID


async def test_an_error_has_no_part_of_the_token(keys: Keys) -> None:
    token: Any = keys.versions[1].token(kid="7")
    with pytest.raises(RpcError) as raised:
        await verifier_of(keys).verify(token)
    shown = f"{raised.value!r} {raised.value.__cause__!r} {raised.value.fields}"
    assert not [part for part in token.split(".") if part in shown]
