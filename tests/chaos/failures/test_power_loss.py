"""Hypothesis: after a loss of power a deploy brings back every order, and the secrets of tasks are only in memory.

Fault: every process is killed, and the file systems in memory are gone. Control: meanwhile the port of the edge is
closed and no folder for secrets is in memory.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import httpx
import pytest
from support.credential_faults import failed_power, mounts
from support.stack_under_test import RunningStack, eventually
from support.traffic.api_user import ApiUser

PENNY = [{"sku": "penny", "quantity": 1, "unit_price": 1}]

pytestmark = [pytest.mark.timeout(600), pytest.mark.usefixtures("healthy")]


@pytest.mark.long
@pytest.mark.skipif(os.geteuid() != 0, reason="only as root Nomad keeps secrets in memory")
def test_after_a_loss_of_power_no_order_is_lost_and_no_secret_is_on_disk(
    running: RunningStack, user: ApiUser, tmp_path: Path
) -> None:
    orders = [user.settled(user.place(PENNY).json()["id"])["id"] for _ in range(3)]
    with failed_power(running):
        with pytest.raises(httpx.ConnectError):
            user.get("/v1/orders")
        assert mounts(running) == []
    running.wait_until_healthy(90)
    in_use = {
        str(folder)
        for job in running.clients.nomad.jobs
        for alloc in running.allocations(job["ID"])
        for folder in (running.stack.state / "nomad" / "data" / "alloc" / alloc["ID"]).glob("*/secrets")
    }
    assert in_use
    assert in_use <= set(mounts(running))
    assert any(Path(folder, "nomad_vault.jwt").exists() for folder in in_use)
    assert _on_disk(running, tmp_path) == []
    eventually("a user signs in", lambda: _signs_in(user), 60)
    assert {user.get(f"/v1/orders/{order}").raise_for_status().json()["status"] for order in orders} == {"confirmed"}


def _on_disk(running: RunningStack, view: Path) -> list[str]:
    """The files in folders for secrets below the file systems that cover them."""
    subprocess.run(["mount", "--bind", running.stack.state / "nomad" / "data", view], check=True)
    try:
        return [str(file) for name in ("secrets", "private") for file in view.glob(f"alloc/*/*/{name}/*")]
    finally:
        subprocess.run(["umount", view], check=True)


def _signs_in(user: ApiUser) -> bool:
    session = {"email": user.email, "password": user.password}
    return user.http.post("/v1/sessions", json=session).status_code == httpx.codes.CREATED
