"""Runs Envoy and drains it on SIGTERM, because Envoy itself would end immediately and drop the requests in progress.

Usage: `drained_envoy.py ADMIN_SOCKET DRAIN_SECONDS ENVOY ARGUMENT…`. It needs only the standard library, because the job
carries its source text.
"""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time

_LISTENING_SECONDS = 1  # new connections are still accepted, and each response ends its connection
_POLL_SECONDS = 0.1
_ACTIVE = "http.edge.downstream_rq_active"


def main() -> int:
    admin, seconds, *command = sys.argv[1:]
    stopping: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: stopping.append(number))
    envoy = subprocess.Popen([*command, "--drain-time-s", str(_LISTENING_SECONDS), "--drain-strategy", "immediate"])

    def stop(*_: object) -> None:
        drain(admin, float(seconds))
        os.kill(envoy.pid, signal.SIGTERM)

    signal.signal(signal.SIGTERM, stop)
    if stopping:
        envoy.terminate()
    return abs(envoy.wait())


def drain(admin: str, seconds: float) -> None:
    """Returns once the listeners are closed and no request is in progress, or after `seconds`."""
    ends_at = time.monotonic() + seconds
    try:
        ask(admin, "POST", "/drain_listeners?graceful&skip_exit")
        time.sleep(_LISTENING_SECONDS)
        while active(admin) and time.monotonic() < ends_at:
            time.sleep(_POLL_SECONDS)
    except OSError as error:
        print(f"Envoy is not drained, its admin socket fails: {error}", file=sys.stderr, flush=True)


def active(admin: str) -> int:
    """Returns the number of requests in progress."""
    found = re.search(rf"{_ACTIVE}: (\d+)", ask(admin, "GET", f"/stats?filter=^{_ACTIVE}$"))
    return int(found[1]) if found else 0


def ask(admin: str, method: str, path: str) -> str:
    """Sends one request to the admin socket of Envoy; raises OSError."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(5)
        connection.connect(admin)
        connection.sendall(f"{method} {path} HTTP/1.1\r\nHost: admin\r\nConnection: close\r\n\r\n".encode())
        return connection.makefile("rb").read().decode()


if __name__ == "__main__":
    sys.exit(main())
