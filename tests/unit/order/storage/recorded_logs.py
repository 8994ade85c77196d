"""Loads the event logs in `history/`, which earlier versions of the service wrote, as rows of the table.

A file is named after the schema of its events. The code of that time wrote it; it is never edited.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any
from uuid import UUID

from chassis.events.record import RecordedEvent, from_state
from order_service.domain import Order, Status
from order_service.storage import event_codec

FOLDER = Path(__file__).parent / "history"


@dataclass(frozen=True)
class Log:
    """The rows of a stream, and the order to which the code that wrote them folded it."""

    stream: UUID
    rows: list[tuple[int, str, bytes]]
    order: Order

    def events(self) -> list[RecordedEvent]:
        return [from_state(self.stream, *row) for row in self.rows]


def names() -> list[str]:
    return sorted(file.stem for file in FOLDER.glob("*.json"))


def load(name: str) -> Log:
    found = json.loads((FOLDER / f"{name}.json").read_text())
    rows = [(row["version"], row["topic"], json.dumps(row["state"]).encode()) for row in found["events"]]
    return Log(UUID(found["stream"]), rows, _order(found["order"]))


def _order(data: dict[str, Any]) -> Order:
    ids = {"id": UUID(data["id"]), "user_id": UUID(data["user_id"]), "status": Status(data["status"])}
    at = datetime.fromisoformat(data["placed_at"])
    return Order(**{**data, **ids, "lines": event_codec.lines_from_json(data["lines"]), "placed_at": at})
