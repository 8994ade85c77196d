"""Reads the last log lines of an allocation, shortened so that the reason of a failure stays."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from nomad.api.exceptions import BaseNomadException

_LINES = 6
_BYTES = 8_000
_LONGEST = 400


def tail(nomad: Any, alloc: dict[str, Any]) -> list[str]:
    """Returns the last lines of each task of an allocation, each once and with the name of its task."""
    return list(dict.fromkeys(_lines(nomad, alloc)))


def _lines(nomad: Any, alloc: dict[str, Any]) -> Iterator[str]:
    for task in alloc.get("TaskStates") or {}:
        for stream in ("stderr", "stdout"):
            for line in _log(nomad, alloc["ID"], task, stream):
                yield f"{task}: {shortened(line)}"


def _log(nomad: Any, alloc: str, task: str, stream: str) -> list[str]:
    try:
        text: str = nomad.client.stream_logs.stream(alloc, task, stream, plain=True, origin="end", offset=_BYTES)
    except BaseNomadException:
        return []  # it never started, or Nomad no longer has its log
    return text.splitlines()[-_LINES:]


def shortened(line: str) -> str:
    """Returns a log line with its reason: event and last line of the exception, or both ends of a long text."""
    record = _record(line)
    if record is not None:
        reason = str(record.get("exception") or record.get("error") or "").strip()
        line = ": ".join(part for part in (str(record["event"]), reason.rpartition("\n")[2]) if part)
    half = _LONGEST // 2
    return line if len(line) <= _LONGEST else f"{line[:half]} … {line[-half:]}"


def _record(line: str) -> dict[str, Any] | None:
    """Returns a record of our own programs; None for another text, also for one whose beginning is missing."""
    try:
        found = json.loads(line)
    except ValueError:
        return None
    return found if isinstance(found, dict) and "event" in found else None
