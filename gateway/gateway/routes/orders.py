"""Routes of orders. A user sees only their own orders; another user's order gets 404, like an unknown one."""

from __future__ import annotations

from sanic import Blueprint, HTTPResponse, Request

from chassis.errors import RpcError
from gateway.backend import backend_of
from gateway.http import preconditions, serializers
from gateway.http.problems import Problem
from gateway.http.schemas import OrderQuery, Placement, body, idempotency_key, path_id, query
from gateway.http.serializers import json_response
from gateway.routes.admission import admitted_user
from shop.order.v1 import order_pb2

routes = Blueprint("orders")

_STATUS = {name: number for number, name in serializers.STATES.items()}


@routes.post("/v1/orders", stream=True)
@admitted_user("deadline_seconds")
async def place_order(request: Request, user_id: str) -> HTTPResponse:
    """Place an order; the same Idempotency-Key and body again return the same order."""
    key, placement = idempotency_key(request), body(request, Placement)
    preconditions.require(request, exists=True)
    lines = [order_pb2.OrderLine(sku=x.sku, quantity=x.quantity, unit_price=x.unit_price) for x in placement.lines]
    call = order_pb2.PlaceOrderRequest(
        user_id=user_id,
        idempotency_key=key,
        currency=placement.currency,
        lines=lines,
        credit_currency=request.ctx.credit_currency,
    )
    order = (await backend_of(request).orders.PlaceOrder(call)).order
    return _order_response(order, 201, {"location": f"/v1/orders/{order.id}"})


@routes.get("/v1/orders")
@admitted_user("deadline_seconds")
async def list_orders(request: Request, user_id: str) -> HTTPResponse:
    """List the orders of the signed-in user, newest first."""
    selection = query(request, OrderQuery)
    status = _STATUS[selection.status] if selection.status else order_pb2.ORDER_STATUS_UNSPECIFIED
    call = order_pb2.ListOrdersRequest(
        user_id=user_id, status=status, page_size=selection.limit, page_token=selection.cursor or ""
    )
    try:
        page = await backend_of(request).orders.ListOrders(call)
    except RpcError as error:
        if "page_token" in error.fields:
            raise Problem("INVALID", errors={"cursor": "must be next_cursor of an earlier answer"}) from None
        raise
    items = [serializers.order(order) for order in page.orders]
    return json_response({"items": items, "next_cursor": page.next_page_token or None})


@routes.get("/v1/orders/<order_id:str>")
@admitted_user("deadline_seconds")
async def get_order(request: Request, user_id: str, order_id: str) -> HTTPResponse:
    """Read an order; its ETag is its version."""
    call = order_pb2.GetOrderRequest(user_id=user_id, order_id=_order_id(order_id))
    return _order_response((await backend_of(request).orders.GetOrder(call)).order)


@routes.post("/v1/orders/<order_id:str>/cancel", stream=True)
@admitted_user("deadline_seconds", urgent=True)
async def cancel_order(request: Request, user_id: str, order_id: str) -> HTTPResponse:
    """Cancel a pending or confirmed order, if If-Match and If-None-Match (both optional) allow it at its version."""
    orders, order_id = backend_of(request).orders, _order_id(order_id)
    versions = preconditions.expected_versions(request)
    if preconditions.IF_NONE_MATCH in request.headers:
        # The Order Service compares only versions that are allowed, so this one is read, evaluated and then required.
        order = (await orders.GetOrder(order_pb2.GetOrderRequest(user_id=user_id, order_id=order_id))).order
        versions = preconditions.versions_left(request, _etag(order.version), order.version)
    call = order_pb2.CancelOrderRequest(user_id=user_id, order_id=order_id, expected_versions=versions)
    return _order_response((await orders.CancelOrder(call)).order)


@routes.get("/v1/orders/<order_id:str>/events")
@admitted_user("deadline_seconds")
async def list_order_events(request: Request, user_id: str, order_id: str) -> HTTPResponse:
    """Read the history of an order, oldest event first."""
    call = order_pb2.ListOrderEventsRequest(user_id=user_id, order_id=_order_id(order_id))
    history = await backend_of(request).orders.ListOrderEvents(call)
    items = [serializers.event(event) for event in history.events]
    return json_response({"items": items}, headers={"etag": _etag(items[-1]["version"])})


def _order_id(text: str) -> str:
    return path_id(text, "ORDER_UNKNOWN")


def _order_response(order: order_pb2.Order, status: int = 200, headers: dict[str, str] | None = None) -> HTTPResponse:
    return json_response(serializers.order(order), status, {"etag": _etag(order.version), **(headers or {})})


def _etag(version: int) -> str:
    return f'"{version}"'
