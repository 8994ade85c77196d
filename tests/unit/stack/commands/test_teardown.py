"""A teardown continues if Nomad fails, and never removes the data of a running process."""

from __future__ import annotations

from pathlib import Path

import pytest
import requests
from nomad.api.exceptions import BaseNomadException

from stack import config
from stack.cluster import nomad
from stack.commands import teardown
from stack.commands.teardown import _unescaped
from stack.config import Stack
from stack.console import StackError
from stack.machine import processes


@pytest.fixture
def stack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Stack:
    monkeypatch.setattr(config, "ROOT", tmp_path)
    made = Stack("gone", 9)
    made.state.mkdir(parents=True)
    return made


@pytest.mark.parametrize(
    "trouble",
    [
        BaseNomadException(type("Forbidden", (), {"text": "Permission denied", "status_code": 403})),
        StackError("job gateway did not stop", "waited 60 s", "./justw logs gateway"),
        requests.ConnectionError("no answer"),
    ],
)
def test_a_nomad_that_fails_does_not_keep_a_stack_alive(
    stack: Stack, trouble: Exception, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = []

    def fail(_: object, name: str) -> None:
        asked.append(name)
        raise trouble

    monkeypatch.setattr(teardown, "_nomad_answers", lambda _: True)
    monkeypatch.setattr(nomad, "stop", fail)
    teardown.destroy(stack)
    for stage in reversed(nomad.stages()):
        assert {asked.pop(0) for _ in stage} == set(stage)
    assert asked == []
    assert capsys.readouterr().out.count("continues without Nomad") == len(nomad.names())
    assert not stack.state.parent.exists()


def test_data_stays_while_a_process_of_the_stack_does(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "belonging", lambda _: {4711})
    monkeypatch.setattr(processes, "end", lambda pids, timeout: None)
    with pytest.raises(StackError, match="4711"):
        teardown.destroy(stack)
    assert stack.state.exists()


@pytest.mark.parametrize(
    ("written", "path"),
    [
        (r"/a\040b/secrets", "/a b/secrets"),
        (r"/tab\011here", "/tab\there"),
        ("/plain", "/plain"),
        (r"/a\134b", r"/a\b"),
    ],
)
def test_a_path_is_read_as_the_kernel_writes_it(written: str, path: str) -> None:
    assert _unescaped(written) == path
