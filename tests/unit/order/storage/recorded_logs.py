"""Event logs that earlier versions of the service wrote, as their rows stand in the table; `history/` holds them.

A file is named after the schema its events have. It is written once, by the code of its time, and never edited.
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
    """The rows of one stream, and what the code that wrote them made of it."""

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


def _order(told: dict[str, Any]) -> Order:
    ids = {"id": UUID(told["id"]), "user_id": UUID(told["user_id"]), "status": Status(told["status"])}
    at = datetime.fromisoformat(told["placed_at"])
    return Order(**{**told, **ids, "lines": event_codec.lines(told["lines"]), "placed_at": at})
