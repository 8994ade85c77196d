"""Which instance gets a call, on a clock the test turns: who is left out, how many at most, and how one comes back."""

from __future__ import annotations

from collections import Counter
from typing import Any, cast

import grpc
import pytest

from chassis.calls.balancing import Balancer, Turn
from chassis.calls.outlier_detection import BalancingSettings
from chassis.calls.transport import Method, NeverSent, Transport
from chassis.errors import RpcError
from chassis.platform.discovery import Endpoint, Endpoints

READ = Method("/test.Echo/Read", bytes, bytes, repeatable=True)
QUICK = Method("/test.Echo/Quick", bytes, bytes, repeatable=True)
SETTINGS = BalancingSettings(
    failures=3, silent_seconds=0.6, outlier_factor=4.0, outlier_seconds=0.05, left_out_seconds=1.0,
    left_out_longest_seconds=8.0, left_out_share=0.5, return_seconds=4.0, warmup_seconds=4.0,
)  # fmt: skip
BROKEN = RpcError(grpc.StatusCode.INTERNAL, "INTERNAL")
HUNG = RpcError(grpc.StatusCode.DEADLINE_EXCEEDED, "DEADLINE_EXCEEDED")


class NoTransport:
    def open(self, address: str) -> None:
        """Nothing to open."""

    async def close(self, address: str) -> None:
        """Nothing to close."""


class World:
    """A balancer over instances a, b, c …, its settings and its clock."""

    def __init__(self, names: str) -> None:
        self.now = 1000.0
        self.held: list[Any] = []
        self.settings = SETTINGS
        self.endpoints = Endpoints("echo")
        self.announce(names)
        transport = cast(Transport, NoTransport())
        self.balancer = Balancer(self.endpoints, transport, lambda: None, lambda: self.settings, lambda: self.now)

    def announce(self, names: str) -> None:
        self.endpoints.replace(tuple(Endpoint(name, name) for name in names))

    def change(self, **settings: Any) -> None:
        self.settings = self.settings.model_copy(update=settings)

    def call(self, seconds: float = 0.001, error: RpcError | None = None, only: str = "") -> str:
        """One call from beginning to end; an instance not named in `only` answers at once."""
        with self.balancer.pick(frozenset(), READ) as turn:
            name = turn.peer.endpoint.id
            bad = not only or name in only
            self.now += seconds if bad else 0.001
            self.balancer.settle(turn, READ, error if bad else None)
            return name

    def calls(self, number: int, **how: Any) -> Counter[str]:
        return Counter(self.call(**how) for _ in range(number))

    def hold(self, name: str) -> Turn:
        """A call at an instance that does not end."""
        while True:
            held = self.balancer.pick(frozenset(), READ)
            turn = held.__enter__()
            if turn.peer.endpoint.id == name:
                self.held.append(held)
                return turn
            held.__exit__(None, None, None)


@pytest.mark.parametrize("error", [HUNG, BROKEN], ids=["hangs", "is broken"])
@pytest.mark.parametrize(("share", "left_out"), [(0.5, ["b"]), (0.0, [])])
def test_an_instance_that_fails_in_a_row_is_left_out(share: float, left_out: list[str], error: RpcError) -> None:
    """The second case is the control: with nobody left out, calls go on to fail there."""
    world = World("ab")
    world.change(left_out_share=share)
    world.calls(20, seconds=0.0, error=error, only="b")
    assert world.balancer.left_out == left_out
    assert (world.calls(50, only="b", error=error, seconds=0.0)["b"] == 0) == (share > 0)


def test_one_that_refuses_what_is_asked_is_in_order() -> None:
    world = World("ab")
    world.calls(40, error=RpcError(grpc.StatusCode.NOT_FOUND, "ORDER_UNKNOWN"), only="b")
    assert world.balancer.left_out == []


def test_one_that_refuses_the_connection_is_left_out_at_once() -> None:
    world = World("ab")
    refused = NeverSent(grpc.StatusCode.UNAVAILABLE, "UNAVAILABLE")
    while world.call(error=refused, only="b", seconds=0.0) != "b":
        pass
    assert world.balancer.left_out == ["b"]


