"""Errors that a deploy reports before its slow steps."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from stack import config
from stack.build import tools
from stack.commands.deploy import deploy
from stack.config import Stack
from stack.console import StackError


def test_a_taken_port_is_an_error_before_a_server_is_built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(config, "ROOT", tmp_path)
    monkeypatch.setattr(tools, "ensure", lambda: pytest.fail("it builds first"))
    stack = Stack("squatter", 9)
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        taken.bind(("127.0.0.1", stack.port("nomad_serf")))
        taken.listen()
        with pytest.raises(StackError, match=r"\(nomad_serf\) is taken"):
            deploy(stack)
    assert not stack.state.exists()
