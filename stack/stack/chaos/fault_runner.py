"""The background process that keeps one fault: begins it, waits for its end or SIGTERM, undoes it, forgets it.

Invariant: it never leaves without having undone its fault, unless it is killed or says in the record why it cannot.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable

import httpx
import requests
from consul import ConsulException
from hvac.exceptions import VaultError
from nomad.api.exceptions import BaseNomadException

from stack import config
from stack.chaos import fault_state as records
from stack.chaos.fault_catalogue import find
from stack.chaos.fault_state import Record
from stack.chaos.faults import Fault, Scene
from stack.cluster.clients import Clients
from stack.config import Stack
from stack.console import StackError

FAILURES = (
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
_PATIENCE_SECONDS = 60.0


def fault_of(stack: Stack, record: Record) -> Fault:
    """The fault of a record, ready to begin or to end."""
    kind, arguments = find(record.words)
    scene = Scene(stack, Clients(stack), record.facts, lambda: records.write(stack, record))
    if kind.make is None:
        raise StackError(f"{kind.name} is over at once", "there is nothing to keep", "./justw chaos list")
    return kind.make(scene, arguments)


def keep(stack: Stack, record: Record, fault: Fault, stop: threading.Event) -> None:
    """Lets a fault act for its time, or until `stop` is set, and undoes it."""
    try:
        record.note = fault.begin()
        record.until, record.phase = time.time() + record.seconds, "active"
        records.write(stack, record)
        _stay(fault, record.seconds, stop)
    except FAILURES as error:
        record.note = f"it could not begin: {error}"
        raise
    finally:
        end(stack, record, fault)


def end(stack: Stack, record: Record, fault: Fault, patience: float = _PATIENCE_SECONDS) -> None:
    """Undoes a fault, tries for a while to, and forgets it; says in its record why when it cannot."""
    try:
        _patiently(fault.end, patience)
    except FAILURES as error:
        record.phase, record.note = "stuck", str(error)[:300]
        records.write(stack, record)
        raise
    records.remove(stack, record.id)


def _stay(fault: Fault, seconds: float, stop: threading.Event) -> None:
    until = time.monotonic() + seconds
    while not stop.wait(min(_TICK_SECONDS, max(0.0, until - time.monotonic()))) and time.monotonic() < until:
        try:
            fault.tick()
        except FAILURES as error:
            print(f"not followed: {error}", file=sys.stderr, flush=True)


def _patiently(action: Callable[[], None], seconds: float) -> None:
    until = time.monotonic() + seconds
    while True:
        try:
            return action()
        except FAILURES as error:
            if time.monotonic() > until:
                raise
            print(f"not undone yet: {error}", file=sys.stderr, flush=True)
        time.sleep(_TICK_SECONDS)


def main() -> int:
    stack, stop = config.current(), threading.Event()
    for sign in (signal.SIGTERM, signal.SIGINT):
        signal.signal(sign, lambda *_: stop.set())
    record = records.read(stack, sys.argv[1])
    if record is None:
        return 1
    try:
        keep(stack, record, fault_of(stack, record), stop)
    except FAILURES as error:
        print(f"{error}", file=sys.stderr, flush=True)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
