"""A recorded event and its stored form: JSON with an id, the schema number, data and metadata."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID, uuid4

import orjson


@dataclass(frozen=True, slots=True)
class RecordedEvent:
    """One event of a stream. `data` is JSON; `meta` holds time, user, command and trace of its origin.

    `schema` is the version of the form of `data`, counted per type.
    """

    stream: UUID
    version: int
    type: str
    data: Mapping[str, Any]
    meta: Mapping[str, str] = field(default_factory=dict)
    schema: int = 1


def to_state(event: RecordedEvent) -> bytes:
    """Encodes data, metadata and schema of an event, with a new unique id."""
    state = {"id": uuid4().hex, "schema": event.schema, "data": event.data, "meta": event.meta}
    return orjson.dumps(state)


def from_state(stream: UUID, version: int, kind: str, state: bytes) -> RecordedEvent:
    """Decodes a stored event; one without a schema is older than schema numbers and has schema 1."""
    found = orjson.loads(state)
    return RecordedEvent(stream, version, kind, found["data"], found["meta"], found.get("schema", 1))
