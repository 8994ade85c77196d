"""Implements shop.order.v1.OrderService: converts messages to domain types and back, and errors to statuses."""
# ruff: noqa: N802 - the protobuf contract names the methods

from __future__ import annotations

import re
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import aclosing, contextmanager, suppress
from uuid import UUID

import grpc

from chassis.auth.acting_user import OPERATOR, ActsFor
from chassis.errors import RpcError
from chassis.events.record import RecordedEvent
from order_service import commands, domain
from order_service.commands import Commands
from order_service.domain import Line, Order, Status
from order_service.order_watches import Change, OrderWatches
from order_service.queries import Queries
from order_service.storage import event_codec
from order_service.storage.upcasts import UnknownEvent
from shop.order.v1 import order_pb2 as wire
from shop.order.v1.order_pb2_grpc import OrderServiceServicer

SERVICE = wire.DESCRIPTOR.services_by_name["OrderService"].full_name
# An order of another user is unknown to the user of the request, whoever calls.
_USER = ActsFor("user_id", without_token=frozenset({OPERATOR}))
ACTS_FOR: Mapping[str, ActsFor | None] = {
    "PlaceOrder": _USER,
    "GetOrder": _USER,
    "ListOrders": _USER,
    "CancelOrder": _USER,
    "ListOrderEvents": _USER,
    "WatchOrder": _USER,
}
"""The user for whom each method acts in the mesh."""
Context = grpc.aio.ServicerContext[object, object]
PAGE_SIZE, LARGEST_PAGE = 20, 100
_KEY = re.compile(r"[\x21-\x7e]{1,200}")

_STATUS = {
    Status.PENDING: wire.ORDER_STATUS_PENDING,
    Status.CONFIRMED: wire.ORDER_STATUS_CONFIRMED,
    Status.REJECTED: wire.ORDER_STATUS_REJECTED,
    Status.CANCELLED: wire.ORDER_STATUS_CANCELLED,
}
_REQUESTED_STATUS = {number: status for status, number in _STATUS.items()} | {wire.ORDER_STATUS_UNSPECIFIED: None}
_REASONS: dict[type[Exception], tuple[grpc.StatusCode, str]] = {
    domain.Invalid: (grpc.StatusCode.INVALID_ARGUMENT, "INVALID"),
    domain.OrderUnknown: (grpc.StatusCode.NOT_FOUND, "ORDER_UNKNOWN"),
    domain.OrderClosed: (grpc.StatusCode.FAILED_PRECONDITION, "ORDER_CLOSED"),
    domain.VersionMismatch: (grpc.StatusCode.ABORTED, "VERSION_MISMATCH"),
    commands.KeyReused: (grpc.StatusCode.INVALID_ARGUMENT, "IDEMPOTENCY_KEY_REUSED"),
    commands.Contended: (grpc.StatusCode.ABORTED, "CONFLICT"),
}


class OrderRpc(OrderServiceServicer):
    """Implements the servicer on commands, queries and watches.

    `admit` is called before an order is placed and raises RpcError if no order is accepted now.
    """

    def __init__(
        self, commands: Commands, queries: Queries, watches: OrderWatches, admit: Callable[[], None] = lambda: None
    ) -> None:
        self._commands = commands
        self._queries = queries
        self._watches = watches
        self._admit = admit

    async def PlaceOrder(self, request: wire.PlaceOrderRequest, _: Context) -> wire.PlaceOrderResponse:
        if not _KEY.fullmatch(request.idempotency_key):
            raise RpcError(grpc.StatusCode.INVALID_ARGUMENT, "IDEMPOTENCY_KEY_MISSING")
        lines = [Line(line.sku, line.quantity, line.unit_price) for line in request.lines]
        with _domain_errors():
            user_id = _uuid("user_id", request.user_id)
            try:
                self._admit()
            except RpcError:
                # A repeated request places nothing.
                order = await self._commands.placed_order(user_id, request.idempotency_key, request.currency, lines)
                if order is None:
                    raise
                return wire.PlaceOrderResponse(order=order_message(order))
            order = await self._commands.place_order(
                user_id, request.idempotency_key, request.currency, lines, request.credit_currency
            )
        return wire.PlaceOrderResponse(order=order_message(order))

    async def GetOrder(self, request: wire.GetOrderRequest, _: Context) -> wire.GetOrderResponse:
        with _domain_errors():
            order = await self._queries.get_order(*_ids(request))
        return wire.GetOrderResponse(order=order_message(order))

    async def ListOrders(self, request: wire.ListOrdersRequest, _: Context) -> wire.ListOrdersResponse:
        size = request.page_size or PAGE_SIZE
        with _domain_errors():
            if not 1 <= size <= LARGEST_PAGE:
                raise domain.Invalid({"page_size": f"must be 1 to {LARGEST_PAGE}"})
            user_id, before = _uuid("user_id", request.user_id), _before(request.page_token)
            page = await self._queries.list_orders(user_id, _requested_status(request.status), before, size)
        token = _page_token(page.orders[-1].id) if page.more else ""
        return wire.ListOrdersResponse(orders=map(order_message, page.orders), next_page_token=token)

    async def CancelOrder(self, request: wire.CancelOrderRequest, _: Context) -> wire.CancelOrderResponse:
        with _domain_errors():
            user_id, order_id = _ids(request)
            order = await self._commands.cancel_order(user_id, order_id, request.expected_versions)
        return wire.CancelOrderResponse(order=order_message(order))

    async def ListOrderEvents(self, request: wire.ListOrderEventsRequest, _: Context) -> wire.ListOrderEventsResponse:
        with _domain_errors():
            past = await self._queries.list_order_events(*_ids(request))
            return wire.ListOrderEventsResponse(events=map(event_message, past))

    async def WatchOrder(self, request: wire.WatchOrderRequest, _: Context) -> AsyncIterator[wire.WatchOrderResponse]:
        with _domain_errors():
            user_id, order_id = _ids(request)
            async with aclosing(self._watches.watch(user_id, order_id, request.after_version)) as changes:
                async for change in changes:
                    yield change_message(change)


