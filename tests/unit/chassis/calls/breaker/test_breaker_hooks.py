"""The hooks of pybreaker: the state of its circuit, its listeners and its excluded exceptions work in the adapter."""

from __future__ import annotations

from typing import Any

import pybreaker
import pytest

from chassis.calls.breaker import LISTENERS, BreakerOpen
from chassis.errors import RpcError

from .breakers import fail, make_breaker, state_of, succeed


class Recorder(pybreaker.CircuitBreakerListener):
    """Keeps the name of each notification."""

    def __init__(self) -> None:
        self.seen: list[str] = []

    def before_call(self, cb: Any, func: Any, *args: Any, **kwargs: Any) -> None:
        self.seen.append("before call")

    def success(self, cb: Any) -> None:
        self.seen.append("success")

    def failure(self, cb: Any, exc: BaseException) -> None:
        self.seen.append(f"failure {exc}")

    def state_change(self, cb: Any, old_state: Any, new_state: Any) -> None:
        self.seen.append(f"{old_state.name} -> {new_state.name}")


async def test_a_listener_is_notified_of_calls_and_changes_in_the_order_of_pybreaker() -> None:
    listener = Recorder()
    breaker, clock = make_breaker(failures_in_a_row=1, hooks={"listeners": (*LISTENERS, listener)})
    await breaker.call(succeed)
    await fail(breaker, 1)
    with pytest.raises(BreakerOpen):
        await breaker.call(succeed)
    clock.now += 6
    await breaker.call(succeed)
    assert listener.seen == [
        "before call",
        "success",
        "before call",
        "failure connection lost",
        "closed -> open",
        "open -> half-open",
        "before call",
        "half-open -> closed",
        "success",
    ]


async def test_a_listener_can_be_added_to_the_circuit_later() -> None:
    listener = Recorder()
    breaker, _ = make_breaker()
    breaker.circuit.add_listener(listener)
    await breaker.call(succeed)
    assert listener.seen == ["before call", "success"]


async def test_a_listener_that_raises_before_the_call_keeps_no_probe() -> None:
    class Broken(pybreaker.CircuitBreakerListener):
        broken = True

        def before_call(self, cb: Any, func: Any, *args: Any, **kwargs: Any) -> None:
            if self.broken:
                raise ValueError("broken listener")

    listener = Broken()
    breaker, clock = make_breaker(hooks={"listeners": [listener]})
    for _ in range(4):
        with pytest.raises(ValueError, match="broken listener"):
            await breaker.call(succeed)
        clock.now += 6
    listener.broken = False
    clock.now += 6
    assert await breaker.call(succeed) == "ok"


@pytest.mark.parametrize(
    ("excluded", "state"),
    [
        (KeyError, "closed"),
        (LookupError, "closed"),
        (lambda error: "7" in str(error), "closed"),
        (lambda error: "8" in str(error), "open"),
        (RpcError, "open"),
    ],
    ids=["class", "base class", "predicate", "other predicate", "other class"],
)
async def test_excluded_exceptions_are_classes_or_predicates_and_count_as_success(excluded: Any, state: str) -> None:
    async def missing() -> str:
        raise KeyError("7")

    breaker, _ = make_breaker(hooks={"excluded_exceptions": [excluded]})
    for _ in range(3):
        with pytest.raises(KeyError):
            await breaker.call(missing)
    assert state_of(breaker) == state


async def test_an_exception_can_be_excluded_on_the_circuit_later() -> None:
    breaker, _ = make_breaker()
    breaker.circuit.add_excluded_exception(RpcError)
    await fail(breaker, 10)
    assert state_of(breaker) == "closed"


async def test_the_counters_and_the_date_of_opening_are_those_of_the_circuit() -> None:
    breaker, _ = make_breaker()
    await fail(breaker, 2)
    assert (breaker.circuit.fail_counter, breaker._storage.opened_at) == (2, None)
    await fail(breaker, 1)
    assert (breaker.circuit.current_state, breaker.circuit.state.name) == ("open", "open")
    assert breaker._storage.opened_at is not None


async def test_a_circuit_opened_and_closed_by_hand_rejects_and_admits_calls() -> None:
    breaker, _ = make_breaker()
    breaker.circuit.open()
    with pytest.raises(pybreaker.CircuitBreakerError):
        await breaker.call(succeed)
    breaker.circuit.close()
    assert await breaker.call(succeed) == "ok"


async def test_a_result_from_before_a_change_by_hand_is_not_counted() -> None:
    breaker, _ = make_breaker(failures_in_a_row=1)
    generation = breaker.admit()
    breaker.circuit.open()
    breaker.circuit.close()
    breaker.record(generation, ConnectionError())
    assert state_of(breaker) == "closed"
