"""If-Match and If-None-Match on every method (RFC 9110, 13.1 and 13.2)."""

from __future__ import annotations

from typing import TYPE_CHECKING
from uuid import uuid4

import pytest

if TYPE_CHECKING:
    import httpx

    from ..running_gateway import RunningGateway

IF_MATCH, IF_NONE_MATCH = "if-match", "if-none-match"
# Of an order at version 2. If-None-Match compares weakly, If-Match strongly.
MATCHING = ["*", '"2"', '"1", "2"', '"1","2"', ', "a,b"\t,,"2",', '"é", "2"']
WEAKLY_MATCHING = ['W/"2"', '"1", W/"2"']
NOT_MATCHING = ["", ",", '"1"', 'W/"1"', '""', "2", '"2', "'2'", '"02"', 'w/"2"', 'W/ "2"', '"2" "1"', '*, "2"',
                '"2", *', '"2";', '"2-gzip"', '"1, "2"', '"99999999999999999999"', "**"]  # fmt: skip


async def confirmed(gateway: RunningGateway) -> tuple[str, dict[str, str]]:
    """Returns the path of an order at version 2, and its user's token."""
    token = await gateway.token()
    order = (await gateway.place(token)).json()
    await gateway.orders.confirm(order["id"])
    return f"/v1/orders/{order['id']}", token


async def send(
    gateway: RunningGateway, verb: str, path: str, token: dict[str, str], *conditions: tuple[str, str]
) -> httpx.Response:
    headers = [(name.encode(), value.encode()) for name, value in (*token.items(), *conditions)]
    return await gateway.http.request(verb, path, headers=headers)


def assert_not_modified(response: httpx.Response, etag: str | None) -> None:
    assert (response.status_code, response.content) == (304, b"")
    assert response.headers.get("etag") == etag
    assert response.headers["traceresponse"]
    assert response.headers["cache-control"] == "no-store"
    assert not {"content-type", "content-length", "transfer-encoding"} & set(response.headers)


def assert_mismatch(response: httpx.Response) -> None:
    assert response.status_code == 412
    if response.request.method != "HEAD":
        assert response.json()["type"] == "/problems/version-mismatch"


@pytest.mark.parametrize("suffix", ["", "/events"])
@pytest.mark.parametrize("verb", ["GET", "HEAD"])
async def test_a_read_of_the_version_that_the_client_has_is_304(
    gateway: RunningGateway, verb: str, suffix: str
) -> None:
    path, token = await confirmed(gateway)
    for value in (*MATCHING, *WEAKLY_MATCHING):
        assert_not_modified(await send(gateway, verb, path + suffix, token, (IF_NONE_MATCH, value)), '"2"')
    for value in NOT_MATCHING:
        response = await send(gateway, verb, path + suffix, token, (IF_NONE_MATCH, value))
        assert (response.status_code, response.headers["etag"]) == (200, '"2"'), value


@pytest.mark.parametrize("suffix", ["", "/events"])
@pytest.mark.parametrize("verb", ["GET", "HEAD"])
async def test_a_read_of_another_version_than_if_match_names_is_412(
    gateway: RunningGateway, verb: str, suffix: str
) -> None:
    path, token = await confirmed(gateway)
    for value in (*NOT_MATCHING, *WEAKLY_MATCHING):
        assert_mismatch(await send(gateway, verb, path + suffix, token, (IF_MATCH, value)))
    for value in MATCHING:
        assert (await send(gateway, verb, path + suffix, token, (IF_MATCH, value))).status_code == 200, value


async def test_the_lines_of_a_condition_are_one_list(gateway: RunningGateway) -> None:
    path, token = await confirmed(gateway)
    assert_not_modified(await send(gateway, "GET", path, token, (IF_NONE_MATCH, '"1"'), (IF_NONE_MATCH, '"2"')), '"2"')
    assert (await send(gateway, "GET", path, token, (IF_MATCH, '"1"'), (IF_MATCH, '"2"'))).status_code == 200
    assert_mismatch(await send(gateway, "GET", path, token, (IF_MATCH, "*"), (IF_MATCH, '"2"')))
    cancelled = await send(gateway, "POST", f"{path}/cancel", token, (IF_MATCH, '"1"'), (IF_MATCH, '"2"'))
    assert cancelled.status_code == 200


async def test_if_match_is_evaluated_before_if_none_match(gateway: RunningGateway) -> None:
    path, token = await confirmed(gateway)
    both = [(IF_MATCH, '"1"', IF_NONE_MATCH, '"2"', 412), (IF_MATCH, '"2"', IF_NONE_MATCH, '"2"', 304),
            (IF_MATCH, '"2"', IF_NONE_MATCH, '"1"', 200)]  # fmt: skip
    for name, value, other, other_value, status in both:
        response = await send(gateway, "GET", path, token, (name, value), (other, other_value))
        assert response.status_code == status


