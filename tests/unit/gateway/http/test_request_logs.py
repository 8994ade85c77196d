"""The log line of each request, and which of them are sent to the receiver of telemetry."""

from __future__ import annotations

import json
import logging
from typing import TYPE_CHECKING, Any

import pytest
import structlog

from chassis.telemetry import logs, traces
from chassis.telemetry.sampling import TraceRate
from gateway.http import request_telemetry

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ..running_gateway import RunningGateway

ORDER = "/v1/orders/01a20ad9-ad31-72d5-8db0-0f031df77a40"


def trace_of(response: Any) -> str:
    return str(response.headers["traceresponse"].split("-")[1])


@pytest.fixture
def unrecorded(monkeypatch: pytest.MonkeyPatch) -> None:
    """A rate that admits no trace."""
    rate = TraceRate()
    rate.change(0, 0)
    monkeypatch.setattr(traces, "trace_rate", rate)


@pytest.fixture
def exported(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What is sent to the receiver of telemetry."""
    records: list[dict[str, Any]] = []
    logs.export_with(lambda record: records.append(dict(record)))
    return records


@pytest.fixture
def lines(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[dict[str, Any]]]:
    """The lines on stdout."""
    before, handlers = structlog.get_config(), logging.getLogger().handlers[:]
    written: list[dict[str, Any]] = []
    monkeypatch.setattr(logs.Stdout, "info", lambda _, line: written.append(json.loads(line)))
    monkeypatch.setattr(logs.Stdout, "warning", lambda _, line: written.append(json.loads(line)))
    logs.to_stdout("gateway")
    monkeypatch.setattr(request_telemetry, "log", structlog.get_logger())
    yield written
    structlog.configure(**before)
    logging.getLogger().handlers[:] = handlers
    logs.export_with(None)


def requests(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [record for record in records if record["event"] == "request"]


async def test_every_request_is_a_line(gateway: RunningGateway, lines: list[dict[str, Any]]) -> None:
    response = await gateway.http.get("/v1/users/me?a=b")
    (line,) = requests(lines)
    assert float(line.pop("milliseconds")) > 0
    assert line.pop("timestamp").endswith("Z")
    assert len(line.pop("span_id")) == 16
    assert line == {
        "event": "request",
        "level": "info",
        "service": "gateway",
        "method": "GET",
        "path": "/v1/users/me",
        "client": "127.0.0.1",
        "route": "/v1/users/me",
        "status": 401,
        "trace_id": trace_of(response),
    }


async def test_a_probe_is_no_line(gateway: RunningGateway, lines: list[dict[str, Any]]) -> None:
    await gateway.http.get("/livez")
    assert not requests(lines)


async def test_beyond_the_rate_only_errors_and_slow_requests_are_exported(
    gateway: RunningGateway,
    unrecorded: None,
    exported: list[dict[str, Any]],
    lines: list[dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    token = await gateway.guest()
    exported.clear()
    lines.clear()
    await gateway.http.get(ORDER, headers=token)
    assert not requests(exported)
    with monkeypatch.context() as patched:
        patched.setattr(request_telemetry, "is_slow", lambda seconds: seconds > 0)
        slow = await gateway.http.get(ORDER, headers=token)
    await gateway.servers.stop("order-service")
    failed = await gateway.http.get(ORDER, headers=token)
    assert failed.status_code == 503
    assert [(each["status"], each["trace_id"]) for each in requests(exported)] == [
        (slow.status_code, trace_of(slow)),
        (503, trace_of(failed)),
    ]
    assert [line["level"] for line in requests(lines)] == ["info", "warning", "warning"]


async def test_a_recorded_request_is_exported(gateway: RunningGateway, exported: list[dict[str, Any]]) -> None:
    """Control."""
    response = await gateway.http.get(ORDER)
    assert [each["trace_id"] for each in requests(exported)] == [trace_of(response)]
