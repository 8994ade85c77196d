"""Tracing, limits, timeouts and shutdown, which are the same for every route."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any
from unittest.mock import Mock

import httpx
import pytest
from support.waiting import until

from gateway.http import http_server

if TYPE_CHECKING:
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    from ..running_gateway import RunningGateway

TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


@pytest.mark.parametrize("path", ["/livez", "/nowhere", "/v1/users/me", "/v1/users"])
async def test_every_response_names_the_trace_that_it_continues(gateway: RunningGateway, path: str) -> None:
    response = await gateway.http.get(path, headers={"traceparent": f"00-{TRACE}-{PARENT}-01"})
    version, trace_id, span_id, _ = response.headers["traceresponse"].split("-")
    assert (version, trace_id) == ("00", TRACE)
    assert span_id != PARENT
    if response.status_code >= 400:
        assert response.json()["trace_id"] == TRACE


@pytest.mark.parametrize("header", ["", "garbage", f"00-{'0' * 32}-{PARENT}-01", f"00-{TRACE}-{PARENT}"])
async def test_a_broken_traceparent_begins_a_new_trace(gateway: RunningGateway, header: str) -> None:
    response = await gateway.http.get("/livez", headers={"traceparent": header})
    trace_id = response.headers["traceresponse"].split("-")[1]
    assert trace_id not in (TRACE, "0" * 32)


async def test_a_span_is_named_by_the_route_and_its_trace_reaches_the_service(
    gateway: RunningGateway, spans: InMemorySpanExporter
) -> None:
    token = await gateway.token()
    spans.clear()
    response = await gateway.http.get("/v1/orders/01a20ad9-ad31-72d5-8db0-0f031df77a40", headers=token)
    trace_id = response.headers["traceresponse"].split("-")[1]
    found = {span.name: span for span in spans.get_finished_spans() if f"{span.context.trace_id:032x}" == trace_id}
    server = found["GET /v1/orders/{order_id}"]
    assert server.attributes is not None
    assert server.attributes["http.route"] == "/v1/orders/{order_id}"
    assert server.attributes["http.response.status_code"] == 404
    assert "shop.order.v1.OrderService/GetOrder" in found


@pytest.mark.parametrize("path", ["/livez", "/readyz"])
async def test_a_health_probe_creates_no_span(gateway: RunningGateway, spans: InMemorySpanExporter, path: str) -> None:
    spans.clear()
    assert (await gateway.http.get(path)).status_code == httpx.codes.OK
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
async def test_the_span_of_any_head_can_be_exported(
    gateway: RunningGateway, spans: InMemorySpanExporter, head: bytes
) -> None:
    spans.clear()
    await gateway.raw(head + b"\r\nhost: waypost\r\nconnection: close\r\n\r\n")
    (span,) = spans.get_finished_spans()
    values = [span.name, *map(str, (span.attributes or {}).values())]
    assert [text for text in values if text != text.encode(errors="replace").decode()] == []


async def test_an_unexpected_error_is_500_without_any_detail(gateway: RunningGateway, monkeypatch: Any) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("secret detail")

    monkeypatch.setattr("gateway.routes.users.serializers.user", broken)
    response = await gateway.http.get("/v1/users/me", headers=await gateway.token())
    assert (response.status_code, response.json()["type"]) == (500, "/problems/internal")
    assert "secret" not in response.text


async def test_a_request_that_is_ended_from_within_is_503(gateway: RunningGateway, monkeypatch: Any) -> None:
    """As when a connection that it uses is closed: the request itself was not cancelled."""

    def end(*_: object) -> None:
        raise asyncio.CancelledError

    monkeypatch.setattr("gateway.routes.users.serializers.user", end)
    response = await gateway.http.get("/v1/users/me", headers=await gateway.guest())
    assert (response.status_code, response.json()["type"]) == (503, "/problems/unavailable")
    assert int(response.headers["retry-after"]) >= 1


async def test_an_unavailable_service_is_503_with_a_retry_time(gateway: RunningGateway) -> None:
    token = await gateway.token()
    await gateway.servers.stop("order-service")
    response = await gateway.http.get("/v1/orders", headers=token)
    assert (response.status_code, response.json()["type"]) == (503, "/problems/unavailable")
    assert int(response.headers["retry-after"]) >= 1


async def test_an_open_breaker_is_503_and_degrades_readiness_which_stays_200(gateway: RunningGateway) -> None:
    token = await gateway.token()
    await gateway.servers.stop("order-service")
    types = [(await gateway.http.get("/v1/orders", headers=token)).json()["type"] for _ in range(8)]
    assert types[-1] == "/problems/breaker-open"
    ready = await gateway.http.get("/readyz")
    assert (ready.status_code, ready.json()["status"]) == (200, "degraded")
    assert ready.json()["breakers"] == {"user-service": "closed", "order-service": "open"}
    assert ready.json()["dependencies"]["order-service"] == "no healthy instance"


async def test_a_service_that_hangs_is_504_when_the_deadline_has_passed(gateway: RunningGateway) -> None:
    token = await gateway.token()
    await gateway.http.get("/v1/users/me", headers=token)
    gateway.servers.hanging.add("order-service")
    gateway.change(deadline_seconds=0.2)
    began = time.monotonic()
    response = await gateway.http.get("/v1/orders", headers=token)
    assert (response.status_code, response.json()["type"]) == (504, "/problems/deadline-exceeded")
    assert time.monotonic() - began < 2


async def test_requests_beyond_the_limit_are_rejected_except_probes_and_cancellations(
    gateway: RunningGateway,
) -> None:
    token = await gateway.token()
    order = (await gateway.place(token)).json()
    tight = gateway.process.settings.value.limiter.model_copy(update={"calls_at_least": 1, "calls_at_most": 1})
    gateway.change(limiter=tight)
    gateway.servers.hanging.add("order-service")
    held = asyncio.create_task(gateway.http.get("/v1/orders", headers=token))
    await until("the request is in progress", lambda: gateway.requests_in_progress() == 1)
    began = time.monotonic()
    rejected = await gateway.http.get("/v1/users/me", headers=token)
    assert (rejected.status_code, rejected.json()["type"]) == (503, "/problems/overloaded")
    assert int(rejected.headers["retry-after"]) >= 1
    assert rejected.headers["traceresponse"]
    assert time.monotonic() - began < 1.0
    assert (await gateway.http.get("/readyz")).status_code == 200
    cancelling = asyncio.create_task(gateway.http.post(f"/v1/orders/{order['id']}/cancel", headers=token))
    await asyncio.sleep(0)
    gateway.servers.hanging.clear()
    assert (await cancelling).status_code == 200
    assert (await held).status_code == 200
    await until("no request is in progress", lambda: gateway.requests_in_progress() == 0)
    assert (await gateway.http.get("/v1/users/me", headers=token)).status_code == 200


async def test_a_closed_connection_cancels_its_call_and_does_not_open_the_breaker(gateway: RunningGateway) -> None:
    token = await gateway.token()
    gateway.servers.hanging.add("order-service")
    for _ in range(8):
        _, writer = await asyncio.open_connection(*gateway.address)
        writer.write(f"GET /v1/orders HTTP/1.1\r\nhost: x\r\nauthorization: {token['authorization']}\r\n\r\n".encode())
        await until("the request is in progress", lambda: gateway.requests_in_progress() == 1)
        writer.close()
        await until("no request is in progress", lambda: gateway.requests_in_progress() == 0)
    assert (await gateway.http.get("/readyz")).json()["breakers"]["order-service"] == "closed"


async def test_a_draining_gateway_is_not_ready(gateway: RunningGateway) -> None:
    gateway.process.stopping.set()
    ready = await gateway.http.get("/readyz")
    assert (ready.status_code, ready.json()["status"]) == (503, "draining")
    assert (await gateway.http.get("/livez")).status_code == 200


async def test_an_idle_connection_does_not_delay_the_shutdown(gateway: RunningGateway) -> None:
    await gateway.http.get("/livez")
    assert gateway.server.connections
    began = time.monotonic()
    await http_server.close(gateway.server, grace=5)
    assert time.monotonic() - began < 1
    assert not gateway.server.connections


async def test_an_accepted_request_is_finished_during_shutdown_and_a_new_one_rejected(gateway: RunningGateway) -> None:
    token = await gateway.token()
    gateway.servers.hanging.add("order-service")
    accepted = asyncio.create_task(gateway.http.get("/v1/orders", headers=token))
    await until("the request has arrived", lambda: any(connection.http for connection in gateway.server.connections))
    closing = asyncio.create_task(http_server.close(gateway.server, grace=5))
    await asyncio.sleep(0)
    with pytest.raises(httpx.ConnectError):
        async with httpx.AsyncClient() as other:
            await other.get(f"http://{gateway.address[0]}:{gateway.address[1]}/livez")
    gateway.servers.hanging.clear()
    assert (await accepted).status_code == 200
    await asyncio.wait_for(closing, 5)


async def test_a_request_beyond_the_grace_time_is_aborted(gateway: RunningGateway) -> None:
    token = await gateway.token()
    gateway.servers.hanging.add("order-service")
    endless = asyncio.create_task(gateway.http.get("/v1/orders", headers=token))
    await until("the request has arrived", lambda: any(connection.http for connection in gateway.server.connections))
    await http_server.close(gateway.server, grace=0.2)
    with pytest.raises(httpx.TransportError):
        await endless


async def test_an_incomplete_head_times_out(gateway: RunningGateway) -> None:
    gateway.server.app.config.REQUEST_TIMEOUT = 0.3
    assert b"408" in (await gateway.raw(b"GET /livez HTTP/1.1\r\n")).split(b"\r\n")[0]


async def test_an_incomplete_body_times_out(gateway: RunningGateway) -> None:
    gateway.server.app.config.RESPONSE_TIMEOUT = 0.3
    head = b"POST /v1/users HTTP/1.1\r\nhost: waypost\r\ncontent-type: application/json\r\ncontent-length: 9\r\n\r\n{"
    assert b"408" in (await gateway.raw(head)).split(b"\r\n")[0]


async def test_a_client_that_disconnects_during_its_body_is_not_logged_as_an_error(
    gateway: RunningGateway, spans: InMemorySpanExporter, monkeypatch: Any
) -> None:
    log = Mock()
    monkeypatch.setattr("gateway.http.problems.log", log)
    spans.clear()
    _, writer = await asyncio.open_connection(*gateway.address)
    writer.write(
        b"POST /v1/users HTTP/1.1\r\nhost: waypost\r\ncontent-type: application/json\r\ncontent-length: 9\r\n\r\n{"
    )
    await until("the request has arrived", lambda: any(connection.http for connection in gateway.server.connections))
    writer.close()
    await until("the span is finished", lambda: bool(spans.get_finished_spans()))
    (span,) = spans.get_finished_spans()
    assert span.attributes is not None
    assert span.attributes["http.response.status_code"] == 499
    log.error.assert_not_called()


async def test_a_changed_body_limit_applies_to_the_next_connection(gateway: RunningGateway) -> None:
    large = {"email": "ada@example.com", "name": "A" * 3000, "password": "correct horse"}
    assert (await gateway.http.post("/v1/users", json=large)).status_code == 422
    gateway.change(body_limit_bytes=1024)
    async with httpx.AsyncClient(base_url=gateway.http.base_url) as fresh:
        response = await fresh.post("/v1/users", json=large)
    assert (response.status_code, response.json()["type"]) == (413, "/problems/body-too-large")