@pytest.mark.parametrize("names", ["a", "ab", "abcd"])
def test_never_more_than_the_allowed_share_is_left_out(names: str) -> None:
    world = World(names)
    world.calls(200, seconds=0.0, error=HUNG)
    assert len(world.balancer.left_out) == len(names) // 2
    assert world.call() in names


@pytest.mark.parametrize(("share", "left_out"), [(0.5, ["b"]), (0.0, [])])
def test_one_that_holds_a_call_while_others_answer_is_left_out_before_any_deadline(
    share: float, left_out: list[str]
) -> None:
    """The second case is the control."""
    world = World("ab")
    world.change(left_out_share=share)
    world.calls(10)
    world.hold("b")
    world.calls(10, seconds=0.05)
    assert world.balancer.left_out == []
    world.calls(4, seconds=0.05)
    assert world.balancer.left_out == left_out, "silent for 0.65 s and more while the other one answered"


@pytest.mark.parametrize("usual", [0.9, 0.01])
def test_a_call_that_usually_takes_long_makes_nobody_silent(usual: float) -> None:
    """The second case is the control: where the method usually answers at once, the same silence tells."""
    world = World("ab")
    world.calls(10, seconds=usual)
    world.hold("b")
    for _ in range(20):
        with world.balancer.pick(frozenset(), QUICK) as turn:
            world.now += 0.05
            world.balancer.settle(turn, QUICK, None)
    assert world.balancer.left_out == ([] if usual > 0.5 else ["b"])


def test_when_all_are_silent_none_is_left_out() -> None:
    world = World("ab")
    world.hold("a")
    world.hold("b")
    world.now += 30
    with world.balancer.pick(frozenset(), READ):
        assert world.balancer.left_out == []


@pytest.mark.parametrize("factor", [4.0, 1000.0])
def test_one_that_is_much_slower_than_the_others_is_left_out(factor: float) -> None:
    """The second case is the control: with a factor nobody reaches, the slow one keeps its share."""
    world = World("abc")
    world.change(outlier_factor=factor)
    world.calls(200, seconds=0.2, only="c")
    assert world.balancer.left_out == (["c"] if factor < 10 else [])


def test_calls_that_are_slow_everywhere_make_nobody_an_outlier() -> None:
    world = World("abc")
    world.calls(300, seconds=0.4)
    assert world.balancer.left_out == []


def test_after_its_time_it_gets_one_call_and_no_more_until_that_is_answered() -> None:
    world = World("ab")
    while not world.balancer.left_out:
        world.call(seconds=0.0, error=HUNG, only="b")
    world.now += 1.1
    probe = world.hold("b")
    assert world.calls(50, seconds=0.0)["b"] == 0
    world.balancer.settle(probe, READ, HUNG)
    world.now += 1.1
    assert world.balancer.left_out == ["b"], "the second time is twice as long"
    world.now += 1.0
    assert world.balancer.left_out == []


def test_one_that_came_back_gets_half_its_share_and_then_all_of_it() -> None:
    world = World("ab")
    while not world.balancer.left_out:
        world.call(seconds=0.0, error=HUNG, only="b")
    world.now += 1.1
    while world.call(seconds=0.0) != "b":
        pass
    early = world.calls(2000, seconds=0.0)["b"]
    world.now += 4
    assert 350 < early < 650, early
    assert 850 < world.calls(2000, seconds=0.0)["b"] < 1150


@pytest.mark.parametrize(("warmup", "fewest", "most"), [(4.0, 20, 250), (0.0, 850, 1150)])
def test_one_that_joins_warms_up(warmup: float, fewest: int, most: int) -> None:
    """The second case is the control: without a warm-up it gets its full share at once."""
    world = World("a")
    world.change(warmup_seconds=warmup)
    world.announce("ab")
    assert fewest < world.calls(2000, seconds=0.0)["b"] < most
    world.now += 4
    assert 850 < world.calls(2000, seconds=0.0)["b"] < 1150


async def test_one_that_left_gets_no_new_call() -> None:
    world = World("ab")
    world.announce("a")
    assert world.calls(50) == Counter(a=50)


def test_a_stream_that_answers_makes_nobody_busy_and_nobody_silent() -> None:
    world = World("ab")
    turn = world.hold("b")
    world.balancer.settle(turn, READ, None)
    world.balancer.streaming(turn)
    assert world.calls(400, seconds=0.01)["b"] > 100
    assert world.balancer.left_out == []