@pytest.mark.parametrize("conditions", [[(IF_NONE_MATCH, "*")], [(IF_MATCH, '"99"')]])
async def test_an_error_takes_precedence_over_a_condition(
    gateway: RunningGateway, conditions: list[tuple[str, str]]
) -> None:
    path, token = await confirmed(gateway)
    assert (await send(gateway, "GET", path, {}, *conditions)).status_code == 401
    assert (await send(gateway, "GET", f"/v1/orders/{uuid4()}", token, *conditions)).status_code == 404
    assert (await send(gateway, "GET", "/v1/orders?limit=0", token, *conditions)).status_code == 422
    assert (await send(gateway, "POST", "/v1/sessions", {}, *conditions)).status_code == 415
    assert (await send(gateway, "DELETE", path, token, *conditions)).status_code == 405


@pytest.mark.parametrize("name", ["if-modified-since", "if-unmodified-since", "if-range"])
async def test_conditions_on_dates_are_ignored_because_no_resource_has_one(gateway: RunningGateway, name: str) -> None:
    path, token = await confirmed(gateway)
    assert (await send(gateway, "GET", path, token, (name, "Tue, 01 Jan 2030 00:00:00 GMT"))).status_code == 200


@pytest.mark.parametrize("value", [*MATCHING, *WEAKLY_MATCHING])
async def test_a_cancellation_that_is_not_meant_for_the_version_is_412(gateway: RunningGateway, value: str) -> None:
    path, token = await confirmed(gateway)
    assert_mismatch(await send(gateway, "POST", f"{path}/cancel", token, (IF_NONE_MATCH, value)))
    assert (await gateway.http.get(path, headers=token)).json()["status"] == "confirmed"


@pytest.mark.parametrize(
    ("conditions", "status"),
    [
        ([(IF_NONE_MATCH, '"1"')], 200),
        ([(IF_NONE_MATCH, "2")], 200),
        ([(IF_NONE_MATCH, '"1"'), (IF_MATCH, '"2"')], 200),
        ([(IF_NONE_MATCH, '"1"'), (IF_MATCH, '"1"')], 412),
        ([(IF_NONE_MATCH, '"2"'), (IF_MATCH, '"2"')], 412),
    ],
)
async def test_a_cancellation_with_conditions_that_hold_is_done(
    gateway: RunningGateway, conditions: list[tuple[str, str]], status: int
) -> None:
    path, token = await confirmed(gateway)
    response = await send(gateway, "POST", f"{path}/cancel", token, *conditions)
    assert response.status_code == status


async def test_a_conditional_cancellation_of_another_users_order_is_404(gateway: RunningGateway) -> None:
    path, _ = await confirmed(gateway)
    eve = await gateway.token("eve@example.com")
    assert (await send(gateway, "POST", f"{path}/cancel", eve, (IF_NONE_MATCH, "*"))).status_code == 404


# What has no entity tag: a condition that names one does not match, and * asks whether it can be read at all.
@pytest.mark.parametrize(
    "path", ["/v1/orders", "/v1/users/me", "/openapi.json", "/docs", "/livez", "/problems/invalid"]
)
async def test_a_resource_without_an_entity_tag_matches_only_any(gateway: RunningGateway, path: str) -> None:
    token = await gateway.token()
    assert_not_modified(await send(gateway, "GET", path, token, (IF_NONE_MATCH, "*")), None)
    assert (await send(gateway, "GET", path, token, (IF_NONE_MATCH, '"1"'))).status_code == 200
    assert (await send(gateway, "GET", path, token, (IF_MATCH, "*"))).status_code == 200
    assert_mismatch(await send(gateway, "GET", path, token, (IF_MATCH, '"1"')))


@pytest.mark.parametrize(
    ("name", "value", "status"),
    [(IF_MATCH, "*", 201), (IF_MATCH, '"1"', 412), (IF_NONE_MATCH, "*", 412), (IF_NONE_MATCH, '"1"', 201)],
)
async def test_an_order_is_placed_only_if_the_conditions_on_the_list_hold(
    gateway: RunningGateway, name: str, value: str, status: int
) -> None:
    token = await gateway.token()
    assert (await gateway.place(token | {name: value})).status_code == status
    assert len((await gateway.http.get("/v1/orders", headers=token)).json()["items"]) == (status == 201)


async def test_a_watch_has_no_entity_tag(gateway: RunningGateway) -> None:
    path, token = await confirmed(gateway)
    assert_mismatch(await send(gateway, "GET", f"{path}/watch", token, (IF_MATCH, '"2"')))
    assert_not_modified(await send(gateway, "GET", f"{path}/watch", token, (IF_NONE_MATCH, "*")), None)
    headers = token | {IF_NONE_MATCH: '"2"', IF_MATCH: "*"}
    async with gateway.http.stream("GET", f"{path}/watch", headers=headers) as response:
        assert response.status_code == 200
