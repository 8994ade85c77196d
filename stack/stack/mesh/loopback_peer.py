"""Finds the user at the other end of a loopback connection, because any user of the machine can open one."""

from __future__ import annotations

import socket
import sys
from collections.abc import Iterator
from pathlib import Path

PROC_NET = Path("/proc/net")
# An IPv6 socket that is connected to an IPv4 address has it in this form (::ffff:127.0.0.1).
_MAPPED = "0000000000000000FFFF0000"


def user_id(peer: tuple[str, int], own: tuple[str, int]) -> int | None:
    """Returns the user who opened a connection; None if the kernel does not list it any more.

    `peer` and `own` are the IPv4 addresses of its ends, as getpeername() and getsockname() return them.
    """
    wanted = (_hexadecimal(peer), _hexadecimal(own))
    return next((uid for *ends, uid in _connections() if tuple(map(_unmapped, ends)) == wanted), None)


def _connections() -> Iterator[tuple[str, str, int]]:
    """Yields both ends and the user of every open TCP socket of the machine (proc_net_tcp.txt of the kernel).

    A socket that was closed stays listed for a while as one of root, without an inode.
    """
    for table in ("tcp", "tcp6"):
        file = PROC_NET / table
        for line in file.read_text().splitlines()[1:] if file.exists() else ():
            fields = line.split()
            if int(fields[9]):
                yield fields[1], fields[2], int(fields[7])


def _hexadecimal(address: tuple[str, int]) -> str:
    """Returns an address as the kernel writes it: the number of four bytes in its own byte order, and the port."""
    number = int.from_bytes(socket.inet_aton(address[0]), sys.byteorder)
    return f"{number:08X}:{address[1]:04X}"


def _unmapped(address: str) -> str:
    return address.removeprefix(_MAPPED)
