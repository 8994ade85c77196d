"""For which user a method acts: each method of each service is in this table, and the services say the same."""

from __future__ import annotations

import pytest

from chassis.auth.acting_user import OPERATOR, rules_of
from order_service import rpc as order_rpc
from stack.cluster import clients
from user_service import rpc as user_rpc

from .test_intentions import SERVICES, TABLE, WORKER

# A new method belongs here first: the field of its request that names the user, and who may act without a token.
USERS: dict[str, dict[str, tuple[str, set[str]] | None]] = {
    "user-service": {
        "RegisterUser": None,
        "CreateSession": None,
        "GetUser": ("user_id", {OPERATOR}),
        "ReserveCredit": ("user_id", {OPERATOR, WORKER}),
        "ReleaseCredit": ("user_id", {OPERATOR, WORKER}),
    },
    "order-service": {
        "PlaceOrder": ("user_id", {OPERATOR}),
        "GetOrder": ("user_id", {OPERATOR}),
        "ListOrders": ("user_id", {OPERATOR}),
        "CancelOrder": ("user_id", {OPERATOR}),
        "ListOrderEvents": ("user_id", {OPERATOR}),
        "WatchOrder": ("user_id", {OPERATOR}),
    },
}
RULES = {"user-service": user_rpc.ACTS_FOR, "order-service": order_rpc.ACTS_FOR}


@pytest.mark.parametrize("service", SERVICES)
def test_each_method_of_the_contract_is_in_the_table(service: str) -> None:
    assert set(USERS[service]) == {method.name for method in SERVICES[service].methods}


@pytest.mark.parametrize("service", SERVICES)
def test_a_service_has_the_rules_of_the_table(service: str) -> None:
    found = {name: rule and (rule.field, set(rule.without_token)) for name, rule in RULES[service].items()}
    assert found == USERS[service]


@pytest.mark.parametrize("service", SERVICES)
def test_the_rules_fit_the_contract(service: str) -> None:
    name = SERVICES[service].full_name
    assert set(rules_of(name, RULES[service])) == {f"/{name}/{method}" for method in USERS[service]}


@pytest.mark.parametrize("service", SERVICES)
def test_a_method_without_a_rule_would_be_noticed(service: str) -> None:
    name, (first, *others) = SERVICES[service].full_name, RULES[service]
    with pytest.raises(ValueError, match=first):
        rules_of(name, {method: RULES[service][method] for method in others})


@pytest.mark.parametrize("service", SERVICES)
def test_every_request_with_a_user_in_it_acts_for_that_user(service: str) -> None:
    named = {method.name for method in SERVICES[service].methods if "user_id" in method.input_type.fields_by_name}
    assert named == {name for name, rule in RULES[service].items() if rule is not None}


@pytest.mark.parametrize("service", SERVICES)
def test_who_may_act_without_a_token_may_call_the_method_at_all(service: str) -> None:
    assert clients.OPERATOR == OPERATOR
    for name, rule in RULES[service].items():
        assert rule is None or rule.without_token - {OPERATOR} <= TABLE[service][name]
