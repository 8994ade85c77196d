"""How much of a test runs, and what it must show: a short form for every run, the goal's own with `-m long`.

A goal is a figure for a machine that does nothing else. Among all the other tests the bound is generous: there a red
test has to be a fault of the system, not of the machine.
"""

from __future__ import annotations

from dataclasses import dataclass

import pytest


@dataclass(frozen=True)
class Form:
    """`much` is how many or how many seconds; `full` whether the goals count."""

    much: float
    full: bool

    @property
    def times(self) -> int:
        return int(self.much)

    def bound(self, goal: float, generous: float) -> float:
        """What a measured figure has to keep to."""
        return goal if self.full else generous


def forms(short: float, full: float) -> pytest.MarkDecorator:
    """Parameter `form` of a test: the short one always, the full one by name."""
    return pytest.mark.parametrize(
        "form",
        [
            pytest.param(Form(short, full=False), id=f"{short:g}"),
            pytest.param(Form(full, full=True), id=f"{full:g}", marks=pytest.mark.long),
        ],
    )
