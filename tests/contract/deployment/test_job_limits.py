"""How Nomad keeps a job running: its logs, checks, restarts, the time to stop, and its memory."""

from __future__ import annotations

import json
import re

import pytest

from chassis.process import FLUSH_SECONDS
from chassis.watchdog import STUCK_SECONDS
from stack.cluster import nomad

from ..repository import ROOT, SERVICES, blocks, job_text, keys

JOBS = nomad.names()


@pytest.mark.parametrize("job", JOBS)
def test_nomad_collects_and_rotates_the_log_of_every_task(job: str) -> None:
    tasks = [body for _, body in blocks(job_text(job), r'(?:task "[\w-]+"|dynamic "task")')]
    assert tasks
    for body in tasks:
        assert [keys(logs) for _, logs in blocks(body, "logs")] == [{"max_files", "max_file_size"}]


@pytest.mark.parametrize("job", JOBS)
def test_every_service_of_a_job_has_a_check_in_consul(job: str) -> None:
    found = [body for _, body in blocks(job_text(job), "service")]
    assert found
    for body in found:
        assert list(blocks(body, "check"))
        assert re.search(r'^\s*provider\s*=\s*"consul"', body, re.MULTILINE)


@pytest.mark.parametrize("service", SERVICES)
def test_a_service_that_drains_as_long_as_it_may_is_not_killed(service: str) -> None:
    seed = json.loads((ROOT / "consul" / "kv" / "config" / f"{service}.json").read_text())
    longest = seed["drain_seconds"] + seed["grace_seconds"] + 3 * FLUSH_SECONDS
    (kill_timeout,) = re.findall(r'\bkill_timeout\s*=\s*"(\d+)s"', job_text(service))
    assert int(kill_timeout) > longest


@pytest.mark.parametrize("job", JOBS)
def test_a_failing_check_restarts_every_service(job: str) -> None:
    services = [body for _, body in blocks(job_text(job), "service")]
    assert services
    assert [body for body in services if not list(blocks(body, "check_restart"))] == []


@pytest.mark.parametrize("job", JOBS)
def test_a_slow_answer_on_a_busy_machine_restarts_no_service(job: str) -> None:
    """A process with a watchdog ends itself when it is stuck, long before its check restarts it."""
    for _, check in blocks(job_text(job), "check"):
        for _, restart in blocks(check, "check_restart"):
            seconds = dict(re.findall(r'\b(timeout|interval)\s*=\s*"(\d+)s"', check))
            (limit,) = re.findall(r"\blimit\s*=\s*(\d+)", restart)
            assert int(seconds["timeout"]) >= 10
            assert (int(limit) - 1) * int(seconds["interval"]) >= (2 if job in SERVICES else 1) * STUCK_SECONDS


@pytest.mark.parametrize("job", JOBS)
def test_the_memory_limit_of_every_job_is_explained(job: str) -> None:
    text = (ROOT / "nomad" / "README.md").read_text().partition("## Memory")[2].partition("\n## ")[0]
    rows = {row[0]: row for line in text.splitlines() if (row := [cell.strip("` ") for cell in line.split("|")[1:-1]])}
    tasks = [body for _, body in blocks(job_text(job), "resources")]
    limits = [match[1] for body in tasks if (match := re.search(r"^\s*memory\s*=\s*(\d+)", body, re.MULTILINE))]
    assert rows[job][1] == limits[0]
    assert all(rows[job])
