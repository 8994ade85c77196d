"""Runs one fault in a background process: begins it, waits for its end or SIGTERM, undoes it, removes its state.

Invariant: unless it is killed, the process ends only after it has undone its fault or written the error to the state.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time

import httpx
import requests
from consul import ConsulException
from hvac.exceptions import VaultError
from nomad.api.exceptions import BaseNomadException

from stack import config
from stack.chaos import fault_state
from stack.chaos.fault_catalogue import find
from stack.chaos.fault_state import FaultState
from stack.chaos.faults import Fault, FaultContext
from stack.cluster.clients import Clients
from stack.config import Stack
from stack.console import StackError
from stack.waiting import retry

FAULT_ERRORS = (
    StackError,
    OSError,
    httpx.HTTPError,
    requests.RequestException,
    ConsulException,
    VaultError,
    BaseNomadException,
    subprocess.SubprocessError,
)
_TICK_SECONDS = 0.5
_UNDO_SECONDS = 60.0


def fault_of(stack: Stack, state: FaultState) -> Fault:
    """Returns the fault that a state describes, ready to begin or to be undone."""
    kind, arguments = find(state.words)
    context = FaultContext(stack, Clients(stack), state.facts, lambda: fault_state.write(stack, state))
    if kind.lasting is None:
        raise StackError(f"{kind.name} has no duration", "nothing has to be undone", "./justw chaos list")
    return kind.lasting(context, arguments)


def run(stack: Stack, state: FaultState, fault: Fault, stop: threading.Event) -> None:
    """Runs a fault for its duration, or until `stop` is set, and undoes it."""
    try:
        state.note = fault.begin()
        state.until, state.phase = time.time() + state.seconds, "active"
        fault_state.write(stack, state)
        _stay(fault, state.seconds, stop)
    except FAULT_ERRORS as error:
        state.note = f"it could not start: {error}"
        raise
    finally:
        undo(stack, state, fault)


def undo(stack: Stack, state: FaultState, fault: Fault, seconds: float = _UNDO_SECONDS) -> None:
    """Undoes a fault and removes its state; after `seconds` without success it writes the error to the state."""
    try:
        retry(fault.undo, seconds, _may_retry, interval=_TICK_SECONDS)
    except FAULT_ERRORS as error:
        state.phase, state.note = "stuck", str(error)[:300]
        fault_state.write(stack, state)
        raise
    fault_state.remove(stack, state.id)


def _may_retry(error: Exception) -> bool:
    if not isinstance(error, FAULT_ERRORS):
        return False
    print(f"not undone yet: {error}", file=sys.stderr, flush=True)
    return True


def _stay(fault: Fault, seconds: float, stop: threading.Event) -> None:
    until = time.monotonic() + seconds
    while not stop.wait(min(_TICK_SECONDS, max(0.0, until - time.monotonic()))) and time.monotonic() < until:
        try:
            fault.tick()
        except FAULT_ERRORS as error:
            print(f"tick failed: {error}", file=sys.stderr, flush=True)


def main() -> int:
    stack, stop = config.current(), threading.Event()
    # Each of these signals would otherwise end the process and leave the fault in place.
    for sign in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(sign, lambda *_: stop.set())
    state = fault_state.read(stack, sys.argv[1])
    if state is None:
        return 1
    try:
        run(stack, state, fault_of(stack, state), stop)
    except FAULT_ERRORS as error:
        print(f"{error}", file=sys.stderr, flush=True)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
