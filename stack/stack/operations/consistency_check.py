"""`audit-orders`: over the whole store, is an order lost, placed twice by one key, or holding credit it should not?

Each service says what it has, by itself and under its own identity; here the two are compared. What differs only while
an order is on its way is no finding: a finding is what stays in several looks.
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

LOOKS = 3
PAUSE_SECONDS = 2.0
_ATTEMPTS = 4
_RELEASE = "call ReleaseCredit of user-service for this order and user; a release may be repeated"
_RESERVE = "./justw logs user-service; then hold the total again with ReserveCredit for this order"


@dataclass(frozen=True)
class Finding:
    """What is wrong with one order, by which rule, and what to do."""

    order: str
    rule: str
    found: str = field(compare=False)
    wanted: str = field(compare=False)
    next: str = field(compare=False)


@dataclass
class Books:
    """What both services said in one look."""

    orders: dict[str, dict[str, Any]] = field(default_factory=dict)
    reservations: dict[str, dict[str, Any]] = field(default_factory=dict)
    users: set[str] = field(default_factory=set)
    counts: dict[str, int] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)


def audit(stack: Stack) -> int:
    """Prints each finding and the counts; 0 when there is none, 1 otherwise."""
    books = look(stack)
    found = {*findings(books)}
    for _ in range(LOOKS - 1):
        if not found:
            break
        time.sleep(PAUSE_SECONDS)
        books = look(stack)
        found &= {*findings(books)}
    for finding in sorted(found, key=lambda finding: (finding.order, finding.rule)):
        say(f"{finding.order or 'no order'}: {finding.rule}\n  is         {finding.found}")
        say(f"  should be  {finding.wanted}\n  next       {finding.next}")
    say(_summary(books, len(found)))
    return 1 if found else 0


def look(stack: Stack) -> Books:
    """Orders first: a reservation that is there by then belongs to an order that was there before."""
    books = Books()
    for row in _said(stack, "order-service", "worker"):
        read(books, row)
    for row in _said(stack, "user-service", "api"):
        read(books, row)
    return books


def read(books: Books, row: dict[str, Any]) -> None:
    """Enter one line of a service into the books."""
    for kind, entry in row.items():
        match kind:
            case "order":
                books.orders[entry["id"]] = entry
            case "reservation":
                books.reservations[entry["order_id"]] = entry
            case "user":
                books.users.add(entry["id"])
            case "counts":
                books.counts |= entry
            case "finding":
                books.findings.append(Finding(**entry))


def findings(books: Books) -> Iterator[Finding]:
    """What each service found by itself, and where the credit is not what the order says."""
    yield from books.findings
    for order_id, order in books.orders.items():
        yield from _credit(order, books.reservations.get(order_id), order["user_id"] in books.users)
    for order_id, reservation in books.reservations.items():
        if order_id not in books.orders and reservation["state"] == "held":
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
    elif status in {"rejected", "cancelled"} and "release" not in order["owes"] and not released and known_user:
        yield Finding(order["id"], "credit", _words(reservation), f"released, for it is {status}", _RELEASE)


def _words(reservation: dict[str, Any] | None) -> str:
    if reservation is None:
        return "nothing"
    return f"{reservation['amount']} {reservation['state']} by user {reservation['user_id']}"


def _summary(books: Books, found: int) -> str:
    flying = sum(order["status"] == "pending" or bool(order["owes"]) for order in books.orders.values())
    counts = books.counts
    return (
        f"{len(books.orders)} orders ({flying} on their way), {counts['events']} events, {counts['keys']} keys, "
        f"{len(books.reservations)} reservations of {len(books.users)} users: {found or 'no'} findings"
    )


def _said(stack: Stack, job: str, group: str) -> list[dict[str, Any]]:
    """The JSON lines of a service's audit; tried again where its instance ended meanwhile."""
    why = ""
    for _ in range(_ATTEMPTS):
        done = nomad_actions.run(stack, job, group, "audit")
        rows = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{") and line.endswith("}")]
        if not done.returncode and any("counts" in row for row in rows):
            return [row for row in rows if "event" not in row]
        why = nomad_actions.last_words(done)
        time.sleep(PAUSE_SECONDS)
    raise StackError(f"{job} could not be audited", why, "./justw status")
