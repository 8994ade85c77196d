"""What every request gets, and how the gateway ends."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any
from unittest.mock import Mock

import httpx
import pytest

from gateway.http import http_server

from ..backend_services import until

if TYPE_CHECKING:
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    from ..system import System

TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


@pytest.mark.parametrize("path", ["/livez", "/nowhere", "/v1/users/me", "/v1/users"])
async def test_every_answer_says_which_trace_it_continues(system: System, path: str) -> None:
    answer = await system.http.get(path, headers={"traceparent": f"00-{TRACE}-{PARENT}-01"})
    version, trace_id, span_id, _ = answer.headers["traceresponse"].split("-")
    assert (version, trace_id) == ("00", TRACE)
    assert span_id != PARENT
    if answer.status_code >= 400:
        assert answer.json()["trace_id"] == TRACE


@pytest.mark.parametrize("header", ["", "garbage", f"00-{'0' * 32}-{PARENT}-01", f"00-{TRACE}-{PARENT}"])
async def test_a_broken_traceparent_begins_a_new_trace(system: System, header: str) -> None:
    answer = await system.http.get("/livez", headers={"traceparent": header})
    trace_id = answer.headers["traceresponse"].split("-")[1]
    assert trace_id not in (TRACE, "0" * 32)


async def test_a_span_is_named_by_the_route_and_goes_through_to_the_service(
    system: System, spans: InMemorySpanExporter
) -> None:
    token = await system.token()
    spans.clear()
    answer = await system.http.get("/v1/orders/01a20ad9-ad31-72d5-8db0-0f031df77a40", headers=token)
    trace_id = answer.headers["traceresponse"].split("-")[1]
    found = {span.name: span for span in spans.get_finished_spans() if f"{span.context.trace_id:032x}" == trace_id}
    edge = found["GET /v1/orders/{order_id}"]
    assert edge.attributes is not None
    assert edge.attributes["http.route"] == "/v1/orders/{order_id}"
    assert edge.attributes["http.response.status_code"] == 404
    assert "shop.order.v1.OrderService/GetOrder" in found


@pytest.mark.parametrize("path", ["/livez", "/readyz"])
async def test_a_probe_leaves_no_span_behind(system: System, spans: InMemorySpanExporter, path: str) -> None:
    spans.clear()
    assert (await system.http.get(path)).status_code == httpx.codes.OK
    assert spans.get_finished_spans() == ()


@pytest.mark.parametrize(
    "head",
    [
        b"GET /v1/users/me HTTP/1.1\r\nuser-agent: tea \xff\r\ntraceparent: \xff",
        b"\xffET /v1/users/me HTTP/1.1",
        b"GET /v1/users/\xff HTTP/1.1",
        b"GET /v1/users/%ff?%ff HTTP/1.1",
    ],
)
async def test_whatever_a_head_is_made_of_its_span_can_be_sent(
    system: System, spans: InMemorySpanExporter, head: bytes
) -> None:
    spans.clear()
    await system.raw(head + b"\r\nhost: waypost\r\nconnection: close\r\n\r\n")
    (span,) = spans.get_finished_spans()
    told = [span.name, *map(str, (span.attributes or {}).values())]
    assert [text for text in told if text != text.encode(errors="replace").decode()] == []


async def test_what_nobody_expected_is_500_and_tells_nothing(system: System, monkeypatch: Any) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("secret detail")

    monkeypatch.setattr("gateway.routes.users.serializers.user", broken)
    answer = await system.http.get("/v1/users/me", headers=await system.token())
    assert (answer.status_code, answer.json()["type"]) == (500, "/problems/internal")
    assert "secret" not in answer.text


async def test_a_service_that_is_away_is_503_with_a_time_to_come_back(system: System) -> None:
    token = await system.token()
    await system.servers.stop("order-service")
    answer = await system.http.get("/v1/orders", headers=token)
    assert (answer.status_code, answer.json()["type"]) == (503, "/problems/unavailable")
    assert int(answer.headers["retry-after"]) >= 1


async def test_an_open_breaker_is_503_and_shows_in_readiness_which_stays_200(system: System) -> None:
    token = await system.token()
    await system.servers.stop("order-service")
    types = [(await system.http.get("/v1/orders", headers=token)).json()["type"] for _ in range(8)]
    assert types[-1] == "/problems/breaker-open"
    ready = await system.http.get("/readyz")
    assert (ready.status_code, ready.json()["status"]) == (200, "degraded")
    assert ready.json()["breakers"] == {"user-service": "closed", "order-service": "open"}
    assert ready.json()["dependencies"]["order-service"] == "no healthy instance"


async def test_a_service_that_hangs_is_504_when_the_deadline_has_passed(system: System) -> None:
    token = await system.token()
    await system.http.get("/v1/users/me", headers=token)
    system.servers.hanging.add("order-service")
    system.change(deadline_seconds=0.2)
    began = time.monotonic()
    answer = await system.http.get("/v1/orders", headers=token)
    assert (answer.status_code, answer.json()["type"]) == (504, "/problems/deadline-exceeded")
    assert time.monotonic() - began < 2


async def test_beyond_its_limit_it_refuses_at_once_but_probes_and_cancels_pass(system: System) -> None:
    token = await system.token()
    order = (await system.place(token)).json()
    tight = system.process.settings.value.limiter.model_copy(update={"calls_at_least": 1, "calls_at_most": 1})
    system.change(limiter=tight)
    system.servers.hanging.add("order-service")
    held = asyncio.create_task(system.http.get("/v1/orders", headers=token))
    await until(lambda: system.taken() == 1)
    began = time.monotonic()
    shed = await system.http.get("/v1/users/me", headers=token)
    assert (shed.status_code, shed.json()["type"]) == (503, "/problems/overloaded")
    assert int(shed.headers["retry-after"]) >= 1
    assert shed.headers["traceresponse"]
    assert time.monotonic() - began < 1.0
    assert (await system.http.get("/readyz")).status_code == 200
    cancelling = asyncio.create_task(system.http.post(f"/v1/orders/{order['id']}/cancel", headers=token))
    await asyncio.sleep(0)
    system.servers.hanging.clear()
    assert (await cancelling).status_code == 200
    assert (await held).status_code == 200
    await until(lambda: system.taken() == 0)
    assert (await system.http.get("/v1/users/me", headers=token)).status_code == 200


async def test_a_caller_that_hangs_up_ends_its_call_to_the_service_and_trips_nothing(system: System) -> None:
    token = await system.token()
    system.servers.hanging.add("order-service")
    for _ in range(8):
        _, writer = await asyncio.open_connection(*system.address)
        writer.write(f"GET /v1/orders HTTP/1.1\r\nhost: x\r\nauthorization: {token['authorization']}\r\n\r\n".encode())
        await until(lambda: system.taken() == 1)
        writer.close()
        await until(lambda: system.taken() == 0)
    assert (await system.http.get("/readyz")).json()["breakers"]["order-service"] == "closed"


async def test_a_gateway_that_drains_is_not_ready(system: System) -> None:
    system.process.stopping.set()
    ready = await system.http.get("/readyz")
    assert (ready.status_code, ready.json()["status"]) == (503, "draining")
    assert (await system.http.get("/livez")).status_code == 200


async def test_an_idle_connection_does_not_hold_up_the_end(system: System) -> None:
    await system.http.get("/livez")
    assert system.server.connections
    began = time.monotonic()
    await http_server.close(system.server, grace=5)
    assert time.monotonic() - began < 1
    assert not system.server.connections


async def test_a_request_that_was_accepted_is_finished_and_a_new_one_refused(system: System) -> None:
    token = await system.token()
    system.servers.hanging.add("order-service")
    accepted = asyncio.create_task(system.http.get("/v1/orders", headers=token))
    await until(lambda: any(connection.http for connection in system.server.connections))
    closing = asyncio.create_task(http_server.close(system.server, grace=5))
    await asyncio.sleep(0)
    with pytest.raises(httpx.ConnectError):
        async with httpx.AsyncClient() as other:
            await other.get(f"http://{system.address[0]}:{system.address[1]}/livez")
    system.servers.hanging.clear()
    assert (await accepted).status_code == 200
    await asyncio.wait_for(closing, 5)


async def test_a_request_that_outlasts_the_grace_time_is_cut(system: System) -> None:
    token = await system.token()
    system.servers.hanging.add("order-service")
    endless = asyncio.create_task(system.http.get("/v1/orders", headers=token))
    await until(lambda: any(connection.http for connection in system.server.connections))
    await http_server.close(system.server, grace=0.2)
    with pytest.raises(httpx.TransportError):
        await endless


async def test_a_head_that_never_ends_is_timed_out(system: System) -> None:
    system.server.app.config.REQUEST_TIMEOUT = 0.3
    assert b"408" in (await system.raw(b"GET /livez HTTP/1.1\r\n")).split(b"\r\n")[0]


async def test_a_body_that_never_comes_is_timed_out(system: System) -> None:
    system.server.app.config.RESPONSE_TIMEOUT = 0.3
    head = b"POST /v1/users HTTP/1.1\r\nhost: waypost\r\ncontent-type: application/json\r\ncontent-length: 9\r\n\r\n{"
    assert b"408" in (await system.raw(head)).split(b"\r\n")[0]


async def test_a_client_that_leaves_in_the_middle_of_its_body_is_no_fault_of_ours(
    system: System, spans: InMemorySpanExporter, monkeypatch: Any
) -> None:
    log = Mock()
    monkeypatch.setattr("gateway.http.problems.log", log)
    spans.clear()
    _, writer = await asyncio.open_connection(*system.address)
    writer.write(
        b"POST /v1/users HTTP/1.1\r\nhost: waypost\r\ncontent-type: application/json\r\ncontent-length: 9\r\n\r\n{"
    )
    await until(lambda: any(connection.http for connection in system.server.connections))
    writer.close()
    await until(spans.get_finished_spans)
    (span,) = spans.get_finished_spans()
    assert span.attributes is not None
    assert span.attributes["http.response.status_code"] == 499
    log.error.assert_not_called()


async def test_a_changed_body_limit_holds_for_the_next_connection(system: System) -> None:
    large = {"email": "ada@example.com", "name": "A" * 3000, "password": "correct horse"}
    assert (await system.http.post("/v1/users", json=large)).status_code == 422
    system.change(body_limit_bytes=1024)
    async with httpx.AsyncClient(base_url=system.http.base_url) as fresh:
        answer = await fresh.post("/v1/users", json=large)
    assert (answer.status_code, answer.json()["type"]) == (413, "/problems/body-too-large")
