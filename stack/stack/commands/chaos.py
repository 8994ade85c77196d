"""`chaos`: order a fault, see what acts, end it. Every fault ends by itself, whatever becomes of this terminal."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence

from stack.chaos import fault_state as records
from stack.chaos.fault_catalogue import KINDS, LONGEST, SHORTEST, USUAL, find
from stack.chaos.fault_runner import FAILURES, end, fault_of
from stack.chaos.fault_state import Record
from stack.cluster import agents
from stack.cluster.clients import Clients
from stack.config import Stack
from stack.console import StackError, say
from stack.machine.lock import exclusive

_BEGIN_SECONDS = 60.0
_UNDO_SECONDS = 90.0


def chaos(stack: Stack, words: Sequence[str]) -> None:
    """`list`, `off`, or a fault with its arguments and `--for SECONDS`."""
    if not words or list(words) == ["list"]:
        show(stack)
    elif list(words) == ["off"]:
        say("\n".join(off(stack)) or "no fault acts")
    else:
        order(stack, *_split(words))


def order(stack: Stack, words: list[str], seconds: float | None) -> None:
    """Does at once what is over at once; has a keeper do what lasts, and says until when."""
    kind, arguments = find(words)
    if kind.strike and seconds is not None:
        raise StackError(f"{kind.name} takes no --for", "it is over at once", f"./justw chaos {kind.usage}")
    agents_needed(stack)
    if kind.strike:
        say(kind.strike(stack, Clients(stack), arguments))
    else:
        record = begin(stack, Record(kind.record_id(arguments), words, USUAL if seconds is None else seconds))
        say(f"{record.note}\n  until {_clock(record)} ({record.seconds:g} s); earlier with ./justw chaos off")


def agents_needed(stack: Stack) -> None:
    """Refuses on a stack that is not there; an agent may be away, that can be a fault itself."""
    if all(agents.daemon(stack, name).pid() is None for name in ("vault", "consul", "nomad")):
        agents.require_running(stack)


def begin(stack: Stack, record: Record) -> Record:
    """The record of a fault that acts now; refuses a second one on the same part."""
    with exclusive(records.folder(stack) / "lock", "another fault is being ordered"):
        known = records.read(stack, record.id)
        if known:
            raise StackError(f"{' '.join(known.words)} acts there already", _state(stack, known), "./justw chaos off")
        fault_of(stack, record).require()
        records.write(stack, record)
        return _started(stack, record)


def _started(stack: Stack, record: Record) -> Record:
    daemon = records.keeper(stack, record.id)
    env = dict(os.environ) | {"WAYPOST_STACK": stack.name, "WAYPOST_SLOT": str(stack.slot)}
    daemon.start([sys.executable, "-m", "stack.chaos.fault_runner", record.id], records.folder(stack), env)
    until = time.monotonic() + _BEGIN_SECONDS
    while daemon.pid() is not None and time.monotonic() < until:
        found = records.read(stack, record.id)
        if found and found.phase == "active":
            return found
        time.sleep(0.05)
    why = daemon.log_tail() or f"it did not act within {_BEGIN_SECONDS:g} s"
    off(stack, [record.id])
    raise StackError(f"{' '.join(record.words)} did not begin", why, "./justw status")


def off(stack: Stack, only: Sequence[str] = ()) -> list[str]:
    """Ends every fault, the newest first, and says what was undone; a keeper that is gone is stood in for."""
    undone = []
    for record in list(records.records(stack)):
        if not only or record.id in only:
            records.keeper(stack, record.id).stop(_UNDO_SECONDS)
            left = records.read(stack, record.id)
            if left:
                end(stack, left, fault_of(stack, left))
            undone.append(f"{' '.join(record.words)}: undone")
    return undone


def undo_left_over(stack: Stack) -> list[str]:
    """Undoes what faults whose keeper is gone have left; a machine that lost its power leaves such."""
    left = [record.id for record in records.records(stack) if records.keeper(stack, record.id).pid() is None]
    return off(stack, left) if left else []


def end_before_teardown(stack: Stack) -> None:
    """Ends every fault of a stack that is about to stop; says so when one cannot be undone, and lets the stop go on."""
    for record in list(records.records(stack)):
        try:
            for line in off(stack, [record.id]):
                say(f"  {line}")
        except FAILURES as error:
            say(f"  {' '.join(record.words)}: not undone ({error}); the next deploy does it")


def active(stack: Stack) -> list[str]:
    """A line for each fault that acts."""
    return [f"{' '.join(record.words):<32} {_state(stack, record)}" for record in records.records(stack)]


def show(stack: Stack) -> None:
    for kind in KINDS:
        say(f"  {kind.usage:<32} {kind.does}")
    say(f"\neach that lasts takes --for SECONDS ({SHORTEST:g} to {LONGEST:g}, usually {USUAL:g}) and ends by itself\n")
    say("\n".join(f"  {line}" for line in active(stack)) or "  no fault acts")


def _state(stack: Stack, record: Record) -> str:
    if records.keeper(stack, record.id).pid() is None:
        return f"its keeper is gone, undo it with ./justw chaos off  {record.note}"
    return f"until {_clock(record)}, {record.left():.0f} s left" if record.phase == "active" else record.phase


def _clock(record: Record) -> str:
    return time.strftime("%H:%M:%S", time.localtime(record.until))


def _split(words: Sequence[str]) -> tuple[list[str], float | None]:
    """The words without `--for SECONDS`, and the seconds."""
    if "--for" not in words:
        return list(words), None
    at = list(words).index("--for")
    given = words[at + 1] if at + 1 < len(words) else ""
    try:
        seconds = float(given)
    except ValueError:
        seconds = 0.0
    if not SHORTEST <= seconds <= LONGEST:
        raise StackError(
            f"--for is {given!r}", f"a fault lasts from {SHORTEST:g} to {LONGEST:g} seconds", "./justw chaos list"
        )
    return [*words[:at], *words[at + 2 :]], seconds
