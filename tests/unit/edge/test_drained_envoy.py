"""The launcher of Envoy: drains it before it ends it, and never leaves it behind."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from stack.config import ROOT

LAUNCHER = ROOT / "nomad" / "edge" / "drained_envoy.py"
# In the place of Envoy: answers on its admin socket, logs what it is asked, and ends at once on SIGTERM.
ENVOY = """#!{python}
import signal, socket, sys
signal.signal(signal.SIGTERM, lambda *_: (print("SIGTERM", flush=True), sys.exit(0)))
server = socket.socket(socket.AF_UNIX)
server.bind(sys.argv[1])
server.listen()
print("started", *sys.argv[2:], flush=True)
active = [2, 1, 0]
while {alive}:
    connection = server.accept()[0]
    asked = connection.recv(4096).decode().split("\\r\\n")[0]
    print(asked, flush=True)
    body = "http.edge.downstream_rq_active: %d" % active.pop(0) if asked.startswith("GET") else "OK"
    connection.sendall(b"HTTP/1.1 200 OK\\r\\n\\r\\n" + body.encode())
    connection.close()
signal.pause()
"""


@contextmanager
def launched(folder: Path, seconds: int, *, alive: bool = True) -> Iterator[subprocess.Popen[str]]:
    """The launcher of a stub, which has started; without `alive` its admin socket never answers."""
    program, admin = folder / "envoy", folder / "admin.sock"
    program.write_text(ENVOY.format(python=sys.executable, alive=alive))
    program.chmod(0o755)
    command = [sys.executable, "-I", "-S", str(LAUNCHER), str(admin), str(seconds), str(program), str(admin)]
    with subprocess.Popen(command, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout
        assert process.stdout.readline() == "started --drain-time-s 1 --drain-strategy immediate\n"
        yield process
        process.kill()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGQUIT])
def test_envoy_is_asked_to_drain_and_ends_once_no_request_is_in_progress(
    tmp_path: Path, number: signal.Signals
) -> None:
    with launched(tmp_path, 10) as process:
        process.send_signal(number)
        logged = process.communicate(timeout=20)[0].splitlines()
        assert process.returncode == 0
    asked = "GET /stats?filter=^http.edge.downstream_rq_active$ HTTP/1.1"
    assert logged == ["POST /drain_listeners?graceful&skip_exit&inboundonly HTTP/1.1", asked, asked, asked, "SIGTERM"]


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGALRM])
def test_a_signal_to_reload_ends_neither_the_launcher_nor_envoy(tmp_path: Path, number: signal.Signals) -> None:
    with launched(tmp_path, 1) as process:
        time.sleep(0.2)
        process.send_signal(number)
        time.sleep(0.2)
        process.send_signal(signal.SIGTERM)
        logged = process.communicate(timeout=20)[0].splitlines()
        assert process.returncode == 0
    assert logged[0].startswith("POST /drain_listeners")


def test_a_second_signal_begins_no_second_drain(tmp_path: Path) -> None:
    with launched(tmp_path, 10) as process:
        process.send_signal(signal.SIGQUIT)
        time.sleep(0.3)
        process.send_signal(signal.SIGTERM)
        logged, errors = process.communicate(timeout=20)
        assert process.returncode == 0
    assert [line.split()[0] for line in logged.splitlines()] == ["POST", "GET", "GET", "GET", "SIGTERM"]
    assert "admin socket fails" not in errors


def test_the_drain_ends_after_its_longest_time(tmp_path: Path) -> None:
    with launched(tmp_path, 1) as process:
        process.send_signal(signal.SIGTERM)
        logged = process.communicate(timeout=20)[0].splitlines()
    assert logged[-1] == "SIGTERM"
    assert len(logged) < 5


def test_an_envoy_that_hangs_is_killed(tmp_path: Path) -> None:
    with launched(tmp_path, 10, alive=False) as process:
        process.send_signal(signal.SIGTERM)
        errors = process.communicate(timeout=20)[1]
        assert process.returncode == signal.SIGKILL
    assert "admin socket fails" in errors


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_the_launcher_ends_with_envoy(tmp_path: Path, number: signal.Signals) -> None:
    with launched(tmp_path, 10) as process:
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        if not children.exists():
            pytest.skip("this kernel lists no children")
        (envoy,) = map(int, children.read_text().split())
        time.sleep(0.1)
        subprocess.run(["kill", f"-{number.value}", str(envoy)], check=True)
        assert process.wait(10) == (0 if number == signal.SIGTERM else signal.SIGKILL)
