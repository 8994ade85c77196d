"""Starts the processes of a measurement: each on a port of its own on loopback, with its output in a file."""

from __future__ import annotations

import os
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from stack.machine.processes import family

_START_SECONDS, _STOP_SECONDS = 120.0, 15.0
_TESTS = Path(__file__).parents[2]
# As the jobs of a stack set them: nothing of the terminal's environment reaches a measured process.
_KEPT = ("PATH", "HOME", "TMPDIR", "LANG")


@dataclass(frozen=True)
class Server:
    """A process that accepts connections at a port."""

    process: subprocess.Popen[bytes]
    port: int

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def pids(self) -> list[int]:
        """The process and its descendants."""
        return sorted(family([self.process.pid]))


def free_port() -> int:
    """Returns a port that nobody listens at."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def serving(command: Sequence[str], port: int, env: Mapping[str, str] | None = None) -> Iterator[Server]:
    """Runs a server until the block ends; yields it once its port accepts connections."""
    kept = {name: os.environ[name] for name in _KEPT if name in os.environ}
    with tempfile.NamedTemporaryFile(prefix="waypost-bench-", suffix=".log") as log:
        environment = {**kept, "PYTHONPATH": str(_TESTS), **(env or {})}
        # Not in the checkout: the folders of its packages would be found first.
        process = subprocess.Popen(command, stdout=log, stderr=log, env=environment, cwd=tempfile.gettempdir())
        try:
            _wait(process, port, Path(log.name))
            yield Server(process, port)
        finally:
            process.terminate()
            try:
                process.wait(_STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _wait(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    ends_at = time.monotonic() + _START_SECONDS
    while process.poll() is None and time.monotonic() < ends_at:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)
    raise SystemExit(f"{process.args!r} does not serve:\n{log.read_text()[-3000:]}")
