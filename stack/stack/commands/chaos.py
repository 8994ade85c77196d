"""`chaos`: starts a fault, lists the active ones, ends them. A fault also ends by itself, without this terminal."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence

from stack.chaos import fault_state
from stack.chaos.fault_catalogue import DEFAULT_SECONDS, KINDS, MAX_SECONDS, MIN_SECONDS, find
from stack.chaos.fault_runner import FAULT_ERRORS, fault_of, undo
from stack.chaos.fault_state import FaultState
from stack.cluster import agents
from stack.cluster.clients import Clients
from stack.config import Stack
from stack.console import StackError, say
from stack.machine.lock import exclusive
from stack.waiting import poll

_BEGIN_SECONDS = 60.0
_UNDO_SECONDS = 90.0


def chaos(stack: Stack, words: Sequence[str], seconds: str | None = None) -> None:
    """Runs `list`, `off`, or a fault with its arguments for `seconds`."""
    if not words or list(words) == ["list"]:
        show(stack)
    elif list(words) == ["off"]:
        say("\n".join(off(stack)) or "no fault is active")
    else:
        order(stack, list(words), None if seconds is None else _duration(seconds))


def first_words() -> list[str]:
    """Returns every word with which a chaos command can begin."""
    return sorted({"list", "off", *(kind.name.split()[0] for kind in KINDS)})


def order(stack: Stack, words: list[str], seconds: float | None) -> None:
    """Runs an instant fault; starts a process for one with a duration, and prints when it ends."""
    kind, arguments = find(words)
    if kind.instant and seconds is not None:
        raise StackError(f"{kind.name} takes no --for", "it has no duration", f"./justw chaos {kind.usage}")
    agents_needed(stack)
    if kind.instant:
        say(kind.instant(stack, Clients(stack), arguments))
    else:
        state = begin(
            stack, FaultState(kind.state_id(arguments), words, DEFAULT_SECONDS if seconds is None else seconds)
        )
        say(f"{state.note}\n  until {_clock(state)} ({state.seconds:g} s); earlier with ./justw chaos off")


def agents_needed(stack: Stack) -> None:
    """Raises StackError if no agent runs; a single one may be down because of a fault."""
    if all(agents.daemon(stack, name).pid() is None for name in ("vault", "consul", "nomad")):
        agents.require_running(stack)


def begin(stack: Stack, state: FaultState) -> FaultState:
    """Starts a fault and returns its state; raises StackError for a second one on the same part."""
    with exclusive(fault_state.folder(stack) / "lock", "another fault is starting"):
        known = fault_state.read(stack, state.id)
        if known:
            raise StackError(
                f"{' '.join(known.words)} is active there already", _state(stack, known), "./justw chaos off"
            )
        fault_of(stack, state).require()
        fault_state.write(stack, state)
        return _started(stack, state)


def _started(stack: Stack, state: FaultState) -> FaultState:
    daemon = fault_state.runner(stack, state.id)
    env = dict(os.environ) | {"WAYPOST_STACK": stack.name, "WAYPOST_SLOT": str(stack.slot)}
    daemon.start([sys.executable, "-m", "stack.chaos.fault_runner", state.id], fault_state.folder(stack), env)
    poll(lambda: daemon.pid() is None or _is_active(stack, state.id), _BEGIN_SECONDS, interval=0.05)
    found = fault_state.read(stack, state.id)
    if found and found.phase == "active" and daemon.pid() is not None:
        return found
    why = daemon.log_tail() or f"it did not start within {_BEGIN_SECONDS:g} s"
    off(stack, [state.id])
    raise StackError(f"{' '.join(state.words)} did not start", why, "./justw status")


def _is_active(stack: Stack, state_id: str) -> bool:
    found = fault_state.read(stack, state_id)
    return bool(found and found.phase == "active")


def off(stack: Stack, only: Sequence[str] = ()) -> list[str]:
    """Ends faults, the newest first, also those whose process has ended; returns a line for each."""
    undone = []
    for state in list(fault_state.states(stack)):
        if not only or state.id in only:
            fault_state.runner(stack, state.id).stop(_UNDO_SECONDS)
            left = fault_state.read(stack, state.id)
            if left:
                undo(stack, left, fault_of(stack, left))
            undone.append(f"{' '.join(state.words)}: undone")
    return undone


def undo_left_over(stack: Stack) -> list[str]:
    """Undoes faults whose process has ended, for example in a power failure."""
    left = [state.id for state in fault_state.states(stack) if fault_state.runner(stack, state.id).pid() is None]
    return off(stack, left) if left else []


def end_before_teardown(stack: Stack) -> None:
    """Ends every fault before the stack stops; prints the error of one that cannot be undone, and continues."""
    for state in list(fault_state.states(stack)):
        try:
            for line in off(stack, [state.id]):
                say(f"  {line}")
        except FAULT_ERRORS as error:
            say(f"  {' '.join(state.words)}: not undone ({error}); the next deploy does it")


def active(stack: Stack) -> list[str]:
    """Returns a line for each active fault."""
    return [f"{' '.join(state.words):<32} {_state(stack, state)}" for state in fault_state.states(stack)]


def show(stack: Stack) -> None:
    """Prints every kind of fault, and the active ones."""
    for kind in KINDS:
        say(f"  {kind.usage:<32} {kind.description}")
    seconds = f"{MIN_SECONDS:g} to {MAX_SECONDS:g}, default {DEFAULT_SECONDS:g}"
    say(f"\nevery fault with a duration takes --for SECONDS ({seconds}) and ends by itself\n")
    say("\n".join(f"  {line}" for line in active(stack)) or "  no fault is active")


def _state(stack: Stack, state: FaultState) -> str:
    if fault_state.runner(stack, state.id).pid() is None:
        return f"its process has ended, undo it with ./justw chaos off  {state.note}"
    return f"until {_clock(state)}, {state.left():.0f} s left" if state.phase == "active" else state.phase


def _clock(state: FaultState) -> str:
    return time.strftime("%H:%M:%S", time.localtime(state.until))


def _duration(given: str) -> float:
    """Returns the seconds that a fault lasts; raises StackError for anything out of bounds."""
    try:
        seconds = float(given)
    except ValueError:
        seconds = 0.0
    if not MIN_SECONDS <= seconds <= MAX_SECONDS:
        raise StackError(
            f"--for is {given!r}",
            f"a fault lasts from {MIN_SECONDS:g} to {MAX_SECONDS:g} seconds",
            "./justw chaos list",
        )
    return seconds
