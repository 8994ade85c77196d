"""Ports: free, or taken by a process with a name."""

from __future__ import annotations

import os
import socket

import pytest

from stack.console import StackError
from stack.machine.ports import listening, require_free


def test_a_taken_port_is_an_error_with_the_name_of_its_process() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(StackError, match=f"port {port} .gateway. is taken: process {os.getpid()}"):
            require_free(port, "gateway")


def test_a_free_port_is_accepted() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    require_free(port, "gateway")


def test_every_listening_port_of_the_machine_is_found() -> None:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        port = server.getsockname()[1]
        assert port not in listening()
        server.listen()
        assert port in listening()
