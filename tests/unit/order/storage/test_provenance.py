"""The metadata of every event: actor, time, trace and command."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING
from uuid import UUID

import pytest
from opentelemetry import trace
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags

from chassis.events.record import RecordedEvent
from order_service.domain import Line

from ..conftest import ADA, EVE, TEA

if TYPE_CHECKING:
    from ..conftest import Service

SYSTEM = "system:fulfilment"
TRACE = SpanContext(0xABC, 0xDEF, is_remote=False, trace_flags=TraceFlags(1))
GOLD = Line("gold", 1, 100_001)

# The steps of an order, and the actor of each of its events.
CASES = {
    "confirmed": (TEA, ["work"], [str(ADA), SYSTEM]),
    "rejected": (GOLD, ["work"], [str(ADA), SYSTEM]),
    "cancelled while pending": (TEA, ["cancel", "work"], [str(ADA), str(ADA)]),
    "cancelled later": (TEA, ["work", "cancel", "work"], [str(ADA), SYSTEM, str(ADA)]),
}


async def events_of(service: Service, line: Line, steps: list[str]) -> list[RecordedEvent]:
    with trace.use_span(NonRecordingSpan(TRACE)):
        order = await service.place("k1", ADA, line)
    for step in steps:
        if step == "work":
            await service.work()
        else:
            with trace.use_span(NonRecordingSpan(TRACE)):
                await service.commands.cancel_order(ADA, order.id, [])
    return await service.store.read(order.id)


@pytest.mark.parametrize("case", CASES)
async def test_an_event_has_its_actor_time_trace_and_command(service: Service, case: str) -> None:
    line, steps, actors = CASES[case]
    began = datetime.now(UTC)
    metas = [event.meta for event in await events_of(service, line, steps)]
    assert [meta["actor"] for meta in metas] == actors
    assert [meta["traceparent"].split("-")[1] for meta in metas] == [f"{0xABC:032x}"] * len(metas)
    assert all(began <= datetime.fromisoformat(meta["occurred_at"]) <= datetime.now(UTC) for meta in metas)
    assert len({UUID(meta["command_id"]) for meta in metas}) == len(metas)


async def test_an_outbox_entry_has_the_same_command_id_at_each_attempt(service: Service) -> None:
    order = await service.place()
    await service.project()
    (first,) = await service.outbox.claim(1, 1)
    service.outbox.pass_time()
    (again,) = await service.outbox.claim(1, 1)
    assert first.command_id == again.command_id
    await service.process_manager.attempt(again)
    assert (await service.store.read(order.id))[-1].meta["command_id"] == str(again.command_id)


async def test_the_hash_of_a_request_never_changes(service: Service) -> None:
    """Keys outlive a deploy: another hash would reject repeats of orders that the last version placed."""
    await service.place("k1", ADA, TEA, GOLD)
    known = await service.keys.find(ADA, "k1")
    assert known is not None
    assert known.request_hash == "af9749d6a5e440d52e81b315af82f5c12913ddf2702354f4217d113742d987a6"


async def test_a_repeat_of_a_key_has_the_same_command_id(service: Service) -> None:
    for key in ("k1", "k1", "k2"):
        await service.place(key)
        await service.storage.expire_keys()
    await service.place("k1", EVE)
    commands = [event.meta["command_id"] for _, event in await service.store.since(0)]
    assert commands[0] == commands[1] == "de57bf41-d3b5-5182-aaac-892c3f9f5208"
    assert len(set(commands)) == 3
