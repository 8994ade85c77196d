"""The life of a fault: it is bounded, it is always undone, and its state stays until it is undone."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from stack import config
from stack.chaos import fault_catalogue, fault_runner, fault_state
from stack.chaos.fault_catalogue import FaultKind
from stack.chaos.fault_state import FaultState
from stack.chaos.faults import Fault, FaultContext, Paused
from stack.cluster.clients import Clients
from stack.commands import chaos
from stack.config import Stack
from stack.console import StackError
from stack.machine import processes
from stack.waiting import poll

SLEEPER = (sys.executable, "-c", "import time; time.sleep(60)")


class Dark(Fault):
    """A fault that only records its calls; the first `failures` calls of `undo` fail."""

    done: list[str]
    failures = 0

    def require(self) -> None:
        if not self.context.clients:
            raise StackError("there is no light", "nothing to switch off", "wait for the evening")

    def begin(self) -> str:
        self.done.append("begin")
        return "dark"

    def undo(self) -> None:
        if self.failures:
            type(self).failures -= 1
            raise StackError("the light stays off", "no fuse", "buy one")
        self.done.append("undo")


@pytest.fixture
def stack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Stack:
    monkeypatch.setattr(config, "ROOT", tmp_path)
    made = Stack("unit", 9)
    fault_state.folder(made).mkdir(parents=True)
    return made


@pytest.fixture
def dark(monkeypatch: pytest.MonkeyPatch) -> type[Dark]:
    """The only fault of the catalogue."""
    monkeypatch.setattr(Dark, "done", [], raising=False)
    monkeypatch.setattr(Dark, "failures", 0)
    kind = FaultKind("dark", ("SERVICE",), "no light", "light", lambda context, _: Dark(context))
    monkeypatch.setattr(fault_catalogue, "KINDS", (kind,))
    return Dark


@pytest.fixture
def kitchen(stack: Stack) -> FaultState:
    """The stored state of a fault without a running process."""
    made = FaultState("light-kitchen", ["dark", "kitchen"], 0.3)
    fault_state.write(stack, made)
    return made


def run(stack: Stack, state: FaultState, stop: threading.Event | None = None) -> None:
    fault_runner.run(stack, state, fault_runner.fault_of(stack, state), stop or threading.Event())


def test_a_fault_ends_when_its_duration_is_over(stack: Stack, dark: type[Dark], kitchen: FaultState) -> None:
    began = time.monotonic()
    run(stack, kitchen)
    assert time.monotonic() - began >= kitchen.seconds
    assert dark.done == ["begin", "undo"]
    assert fault_state.read(stack, kitchen.id) is None


def test_a_stopped_fault_ends_before_its_duration_is_over(stack: Stack, dark: type[Dark], kitchen: FaultState) -> None:
    kitchen.seconds, stop = 600, threading.Event()
    stop.set()
    run(stack, kitchen, stop)
    assert dark.done == ["begin", "undo"]
    assert fault_state.read(stack, kitchen.id) is None


def test_a_fault_that_fails_to_begin_is_undone(
    stack: Stack, dark: type[Dark], kitchen: FaultState, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: Dark) -> str:
        raise OSError("the switch is stuck")

    monkeypatch.setattr(dark, "begin", fail)
    with pytest.raises(OSError, match="the switch is stuck"):
        run(stack, kitchen)
    assert dark.done == ["undo"]
    assert fault_state.read(stack, kitchen.id) is None


def test_undo_is_retried_until_it_succeeds(stack: Stack, dark: type[Dark], kitchen: FaultState) -> None:
    dark.failures = 2
    fault_runner.undo(stack, kitchen, fault_runner.fault_of(stack, kitchen), seconds=30)
    assert dark.done == ["undo"]


def test_a_fault_that_cannot_be_undone_keeps_its_state_with_the_error(
    stack: Stack, dark: type[Dark], kitchen: FaultState
) -> None:
    dark.failures = 9
    with pytest.raises(StackError):
        fault_runner.undo(stack, kitchen, fault_runner.fault_of(stack, kitchen), seconds=0)
    left = fault_state.read(stack, kitchen.id)
    assert left is not None
    assert left.phase == "stuck"
    assert "no fuse" in left.note
    assert "./justw chaos off" in chaos.active(stack)[0]


def test_off_undoes_a_fault_whose_process_is_gone(stack: Stack, dark: type[Dark], kitchen: FaultState) -> None:
    assert chaos.off(stack) == ["dark kitchen: undone"]
    assert dark.done == ["undo"]
    assert chaos.off(stack) == []


def test_a_deploy_undoes_a_fault_whose_process_is_gone(stack: Stack, dark: type[Dark], kitchen: FaultState) -> None:
    assert chaos.undo_left_over(stack) == ["dark kitchen: undone"]
    assert chaos.undo_left_over(stack) == []


def test_a_teardown_continues_when_a_fault_cannot_be_undone(
    stack: Stack,
    dark: type[Dark],
    kitchen: FaultState,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail(*_: object) -> None:
        raise StackError("the light stays off", "no fuse", "buy one")

    monkeypatch.setattr(chaos, "undo", fail)
    chaos.end_before_teardown(stack)
    assert "no fuse" in capsys.readouterr().out


def test_a_second_fault_on_the_same_part_is_refused(stack: Stack, dark: type[Dark], kitchen: FaultState) -> None:
    with pytest.raises(StackError, match="dark kitchen"):
        chaos.begin(stack, FaultState(kitchen.id, ["dark", "kitchen"], 30))


def test_an_impossible_fault_is_refused_before_its_state_is_written(
    stack: Stack, dark: type[Dark], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fault_runner, "Clients", lambda _: None)
    with pytest.raises(StackError, match="there is no light"):
        chaos.begin(stack, FaultState("light-attic", ["dark", "attic"], 30))
    assert list(fault_state.states(stack)) == []


@pytest.fixture
def sleeper(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """The only process of every service."""
    child = subprocess.Popen(SLEEPER)
    monkeypatch.setattr("stack.chaos.faults.process_ids", lambda *_: [child.pid])
    yield child.pid
    child.kill()
    child.wait()


def test_a_paused_process_stops_and_continues_after_the_fault(stack: Stack, sleeper: int) -> None:
    context = FaultContext(stack, Clients(stack), {}, lambda: None)
    Paused(context, "sleeper").begin()
    assert poll(lambda: psutil.Process(sleeper).status() == psutil.STATUS_STOPPED, 10, 0.01)
    Paused(context, "sleeper").undo()
    assert poll(lambda: psutil.Process(sleeper).status() != psutil.STATUS_STOPPED, 10, 0.01)


def test_another_process_with_the_id_of_a_paused_one_gets_no_signal(
    stack: Stack, sleeper: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[int] = []
    monkeypatch.setattr(processes, "send", lambda pid, _: sent.append(pid))

    def undo(started: str | None) -> None:
        facts = {"paused": [[sleeper, started]]}
        Paused(FaultContext(stack, Clients(stack), facts, lambda: None), "sleeper").undo()

    undo("1")
    assert sent == []
    undo(processes.start_time(sleeper))
    assert sent == [sleeper]


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["frost"], "no fault 'frost'"),
        (["kill"], "it got nothing"),
        (["kill", "gateway", "some"], "it got gateway some"),
        (["latency", "gateway"], "it got gateway"),
        (["consul", "down", "now"], "it got now"),
    ],
)
def test_wrong_arguments_are_refused_by_name(words: list[str], why: str) -> None:
    with pytest.raises(StackError, match=why):
        fault_catalogue.find(words)


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["latency", "gateway", "soon"], "MS is 'soon'"),
        (["errors", "gateway", "101"], "PERCENT is '101'"),
        (["slow", "gateway", "0"], "BYTES_PER_SECOND is '0'"),
        (["latency", "gateway", "nan"], "MS is 'nan'"),
    ],
)
def test_a_number_out_of_bounds_is_refused_by_name(stack: Stack, words: list[str], why: str) -> None:
    with pytest.raises(StackError, match=why):
        fault_runner.fault_of(stack, FaultState("network-gateway", words, 30))


@pytest.mark.parametrize("seconds", ["0", "601", "-1", "soon", "nan", ""])
def test_a_duration_outside_of_one_second_to_ten_minutes_is_refused(stack: Stack, seconds: str) -> None:
    with pytest.raises(StackError, match="from 1 to 600 seconds"):
        chaos.chaos(stack, ["pause", "gateway"], seconds)


def test_every_fault_is_found_by_its_name() -> None:
    for kind in fault_catalogue.KINDS:
        arguments = ["1" for parameter in kind.parameters if not parameter.startswith("[")]
        assert fault_catalogue.find([*kind.name.split(), *arguments]) == (kind, arguments)
