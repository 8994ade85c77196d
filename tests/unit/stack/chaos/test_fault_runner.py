"""The life of a fault: bounded, undone however it ends, forgotten only when it is undone."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from stack import config
from stack.chaos import fault_catalogue, fault_runner, fault_state
from stack.chaos.fault_catalogue import Kind
from stack.chaos.fault_state import Record
from stack.chaos.faults import Fault, Paused, Scene
from stack.cluster.clients import Clients
from stack.commands import chaos
from stack.config import Stack
from stack.console import StackError
from stack.machine import processes

SLEEPER = (sys.executable, "-c", "import time; time.sleep(60)")


class Dark(Fault):
    """A fault that only says what was done to it; `refuses` so many times to be undone."""

    done: list[str]
    refuses = 0

    def require(self) -> None:
        if not self.scene.clients:
            raise StackError("there is no light", "nothing to put out", "wait for the evening")

    def begin(self) -> str:
        self.done.append("begin")
        return "dark"

    def end(self) -> None:
        if self.refuses:
            type(self).refuses -= 1
            raise StackError("the light stays out", "no fuse", "buy one")
        self.done.append("end")


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
    monkeypatch.setattr(Dark, "refuses", 0)
    kind = Kind("dark", ("SERVICE",), "no light", "light", lambda scene, _: Dark(scene))
    monkeypatch.setattr(fault_catalogue, "KINDS", (kind,))
    return Dark


@pytest.fixture
def known(stack: Stack) -> Record:
    made = Record("light-kitchen", ["dark", "kitchen"], 0.3)
    fault_state.write(stack, made)
    return made


def test_a_fault_ends_by_itself_when_its_time_is_over(stack: Stack, dark: type[Dark], known: Record) -> None:
    began = time.monotonic()
    fault_runner.keep(stack, known, fault_runner.fault_of(stack, known), threading.Event())
    assert time.monotonic() - began >= known.seconds
    assert dark.done == ["begin", "end"]
    assert fault_state.read(stack, known.id) is None


def test_a_fault_that_is_called_off_ends_before_its_time(stack: Stack, dark: type[Dark], known: Record) -> None:
    known.seconds, stop = 600, threading.Event()
    stop.set()
    fault_runner.keep(stack, known, fault_runner.fault_of(stack, known), stop)
    assert dark.done == ["begin", "end"]
    assert fault_state.read(stack, known.id) is None


def test_a_fault_that_fails_while_it_begins_is_undone(
    stack: Stack, dark: type[Dark], known: Record, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stumble(_: Dark) -> str:
        raise OSError("no hand free")

    monkeypatch.setattr(dark, "begin", stumble)
    with pytest.raises(OSError, match="no hand free"):
        fault_runner.keep(stack, known, fault_runner.fault_of(stack, known), threading.Event())
    assert dark.done == ["end"]
    assert fault_state.read(stack, known.id) is None


def test_undoing_is_tried_again_until_it_works(stack: Stack, dark: type[Dark], known: Record) -> None:
    dark.refuses = 2
    fault_runner.end(stack, known, fault_runner.fault_of(stack, known), patience=30)
    assert dark.done == ["end"]


def test_what_cannot_be_undone_stays_on_record_with_the_reason(stack: Stack, dark: type[Dark], known: Record) -> None:
    dark.refuses = 9
    with pytest.raises(StackError):
        fault_runner.end(stack, known, fault_runner.fault_of(stack, known), patience=0)
    left = fault_state.read(stack, known.id)
    assert left is not None
    assert left.phase == "stuck"
    assert "no fuse" in left.note
    assert "./justw chaos off" in chaos.active(stack)[0]


def test_off_stands_in_for_a_keeper_that_is_gone(stack: Stack, dark: type[Dark], known: Record) -> None:
    assert chaos.off(stack) == ["dark kitchen: undone"]
    assert dark.done == ["end"]
    assert chaos.off(stack) == []


def test_a_deploy_undoes_what_a_keeper_that_is_gone_has_left(stack: Stack, dark: type[Dark], known: Record) -> None:
    assert chaos.undo_left_over(stack) == ["dark kitchen: undone"]
    assert chaos.undo_left_over(stack) == []


def test_a_teardown_goes_on_when_a_fault_cannot_be_undone(
    stack: Stack, dark: type[Dark], known: Record, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: object) -> None:
        raise StackError("the light stays out", "no fuse", "buy one")

    monkeypatch.setattr(chaos, "end", refuse)
    chaos.end_before_teardown(stack)
    assert "no fuse" in capsys.readouterr().out


def test_a_second_fault_on_the_same_part_is_refused(stack: Stack, dark: type[Dark], known: Record) -> None:
    with pytest.raises(StackError, match="acts there already"):
        chaos.begin(stack, Record(known.id, ["dark", "kitchen"], 30))


def test_what_cannot_be_done_here_is_refused_before_anything_is_written(
    stack: Stack, dark: type[Dark], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fault_runner, "Clients", lambda _: None)
    with pytest.raises(StackError, match="there is no light"):
        chaos.begin(stack, Record("light-attic", ["dark", "attic"], 30))
    assert list(fault_state.records(stack)) == []


@pytest.fixture
def sleeper(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """The only process of every service."""
    child = subprocess.Popen(SLEEPER)
    monkeypatch.setattr("stack.chaos.faults.process_ids", lambda *_: [child.pid])
    yield child.pid
    child.kill()
    child.wait()


def test_a_paused_process_stands_still_and_goes_on_afterwards(stack: Stack, sleeper: int) -> None:
    scene = Scene(stack, Clients(stack), {}, lambda: None)
    Paused(scene, "sleeper").begin()
    _wait_for(sleeper, stopped=True)
    Paused(scene, "sleeper").end()
    _wait_for(sleeper, stopped=False)


def test_a_stranger_that_got_the_process_id_of_a_paused_one_is_left_alone(
    stack: Stack, sleeper: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[int] = []
    monkeypatch.setattr(processes, "send", lambda pid, _: sent.append(pid))
    clients = Clients(stack)
    Paused(Scene(stack, clients, {"paused": [[sleeper, "1"]]}, lambda: None), "sleeper").end()
    assert sent == []
    Paused(Scene(stack, clients, {"paused": [[sleeper, processes.start_time(sleeper)]]}, lambda: None), "sleeper").end()
    assert sent == [sleeper]


def _wait_for(pid: int, *, stopped: bool) -> None:
    until = time.monotonic() + 10
    while stopped != ((processes.PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()[0] == "T"):
        assert time.monotonic() < until
        time.sleep(0.01)


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
def test_what_is_ordered_wrongly_is_refused_by_name(words: list[str], why: str) -> None:
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
        fault_runner.fault_of(stack, Record("network-gateway", words, 30))


@pytest.mark.parametrize("given", ["0", "601", "-1", "soon", "nan", ""])
def test_no_fault_lasts_longer_than_ten_minutes_or_for_ever(stack: Stack, given: str) -> None:
    with pytest.raises(StackError, match="from 1 to 600 seconds"):
        chaos.chaos(stack, ["pause", "gateway", "--for", *([given] if given else [])])


def test_every_fault_is_found_by_its_own_name() -> None:
    for kind in fault_catalogue.KINDS:
        arguments = ["1" for parameter in kind.parameters if not parameter.startswith("[")]
        assert fault_catalogue.find([*kind.name.split(), *arguments]) == (kind, arguments)
