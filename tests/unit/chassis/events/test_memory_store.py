"""Runs the behaviour suite of event logs on the memory store."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from behaviour.event_log import *  # noqa: F403

from chassis.events.memory import MemoryEventStore
from chassis.events.port import AlreadyRecorded
from chassis.events.record import RecordedEvent


class MemoryKeys:
    """Idempotency keys as the `write_rows` callback of the memory store."""

    def __init__(self) -> None:
        self.used: set[str] = set()

    def __call__(self, _cursor: Any, _events: Sequence[RecordedEvent], extra: Mapping[str, Any]) -> None:
        if extra["key"] in self.used:
            raise AlreadyRecorded("keys_key")
        self.used.add(extra["key"])


@pytest.fixture
def store() -> MemoryEventStore:
    return MemoryEventStore(write_rows=MemoryKeys())
