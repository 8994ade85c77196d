"""Counts and logs the TLS handshakes of gRPC that fail, on the side of a server and on that of a client.

gRPC for Python has no callback for them. Its core writes a line to the standard error of the process, so that is read
here, and everything else in it is passed on. Python writes to the original, also the traceback of a crash. Only the
words of a library that ends the process with them may be lost.
"""

from __future__ import annotations

import faulthandler
import os
import re
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from threading import Thread

import structlog

from chassis.telemetry.metrics import Counts

log = structlog.get_logger(__name__)

_LOG_SECONDS = 10.0
_LEVEL = "INFO"
_CHUNK_BYTES = 65_536
_FAILED = re.compile(r"Handshake failed with error .*OPENSSL_internal:(\w+): (.*)")  # fragile: grpc-handshake-line
# Lines of the core below ERROR, which it would not write at its default level.
_QUIET = re.compile(rb"[IW]\d{4} [\d:.]+ +\d+ \S+\.cc:\d+\] ")
_NOT_VERIFIED = "CERTIFICATE_VERIFY_FAILED"
_failed = Counts("mesh.handshakes.failed", "{handshake}", "TLS handshakes of gRPC that failed, by reason")


def start() -> None:
    """Follows the handshakes of this process from now on; call it once, before the first server or channel."""
    is_quiet = os.environ.setdefault("GRPC_VERBOSITY", _LEVEL) == _LEVEL
    original = os.dup(2)
    reader, writer = os.pipe()
    # A write to a full pipe must fail: it would block a thread of the core, which may hold the interpreter's lock.
    os.set_blocking(writer, False)
    os.dup2(writer, 2)
    os.close(writer)
    sys.stderr = os.fdopen(original, "w", buffering=1, errors="backslashreplace")
    faulthandler.enable(file=sys.stderr)
    Thread(target=_follow, args=(reader, original, is_quiet), name="handshake failures", daemon=True).start()


def reason(line: str) -> str | None:
    """Returns why a handshake failed, in OpenSSL's words; None for any other line."""
    found = _FAILED.search(line)
    if found is None:
        return None
    return found[2].strip() if found[1] == _NOT_VERIFIED else found[1].lower().replace("_", " ")


def _follow(reader: int, original: int, is_quiet: bool) -> None:
    logged: dict[str, float] = {}
    for line in _lines(reader):
        why = reason(line.decode(errors="replace"))
        if why is not None:
            _failed.series({"error.type": why}).add(1)
            if time.monotonic() - logged.get(why, float("-inf")) >= _LOG_SECONDS:
                logged[why] = time.monotonic()
                log.warning("a TLS handshake failed", reason=why)
        elif not (is_quiet and _QUIET.match(line)):
            with suppress(OSError):  # nobody reads it any more
                os.write(original, line)


def _lines(reader: int) -> Iterator[bytes]:
    """Yields what arrives by lines, the rest of a longer one separately, so that a writer never waits for a line."""
    rest = b""
    while data := os.read(reader, _CHUNK_BYTES):
        *lines, rest = (rest + data).splitlines(keepends=True)
        yield from lines
        if rest.endswith(b"\n") or len(rest) > _CHUNK_BYTES:
            yield rest
            rest = b""
