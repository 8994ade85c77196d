"""The names of access tokens are the same in the code and in Vault."""

from __future__ import annotations

from shop_contract.access_tokens import ALGORITHM, KEY_NAME

from .repository import ROOT

KEYS = ROOT / "vault" / "engines" / "transit" / "keys"
POLICIES = ROOT / "vault" / "policies"


def test_vault_has_the_key_that_access_tokens_are_signed_with_and_no_other() -> None:
    assert [path.stem for path in KEYS.iterdir()] == [KEY_NAME]
    assert ALGORITHM == "EdDSA"
    assert (KEYS / f"{KEY_NAME}.json").read_text().strip() == '{"type": "ed25519"}'


def test_the_policies_name_that_key() -> None:
    assert f'path "transit/sign/{KEY_NAME}"' in (POLICIES / "user-service.hcl").read_text()
    assert f'path "transit/keys/{KEY_NAME}"' in (POLICIES / "gateway.hcl").read_text()
