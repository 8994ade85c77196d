"""The command line: help of every command, exit codes, and errors that say what, why and what next."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Callable

import pytest

from stack import __main__ as entry
from stack import command_line
from stack.command_line import COMMANDS
from stack.config import ROOT
from stack.console import StackError, say

Output = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def _no_stack(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "environ", os.environ.copy())
    monkeypatch.setenv("WAYPOST_STACK", "never_deployed")
    monkeypatch.setenv("WAYPOST_SLOT", "9")


def build_does(monkeypatch: pytest.MonkeyPatch, action: Callable[[object], object]) -> None:
    monkeypatch.setattr(command_line.deployment, "build", action)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(command: str, capsys: Output) -> None:
    assert entry.main([command, "--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f"Usage: waypost {command}")
    assert lines[2].strip()


def test_the_help_lists_every_command(capsys: Output) -> None:
    assert entry.main(["--help"]) == 0
    text = capsys.readouterr().out
    assert [command for command in COMMANDS if f"  {command} " not in text] == []


@pytest.mark.parametrize("command", ["plan", "status"])
def test_the_help_documents_the_shape_of_the_json(command: str, capsys: Output) -> None:
    entry.main([command, "--help"])
    assert '"notes": [text]' in (text := capsys.readouterr().out) or '"memory": {' in text


def test_the_help_of_mesh_show_documents_the_shape_of_its_json(capsys: Output) -> None:
    assert entry.main(["mesh", "show", "--help"]) == 0
    assert '"methods": [{"path", "allowed": [caller]}]' in capsys.readouterr().out


@pytest.mark.parametrize("arguments", [[], ["explode"], ["--explode"]])
def test_an_unknown_command_ends_with_64_and_the_known_ones(arguments: list[str], capsys: Output) -> None:
    assert entry.main(arguments) == 64
    assert "deploy, plan, status" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [
        ["logs"],
        ["logs", "a", "b"],
        ["trace"],
        ["status", "--bogus"],
        ["deploy", "now"],
        ["chaos", "--for"],
        ["mesh"],
        ["mesh", "explode"],
        ["mesh", "dial"],
        ["mesh", "show", "--bogus"],
        ["mesh", "dial", "order-service", "--port", "99999"],
    ],
)
def test_wrong_arguments_end_with_1_and_point_to_the_help(arguments: list[str], capsys: Output) -> None:
    assert entry.main(arguments) == 1
    error = capsys.readouterr().err
    assert f"failed: {arguments[0]} cannot be called like this" in error
    assert f"next: ./justw {arguments[0]} --help" in error


def test_a_failed_step_ends_with_1_and_says_what_why_and_what_next(
    monkeypatch: pytest.MonkeyPatch, capsys: Output
) -> None:
    def fails(_: object) -> None:
        raise StackError("the kettle is cold", "nobody lit the fire", "light it")

    build_does(monkeypatch, fails)
    assert entry.main(["build"]) == 1
    assert capsys.readouterr().err == "\nfailed: the kettle is cold\n   why: nobody lit the fire\n  next: light it\n"


def test_a_full_disk_ends_with_1(monkeypatch: pytest.MonkeyPatch, capsys: Output) -> None:
    def fails(_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    build_does(monkeypatch, fails)
    assert entry.main(["build"]) == 1
    assert "failed: build found no space" in capsys.readouterr().err


def test_an_interrupted_command_ends_with_130(monkeypatch: pytest.MonkeyPatch, capsys: Output) -> None:
    def interrupted(_: object) -> None:
        raise KeyboardInterrupt

    build_does(monkeypatch, interrupted)
    assert entry.main(["build"]) == 130
    assert "interrupted" in capsys.readouterr().err


@pytest.mark.parametrize("code", [0, 1, 2])
def test_the_exit_code_of_a_plan_is_passed_on(monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    monkeypatch.setattr(command_line.plans, "plan", lambda stack, as_json: code)
    assert entry.main(["plan"]) == code


@pytest.mark.parametrize("command", ["plan", "status"])
def test_json_is_an_option(monkeypatch: pytest.MonkeyPatch, capsys: Output, command: str) -> None:
    monkeypatch.setattr(command_line.plans, "plan", lambda stack, as_json: say(f"json {as_json}"))
    monkeypatch.setattr(command_line.overview, "status", lambda stack, as_json: say(f"json {as_json}"))
    assert entry.main([command, "--json"]) == 0
    assert entry.main([command]) == 0
    assert capsys.readouterr().out == "json True\njson False\n"


def test_a_reader_that_ends_early_ends_the_command_as_sigpipe_would() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", "stack", "chaos", "list"]
    try:
        done = subprocess.run(command, cwd=ROOT, stdout=writing, stderr=subprocess.PIPE, text=True, check=False)
    finally:
        os.close(writing)
    assert (done.returncode, done.stderr) == (141, "")


def test_a_shell_completes_commands_and_names() -> None:
    env = os.environ | {"_WAYPOST_COMPLETE": "complete_bash", "COMP_WORDS": "waypost logs gate", "COMP_CWORD": "2"}
    command = [sys.executable, "-m", "stack", "logs"]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["gateway"]
