"""What the Order Service does: every way an order changes.

Invariant: each change is decided on the version it is recorded after; who comes second decides again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection, Sequence
from datetime import UTC, datetime, timedelta
from uuid import UUID, uuid5

from uuid_utils.compat import uuid7

from chassis.events.port import AlreadyRecorded, EventLog, VersionConflict
from order_service import domain
from order_service.domain import Event, Invalid, Line, Order, OrderUnknown
from order_service.settings import Settings
from order_service.storage import event_codec
from order_service.storage.event_codec import FULFILMENT, Cause
from order_service.storage.idempotency_keys import Key, Keys

Decide = Callable[[Order], list[Event]]
_ATTEMPTS = 5


class KeyReused(domain.Refusal):
    """The idempotency key was used before with other content."""


class Contended(domain.Refusal):
    """The order changes faster than this decision can be recorded."""


class Commands:
    """The write side; `settings` gives the settings of the moment."""

    def __init__(self, store: EventLog, keys: Keys, settings: Callable[[], Settings]) -> None:
        self._store = store
        self._keys = keys
        self._settings = settings

    async def place_order(
        self, user_id: UUID, key: str, currency: str, lines: Sequence[Line], credit_currency: str = ""
    ) -> Order:
        """The order as it was placed, now or by an earlier call with this key; raises Invalid, KeyReused, Contended."""
        wanted = self._key(user_id, key, currency, lines)
        try:
            placed = domain.place(user_id, currency, lines, credit_currency)
        except Invalid:
            # The rules may be newer than the order that this key has placed.
            known = await self._keys.find(user_id, key)
            if known is None:
                raise
            return await self._repeated(known, wanted.request_hash)
        # A repeat gives the same command: whatever becomes of the key's row, events tell who was placed twice.
        events = event_codec.record(wanted.order_id, 0, [placed], Cause(str(user_id), uuid5(user_id, key)))
        for _ in range(_ATTEMPTS):
            try:
                await self._store.append(wanted.order_id, 0, events, key=wanted)
            except AlreadyRecorded:
                known = await self._keys.find(user_id, key)
                if known is not None:
                    return await self._repeated(known, wanted.request_hash)
            else:
                return _known(event_codec.fold(events))
        raise Contended("the idempotency key expires right now")

    async def cancel_order(self, user_id: UUID, order_id: UUID, expected_versions: Collection[int]) -> Order:
        """The cancelled order; raises OrderUnknown, OrderClosed, VersionMismatch, Contended."""

        def decide(order: Order) -> list[Event]:
            if order.user_id != user_id:
                raise OrderUnknown("there is no such order")
            return domain.cancel(order, expected_versions)

        return await self._change(order_id, decide, Cause(str(user_id), uuid7()))

    async def confirm_order(self, order_id: UUID, command_id: UUID | None = None) -> Order:
        """The order, confirmed if it was pending."""
        return await self._change(order_id, domain.confirm, Cause(FULFILMENT, command_id or uuid7()))

    async def reject_order(self, order_id: UUID, reason: str, command_id: UUID | None = None) -> Order:
        """The order, rejected if it was pending."""
        cause = Cause(FULFILMENT, command_id or uuid7())
        return await self._change(order_id, lambda order: domain.reject(order, reason), cause)

    async def _change(self, order_id: UUID, decide: Decide, cause: Cause) -> Order:
        for _ in range(_ATTEMPTS):
            past = await self._store.read(order_id)
            order = _known(event_codec.fold(past))
            events = event_codec.record(order_id, order.version, decide(order), cause)
            try:
                if events:
                    await self._store.append(order_id, order.version, events)
            except VersionConflict:
                continue
            return _known(event_codec.fold([*past, *events]))
        raise Contended("the order changes too fast")

    async def _repeated(self, known: Key, request_hash: str) -> Order:
        if known.request_hash != request_hash:
            raise KeyReused("this key was used before with other content")
        return _known(event_codec.fold((await self._store.read(known.order_id))[:1]))

    def _key(self, user_id: UUID, key: str, currency: str, lines: Sequence[Line]) -> Key:
        content = json.dumps([currency, event_codec.plain(lines)], sort_keys=True)
        ends_at = datetime.now(UTC) + timedelta(seconds=self._settings().idempotency_ttl_seconds)
        return Key(user_id, key, hashlib.sha256(content.encode()).hexdigest(), uuid7(), ends_at)


def _known(order: Order | None) -> Order:
    if order is None:
        raise OrderUnknown("there is no such order")
    return order
