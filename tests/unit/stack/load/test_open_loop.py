"""`./justw load` against a server in this process: rate, errors by type, live lines and summary."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx
import pytest

from stack.config import Stack
from stack.console import StackError
from stack.load import live_load
from stack.load.load_figures import Figures, Latencies, Summary
from stack.load.mix import Mix, User
from stack.load.open_loop import OpenLoop, problem


class _Answers(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    status, body = 200, b'{"id": "an-order"}'

    def _answer(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.send_response(201 if self.command == "POST" and self.status == 200 else self.status)
        self.send_header("Content-Length", str(len(self.body)))
        self.end_headers()
        self.wfile.write(self.body)

    do_GET = do_POST = _answer  # noqa: N815

    def log_message(self, *_: object) -> None:
        """Prints nothing."""


@pytest.fixture
def server() -> Iterator[tuple[str, type[_Answers]]]:
    class Answers(_Answers):
        pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    threading.Thread(target=http.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{http.server_address[1]}", Answers
    http.shutdown()


def send(url: str, rate: float, seconds: float) -> OpenLoop:
    user = User("a@load.example", "a password")
    user.signed_in({"access_token": "token", "expires_in": 900})
    sending = OpenLoop(url, Mix([user]), rate)

    async def run() -> None:
        stopping = asyncio.Event()
        asyncio.get_running_loop().call_later(seconds, stopping.set)
        await sending.run(stopping, lambda: None)

    asyncio.run(run())
    return sending


def test_requests_leave_at_the_rate(server: tuple[str, type[_Answers]]) -> None:
    sending = send(server[0], rate=50, seconds=1.0)
    assert sum(each.sent for each in sending.summary.kinds.values()) == pytest.approx(50, abs=3)
    assert sending.waiting == 0


def test_errors_are_counted_by_status_and_type(server: tuple[str, type[_Answers]]) -> None:
    url, answers = server
    answers.status, answers.body = 503, json.dumps({"type": "/problems/overloaded"}).encode()
    figures = send(url, rate=50, seconds=0.5).take_second()
    assert set(figures.errors) == {"503 overloaded"}
    assert figures.good.count == 0
    assert "503 overloaded" in figures.line(1, 1, 0)


def test_a_server_that_does_not_answer_is_an_error_with_its_name() -> None:
    figures = send("http://127.0.0.1:1", rate=20, seconds=0.2).take_second()
    assert set(figures.errors) == {"ConnectError"}


def test_a_status_without_a_problem_says_so() -> None:
    assert problem(httpx.Response(502, text="<html>")) == "502 without a problem"
    assert problem(httpx.Response(404, json={"type": "/problems/order-unknown"})) == "404 order-unknown"


def test_quantiles_are_kept_with_three_digits_in_bounded_memory() -> None:
    latencies = Latencies()
    for number in range(1, 10_001):
        latencies.add(number / 10_000)
    assert latencies.count == 10_000
    assert latencies.quantile(0.5) == pytest.approx(0.5, rel=0.01)
    assert latencies.quantile(0.99) == pytest.approx(0.99, rel=0.01)
    assert len(latencies._counts) < 3000
    assert Latencies().text(0.5) == "-"


def test_the_summary_has_a_line_for_each_kind_and_each_error() -> None:
    summary = Summary()
    for kind, error in (("read order", None), ("read order", "503 overloaded"), ("place order", None)):
        summary.of(kind).sent += 1
        summary.of(kind).answered(0.01, error)
    lines = "\n".join(summary.lines(1.0, 0.1))
    assert "3 requests in 1 s, 3/s; 2 good (66.67%)" in lines
    assert "read order: 503 overloaded" in lines


def test_a_line_shows_rates_of_the_last_moment() -> None:
    figures = Figures(sent=20)
    figures.answered(0.0123, None)
    assert figures.line(7.0, 2.0, 3).split() == ["7s", "10", "0", "12.3", "12.3", "3", "-"]


@pytest.mark.parametrize("rate", [0, -1, 2001])
def test_a_rate_out_of_bounds_is_an_error(rate: float) -> None:
    with pytest.raises(StackError, match="requests a second"):
        live_load.load(Stack("nowhere", 9), rate, None)


@pytest.mark.parametrize("seconds", [0, -3, float("nan"), float("inf")])
def test_a_time_out_of_bounds_is_an_error(seconds: float) -> None:
    with pytest.raises(StackError, match="cannot last"):
        live_load.load(Stack("nowhere", 9), 1, seconds)


def test_without_a_stack_the_next_step_is_to_deploy_one() -> None:
    with pytest.raises(StackError, match="is not running") as failed:
        live_load.load(Stack("nowhere", 9), 1, None)
    assert failed.value.next_step == "./justw deploy"


def test_the_run_prints_a_line_each_second_and_ends_with_a_summary(
    server: tuple[str, type[_Answers]], capsys: pytest.CaptureFixture[str]
) -> None:
    user = User("a@load.example", "a password")
    user.signed_in({"access_token": "token", "expires_in": 900})
    began = time.monotonic()
    asyncio.run(live_load._run(OpenLoop(server[0], Mix([user]), 20), 1.3))
    assert time.monotonic() - began < 4
    lines = capsys.readouterr().out.splitlines()
    assert "p99 ms" in lines[0]
    assert lines[1].split()[0] == "1s"
    assert "this command used" in lines[-1]
