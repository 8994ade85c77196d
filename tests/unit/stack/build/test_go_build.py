"""Builds of servers, with a script instead of go: complete or absent, resumable, one at a time."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from stack.build import go_build, go_build_errors, go_toolchain
from stack.build.go_build import GoTool
from stack.console import StackError
from stack.machine import os_errors
from stack.machine.lock import exclusive
from stack.waiting import poll

GO = """#!/bin/sh
echo "$1 $GOFLAGS $CGO_ENABLED" >>"{folder}/calls"
if [ "$1" = list ]; then
    echo "go: downloading example.org/one v1.0.0" >&2
    printf 'a\\nb\\nc\\n'
    exit
fi
{before}
for word; do
    if [ "$last" = -o ]; then mkdir -p "${{word%/*}}"; echo built >"$word"; fi
    last=$word
done
printf 'a\\nb\\nc\\n' >&2
{after}
"""


@pytest.fixture(autouse=True)
def _place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WAYPOST_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(go_build, "MODULES", tmp_path / "modules")
    monkeypatch.setattr(go_toolchain, "compiler", lambda: go_toolchain.Compiler("cc", cpp=True))
    monkeypatch.setattr(go_toolchain, "go", lambda *_: tmp_path / "go")


def server(tmp_path: Path, name: str = "server", version: str = "1.2.3") -> GoTool:
    folder = tmp_path / "modules" / name
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "go.mod").write_text(f"module m\n\ngo 1.25.8\n\nrequire example.org/{name} v{version} // indirect\n")
    (folder / "go.sum").write_text("")
    return GoTool(name, f"example.org/{name}", "1 s", 0.001)


def go(tmp_path: Path, before: str = "", after: str = "") -> None:
    (tmp_path / "go").write_text(GO.format(folder=tmp_path, before=before, after=after))
    (tmp_path / "go").chmod(0o755)


def calls(tmp_path: Path) -> list[str]:
    file = tmp_path / "calls"
    return [line.split()[0] for line in file.read_text().splitlines()] if file.exists() else []


def eventually_holds(tmp_path: Path, names: list[str]) -> None:
    found = poll(lambda: sorted(path.name for path in (tmp_path / "cache").iterdir()) == names, 20)
    assert found, "the build caches are not removed"


def test_a_failed_build_leaves_no_server_and_keeps_the_caches(tmp_path: Path) -> None:
    go(tmp_path, after="echo 'x.go:1: syntax error' >&2; exit 1")
    tool = server(tmp_path)
    with pytest.raises(StackError) as caught:
        go_build.build([tool])
    assert "syntax error" in caught.value.why
    log = Path(caught.value.next_step.split()[1].rstrip(";"))
    assert "syntax error" in log.read_text()
    assert not tool.binary(cgo=True).exists()
    assert (tmp_path / "cache" / "build" / "gocache").is_dir()


def test_after_a_failure_the_next_build_continues_and_removes_the_caches(tmp_path: Path) -> None:
    tool = server(tmp_path)
    go(tmp_path, after="kill -9 $$")
    with pytest.raises(StackError):
        go_build.build([tool])
    go(tmp_path)
    go_build.build([tool])
    assert tool.binary(cgo=True).read_text() == "built\n"
    eventually_holds(tmp_path, ["build.lock", "tools"])


def test_the_first_build_names_the_licence_and_the_way_around_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    go(tmp_path)
    go_build.build([server(tmp_path)])
    printed = " ".join(capsys.readouterr().out.split())
    assert "Business Source License 1.1: source-available, not open source" in printed
    assert "on PATH are used instead of a build" in printed


def test_a_built_server_is_not_built_again(tmp_path: Path) -> None:
    go(tmp_path)
    for _ in range(2):
        go_build.build([server(tmp_path)])
    assert calls(tmp_path) == ["list", "build"]


def test_the_next_server_is_fetched_while_one_is_compiled(tmp_path: Path) -> None:
    """The first build waits until the second server was fetched."""
    go(tmp_path, before=f'while [ "$(grep -c ^list "{tmp_path}/calls")" -lt 2 ]; do sleep 0.05; done')
    go_build.build([server(tmp_path), server(tmp_path, "other")])
    assert sorted(calls(tmp_path)) == ["build", "build", "list", "list"]


def test_a_failed_fetch_fails_the_build_of_its_server_only(tmp_path: Path) -> None:
    go(tmp_path)
    script = (tmp_path / "go").read_text().replace("printf", '[ "${PWD##*/}" != other ] || exit 1; printf', 1)
    (tmp_path / "go").write_text(script)
    first = server(tmp_path)
    with pytest.raises(StackError):
        go_build.build([first, server(tmp_path, "other")])
    assert first.binary(cgo=True).exists()


def test_another_version_is_built_next_to_the_old_one(tmp_path: Path) -> None:
    go(tmp_path)
    old = server(tmp_path)
    go_build.build([old])
    new = server(tmp_path, version="1.3.0")
    go_build.build([new])
    assert {tool.version for tool in (old, new)} == {"1.2.3", "1.3.0"}
    assert old.binary(cgo=True).exists()
    assert new.binary(cgo=True).exists()


def test_a_change_of_a_replaced_module_is_another_server(tmp_path: Path) -> None:
    tool = server(tmp_path)
    with (tmp_path / "modules" / "server" / "go.mod").open("a") as pins:
        pins.write("\nreplace example.org/part => ../part\n")
    (tmp_path / "modules" / "part").mkdir()
    source = tmp_path / "modules" / "part" / "part.go"
    found = set()
    for content in ("package part\n", "package part // changed\n"):
        source.write_text(content)
        found.add(GoTool(tool.name, tool.module, "1 s", 0.001).binary(cgo=True))
    assert len(found) == 2


def test_a_second_deploy_waits_and_then_finds_the_server(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    go(tmp_path, before=f'while [ ! -e "{tmp_path}/waiting" ]; do sleep 0.05; done')
    tool = server(tmp_path)
    builds = [threading.Thread(target=go_build.build, args=([tool],)) for _ in range(2)]
    for build in builds:
        build.start()
    (tmp_path / "waiting").touch()
    for build in builds:
        build.join(30)
    assert calls(tmp_path) == ["list", "build"]
    assert "waiting for another deploy's build" in capsys.readouterr().out


def test_too_little_disk_space_is_refused_before_anything_is_fetched(tmp_path: Path) -> None:
    go(tmp_path)
    huge = GoTool(server(tmp_path).name, "example.org/server", "1 s", 1e9)
    with pytest.raises(StackError) as caught:
        go_build.build([huge])
    assert "disk space" in caught.value.what
    assert "WAYPOST_CACHE" in caught.value.next_step
    assert calls(tmp_path) == []


def test_settings_of_the_user_that_change_the_result_do_not_reach_the_build(tmp_path: Path) -> None:
    theirs = {
        "GOFLAGS": "-mod=vendor",
        "GOROOT": "/x",
        "GOOS": "plan9",
        "GOPROXY": "https://proxy.example",
        "PATH": "/bin",
    }
    env = go_build.environment(tmp_path / "go", "", theirs)
    assert env["GOFLAGS"] == "-mod=readonly -modcacherw"
    assert env["GOPROXY"] == "https://proxy.example"
    assert env["CGO_ENABLED"] == "0"
    assert not {"GOROOT", "GOOS"} & set(env)
    assert all(env[key].startswith(str(tmp_path / "cache")) for key in ("GOMODCACHE", "GOCACHE", "GOTMPDIR"))


@pytest.mark.parametrize(
    ("line", "advice"),
    [
        ("compile: writing output: write $WORK/b001/_pkg_.a: no space left on device", "free some space"),
        (
            'Get "https://modules.example.org/x": dial tcp: lookup modules.example.org: no such host',
            "check the network",
        ),
        ("verifying example.org/one@v1.0.0: checksum mismatch", "check GOPROXY"),
        ("compile: signal: killed", "free some memory"),
        ("x.go:1:1: undefined: y", "/the/log"),
    ],
)
def test_a_failed_build_has_advice(line: str, advice: str) -> None:
    error = go_build_errors.explain("nomad", ["go: downloading a v1", line], Path("/the/log"))
    assert line in error.why
    assert advice in error.next_step


def test_an_interrupted_deploy_ends_go_too() -> None:
    child = subprocess.Popen(["sleep", "60"], text=True)
    with pytest.raises(KeyboardInterrupt), go_build._terminated_on_error(child):
        raise KeyboardInterrupt
    assert child.returncode == -signal.SIGTERM


def test_a_full_disk_is_reported_even_if_the_log_fails_first(tmp_path: Path) -> None:
    go(tmp_path, after="echo no space left on device >&2; exit 1")
    tool = server(tmp_path)
    log = tmp_path / "cache" / "build" / "server.log"
    log.parent.mkdir(parents=True)
    log.symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left") as caught:
        go_build.build([tool])
    assert str(tmp_path / "cache") in os_errors.explain("deploy", caught.value).why


def test_the_lock_of_a_killed_process_is_free(tmp_path: Path) -> None:
    hold = "with exclusive(Path(sys.argv[1])):\n    print(flush=True)\n    sys.stdin.read()"
    code = f"import sys\nfrom stack.machine.lock import *\n{hold}"
    command = [sys.executable, "-c", code, str(tmp_path / "lock")]
    holder = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert holder.stdout is not None
    holder.stdout.readline()
    with pytest.raises(BlockingIOError), exclusive(tmp_path / "lock", patient=False):
        pytest.fail("two processes have the lock")
    holder.kill()
    holder.communicate()
    with exclusive(tmp_path / "lock", patient=False):
        pass


def test_a_partly_removed_cache_is_removed_later_but_not_during_another_build(tmp_path: Path) -> None:
    doomed = tmp_path / "cache" / "build.doomed-1" / "x"
    doomed.mkdir(parents=True)
    with exclusive(tmp_path / "cache" / "build.lock"):
        go_build.tidy()
    assert doomed.exists()
    go_build.tidy()
    eventually_holds(tmp_path, ["build.lock"])
