"""The commands of the Order Service: all operations that change an order.

Invariant: an event is appended only to the version it was decided on. After a conflict the command reads the order
again and decides again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection, Sequence
from datetime import UTC, datetime, timedelta
from uuid import UUID, uuid5

from uuid_utils.compat import uuid7

from chassis.events.port import AlreadyRecorded, EventLog, VersionConflict
from chassis.events.record import RecordedEvent
from chassis.settings import Live
from order_service import domain
from order_service.domain import Event, Invalid, Line, Order, OrderUnknown
from order_service.settings import Settings
from order_service.storage import event_codec
from order_service.storage.event_codec import PROCESS_MANAGER, Cause
from order_service.storage.idempotency_keys import IdempotencyKey, IdempotencyKeys

Decide = Callable[[Order], list[Event]]
Past = Sequence[RecordedEvent]
_ATTEMPTS = 5


class KeyReused(domain.DomainError):
    """The idempotency key was used before for another request."""


class Contended(domain.DomainError):
    """Concurrent changes of the order prevented every attempt to record this one."""


class Commands:
    """The write side."""

    def __init__(self, store: EventLog, keys: IdempotencyKeys, settings: Live[Settings]) -> None:
        self._store = store
        self._keys = keys
        self._settings = settings

    async def place_order(
        self, user_id: UUID, key: str, currency: str, lines: Sequence[Line], credit_currency: str = ""
    ) -> Order:
        """Places an order, or returns the one that this key placed before; raises Invalid, KeyReused, Contended."""
        new_key = self._key(user_id, key, currency, lines)
        try:
            placed = domain.place(user_id, currency, lines, credit_currency)
        except Invalid:
            # The rules may have changed since this key placed its order.
            used = await self._keys.find(user_id, key)
            if used is None:
                raise
            return await self._placed_before(used, new_key.request_hash)
        # The command id depends on user and key only, so a duplicate order shows in the events even without the key.
        events = event_codec.encode(new_key.order_id, 0, [placed], Cause(str(user_id), uuid5(user_id, key)))
        for _ in range(_ATTEMPTS):
            try:
                await self._store.append(new_key.order_id, 0, events, key=new_key)
            except AlreadyRecorded:
                used = await self._keys.find(user_id, key)
                if used is not None:
                    return await self._placed_before(used, new_key.request_hash)
                await self._keys.delete_expired(user_id, key)
            else:
                return domain.apply(None, placed, new_key.order_id, event_codec.occurred_at(events[0]))
        raise Contended("the idempotency key expires right now")

    async def placed_order(self, user_id: UUID, key: str, currency: str, lines: Sequence[Line]) -> Order | None:
        """Returns the order that this key placed before, None if there is none; raises KeyReused."""
        used = await self._keys.find(user_id, key)
        if used is None:
            return None
        return await self._placed_before(used, self._key(user_id, key, currency, lines).request_hash)

    async def cancel_order(self, user_id: UUID, order_id: UUID, expected_versions: Collection[int]) -> Order:
        """Cancels an order of the user; raises OrderUnknown, OrderClosed, VersionMismatch, Contended."""

        def decide(order: Order) -> list[Event]:
            if order.user_id != user_id:
                raise OrderUnknown("there is no such order")
            return domain.cancel(order, expected_versions)

        return await self._change(order_id, decide, Cause(str(user_id), uuid7()))

    async def confirm_order(self, order_id: UUID, command_id: UUID | None = None, past: Past | None = None) -> Order:
        """Confirms the order if it is pending; otherwise returns it unchanged. See `reject_order`."""
        return await self._change(order_id, domain.confirm, Cause(PROCESS_MANAGER, command_id or uuid7()), past)

    async def reject_order(
        self, order_id: UUID, reason: str, command_id: UUID | None = None, past: Past | None = None
    ) -> Order:
        """Rejects the order if it is pending; otherwise returns it unchanged.

        `past` are the events of the order as far as the caller has read them, which saves a read.
        """
        cause = Cause(PROCESS_MANAGER, command_id or uuid7())
        return await self._change(order_id, lambda order: domain.reject(order, reason), cause, past)

    async def _change(self, order_id: UUID, decide: Decide, cause: Cause, past: Past | None = None) -> Order:
        for _ in range(_ATTEMPTS):
            past = await self._store.read(order_id) if past is None else past
            order = _require_order(event_codec.fold(past))
            events = event_codec.encode(order_id, order.version, decide(order), cause)
            try:
                if events:
                    await self._store.append(order_id, order.version, events)
            except VersionConflict:
                past = None
                continue
            return _require_order(event_codec.fold(events, order))
        raise Contended("the order changes too fast")

    async def _placed_before(self, used: IdempotencyKey, request_hash: str) -> Order:
        if used.request_hash != request_hash:
            raise KeyReused("this key was used before with other content")
        return _require_order(event_codec.fold((await self._store.read(used.order_id))[:1]))

    def _key(self, user_id: UUID, key: str, currency: str, lines: Sequence[Line]) -> IdempotencyKey:
        content = json.dumps([currency, event_codec.lines_to_json(lines)], sort_keys=True)
        expires_at = datetime.now(UTC) + timedelta(seconds=self._settings.value.idempotency_ttl_seconds)
        return IdempotencyKey(user_id, key, hashlib.sha256(content.encode()).hexdigest(), uuid7(), expires_at)


def _require_order(order: Order | None) -> Order:
    if order is None:
        raise OrderUnknown("there is no such order")
    return order
