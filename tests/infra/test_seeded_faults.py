"""The checks of this folder prove themselves: each seeded fault makes one of them fail, a sound stack none.

Faults are planted in the stack of `--checkout` on the machine of `--hosts`; nothing else may use that stack meanwhile.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence

import pytest
from support.infrastructure.deployed_stack import DeployedStack
from support.infrastructure.seeded_faults import FAULTS, Fault
from support.stack_under_test import eventually

from stack.config import ROOT

pytestmark = [pytest.mark.long, pytest.mark.timeout(1200)]
OPTIONS = ("checkout", "hosts", "ssh_config", "ssh_identity_file", "ssh_extra_args", "sudo_user")


class Checks:
    """All checks of tests/infra that leave the stack alone, in a pytest of their own."""

    def __init__(self, config: pytest.Config) -> None:
        given = {name: config.getoption(name) for name in OPTIONS}
        self._options = [f"--{name.replace('_', '-')}={value}" for name, value in given.items() if value]

    def failures(self, *chosen: str) -> list[str]:
        """The tests that fail, of the chosen ones or of all; an error of the run itself is raised."""
        done = self._run(chosen or ("tests/infra",))
        failed = [line for line in done.stdout.splitlines() if line.startswith("FAILED ")]
        assert bool(failed) == bool(done.returncode), done.stdout + done.stderr
        assert failed or " passed" in done.stdout, done.stdout
        return [line.removeprefix("FAILED ").partition(" - ")[0] for line in failed]

    def _run(self, chosen: Sequence[str]) -> subprocess.CompletedProcess[str]:
        limits = ["-m", "not long and not disturbs", "--ignore", "tests/infra/test_teardown.py"]
        quiet = ["-q", "--tb=no", "-p", "no:cacheprovider", "-n", "2", "--dist", "loadfile"]
        command = [sys.executable, "-m", "pytest", *chosen, *limits, *quiet, *self._options]
        # This process may be a worker of `./justw test`, which has chosen the stack already.
        env = {
            name: value for name, value in os.environ.items() if name not in {"WAYPOST_STACKS", "PYTEST_XDIST_WORKER"}
        }
        return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False, timeout=500)


@pytest.fixture(scope="module")
def checks(request: pytest.FixtureRequest) -> Checks:
    return Checks(request.config)


def test_a_sound_stack_passes_every_check(deployed: DeployedStack, checks: Checks) -> None:
    assert checks.failures() == []


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_a_seeded_fault_is_found(deployed: DeployedStack, checks: Checks, fault: Fault) -> None:
    undo = fault.plant(deployed)
    try:
        # All checks take a minute over ssh, so the module that should find it is asked first.
        found = checks.failures(f"tests/infra/test_{fault.module}.py", "-x") or checks.failures("tests/infra", "-x")
    finally:
        undo()
    print(f"{fault.name}: found by {', '.join(test.partition('::')[2] for test in found)}")
    assert found
    eventually("they pass again", lambda: not checks.failures(*found), 60, every=2)


def test_after_every_undo_the_stack_is_as_sound_as_before(deployed: DeployedStack, checks: Checks) -> None:
    assert checks.failures() == []
