"""The balancer on a clock that the test sets: which instance gets a call, which are ejected, and how they return."""

from __future__ import annotations

import asyncio
import sys
import threading
from collections import Counter
from collections.abc import Iterator

import grpc
import pytest

from chassis.calls.retry import RetryBudget
from chassis.errors import RpcError
from chassis.platform.discovery import Endpoint
from chassis.settings import Live

from ..backends import SETTINGS
from .simulated_calls import INTERNAL, LONG, QUICK, READ, SHED, TIMEOUT, UNREACHABLE, Calls


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


@pytest.mark.parametrize(("error", "ejected"), [(SHED, []), (None, ["b"])])
def test_a_stalled_instance_is_not_ejected_if_the_others_shed_load(error: RpcError | None, ejected: list[str]) -> None:
    """Its calls would go to instances that have too many. The second case is the control."""
    calls = Calls("ab")
    calls.many(10)
    calls.hold("b")
    for _ in range(30):
        with calls.balancer.pick({Endpoint("b", "b")}, READ, LONG) as attempt:
            calls.now += 0.05
            calls.balancer.record(attempt, READ, error)
            calls.balancer.record(attempt, READ, None)
    assert calls.balancer.ejected == ejected


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


async def test_a_connection_is_closed_when_the_last_call_of_its_instance_has_ended() -> None:
    calls = Calls("ab")
    calls.hold("b")
    calls.announce("a")
    assert (calls.balancer._closing, calls.transport.open["b"]) == (set(), 1)
    calls.held.pop().__exit__(None, None, None)
    await asyncio.gather(*calls.balancer._closing)
    assert calls.transport.open == Counter(a=1, b=0)


async def test_another_instance_at_the_address_of_one_that_left_gets_a_connection_of_its_own() -> None:
    calls = Calls("a")
    calls.endpoints.replace((Endpoint("next", "a"),))
    await asyncio.gather(*calls.balancer._closing)
    assert calls.transport.open == Counter(a=1)


@pytest.fixture
def quick_switches() -> Iterator[None]:
    usual = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(usual)


@pytest.mark.usefixtures("quick_switches")
async def test_the_exporter_of_metrics_may_read_while_instances_and_calls_change() -> None:
    calls = Calls("ab")
    calls.eject("b")
    problems: list[Exception] = []
    stopping = threading.Event()

    def export() -> None:
        while not stopping.is_set():
            try:
                assert set(calls.balancer.ejected) <= set("abcdefgh")
            except Exception as error:
                problems.append(error)
                return

    exporter = threading.Thread(target=export)
    exporter.start()
    for number in range(3000):
        calls.announce("abcdefgh"[: 1 + number % 8])
        calls.one(seconds=0.0, error=TIMEOUT if number % 3 else None)
    stopping.set()
    exporter.join()
    assert problems == []


def test_reading_the_retry_budget_for_metrics_does_not_change_it() -> None:
    budget = RetryBudget(Live(SETTINGS), size=2)
    assert budget.withdraw()
    assert [budget.available for _ in range(3)] == [1.0, 1.0, 1.0]
    assert [budget.withdraw() for _ in range(2)] == [True, False]
