"""These tests need the services in the mesh: `mesh = true` in nomad/jobs/*.vars.hcl."""

from __future__ import annotations

import pytest
from support.stack_under_test import RunningStack

from stack.mesh.dial import is_on, names


@pytest.fixture(autouse=True, scope="module")
def _in_the_mesh(running: RunningStack) -> None:
    outside = [name for name in names() if not is_on(running.clients, name)]
    if outside:
        pytest.skip(f"not in the mesh (nomad/jobs/*.vars.hcl): {', '.join(outside)}")
