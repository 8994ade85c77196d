"""The balancer on a clock that the test sets: which instance gets a call, which are ejected, and how they return."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any, cast

import grpc
import pytest

from chassis.calls.balancing import Attempt, Balancer
from chassis.calls.outlier_detection import EjectionRules
from chassis.calls.transport import Method, NotProcessed, Transport
from chassis.errors import RpcError
from chassis.platform.discovery import Endpoint, Endpoints
from chassis.settings import Live

from ..backends import SETTINGS

READ = Method("/test.Echo/Read", bytes, bytes, idempotent=True)
QUICK = Method("/test.Echo/Quick", bytes, bytes, idempotent=True)
RULES = EjectionRules(
    failures_in_a_row=3, stall_seconds=0.6, slow_factor=4.0, slow_seconds=0.05, max_share=0.5, return_seconds=4.0,
    warmup_seconds=4.0,
)  # fmt: skip
LONG = 60.0
INTERNAL = RpcError(grpc.StatusCode.INTERNAL, "INTERNAL")
TIMEOUT = RpcError(grpc.StatusCode.DEADLINE_EXCEEDED, "DEADLINE_EXCEEDED")
UNREACHABLE = NotProcessed(grpc.StatusCode.UNAVAILABLE, "UNAVAILABLE")


class NoTransport:
    """Counts the connections that are open to each address."""

    def __init__(self) -> None:
        self.open: Counter[str] = Counter()

    def connect(self, address: str) -> Any:
        self.open[address] += 1
        return NoConnection(self, address)


class NoConnection:
    def __init__(self, transport: NoTransport, address: str) -> None:
        self._transport, self._address = transport, address

    async def close(self) -> None:
        self._transport.open[self._address] -= 1


class Calls:
    """Calls through a balancer over instances a, b, c …, with its settings and its clock."""

    def __init__(self, names: str, **rules: Any) -> None:
        self.now = 1000.0
        self.held: list[Any] = []
        self.settings = Live(SETTINGS)
        self.endpoints = Endpoints("echo")
        self.announce(names)
        self.transport = NoTransport()
        self.balancer = Balancer(
            self.endpoints, cast(Transport, self.transport), lambda: None, self.settings,
            rules=replace(RULES, **rules), clock=lambda: self.now,
        )  # fmt: skip

    def announce(self, names: str) -> None:
        self.endpoints.replace(tuple(Endpoint(name, name) for name in names))

    def eject_for(self, seconds: float) -> None:
        """Sets the time of a first ejection; 0 turns ejection off."""
        self.settings.replace(SETTINGS.model_copy(update={"ejection_seconds": seconds}))

    def one(self, seconds: float = 0.001, error: RpcError | None = None, only: str = "") -> str:
        """Makes one call and returns its instance; an instance that is not in `only` answers at once."""
        with self.balancer.pick(frozenset(), READ, LONG) as attempt:
            name = attempt.instance.endpoint.id
            affected = not only or name in only
            self.now += seconds if affected else 0.001
            self.balancer.record(attempt, READ, error if affected else None)
            return name

    def many(self, number: int, **how: Any) -> Counter[str]:
        return Counter(self.one(**how) for _ in range(number))

    def hold(self, name: str) -> Attempt:
        """Starts a call at an instance that does not end."""
        while True:
            held = self.balancer.pick(frozenset(), READ, LONG)
            attempt = held.__enter__()
            if attempt.instance.endpoint.id == name:
                self.held.append(held)
                return attempt
            held.__exit__(None, None, None)

    def eject(self, name: str) -> None:
        while not self.balancer.ejected:
            self.one(seconds=0.0, error=TIMEOUT, only=name)


@pytest.mark.parametrize("error", [TIMEOUT, INTERNAL], ids=["hangs", "is broken"])
@pytest.mark.parametrize(("seconds", "ejected"), [(1.0, ["b"]), (0.0, [])])
def test_an_instance_that_fails_in_a_row_is_ejected(seconds: float, ejected: list[str], error: RpcError) -> None:
    """The second case is the control: without ejection, calls go on to fail at that instance."""
    calls = Calls("ab")
    calls.eject_for(seconds)
    calls.many(20, seconds=0.0, error=error, only="b")
    assert calls.balancer.ejected == ejected
    assert (calls.many(50, only="b", error=error, seconds=0.0)["b"] == 0) == (seconds > 0)


def test_an_instance_that_rejects_requests_is_not_ejected() -> None:
    calls = Calls("ab")
    calls.many(40, error=RpcError(grpc.StatusCode.NOT_FOUND, "ORDER_UNKNOWN"), only="b")
    assert calls.balancer.ejected == []


def test_an_instance_that_refuses_the_connection_is_ejected_at_once() -> None:
    calls = Calls("ab")
    while calls.one(error=UNREACHABLE, only="b", seconds=0.0) != "b":
        pass
    assert calls.balancer.ejected == ["b"]


@pytest.mark.parametrize("names", ["a", "ab", "abcd"])
def test_never_more_than_half_of_the_instances_are_ejected(names: str) -> None:
    calls = Calls(names)
    calls.many(200, seconds=0.0, error=TIMEOUT)
    assert len(calls.balancer.ejected) == len(names) // 2
    assert calls.one() in names


@pytest.mark.parametrize(("seconds", "ejected"), [(1.0, ["b"]), (0.0, [])])
def test_an_instance_that_holds_a_call_while_others_answer_is_ejected_before_any_deadline(
    seconds: float, ejected: list[str]
) -> None:
    """The second case is the control: without ejection."""
    calls = Calls("ab")
    calls.eject_for(seconds)
    calls.many(10)
    calls.hold("b")
    calls.many(10, seconds=0.05)
    assert calls.balancer.ejected == []
    calls.many(4, seconds=0.05)
    assert calls.balancer.ejected == ejected, "stalled for more than 0.6 s while the other instance answered"


@pytest.mark.parametrize("typical", [0.9, 0.01])
def test_a_call_of_a_method_that_typically_takes_long_is_not_stalled(typical: float) -> None:
    """The second case is the control: the same call of a method that typically answers at once."""
    calls = Calls("ab")
    calls.many(10, seconds=typical)
    calls.hold("b")
    for _ in range(20):
        with calls.balancer.pick(frozenset(), QUICK, LONG) as attempt:
            calls.now += 0.05
            calls.balancer.record(attempt, QUICK, None)
    assert calls.balancer.ejected == ([] if typical > 0.5 else ["b"])


def test_no_instance_is_ejected_when_all_are_stalled() -> None:
    calls = Calls("ab")
    calls.hold("a")
    calls.hold("b")
    calls.now += 30
    with calls.balancer.pick(frozenset(), READ, LONG):
        assert calls.balancer.ejected == []


@pytest.mark.parametrize("factor", [4.0, 1000.0])
def test_an_instance_that_is_much_slower_than_the_others_is_ejected(factor: float) -> None:
    """The second case is the control: with a factor that is never reached, the slow instance keeps its share."""
    calls = Calls("abc", slow_factor=factor)
    calls.many(200, seconds=0.2, only="c")
    assert calls.balancer.ejected == (["c"] if factor < 10 else [])


def test_no_instance_is_ejected_when_all_are_slow() -> None:
    calls = Calls("abc")
    calls.many(300, seconds=0.4)
    assert calls.balancer.ejected == []


def test_after_its_ejection_an_instance_gets_a_single_probe_until_that_is_answered() -> None:
    calls = Calls("ab")
    calls.eject("b")
    calls.now += 1.1
    probe = calls.hold("b")
    assert calls.many(50, seconds=0.0)["b"] == 0
    calls.balancer.record(probe, READ, TIMEOUT)
    calls.now += 1.1
    assert calls.balancer.ejected == ["b"], "the second ejection is twice as long"
    calls.now += 1.0
    assert calls.balancer.ejected == []


def test_the_time_of_ejections_doubles_up_to_sixteen_times_the_first() -> None:
    calls = Calls("ab")
    calls.eject("b")
    for seconds in (1.0, 2.0, 4.0, 8.0, 16.0, 16.0):
        calls.now += seconds - 0.01
        assert calls.balancer.ejected == ["b"]
        calls.now += 0.02
        assert calls.balancer.ejected == []
        calls.balancer.record(calls.hold("b"), READ, TIMEOUT)
        calls.held.pop().__exit__(None, None, None)


def test_an_instance_that_returned_gets_half_its_share_and_then_all_of_it() -> None:
    calls = Calls("ab")
    calls.eject("b")
    calls.now += 1.1
    while calls.one(seconds=0.0) != "b":
        pass
    early = calls.many(2000, seconds=0.0)["b"]
    calls.now += 4
    assert 350 < early < 650, early
    assert 850 < calls.many(2000, seconds=0.0)["b"] < 1150


@pytest.mark.parametrize(("warmup", "fewest", "most"), [(4.0, 20, 250), (0.0, 850, 1150)])
def test_an_instance_that_joins_warms_up(warmup: float, fewest: int, most: int) -> None:
    """The second case is the control: without a warm-up it gets its full share at once."""
    calls = Calls("a", warmup_seconds=warmup)
    calls.announce("ab")
    assert fewest < calls.many(2000, seconds=0.0)["b"] < most
    calls.now += 4
    assert 850 < calls.many(2000, seconds=0.0)["b"] < 1150


async def test_an_instance_that_left_gets_no_new_call() -> None:
    calls = Calls("ab")
    calls.announce("a")
    assert calls.many(50) == Counter(a=50)


def test_a_stream_that_has_begun_to_answer_makes_its_instance_neither_busy_nor_stalled() -> None:
    calls = Calls("ab")
    attempt = calls.hold("b")
    calls.balancer.record(attempt, READ, None)
    calls.balancer.mark_as_stream(attempt)
    assert calls.many(400, seconds=0.01)["b"] > 100
    assert calls.balancer.ejected == []
