"""A credential ends by the clock that is ahead."""

from __future__ import annotations

import time

import pytest

from chassis.platform.validity import Validity
from chassis.platform.vault import Lease


@pytest.mark.parametrize(
    ("monotonic", "wall", "left"),
    [(10, 10, 50), (0, 7200, -7140), (10, -7200, 50), (7200, 10, -7140)],
    ids=["both move", "the machine slept", "the wall clock was set back", "the wall clock stood still"],
)
def test_the_clock_that_is_ahead_counts(
    monkeypatch: pytest.MonkeyPatch, monotonic: float, wall: float, left: float
) -> None:
    validity, lease = Validity.from_now(60), Lease("user", "password", "id", 60, time.monotonic())
    now = time.monotonic(), time.time()
    monkeypatch.setattr(time, "monotonic", lambda: now[0] + monotonic)
    monkeypatch.setattr(time, "time", lambda: now[1] + wall)
    assert validity.left() == pytest.approx(left, abs=5)
    assert lease.left() == pytest.approx(left, abs=5)
