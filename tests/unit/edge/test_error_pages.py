"""The error pages of the edge: always a problem, in the trace of the caller or in a new one."""

from __future__ import annotations

import re
import runpy
import threading
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from stack.config import ROOT

PROGRAM = runpy.run_path(str(ROOT / "nomad" / "sidecars" / "edge" / "error_pages.py"))
TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
AT = "?at=http%3A%2F%2Fedge%3A8080%2Fv1%2Forders%3Fx%3D1"


@pytest.fixture(scope="module")
def http() -> Iterator[httpx.Client]:
    server = PROGRAM["Server"](("127.0.0.1", 0), PROGRAM["Handler"])
    threading.Thread(target=server.serve_forever, daemon=True).start()
    with httpx.Client(base_url=f"http://127.0.0.1:{server.server_port}") as client:
        yield client
    server.shutdown()
    server.server_close()


def problem(reply: httpx.Response) -> dict[str, Any]:
    found: dict[str, Any] = reply.json()
    assert reply.headers["content-type"] == "application/problem+json"
    assert set(found) == {"type", "title", "status", "detail", "instance", "trace_id"}
    assert found["status"] == reply.status_code
    assert re.fullmatch(rf"00-{found['trace_id']}-[0-9a-f]{{16}}-00", reply.headers["traceresponse"])
    assert int(reply.headers["retry-after"]) >= 1
    return found


@pytest.mark.parametrize(("status", "kind"), [(502, "/problems/answer-lost"), (503, "/problems/unavailable")])
def test_each_status_has_a_problem_with_the_requested_path(http: httpx.Client, status: int, kind: str) -> None:
    reply = http.get(f"/{status}{AT}")
    found = problem(reply)
    assert (reply.status_code, found["type"], found["instance"]) == (status, kind, "/v1/orders")


def test_the_trace_of_the_caller_is_continued(http: httpx.Client) -> None:
    reply = http.get(f"/503{AT}", headers={"traceparent": f"00-{TRACE}-{SPAN}-01"})
    assert problem(reply)["trace_id"] == TRACE
    assert SPAN not in reply.headers["traceresponse"]


@pytest.mark.parametrize("header", ["", "garbage", f"00-{'0' * 32}-{SPAN}-01", f"00-{TRACE}-{'0' * 16}-01"])
def test_a_broken_traceparent_begins_a_new_trace(http: httpx.Client, header: str) -> None:
    found = {problem(http.get(f"/503{AT}", headers={"traceparent": header}))["trace_id"] for _ in range(2)}
    assert len(found - {TRACE, "0" * 32}) == 2


def test_invalid_requests_get_a_problem_too(http: httpx.Client) -> None:
    many = {f"x-{number}": "y" for number in range(150)}
    for reply in (http.get(f"/503{AT}", headers=many), http.post("/503"), http.get("/418"), http.get("/")):
        assert problem(reply)["type"] == "/problems/unavailable"


def test_no_header_names_the_implementation(http: httpx.Client) -> None:
    assert "python" not in str(http.get(f"/503{AT}").headers).lower()
