"""Writes the files in `consul/kv` to Consul KV, except for keys whose value was changed by hand.

The flags of a key hold a checksum of the value that a deploy wrote. While it matches the value, a deploy updates the
key when its file changes. The checksum ignores the format of JSON, and line ends at the end of other text. A value that
equals its file gets new flags.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from stack.cluster.kv.migrations import load, migrate
from stack.cluster.planned_changes import Change
from stack.config import ROOT
from stack.console import StackError

FILES = ROOT / "consul"


class KvSeed:
    """Compares the keys of a running Consul with their files."""

    def __init__(self, kv: Any) -> None:
        self._kv = kv

    def changes(self) -> Iterator[Change]:
        """Yields a change for each key that follows its file, or has settings with names of an earlier release."""
        for key, file in _files():
            yield from self._change(key, file.read_text())

    def changed_by_hand(self) -> list[str]:
        """Returns the keys that no longer follow their file; a deploy keeps their values."""
        return [key for key, file in _files() if self._is_changed_by_hand(key, file.read_text())]

    def _change(self, key: str, wanted: str) -> Iterator[Change]:
        found, where = self._kv.get(key)[1], f"consul kv {key}"
        put = partial(self._put, key, wanted, _checksum(wanted), found)
        if found is None:
            yield Change(where, "", wanted, put)
        elif _follows_its_file(found):
            if _canonical(_text(found)) != _canonical(wanted):
                yield Change(where, _text(found), wanted, put)
        elif _canonical(_text(found)) == _canonical(wanted):
            note = f"{key}: the value equals its file and follows it again"
            yield Change(where, _text(found), wanted, put, (note,))
        else:
            yield from self._migration(key, wanted, found)

    def _migration(self, key: str, wanted: str, found: dict[str, Any]) -> Iterator[Change]:
        now, seed = _settings(_text(found)), _settings(wanted)
        if now is None or seed is None:
            return
        migrated = migrate(key, now, seed, load(FILES / "kv-migrations", key))
        if migrated.settings == now:
            return
        # With the old flags the key still counts as changed by hand, unless it now equals its file.
        text, flags = _pretty(migrated.settings), found["Flags"]
        if migrated.settings == seed:
            text, flags = wanted, _checksum(wanted)
        put = partial(self._put, key, text, flags, found)
        yield Change(f"consul kv {key}", _pretty(now), text, put, tuple(migrated.notes))

    def _put(self, key: str, text: str, flags: int, found: dict[str, Any] | None) -> None:
        """Writes a value; raises StackError if somebody else wrote the key since it was read."""
        if not self._kv.put(key, text, cas=found["ModifyIndex"] if found else 0, flags=flags):
            raise StackError(f"consul kv {key} was not written", "somebody changed it meanwhile", "./justw deploy")

    def _is_changed_by_hand(self, key: str, wanted: str) -> bool:
        found = self._kv.get(key)[1]
        if found is None or _follows_its_file(found):
            return False
        return _canonical(_text(found)) != _canonical(wanted)


def _files() -> Iterator[tuple[str, Path]]:
    for file in sorted((FILES / "kv").rglob("*.*")):
        yield file.relative_to(FILES / "kv").with_suffix("").as_posix(), file


def _follows_its_file(found: dict[str, Any]) -> bool:
    """True if the value is the one that a deploy wrote; earlier releases stored the checksum of the plain text."""
    text = _text(found)
    return int(found["Flags"]) in (_checksum(text), zlib.crc32(text.encode()))


def _checksum(text: str) -> int:
    return zlib.crc32(_canonical(text).encode())


def _canonical(text: str) -> str:
    """Returns JSON in one fixed format, other text without line ends at its end: editors add and remove them."""
    try:
        return json.dumps(json.loads(text), sort_keys=True)
    except ValueError:
        return text.rstrip("\r\n")


def _text(found: dict[str, Any]) -> str:
    return (found["Value"] or b"").decode()


def _settings(text: str) -> dict[str, Any] | None:
    try:
        value = json.loads(text)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


def _pretty(settings: dict[str, Any]) -> str:
    return json.dumps(settings, indent=2, ensure_ascii=False) + "\n"
