"""`audit-orders`: searches all orders for lost ones, duplicates with the same key, and wrong reserved credit.

Each service reports its own rows under its own identity; this module compares the two. An order in progress may differ
for a moment, so a finding counts only if every snapshot has it.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from typing import IO, Any

from stack.config import Stack
from stack.console import StackError, say
from stack.operations import credit_advice, nomad_actions
from stack.operations.service_reports import Reports
from stack.waiting import retry

SNAPSHOTS = 3
PAUSE_SECONDS = 2.0
_RETRY_SECONDS = 8.0


@dataclass(frozen=True)
class Finding:
    """A defect of one order: the rule that it breaks, what was found and expected, and what to do next."""

    order: str
    rule: str
    found: str = field(compare=False)
    wanted: str = field(compare=False)
    next: str = field(compare=False)


def check(stack: Stack) -> int:
    """Prints each finding and the counts; returns 0 without findings, 1 otherwise."""
    found, counts = _round(stack)
    for _ in range(SNAPSHOTS - 1):
        if not found:
            break
        time.sleep(PAUSE_SECONDS)
        again, counts = _round(stack)
        found &= again
    for finding in sorted(found, key=lambda finding: (finding.order, finding.rule)):
        say(f"{finding.order or 'no order'}: {finding.rule}\n  is         {finding.found}")
        say(f"  should be  {finding.wanted}\n  next       {finding.next}")
    say(_summary(counts, len(found)))
    return 1 if found else 0


def _round(stack: Stack) -> tuple[set[Finding], dict[str, int]]:
    with closing(take(stack)) as reports:
        return {*findings(reports)}, reports.counts()


def take(stack: Stack) -> Reports:
    """Takes a snapshot, orders first: a reservation in it then belongs to an order that was there before."""
    reports = Reports()
    for job, group in (("order-service", "worker"), ("user-service", "api")):
        with _report(stack, job, group) as file:
            reports.add(_lines(file))
    return reports


def findings(reports: Reports) -> Iterator[Finding]:
    """Yields the findings of each service, and every order whose credit does not match its status."""
    for found in reports.findings:
        yield Finding(**found)
    for order, reservation, known_user in reports.orders():
        yield from _credit(order, reservation, known_user)
    for reservation in reports.held_without_order():
        order_id, nothing = reservation["order_id"], "nothing: there is no such order"
        mend = credit_advice.release(order_id, reservation)
        yield Finding(order_id, "credit", _words(reservation), nothing, mend)


def _credit(order: dict[str, Any], reservation: dict[str, Any] | None, known_user: bool) -> Iterator[Finding]:
    status, wanted = order["status"], f"{order['total']} held"
    held = bool(reservation and reservation["state"] == "held")
    released = bool(reservation and reservation["state"] == "released")
    right = bool(held and reservation and reservation["amount"] == order["total"])
    foreign = bool(reservation and reservation["user_id"] != order["user_id"] and (held or known_user))
    if reservation and foreign:
        mend = credit_advice.change_user(order) if known_user else credit_advice.release(order["id"], reservation)
        yield Finding(order["id"], "credit", _words(reservation), f"by user {order['user_id']}", mend)
    elif status == "confirmed" and not right:
        mend = credit_advice.cancel(order) if reservation or not known_user else credit_advice.reserve(order)
        yield Finding(order["id"], "credit", _words(reservation), f"{wanted}, for it is confirmed", mend)
    elif status == "pending" and reservation and not right:
        expected, mend = f"nothing or {wanted}: it is pending", credit_advice.cancel(order)
        yield Finding(order["id"], "credit", _words(reservation), expected, mend)
    elif status in {"rejected", "cancelled"} and "release" not in order["pending"] and not released and known_user:
        mend = credit_advice.release(order["id"], order)
        yield Finding(order["id"], "credit", _words(reservation), f"released, for it is {status}", mend)


def _words(reservation: dict[str, Any] | None) -> str:
    if reservation is None:
        return "nothing"
    return f"{reservation['amount']} {reservation['state']} by user {reservation['user_id']}"


def _summary(counts: dict[str, int], found: int) -> str:
    return (
        f"{counts['orders']} orders ({counts['in_progress']} in progress), {counts['events']} events, "
        f"{counts['keys']} keys, {counts['reservations']} reservations of {counts['users']} users: "
        f"{found or 'no'} findings"
    )


def _report(stack: Stack, job: str, group: str) -> IO[str]:
    """Returns a file with the report of a service; runs it again if its instance ended meanwhile."""
    return retry(
        lambda: _run(stack, job, group), _RETRY_SECONDS, lambda error: isinstance(error, StackError), PAUSE_SECONDS
    )


def _run(stack: Stack, job: str, group: str) -> IO[str]:
    file = tempfile.TemporaryFile("w+", encoding="utf-8")  # noqa: SIM115 - the caller closes it
    done = nomad_actions.run(stack, job, group, "audit", file)
    # The last line of a report has its counts; without it, the report was cut.
    if done.returncode or not any("counts" in line for line in _lines(file)):
        file.close()
        raise StackError(f"{job} could not be checked", nomad_actions.log_tail(done), "./justw status")
    return file


def _lines(file: IO[str]) -> Iterator[dict[str, Any]]:
    """Yields the lines of a report; the same output has the log lines of the process."""
    file.seek(0)
    for text in file:
        line = text.strip()
        if line.startswith("{") and line.endswith("}"):
            found = json.loads(line)
            if "event" not in found:
                yield found
