"""The names of access tokens are the same in the code and in Vault."""

from __future__ import annotations

from shop_contract.access_tokens import ALGORITHM, AUDIENCE, ISSUER, KEY_NAME, AccessTokenFormat

from .repository import ROOT, SERVICES

KEYS = ROOT / "vault" / "engines" / "transit" / "keys"
POLICIES = ROOT / "vault" / "policies"


def test_vault_has_the_key_that_access_tokens_are_signed_with_and_no_other() -> None:
    assert [path.stem for path in KEYS.iterdir()] == [KEY_NAME]
    assert ALGORITHM == "EdDSA"
    assert (KEYS / f"{KEY_NAME}.json").read_text().strip() == '{"type": "ed25519"}'


def test_the_policies_name_that_key() -> None:
    """One service signs; whoever gets a token reads the public key."""
    files = {file.stem: file.read_text() for file in POLICIES.glob("*.hcl")}
    assert {name for name, text in files.items() if f'path "transit/sign/{KEY_NAME}"' in text} == {"user-service"}
    assert {name for name, text in files.items() if f'path "transit/keys/{KEY_NAME}"' in text} == set(SERVICES)


def test_a_verifier_gets_those_names() -> None:
    found = AccessTokenFormat()
    assert (found.key_name, found.algorithm, found.issuer, found.audience) == (KEY_NAME, ALGORITHM, ISSUER, AUDIENCE)
