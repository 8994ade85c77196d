"""The user at the other end of a loopback connection is the one who opened it, over IPv4 and over a mapped address."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from stack.mesh import loopback_peer
from stack.mesh.loopback_peer import user_id

# A kernel with this byte order writes 127.0.0.1 as 0100007F.
TABLE = """\
  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: {local}:D431 {remote}:1F90 01 00000000:00000000 00:00000000 00000000 {uid:>5}        0 1 1 0 20 4 30 10 -1
"""
V4 = f"{int.from_bytes(bytes([127, 0, 0, 1]), sys.byteorder):08X}"
MAPPED = f"0000000000000000FFFF0000{V4}"


@pytest.fixture
def listening() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server


def test_the_user_of_an_ipv4_connection_is_found(listening: socket.socket) -> None:
    with socket.create_connection(listening.getsockname()):
        accepted, peer = listening.accept()
        with accepted:
            assert user_id(peer, accepted.getsockname()) == os.geteuid()


def test_the_user_of_a_connection_from_an_ipv6_socket_is_found(listening: socket.socket) -> None:
    """gRPC opens such sockets, also for an IPv4 address."""
    try:
        client = socket.socket(socket.AF_INET6)
        client.connect((f"::ffff:{listening.getsockname()[0]}", listening.getsockname()[1]))
    except OSError:
        pytest.skip("this machine has no IPv6")
    with client:
        accepted, peer = listening.accept()
        with accepted:
            assert user_id(peer, accepted.getsockname()) == os.geteuid()


def test_a_connection_that_was_closed_has_no_user_although_the_kernel_lists_it_as_one_of_root(
    listening: socket.socket,
) -> None:
    client = socket.create_connection(listening.getsockname())
    accepted, peer = listening.accept()
    with accepted:
        client.close()
        assert user_id(peer, accepted.getsockname()) is None


def test_a_connection_that_is_gone_has_no_user() -> None:
    assert user_id(("127.0.0.1", 1), ("127.0.0.1", 2)) is None


@pytest.mark.parametrize(("table", "address"), [("tcp", V4), ("tcp6", MAPPED)])
def test_the_user_is_read_from_the_row_with_both_ends(
    table: str, address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / table).write_text(TABLE.format(local=address, remote=address, uid=1234))
    monkeypatch.setattr(loopback_peer, "PROC_NET", tmp_path)
    assert user_id(("127.0.0.1", 0xD431), ("127.0.0.1", 0x1F90)) == 1234
    assert user_id(("127.0.0.1", 0x1F90), ("127.0.0.1", 0xD431)) is None
