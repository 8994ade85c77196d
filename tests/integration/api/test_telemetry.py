"""One order is one trace: from the HTTP request to the SQL statement and the asynchronous work after it."""

from __future__ import annotations

import time

import httpx
import pytest
from support.stack_under_test import RunningStack
from support.traffic.api_user import ApiUser, register

from stack.commands.trace import waterfall
from stack.telemetry_viewer import Span, spans

# Which service emits which span of a placed order, by the beginning of its name.
EMITTED = [
    ("edge", "POST"),
    ("edge", "attempt 1"),
    ("gateway", "POST /v1/orders"),
    ("gateway", "shop.order.v1.OrderService/PlaceOrder"),
    ("order-service", "shop.order.v1.OrderService/PlaceOrder"),
    ("order-service", "INSERT"),
    ("order-service", "shop.user.v1.UserService/ReserveCredit"),
    ("user-service", "shop.user.v1.UserService/ReserveCredit"),
    ("user-service", "INSERT"),
]


@pytest.fixture(scope="module")
def trace(running: RunningStack) -> list[Span]:
    if "telemetry" not in running.clients.nomad.job:
        pytest.skip("the telemetry UI was left out: this machine has no C++ compiler")
    with httpx.Client(base_url=running.url("gateway"), timeout=15) as http:
        user = register(http)
        placed = user.place()
        user.settled(placed.json()["id"])
    trace_id = placed.headers["traceresponse"].split("-")[1]

    until = time.monotonic() + 15
    found: list[Span] = []
    # Each process exports its spans in batches; a test names those still missing at the end.
    while (not found or missing(found) or len(orphans(found)) > 1) and time.monotonic() < until:
        time.sleep(0.2)
        found = spans(running.stack, trace_id)
    assert found, "no span has arrived"
    return found


def missing(found: list[Span]) -> list[tuple[str, str]]:
    return [
        (service, name)
        for service, name in EMITTED
        if not any(span.service == service and span.name.startswith(name) for span in found)
    ]


def orphans(found: list[Span]) -> list[str]:
    known = {span.id for span in found}
    return [span.name for span in found if span.parent not in known]


@pytest.mark.parametrize(("service", "name"), EMITTED)
def test_a_placed_order_shows_the_span(trace: list[Span], service: str, name: str) -> None:
    assert (service, name) not in missing(trace), "\n".join(waterfall(trace))


def test_every_span_but_the_first_has_its_parent_in_the_trace(trace: list[Span]) -> None:
    assert orphans(trace) == ["POST"]


def test_work_after_the_answer_goes_on_in_the_same_trace(trace: list[Span]) -> None:
    recorded = next(span for span in trace if (span.service, span.name[:6]) == ("order-service", "INSERT"))
    reserved = [span for span in trace if span.name.endswith("ReserveCredit") and span.service == "user-service"]
    assert reserved
    # Both the answer and this work follow the commit, in no promised order.
    assert all(span.start > recorded.start for span in reserved)


def test_an_incoming_trace_is_continued(running: RunningStack, user: ApiUser) -> None:
    trace_id = "0af7651916cd43dd8448eb211c80319c"
    reply = user.get("/v1/users/me", headers={"traceparent": f"00-{trace_id}-b7ad6b7169203331-01"})
    assert reply.headers["traceresponse"].split("-")[1] == trace_id
