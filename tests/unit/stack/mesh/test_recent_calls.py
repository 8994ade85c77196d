"""`mesh show` says who called whom in the last minutes, from counters of several processes."""

from __future__ import annotations

import time
from typing import Any

import pytest

from stack import telemetry_viewer
from stack.config import Stack
from stack.mesh import recent_calls

STACK = Stack("recent", 9)
PLACE = "/shop.order.v1.OrderService/PlaceOrder"


def counter(*points: tuple[float, float, int], **attributes: str) -> dict[str, Any]:
    """A series with points: when its process began to count and when it was read, in seconds ago, and the value."""
    now = time.time()
    return {
        "attributes": [{"key": key.replace("_", "."), "value": value} for key, value in attributes.items()],
        "datapoints": [
            {"startTime": str(round((now - began) * 1e9)), "timestamp": str(round((now - at) * 1e9)), "intValue": value}
            for began, at, value in points
        ],
    }


class Viewer:
    """The viewer's answers: a metric of one service for each name."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.series: dict[str, list[dict[str, Any]]] = {}
        monkeypatch.setattr(telemetry_viewer, "_call", self._call)

    def _call(self, _stack: Stack, method: str, params: list[str]) -> Any:
        if method == "getMetric":
            return {"timeseries": self.series[params[0]]}
        return [{"id": name, "name": name, "serviceName": "order-service"} for name in self.series]


@pytest.fixture
def viewer(monkeypatch: pytest.MonkeyPatch) -> Viewer:
    return Viewer(monkeypatch)


def test_calls_of_all_instances_in_the_last_minutes_are_added_and_earlier_ones_are_not(viewer: Viewer) -> None:
    old = [(9000, 320, 100), (9000, 290, 103), (9000, 20, 110)]
    young = [(200, 190, 4), (200, 10, 6)]
    series = counter(*old, *young, mesh_caller="gateway", rpc_method=PLACE)
    quiet = counter((9000, 310, 7), (9000, 10, 7), mesh_caller="operator", rpc_method=PLACE)
    requests = counter((200, 190, 1), (200, 10, 3), mesh_caller="edge", http_request_method="GET")
    viewer.series["mesh.calls"] = [series, quiet, requests]
    found = recent_calls.read(STACK)
    assert found is not None
    assert found["calls"] == [
        {"service": "order-service", "caller": "edge", "method": "GET requests", "allowed": 3, "denied": 0},
        {"service": "order-service", "caller": "gateway", "method": PLACE, "allowed": 10 + 6, "denied": 0},
    ]


def test_denied_calls_and_failed_handshakes_are_named(viewer: Viewer) -> None:
    names = {"mesh_caller": "user-service", "rpc_method": PLACE, "mesh_enforced": "true"}
    viewer.series["mesh.calls.denied"] = [counter((60, 20, 3), **names)]
    viewer.series["mesh.handshakes.failed"] = [counter((60, 20, 2), error_type="certificate has expired")]
    shown = [line.split() for line in recent_calls.lines(recent_calls.read(STACK))]
    assert [PLACE[1:], "user-service", "0", "3"] in shown
    assert ["order-service", "certificate", "has", "expired", "2"] in shown


def test_without_telemetry_that_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*_: Any) -> Any:
        raise ValueError("not JSON")

    monkeypatch.setattr(telemetry_viewer, "_call", unreachable)
    assert recent_calls.read(STACK) is None
    assert "does not answer" in "\n".join(recent_calls.lines(None))
