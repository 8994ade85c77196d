"""An order with a valid token of a user who is gone is accepted as pending, and rejected later."""

from __future__ import annotations

import httpx
from support.database_access import execute
from support.stack_under_test import RunningStack
from support.traffic.api_user import ApiUser


def test_an_order_of_a_user_who_is_gone_is_accepted_and_then_rejected(running: RunningStack, user: ApiUser) -> None:
    assert execute(running, "user_service", "DELETE FROM users WHERE id = %s", user.id) == 1
    placed = user.place()
    assert (placed.status_code, placed.json()["status"]) == (httpx.codes.CREATED, "pending")
    order_id = placed.json()["id"]
    assert user.settled(order_id)["status"] == "rejected"
    events = user.get(f"/v1/orders/{order_id}/events").json()["items"]
    assert (events[-1]["type"], events[-1]["data"]) == ("OrderRejected", {"reason": "USER_UNKNOWN"})
