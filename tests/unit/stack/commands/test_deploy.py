"""The summary of a deploy, and the errors that it reports before its slow steps."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from stack import config
from stack.build import tools
from stack.commands.deploy import deploy, summary
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


@pytest.mark.parametrize(
    ("changed", "kept", "line"),
    [
        (0, 0, "no change: everything is as in the files"),
        (0, 1, "no change; 1 key kept as changed by hand"),
        (0, 2, "no change; 2 keys kept as changed by hand"),
        (3, 0, "3 changes"),
        (3, 1, "3 changes; 1 key kept as changed by hand"),
    ],
)
def test_the_summary_counts_changes_and_kept_keys(changed: int, kept: int, line: str) -> None:
    assert summary(changed, kept) == line
