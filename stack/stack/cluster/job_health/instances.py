"""Explains why an allocation is not healthy: its tasks, the ports that Nomad gave it, its checks in Consul."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from stack.cluster.job_health.problem import ENVIRONMENT, Problem

Json = dict[str, Any]

# Events of a task with the reason why it does not run, and the field with the untranslated error.
_FAILURES = {
    "Driver Failure": "DriverError",
    "Failed Artifact Download": "DownloadError",
    "Failed Validation": "ValidationError",
    "Setup Failure": "SetupError",
    "Terminated": "Message",
}
_PREVIEW = 300
# A task that runs again after a failure counts as failing for so long: it may end for the same reason.
_RECENT_SECONDS = 30


def ports(alloc: Json) -> dict[str, int]:
    """Returns the host ports of an allocation by their label."""
    shared = (alloc.get("AllocatedResources") or {}).get("Shared") or {}
    return {port["Label"]: port["Value"] for port in shared.get("Ports") or []}


def explain(
    alloc: Json, holder: Callable[[int], str | None], checks: Sequence[Json] | None, now: float
) -> list[Problem]:
    """Returns the causes that keep an allocation from being healthy at `now`, in Unix seconds.

    `holder` returns the process outside of the allocation that listens on a port; `checks` are those of its services
    in Consul, or None if Consul lists no service of this allocation.
    """
    name = f"{alloc['JobID']}, allocation {alloc['ID'][:8]}"
    failed = dict(_failures(alloc, now))
    if failed and (taken := list(_taken_ports(alloc, name, holder))):
        return taken
    ended = [
        Problem(f"task {task} of {name} {what}", f"./justw logs {alloc['JobID']}") for task, what in failed.items()
    ]
    waiting = [] if failed else list(_waiting_tasks(alloc, name))
    return ended + waiting or list(_failing_checks(alloc, name, checks))


def _failures(alloc: Json, now: float) -> Iterator[tuple[str, str]]:
    """Yields each task that has failed and does not run now or has just been restarted, with its last failure."""
    for task, state in (alloc.get("TaskStates") or {}).items():
        events = [event for event in state["Events"] or [] if event["Type"] in _FAILURES]
        failed = [event for event in events if event["Type"] != "Terminated" or event["ExitCode"] or event["Signal"]]
        if failed and _still_counts(failed[-1], state, now):
            yield task, _failure(failed[-1], state)


def _still_counts(event: Json, state: Json, now: float) -> bool:
    if state["State"] == "running":
        return bool(now - event["Time"] / 1e9 < _RECENT_SECONDS)
    return bool(state["State"] == "pending" or state["Failed"])


def _failure(event: Json, state: Json) -> str:
    if event["Type"] != "Terminated":
        reason = " ".join(str(event.get(_FAILURES[event["Type"]]) or event["DisplayMessage"]).split())
        return f"does not start: {event['Type'].lower()}: {_both_ends(reason)}"
    again = ", and Nomad restarts it" if state["Restarts"] else ""
    if (event.get("Details") or {}).get("oom_killed") == "true":
        return f"was killed by the kernel because it needed more than its memory limit{again}"
    ended = f"by signal {event['Signal']}" if event["Signal"] else f"with exit code {event['ExitCode']}"
    return f"ended {ended}{again}"


def _both_ends(text: str) -> str:
    """Returns a text without its middle: an error of Nomad begins with what failed and ends with the reason."""
    return text if len(text) <= _PREVIEW else f"{text[: _PREVIEW // 2]} … {text[-_PREVIEW // 2 :]}"


def _taken_ports(alloc: Json, name: str, holder: Callable[[int], str | None]) -> Iterator[Problem]:
    for label, port in ports(alloc).items():
        process = holder(port)
        if process:
            yield Problem(
                f"port {port} ({label}) of {name} is held by {process}",
                f"stop that process, or get another port: {ENVIRONMENT}; nomad alloc stop {alloc['ID'][:8]}",
                lasting=True,
            )


def _waiting_tasks(alloc: Json, name: str) -> Iterator[Problem]:
    for task, state in (alloc.get("TaskStates") or {}).items():
        events = state["Events"] or []
        if state["State"] == "pending" and events:
            text = f"task {task} of {name} has not started: {_both_ends(events[-1]['DisplayMessage'])}"
            yield Problem(text, f"./justw logs {alloc['JobID']}")


def _failing_checks(alloc: Json, name: str, checks: Sequence[Json] | None) -> Iterator[Problem]:
    if checks is None:
        yield Problem(f"Consul does not list the services of {name}", "./justw logs consul")
        return
    failing = [check for check in checks if check["Status"] != "passing"]
    if failing and not any(check["Output"] for check in checks):
        yield Problem(f"{name} has just started: no check has a result yet", f"./justw logs {alloc['JobID']}")
        return
    for check in failing:
        output = " ".join(check["Output"].split()) or "no result yet"
        text = f"check {check['Name']!r} of {name} fails: {_both_ends(output)}"
        yield Problem(text, f"./justw logs {alloc['JobID']}")
