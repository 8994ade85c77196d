"""The rules of a service fit its contract, and a call needs exactly one token, of the user that its request names."""

from __future__ import annotations

import time

import grpc
import pytest

from chassis.auth.acting_user import ActsFor, require_user, rules_of, token_metadata
from chassis.errors import RpcError
from shop_contract.access_tokens import Principal

from ..backends import error_of
from ..echo_service import NAME, READ

USER, OTHER = "01a22c42-e971-7139-aa4c-600c095fac56", "01a22c42-e971-7139-aa4c-600c095fac57"
RULE = ActsFor("value")
RULES = {"Say": None, "Read": RULE, "Count": None}


class Verifier:
    """Knows the token `old`, and verifies `new`; both are of USER."""

    async def verify(self, token: str) -> Principal:
        if token != "new":
            raise RpcError(grpc.StatusCode.UNAUTHENTICATED, "TOKEN_INVALID")
        return Principal(USER, "EUR", int(time.time()) + 60)

    def known(self, token: str) -> Principal | None:
        return Principal(USER, "EUR", int(time.time()) + 60) if token == "old" else None


# --- rules


def test_the_rules_are_found_by_the_path_of_the_method() -> None:
    assert rules_of(NAME, RULES)[READ] is RULE
    assert set(rules_of(NAME, RULES)) == {f"/{NAME}/{method}" for method in RULES}


@pytest.mark.parametrize(
    ("rules", "problem"),
    [
        ({"Say": None, "Read": RULE}, "method without a rule: Count"),
        (RULES | {"Shout": None}, "rule without a method, or a method without a rule: Shout"),
        (RULES | {"Say": ActsFor("user_id")}, "Say: user_id is no text field"),
    ],
)
def test_rules_that_do_not_fit_the_contract_are_an_error_that_names_the_method(
    rules: dict[str, ActsFor | None], problem: str
) -> None:
    with pytest.raises(ValueError, match=problem):
        rules_of(NAME, rules)


def test_a_field_that_is_no_text_names_no_user() -> None:
    with pytest.raises(ValueError, match="page_size is no text field"):
        rules_of("shop.order.v1.OrderService", _orders("ListOrders", "page_size"))
    with pytest.raises(ValueError, match="lines is no text field"):
        rules_of("shop.order.v1.OrderService", _orders("PlaceOrder", "lines"))


def _orders(method: str, field: str) -> dict[str, ActsFor | None]:
    from shop.order.v1 import order_pb2  # noqa: PLC0415 - puts the contract into the pool of descriptors

    described = order_pb2.DESCRIPTOR.services_by_name["OrderService"]
    return dict.fromkeys(each.name for each in described.methods) | {method: ActsFor(field)}


# --- calls


@pytest.mark.parametrize("token", ["old", "new"])
async def test_a_token_of_the_named_user_is_accepted(token: str) -> None:
    sent = (("traceparent", "x"), *token_metadata(token))
    assert (await require_user(Verifier(), sent, USER)).user_id == USER


@pytest.mark.parametrize(
    ("metadata", "user", "reason"),
    [
        ((), USER, "CALLER_HAS_NO_USER"),
        ((("x-user-id", USER), ("user_id", USER)), USER, "CALLER_HAS_NO_USER"),
        (token_metadata("forged"), USER, "TOKEN_INVALID"),
        ((*token_metadata("old"), *token_metadata("old")), USER, "TOKEN_INVALID"),
        ((("authorization", "Basic old"),), USER, "TOKEN_INVALID"),
        ((("authorization", "old"),), USER, "TOKEN_INVALID"),
        ((("authorization", "Bearer  old"),), USER, "TOKEN_INVALID"),
        (token_metadata("old"), OTHER, "CALLER_HAS_OTHER_USER"),
        (token_metadata("new"), OTHER, "CALLER_HAS_OTHER_USER"),
        (token_metadata("old"), "", "CALLER_HAS_OTHER_USER"),
        (token_metadata("old"), USER.upper(), "CALLER_HAS_OTHER_USER"),
    ],
)
async def test_any_other_call_is_refused(metadata: tuple[tuple[str, str], ...], user: str, reason: str) -> None:
    error = await error_of(require_user(Verifier(), metadata, user))
    denied = reason == "CALLER_HAS_OTHER_USER"
    code = grpc.StatusCode.PERMISSION_DENIED if denied else grpc.StatusCode.UNAUTHENTICATED
    assert (error.code, error.reason) == (code, reason)
    assert USER not in error.message
