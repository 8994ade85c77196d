"""Changes settings of a running service for a while in Consul KV, as an operator does."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from support.stack_under_test import RunningStack


@contextmanager
def changed_settings(running: RunningStack, service: str, settings: dict[str, Any]) -> Iterator[None]:
    """Changes settings, nested like the seed, and restores them at the end; instances apply both within a moment."""
    key = f"config/{service}"
    before = running.kv(key)
    running.put_kv(key, json.dumps(_merged(json.loads(before), settings)))
    try:
        yield
    finally:
        running.put_kv(key, before)


def _merged(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    assert new.keys() <= old.keys(), f"no such setting: {new.keys() - old.keys()}"
    return old | {name: _merged(old[name], value) if isinstance(value, dict) else value for name, value in new.items()}
