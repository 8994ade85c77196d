"""`audit-orders`: searches all orders for lost ones, duplicates with the same key, and wrong reserved credit.

Each service reports its own rows under its own identity; this module compares the two. An order in progress may differ
for a moment, so a finding counts only if every snapshot has it.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from stack.config import Stack
from stack.console import StackError, say
from stack.operations import nomad_actions
from stack.waiting import retry

SNAPSHOTS = 3
PAUSE_SECONDS = 2.0
_RETRY_SECONDS = 8.0
_RELEASE = "call ReleaseCredit of user-service for this order and user; a release may be repeated"
_RESERVE = "./justw logs user-service; then hold the total again with ReserveCredit for this order"


@dataclass(frozen=True)
class Finding:
    """A defect of one order: the rule that it breaks, what was found and expected, and what to do next."""

    order: str
    rule: str
    found: str = field(compare=False)
    wanted: str = field(compare=False)
    next: str = field(compare=False)


@dataclass
class Snapshot:
    """The rows that both services reported."""

    orders: dict[str, dict[str, Any]] = field(default_factory=dict)
    reservations: dict[str, dict[str, Any]] = field(default_factory=dict)
    users: set[str] = field(default_factory=set)
    counts: dict[str, int] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)


def check(stack: Stack) -> int:
    """Prints each finding and the counts; returns 0 without findings, 1 otherwise."""
    snapshot = take(stack)
    found = {*findings(snapshot)}
    for _ in range(SNAPSHOTS - 1):
        if not found:
            break
        time.sleep(PAUSE_SECONDS)
        snapshot = take(stack)
        found &= {*findings(snapshot)}
    for finding in sorted(found, key=lambda finding: (finding.order, finding.rule)):
        say(f"{finding.order or 'no order'}: {finding.rule}\n  is         {finding.found}")
        say(f"  should be  {finding.wanted}\n  next       {finding.next}")
    say(_summary(snapshot, len(found)))
    return 1 if found else 0


def take(stack: Stack) -> Snapshot:
    """Takes a snapshot, orders first: a reservation in it then belongs to an order that was there before."""
    snapshot = Snapshot()
    for row in _rows(stack, "order-service", "worker"):
        add(snapshot, row)
    for row in _rows(stack, "user-service", "api"):
        add(snapshot, row)
    return snapshot


def add(snapshot: Snapshot, row: dict[str, Any]) -> None:
    """Adds one line of a service's report to the snapshot."""
    for kind, entry in row.items():
        match kind:
            case "order":
                snapshot.orders[entry["id"]] = entry
            case "reservation":
                snapshot.reservations[entry["order_id"]] = entry
            case "user":
                snapshot.users.add(entry["id"])
            case "counts":
                snapshot.counts |= entry
            case "finding":
                snapshot.findings.append(Finding(**entry))


def findings(snapshot: Snapshot) -> Iterator[Finding]:
    """Yields the findings of each service, and every order whose credit does not match its status."""
    yield from snapshot.findings
    for order_id, order in snapshot.orders.items():
        yield from _credit(order, snapshot.reservations.get(order_id), order["user_id"] in snapshot.users)
    for order_id, reservation in snapshot.reservations.items():
        if order_id not in snapshot.orders and reservation["state"] == "held":
            yield Finding(order_id, "credit", _words(reservation), "nothing: there is no such order", _RELEASE)


def _credit(order: dict[str, Any], reservation: dict[str, Any] | None, known_user: bool) -> Iterator[Finding]:
    status, wanted = order["status"], f"{order['total']} held"
    held = bool(reservation and reservation["state"] == "held")
    released = bool(reservation and reservation["state"] == "released")
    right = bool(held and reservation and reservation["amount"] == order["total"])
    if reservation and reservation["user_id"] != order["user_id"]:
        yield Finding(order["id"], "credit", _words(reservation), f"by user {order['user_id']}", _RELEASE)
    elif status == "confirmed" and not right:
        yield Finding(order["id"], "credit", _words(reservation), f"{wanted}, for it is confirmed", _RESERVE)
    elif status == "pending" and reservation and not right:
        yield Finding(order["id"], "credit", _words(reservation), f"nothing or {wanted}: it is pending", _RESERVE)
    elif status in {"rejected", "cancelled"} and "release" not in order["pending"] and not released and known_user:
        yield Finding(order["id"], "credit", _words(reservation), f"released, for it is {status}", _RELEASE)


def _words(reservation: dict[str, Any] | None) -> str:
    if reservation is None:
        return "nothing"
    return f"{reservation['amount']} {reservation['state']} by user {reservation['user_id']}"


def _summary(snapshot: Snapshot, found: int) -> str:
    in_progress = sum(order["status"] == "pending" or bool(order["pending"]) for order in snapshot.orders.values())
    counts = snapshot.counts
    return (
        f"{len(snapshot.orders)} orders ({in_progress} in progress), {counts['events']} events, {counts['keys']} keys, "
        f"{len(snapshot.reservations)} reservations of {len(snapshot.users)} users: {found or 'no'} findings"
    )


def _rows(stack: Stack, job: str, group: str) -> list[dict[str, Any]]:
    """Returns the JSON lines of a service's report; runs it again if its instance ended meanwhile."""
    return retry(
        lambda: _report(stack, job, group), _RETRY_SECONDS, lambda error: isinstance(error, StackError), PAUSE_SECONDS
    )


def _report(stack: Stack, job: str, group: str) -> list[dict[str, Any]]:
    done = nomad_actions.run(stack, job, group, "audit")
    rows = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{") and line.endswith("}")]
    if done.returncode or not any("counts" in row for row in rows):
        raise StackError(f"{job} could not be checked", nomad_actions.log_tail(done), "./justw status")
    return [row for row in rows if "event" not in row]
