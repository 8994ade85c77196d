"""The next steps of findings about credit: calls that the contract accepts, with their requests as JSON.

docs/failures.md says how to make such a call.
"""

from __future__ import annotations

import json
from typing import Any

Row = dict[str, Any]

_MOVE = "UPDATE reservations SET user_id = '{user_id}' WHERE order_id = '{order_id}'"


def release(order_id: str, holder: Row) -> str:
    """Returns the call that releases the credit of an order, for the user of `holder`."""
    request = {"order_id": order_id, "user_id": holder["user_id"]}
    return f"{_call('shop.user.v1.UserService/ReleaseCredit', request)}; it may be repeated"


def reserve(order: Row) -> str:
    """Returns the call that holds the total of an order that holds nothing, and the call to make if it is denied."""
    request = {"order_id": order["id"], "user_id": order["user_id"]}
    request |= {"currency": order["currency"], "amount": order["total"]}
    return f"{_call('shop.user.v1.UserService/ReserveCredit', request)}; if it is denied: {cancel(order)}"


def cancel(order: Row) -> str:
    """Returns the call that cancels an order, for one that cannot reserve: it was released, or holds another amount."""
    call = _call("shop.order.v1.OrderService/CancelOrder", {"order_id": order["id"], "user_id": order["user_id"]})
    return f"{call}; this releases its credit, and its user may order again"


def change_user(order: Row) -> str:
    """Returns the statement that moves a reservation to the user of its order; no call does that."""
    statement = _MOVE.format(user_id=order["user_id"], order_id=order["id"])
    return f"in database user_service: {statement}; then ./justw audit-orders names the sums to correct"


def _call(method: str, request: Row) -> str:
    return f"call {method} with {json.dumps(request)}"
