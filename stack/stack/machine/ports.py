"""TCP ports of the loopback address: checks that a port is free, and finds the process that uses it."""

from __future__ import annotations

import socket
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
                f"{_listener(port)} listens on it",
                "stop that program, or deploy a second stack: WAYPOST_STACK=second WAYPOST_SLOT=2 ./justw deploy",
            ) from None


def listening() -> set[int]:
    """Returns every TCP port of the machine on which a process listens."""
    return {found.laddr.port for found in _listening()}


def _listener(port: int) -> str:
    for found in _listening():
        if found.laddr.port == port and found.pid:
            return f"process {found.pid} ({command_line(found.pid)[:60]})"
    return "a process of another user"


def _listening() -> list[Any]:
    return [found for found in psutil.net_connections("tcp") if found.status == psutil.CONN_LISTEN]
