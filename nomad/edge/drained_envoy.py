"""Runs Envoy and drains it on a signal of DRAIN: Envoy itself would end immediately and drop the requests in progress.

A signal of IGNORED, which elsewhere reloads a configuration, changes nothing: Nomad renders Envoy's files.

Usage: `drained_envoy.py ADMIN_SOCKET DRAIN_SECONDS ENVOY ARGUMENT…`. It needs only the standard library, because the
job carries its source text.
"""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import sys
import time
from datetime import UTC, datetime

_LISTENING_SECONDS = 1  # new connections are still accepted, and each response ends its connection
_POLL_SECONDS = 0.1
DRAIN = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT)
IGNORED = (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGALRM)
_ACTIVE = "http.edge.downstream_rq_active"


def main() -> int:
    admin, seconds, *command = sys.argv[1:]
    for number in IGNORED:  # Envoy inherits that, and handles those that it knows itself
        signal.signal(number, signal.SIG_IGN)
    # Blocked while Envoy starts, so that a signal at that moment does not leave it behind; the child unblocks them.
    signal.pthread_sigmask(signal.SIG_BLOCK, DRAIN)
    drain_options = ("--drain-time-s", str(_LISTENING_SECONDS), "--drain-strategy", "immediate")
    envoy = os.posix_spawn(command[0], [*command, *drain_options], {}, setsigmask=[])
    for number in DRAIN:
        signal.signal(number, lambda *_: stop(envoy, admin, float(seconds)))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, DRAIN)
    log("info", "envoy started", pid=envoy)
    return abs(os.waitstatus_to_exitcode(os.waitpid(envoy, 0)[1]))


def stop(envoy: int, admin: str, seconds: float) -> None:
    """Drains Envoy and ends it; kills it if its admin socket fails, because then it hangs or has not started yet."""
    for number in DRAIN:  # a second signal must not begin a second drain
        signal.signal(number, signal.SIG_IGN)
    try:
        drain(admin, seconds)
    except OSError as error:
        log("error", "envoy is killed without a drain, its admin socket fails", error=str(error))
        os.kill(envoy, signal.SIGKILL)
    else:
        os.kill(envoy, signal.SIGTERM)


def drain(admin: str, seconds: float) -> None:
    """Returns once the listeners are closed and no request is in progress, or after `seconds`; raises OSError."""
    ends_at = time.monotonic() + seconds
    log("info", "draining", seconds=seconds)
    ask(admin, "POST", "/drain_listeners?graceful&skip_exit&inboundonly")
    time.sleep(_LISTENING_SECONDS)
    while active(admin) and time.monotonic() < ends_at:
        time.sleep(_POLL_SECONDS)


def log(level: str, event: str, **fields: object) -> None:
    """Writes a line in the form of Envoy's own log lines."""
    now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    sys.stderr.write(json.dumps({"timestamp": now, "level": level, "event": event, **fields}) + "\n")


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
