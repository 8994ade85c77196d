"""An event as it is recorded, and its stored form: JSON with an id, the schema number, data and metadata."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID, uuid4


@dataclass(frozen=True, slots=True)
class RecordedEvent:
    """A fact. `data` is JSON; `meta` says when, by whom, by which command and in which trace.

    `schema` counts the shapes that events of this type have had.
    """

    stream: UUID
    version: int
    type: str
    data: Mapping[str, Any]
    meta: Mapping[str, str] = field(default_factory=dict)
    schema: int = 1


def to_state(event: RecordedEvent) -> bytes:
    """An event as it is stored beside stream, version and type. The id in it is never made twice."""
    state = {"id": uuid4().hex, "schema": event.schema, "data": event.data, "meta": event.meta}
    return json.dumps(state, separators=(",", ":")).encode()


def from_state(stream: UUID, version: int, kind: str, state: bytes) -> RecordedEvent:
    """The event that was stored; one without a schema is from before schemas were counted."""
    found = json.loads(state)
    return RecordedEvent(stream, version, kind, found["data"], found["meta"], found.get("schema", 1))
