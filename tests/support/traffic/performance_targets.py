"""How long a test runs and which bound it must keep: a short form in every run, the full target with `-m long`.

A target is a figure for a machine that does nothing else. Among all the other tests the bound is wider, so that a red
test means a fault of the system and not of the machine; the name of a test promises no more than the wide bound.
"""

from __future__ import annotations

from dataclasses import dataclass

import pytest


@dataclass(frozen=True)
class Effort:
    """`amount` is a number of repetitions or seconds; `full` says whether the targets apply."""

    amount: float
    full: bool

    @property
    def times(self) -> int:
        return int(self.amount)

    def bound(self, target: float, wide: float) -> float:
        """The bound for a measured figure."""
        return target if self.full else wide


def efforts(short: float, full: float) -> pytest.MarkDecorator:
    """Parameter `effort` of a test: the short one always, the full one with `-m long`."""
    return pytest.mark.parametrize(
        "effort",
        [
            pytest.param(Effort(short, full=False), id=f"{short:g}"),
            pytest.param(Effort(full, full=True), id=f"{full:g}", marks=pytest.mark.long),
        ],
    )
