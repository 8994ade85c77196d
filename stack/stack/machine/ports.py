"""TCP ports of the loopback address: checks that a port is free, and finds the process that uses it."""

from __future__ import annotations

import socket
from collections.abc import Set
from typing import Any

import psutil

from stack.console import StackError
from stack.machine.processes import command_line


def require_free(port: int, name: str) -> None:
    """Raises StackError with the process that listens on a loopback port, if there is one."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            raise StackError(
                f"port {port} ({name}) is taken",
                f"{listener(port) or 'a process of another user'} listens on it",
                "stop that program, or deploy a second stack: WAYPOST_STACK=second WAYPOST_SLOT=2 ./justw deploy",
            ) from None


def listening() -> set[int]:
    """Returns every TCP port of the machine on which a process listens."""
    return {found.laddr.port for found in _listening()}


def listener(port: int, except_for: Set[int] = frozenset()) -> str | None:
    """Returns the process that listens on a port, or None if nothing but the processes `except_for` does.

    Without root, a process of another user is visible only by its port.
    """
    found = {connection.pid for connection in _listening() if connection.laddr.port == port} - except_for
    known = min((pid for pid in found if pid), default=None)
    if known:
        return f"process {known} ({command_line(known)[:60]})"
    return "a process of another user" if found else None


def _listening() -> list[Any]:
    return [found for found in psutil.net_connections("tcp") if found.status == psutil.CONN_LISTEN]