def order_message(order: Order) -> wire.Order:
    """Converts an order to its message."""
    message = wire.Order(
        id=str(order.id),
        user_id=str(order.user_id),
        status=_STATUS[order.status],
        currency=order.currency,
        lines=_lines(order.lines),
        total=order.total,
        version=order.version,
    )
    message.placed_at.FromDatetime(order.placed_at)
    return message


def event_message(recorded: RecordedEvent) -> wire.OrderEvent:
    """Converts a recorded event to its message."""
    message = wire.OrderEvent(version=recorded.version)
    message.occurred_at.FromDatetime(event_codec.occurred_at(recorded))
    event = event_codec.decode(recorded)
    if isinstance(event, domain.OrderPlaced):
        message.placed.user_id, message.placed.currency = str(event.user_id), event.currency
        message.placed.lines.extend(_lines(event.lines))
        message.placed.total = event.total
    elif isinstance(event, domain.OrderConfirmed):
        message.confirmed.SetInParent()
    elif isinstance(event, domain.OrderRejected):
        message.rejected.reason = event.reason
        message.rejected.SetInParent()
    else:
        message.cancelled.reason = event.reason
        message.cancelled.SetInParent()
    return message


def change_message(change: Change) -> wire.WatchOrderResponse:
    """Converts a change to its message."""
    event = event_message(change.event) if change.event else None
    return wire.WatchOrderResponse(event=event, status=_STATUS[change.order.status], version=change.order.version)


@contextmanager
def _domain_errors() -> Iterator[None]:
    try:
        yield
    except domain.DomainError as error:
        code, reason = _REASONS[type(error)]
        fields = error.fields if isinstance(error, domain.Invalid) else None
        raise RpcError(code, reason, str(error), fields) from None
    except UnknownEvent as error:
        # Not UNAVAILABLE, because one such order must not open the caller's breaker for all others.
        raise RpcError(grpc.StatusCode.UNIMPLEMENTED, "HISTORY_NEWER", str(error)) from None


def _ids(
    request: wire.GetOrderRequest | wire.CancelOrderRequest | wire.ListOrderEventsRequest | wire.WatchOrderRequest,
) -> tuple[UUID, UUID]:
    return _uuid("user_id", request.user_id), _uuid("order_id", request.order_id)


def _uuid(field: str, text: str) -> UUID:
    try:
        return UUID(text)
    except ValueError:
        raise domain.Invalid({field: "must be a UUID"}) from None


def _requested_status(status: wire.OrderStatus.ValueType) -> Status | None:
    if status not in _REQUESTED_STATUS:
        raise domain.Invalid({"status": "is not known"})
    return _REQUESTED_STATUS[status]


def _page_token(last: UUID) -> str:
    return urlsafe_b64encode(last.bytes).decode().rstrip("=")


def _before(token: str) -> UUID | None:
    if not token:
        return None
    before: UUID | None = None
    with suppress(ValueError):
        before = UUID(bytes=urlsafe_b64decode(token + "=" * (-len(token) % 4)))
    # The decoder ignores other characters and surplus bits, so only the exact encoding is accepted.
    if before is None or _page_token(before) != token:
        raise domain.Invalid({"page_token": "must be next_page_token of an earlier answer"})
    return before


def _lines(lines: tuple[Line, ...]) -> list[wire.OrderLine]:
    return [wire.OrderLine(sku=line.sku, quantity=line.quantity, unit_price=line.unit_price) for line in lines]
