"""Runs Hypothesis state machines, which search for a sequence of steps that breaks a rule."""

from __future__ import annotations

import hypothesis
import pytest
from hypothesis import HealthCheck, Phase
from hypothesis.stateful import RuleBasedStateMachine, run_state_machine_as_test


def drive(machine: type[RuleBasedStateMachine], examples: int, steps: int) -> None:
    """Runs `examples` sequences of at most `steps` steps; raises the error of the shortest sequence that fails."""
    run_state_machine_as_test(machine, settings=_settings(examples, steps))  # type: ignore[no-untyped-call]


def must_fail(machine: type[RuleBasedStateMachine], examples: int, steps: int) -> None:
    """Passes only if the machine fails: the negative control, run on broken code."""
    settings = hypothesis.settings(_settings(examples, steps), phases=[Phase.generate], report_multiple_bugs=False)
    with pytest.raises(AssertionError):
        run_state_machine_as_test(machine, settings=settings)  # type: ignore[no-untyped-call]


def _settings(examples: int, steps: int) -> hypothesis.settings:
    slow = list(HealthCheck)  # its speed depends on the machine it runs on
    return hypothesis.settings(
        max_examples=examples, stateful_step_count=steps, suppress_health_check=slow, print_blob=False
    )
