"""A log line in an error message keeps its reason, however long it is."""

from __future__ import annotations

import json

from stack.cluster.job_health.log_lines import shortened


def test_a_record_becomes_its_event_and_the_last_line_of_its_exception() -> None:
    trace = "Traceback (most recent call last):\n" + '  File "/x.py", line 1\n' * 60 + "OSError: [Errno 98] in use"
    line = json.dumps({"event": "process failed", "level": "error", "exception": trace})
    assert shortened(line) == "process failed: OSError: [Errno 98] in use"


def test_a_record_without_a_reason_is_its_event() -> None:
    assert shortened('{"event": "starting", "level": "info"}') == "starting"


def test_another_line_keeps_both_ends() -> None:
    line = "add_port.cc: " + "x" * 900 + "Address already in use"
    assert shortened(line).startswith("add_port.cc")
    assert shortened(line).endswith("Address already in use")
    assert len(shortened(line)) < 500


def test_a_record_that_lost_its_beginning_is_shown_as_it_is() -> None:
    assert shortened('ent": "x", "exception": "OSError"}') == 'ent": "x", "exception": "OSError"}'
