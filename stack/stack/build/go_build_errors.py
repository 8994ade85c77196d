"""Turns the last lines of a failed Go build into an error with advice."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from stack.console import StackError

_DISK = ("no space left on device", "disk quota exceeded")
_CHECKSUM = ("checksum mismatch", "security error", "missing go.sum entry")
_MEMORY = ("signal: killed", "cannot allocate memory", "out of memory")
_NETWORK = (
    "dial tcp",
    "no such host",
    "connection refused",
    "connection reset",
    "network is unreachable",
    "i/o timeout",
    "tls handshake",
    "tls: ",
    "x509:",
    "proxyconnect",
    "unexpected eof",
    "server response:",
    "403 forbidden",
    "407 proxy",
    "502 bad gateway",
    "module lookup disabled",
)
_AGAIN = "then run it again: it continues where it stopped"
_NEXT = {
    _DISK: f"free some space or set WAYPOST_CACHE to a folder on a larger disk, {_AGAIN}",
    _CHECKSUM: "a downloaded module differs from its checksum: check GOPROXY, restore stack/tools from git and retry",
    _NETWORK: f"check the network, HTTPS_PROXY, GOPROXY and SSL_CERT_FILE, {_AGAIN}",
    _MEMORY: f"free some memory, {_AGAIN}",
}


def explain(tool: str, lines: Sequence[str], log: Path) -> StackError:
    """Returns the error for a failed build of `tool`; checks for a full disk first, because it causes other errors."""
    for signs, advice in _NEXT.items():
        matching = [line for line in lines if any(sign in line.lower() for sign in signs)]
        if matching:
            return StackError(f"{tool} could not be built", matching[-1].strip(), advice)
    tail = "\n        ".join(line for line in lines[-12:]) or "go printed nothing"
    return StackError(f"{tool} could not be built", tail, f"read {log}; CC names another compiler to try")
