"""The summary of a deploy, and the errors that it reports before its slow steps."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import TYPE_CHECKING, cast

import pytest

from stack import config
from stack.build import tools
from stack.cluster import agents
from stack.commands import deploy as commands
from stack.commands.deploy import deploy, summary
from stack.config import Stack
from stack.console import StackError

if TYPE_CHECKING:
    from stack.cluster.nomad import Nomad


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


class _Agent:
    """Nomad's agent; its client is registered after some questions, and counts its restarts."""

    def __init__(self, questions: int, has_work: bool) -> None:
        self.questions, self.restarts = questions, 0
        self.has_work = lambda: has_work
        self.name = "nomad"

    def has_node(self) -> bool:
        self.questions -= 1
        return self.questions < 0

    def stop(self) -> None:
        self.restarts += 1


@pytest.mark.parametrize(("has_work", "restarts"), [(False, 2), (True, 0)])
def test_an_agent_is_restarted_until_it_is_registered_only_while_it_has_no_work(
    monkeypatch: pytest.MonkeyPatch, has_work: bool, restarts: int
) -> None:
    stack, agent = Stack("waiting", 9), _Agent(2, has_work)
    monkeypatch.setattr(commands, "poll", lambda condition, _: condition())
    monkeypatch.setattr(agents, "agents", lambda *_: [agent])
    monkeypatch.setattr(agents, "daemon", lambda *_: agent)
    monkeypatch.setattr(agents, "start", lambda *_: True)
    monkeypatch.setattr(agents, "wait", lambda *_: None)
    commands._wait_for_node(stack, cast("tools.Tools", None), cast("Nomad", agent))
    assert agent.restarts == restarts
