"""Running a state machine: it looks for a sequence of steps that breaks a rule."""

from __future__ import annotations

import hypothesis
import pytest
from hypothesis import HealthCheck, Phase
from hypothesis.stateful import RuleBasedStateMachine, run_state_machine_as_test


def drive(machine: type[RuleBasedStateMachine], examples: int, steps: int) -> None:
    """Try so many sequences of at most so many steps; raises what the shortest that fails has raised."""
    run_state_machine_as_test(machine, settings=_settings(examples, steps))  # type: ignore[no-untyped-call]


def must_fail(machine: type[RuleBasedStateMachine], examples: int, steps: int) -> None:
    """The negative control: a machine over something broken must find that out."""
    settings = hypothesis.settings(_settings(examples, steps), phases=[Phase.generate], report_multiple_bugs=False)
    with pytest.raises(AssertionError):
        run_state_machine_as_test(machine, settings=settings)  # type: ignore[no-untyped-call]


def _settings(examples: int, steps: int) -> hypothesis.settings:
    slow = list(HealthCheck)  # it may be as slow as the machine is
    return hypothesis.settings(
        max_examples=examples, stateful_step_count=steps, suppress_health_check=slow, print_blob=False
    )
