"""The degradation matrix of docs/failures.md: for each row a part is broken, and every call is compared.

Hypothesis: each call is answered as its cell says. Fault: by `./justw chaos`, or by scaling to no instance. Control:
the answers of a healthy system match no row with a 503 or a closed port.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import httpx
import pytest
from support.chaos_command import Chaos
from support.cluster_faults import drained_node, forgetful_consul
from support.credential_faults import TOKEN_SECONDS, failed_power, short_tokens
from support.stack_under_test import RunningStack, eventually
from support.traffic.api_user import ApiUser, register
from support.traffic.busy_machine import starved_machine
from support.traffic.load import Request
from support.traffic.unequal_instances import flapping_instances, slow_instances

from stack.chaos.instances import process_ids
from stack.config import ROOT
from stack.console import StackError

CALLS = ("register", "sign in", "me", "place", "read", "list", "cancel", "history", "readyz")
# With these deadlines a slow part exceeds its own; every answer then comes within this, plus what a busy machine adds.
SHORT_SECONDS = 1.0
LATE_MILLISECONDS = 1500
SLACK_SECONDS = 5.0
LASTING_SECONDS = 180.0
# A row that has to hold for longer than it takes to notice the fault: here for three lives of a token.
HOLDS_SECONDS, HOLDS_EVERY_SECONDS = {"expired": 3.0 * TOKEN_SECONDS, "one slow": 8.0, "one flaps": 8.0}, 6.0
PENNY = [{"sku": "penny", "quantity": 1, "unit_price": 1}]
HEALTHY = dict(zip(CALLS, ["201", "201", "200", "201", "200", "200", "200", "200", "200 ready"], strict=True))
ORDERS = 12
# Why a cell allows more than one answer: which of them a call gets depends on its moment, not on the row.
SEVERAL_ANSWERS = {
    "504/503": "the deadline ends the call until the breaker opens; then it is rejected",
    "504/200 Age": "the deadline ends the call until the breaker opens; then the cached profile is returned",
    "504/503/200 Age": "as above; in between the User Service itself rejects calls that wait for its database",
}

pytestmark = pytest.mark.timeout(300)


@dataclass(frozen=True)
class Row:
    """The answers of every call while a part is in a state."""

    part: str
    state: str
    cells: dict[str, str]


def _matrix() -> list[Row]:
    text = (ROOT / "docs" / "failures.md").read_text().partition("## Degradation matrix")[2].partition("\n## ")[0]
    rows = [[cell.strip() for cell in line.strip("| ").split("|")] for line in text.splitlines() if line[:1] == "|"]
    assert rows[0] == ["part", "state", *CALLS]
    return [Row(row[0], row[1], dict(zip(CALLS, row[2:], strict=True))) for row in rows[2:]]


@contextmanager
def _none(running: RunningStack, job: str, group: str) -> Iterator[None]:
    count = len(running.allocations(job, group))
    running.scale(job, group, 0)
    try:
        eventually(f"{job} {group} is gone", lambda: not running.allocations(job, group), 60)
        yield
    finally:
        running.scale(job, group, count)
        # The next row may need a process of it, and not every job counts for the health of the stack.
        service = f"{job}-worker" if group == "worker" else job
        eventually(f"{job} {group} is back", lambda: _has_processes(running, service), 60)


def _has_processes(running: RunningStack, service: str) -> bool:
    try:
        return bool(process_ids(running.stack, running.clients, service))
    except StackError:
        return False


@contextmanager
def _faulty(chaos: Chaos, words: str) -> Iterator[None]:
    chaos.start(words, LASTING_SECONDS)
    try:
        yield
    finally:
        chaos.off()


@contextmanager
def _short_deadlines(running: RunningStack) -> Iterator[None]:
    """Shortens all deadlines, so that the tests of slow parts take less time."""
    before = {key: running.kv(key) for key in ("config/gateway", "config/order-service")}
    for key, text in before.items():
        running.put_kv(key, json.dumps(_shortened(json.loads(text))))
    try:
        yield
    finally:
        for key, text in before.items():
            running.put_kv(key, text)


def _shortened(settings: dict[str, Any]) -> dict[str, Any]:
    deadline = re.compile(r"(\w+_)?deadline_seconds")
    return {
        name: _shortened(value) if isinstance(value, dict) else SHORT_SECONDS if deadline.fullmatch(name) else value
        for name, value in settings.items()
    }


def _broken(running: RunningStack, chaos: Chaos, caller: Caller, row: Row) -> list[Any]:
    """The context managers that break a part in that way, in their order."""
    part = row.part
    gone: dict[str, Callable[[], Any]] = {
        "user-service": lambda: _none(running, "user-service", "api"),
        "order-service": lambda: _none(running, "order-service", "api"),
        "worker": lambda: _none(running, "order-service", "worker"),
        "postgres": lambda: _none(running, "postgres", "postgres"),
        "telemetry": lambda: _none(running, "telemetry", "telemetry"),
        "consul": lambda: _faulty(chaos, "consul down"),
        "vault": lambda: _faulty(chaos, "vault sealed"),
    }
    states: dict[str, Callable[[], list[Any]]] = {
        "gone": lambda: [gone[part]()],
        "full": lambda: [_faulty(chaos, "disk full")],
        "drained": lambda: [drained_node(running)],
        "forgot": lambda: [forgetful_consul(running, "user-service")],
        "failed": lambda: [failed_power(running)],
        "starved": lambda: [starved_machine()],
        "one slow": lambda: [slow_instances(running, part, caller.reading())],
        "one flaps": lambda: [flapping_instances(running, part)],
        "expired": lambda: [short_tokens(running), _faulty(chaos, "vault sealed")],
    }
    if row.state in states:
        return states[row.state]()
    if part in {"consul", "vault"}:
        return [_short_deadlines(running), running.stopped_agent(part)]
    # Pools keep their connections to Postgres, so a proxy would have no effect on them: Postgres is paused instead.
    words = {"telemetry": "telemetry hanging", "postgres": "pause postgres all"}
    return [_short_deadlines(running), _faulty(chaos, words.get(part, f"latency {part} {LATE_MILLISECONDS}"))]


class Caller:
    """A user with orders from before the fault, who makes every call of the matrix."""

    def __init__(self, user: ApiUser, orders: int = ORDERS) -> None:
        self.user = user
        self.orders = [user.place(PENNY).raise_for_status().json()["id"] for _ in range(orders)]
        user.settled(self.orders[0])
        user.get("/v1/users/me").raise_for_status()

    def answers(self) -> dict[str, httpx.Response | None]:
        user, order = self.user, f"/v1/orders/{self.orders[0]}"
        session = {"email": user.email, "password": user.password}
        stranger = {"email": f"n{time.monotonic_ns()}@people.example", "name": "N", "password": "correct horse"}
        calls: dict[str, Callable[[], httpx.Response]] = {
            "register": lambda: user.http.post("/v1/users", json=stranger),
            "sign in": lambda: user.http.post("/v1/sessions", json=session),
            "me": lambda: user.get("/v1/users/me"),
            "place": lambda: user.place(PENNY),
            "read": lambda: user.get(order),
            "list": lambda: user.get("/v1/orders"),
            "cancel": self._cancel,
            "history": lambda: user.get(f"{order}/events"),
            "readyz": lambda: user.http.get("/readyz"),
        }
        return {name: _timed(name, calls[name]) for name in CALLS}

    def reading(self) -> Request:
        """The request of `read`, for a load."""
        return Request("GET", f"/v1/orders/{self.orders[0]}", httpx.codes.OK, self.user.headers)

    def _cancel(self) -> httpx.Response:
        """Cancels an order for the first time: an attempt that failed may have cancelled it nevertheless."""
        return self.user.cancel(self.orders.pop())


def _timed(name: str, call: Callable[[], httpx.Response]) -> httpx.Response | None:
    """The answer to a call; None if the port of the edge is closed."""
    began = time.monotonic()
    try:
        answer = call()
    except httpx.ConnectError:
        return None
    seconds = time.monotonic() - began
    assert seconds < SHORT_SECONDS + SLACK_SECONDS, f"{name} took {seconds:.1f} s"
    return answer


def _cell(answer: httpx.Response | None, name: str) -> str:
    """An answer in the notation of the matrix; also checks the headers and the body that its status requires."""
    if answer is None:
        return "closed"
    if answer.status_code >= 500:
        assert answer.headers["content-type"] == "application/problem+json"
        assert answer.json()["type"].startswith("/problems/")
    if answer.status_code == httpx.codes.SERVICE_UNAVAILABLE:
        assert int(answer.headers["retry-after"]) >= 1
    if "age" in answer.headers:
        assert answer.json()["problem"]["type"] == "/problems/stale"
        return f"{answer.status_code} Age"
    if name == "readyz" or (name == "place" and answer.status_code == httpx.codes.CREATED):
        return f"{answer.status_code} {answer.json()['status']}"
    return str(answer.status_code)


def _fits(found: str, cell: str) -> bool:
    """True if a cell allows the answer; `201` in a cell also allows `201 pending`."""
    return any(found == allowed or found.startswith(f"{allowed} ") for allowed in cell.split("/"))


def _differences(caller: Caller, row: dict[str, str]) -> dict[str, str]:
    found = {name: _cell(answer, name) for name, answer in caller.answers().items()}
    return {name: f"{found[name]}, not {row[name]}" for name in CALLS if not _fits(found[name], row[name])}


def _recovered(user: ApiUser) -> bool:
    try:
        return not _differences(Caller(user, orders=2), HEALTHY)
    except (httpx.HTTPStatusError, httpx.ConnectError):
        return False


@pytest.fixture
def caller(running: RunningStack, http: httpx.Client) -> Caller:
    """A user of a stack that has recovered from the previous row."""
    return eventually("a user's calls are answered", lambda: _caller(http), 120, every=1)


def _caller(http: httpx.Client) -> Caller | None:
    try:
        return Caller(register(http))
    except (httpx.HTTPStatusError, httpx.ConnectError):
        return None


def test_the_matrix_has_each_part_gone_and_slow_and_the_other_states() -> None:
    parts = {"user-service", "order-service", "worker", "postgres", "consul", "vault", "telemetry"}
    assert {(row.part, row.state) for row in _matrix()} == {
        *((part, "gone") for part in parts),
        *((part, "slow") for part in parts - {"worker"}),
        ("postgres", "full"),
        ("node", "drained"),
        ("consul", "forgot"),
        ("vault", "expired"),
        ("power", "failed"),
        ("machine", "starved"),
        ("order-service", "one slow"),
        *((part, "one flaps") for part in ("user-service", "order-service")),
    }


def test_a_cell_has_one_answer_or_a_reason_for_several() -> None:
    several = {cell for row in _matrix() for cell in row.cells.values() if "/" in cell}
    assert several == set(SEVERAL_ANSWERS)


def test_a_healthy_system_matches_no_row_with_a_503_or_a_closed_port(caller: Caller) -> None:
    assert _differences(caller, HEALTHY) == {}
    failing = [row for row in _matrix() if re.search("503|closed", " ".join(row.cells.values()))]
    assert failing
    answered = {name: _cell(answer, name) for name, answer in caller.answers().items()}
    assert [row for row in failing if all(_fits(answered[name], row.cells[name]) for name in CALLS)] == []


@pytest.mark.parametrize("row", [pytest.param(row, id=f"{row.part}-{row.state}") for row in _matrix()])
def test_callers_get_the_answers_of_the_row(running: RunningStack, chaos: Chaos, caller: Caller, row: Row) -> None:
    if row.part == "telemetry" and "telemetry" not in running.clients.nomad.job:
        pytest.skip("the telemetry UI was left out: this machine has no C++ compiler")
    seen: list[dict[str, str]] = []

    def as_written() -> bool:
        seen.append(_differences(caller, row.cells))
        return not seen[-1] or len(caller.orders) == 1

    with ExitStack() as broken:
        for each in _broken(running, chaos, caller, row):
            broken.enter_context(each)
        # Caches, pools and watches notice the fault within seconds; from then on the row holds.
        eventually("the row is as written", as_written, 60, every=1.5)
        assert seen[-1] == {}
        holds_until = time.monotonic() + HOLDS_SECONDS.get(row.state, 0)
        while time.monotonic() < holds_until:
            time.sleep(HOLDS_EVERY_SECONDS)
            assert _differences(caller, row.cells) == {}
    eventually("every call is answered as before", lambda: _recovered(caller.user), 120, every=0.5)
