"""Settings in Consul KV: a change applies to running processes, and an invalid one is rejected by name."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from support.stack_under_test import RunningStack, eventually
from support.traffic.api_user import ApiUser

KEY = "config/gateway"


@pytest.fixture
def settings(running: RunningStack) -> Iterator[dict[str, Any]]:
    before = running.kv(KEY)
    yield json.loads(before)
    running.put_kv(KEY, before)


def _rejected(running: RunningStack, named: str, since: float) -> bool:
    """True if a gateway has logged since then that it rejects the key because of the named setting."""
    return any(running.logged("gateway", since, KEY, named))


def test_a_shorter_deadline_applies_within_two_seconds_in_the_same_process(
    running: RunningStack, user: ApiUser, settings: dict[str, Any]
) -> None:
    process = running.pids("gateway")
    running.put_kv(KEY, json.dumps(settings | {"deadline_seconds": 0.001}))
    changed = time.monotonic()
    eventually("a call runs into the deadline", lambda: user.get("/v1/users/me").status_code == 504, 2, 0.02)
    assert time.monotonic() - changed <= 2
    running.put_kv(KEY, json.dumps(settings))
    eventually("calls pass again", lambda: user.get("/v1/users/me").status_code == httpx.codes.OK, 5)
    assert running.pids("gateway") == process


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"deadline_seconds": -1}, "deadline_seconds"),
        ({"deadline_seconds": "soon"}, "deadline_seconds"),
    ],
)
def test_an_invalid_value_is_rejected_by_name_and_the_last_valid_one_stays(
    running: RunningStack, user: ApiUser, settings: dict[str, Any], change: dict[str, Any], named: str
) -> None:
    began = time.time()
    running.put_kv(KEY, json.dumps(settings | change))
    eventually("the rejection is logged", lambda: _rejected(running, named, began), 10)
    assert user.get("/v1/users/me").status_code == httpx.codes.OK


def test_an_unknown_setting_is_rejected_by_name(running: RunningStack, user: ApiUser, settings: dict[str, Any]) -> None:
    unknown = f"surprise_{secrets.token_hex(4)}"
    began = time.time()
    running.put_kv(KEY, json.dumps(settings | {unknown: 1}))
    eventually("the rejection is logged", lambda: _rejected(running, unknown, began), 10)
    assert user.get("/v1/users/me").status_code == httpx.codes.OK
