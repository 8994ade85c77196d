"""The import contracts of pyproject.toml hold, cover every package, and fail when they should."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

from .repository import ROOT, SERVICES, package

LINTER = Path(sys.executable).with_name("lint-imports")
FOLDERS = {
    "chassis": "chassis",
    "gateway": "gateway",
    "order_service": "services/order",
    "user_service": "services/user",
    "stack": "stack",
    "support": "tests",
    "shop_contract": "protos/src",
    "shop": "protos/gen",
}
# One forbidden import for each contract that is not about layers.
FORBIDDEN = {
    "A domain may import": ("services/user/user_service/domain.py", "import socket"),
    "Write side and read side": ("services/user/user_service/queries.py", "from user_service import commands"),
    "What is deployed apart": ("gateway/gateway/settings.py", "import user_service.settings"),
    "No import cycle": ("chassis/chassis/errors.py", "from chassis import settings"),
    "Generated stubs": ("services/order/order_service/queries.py", "from shop.order.v1 import order_pb2"),
}


def contracts() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"][
        "contracts"
    ]
    return found


def layered() -> dict[str, dict[str, Any]]:
    """The layers contracts whose containers are root packages, by container."""
    return {name: each for each in contracts() if each["type"] == "layers" for name in each["containers"]}


def broken(root: Path) -> set[str]:
    """The names of the contracts that do not hold for the code in `root`."""
    search = os.pathsep.join(str(root / folder) for folder in FOLDERS.values())
    environment = os.environ | {"PYTHONPATH": search, "COLUMNS": "300"}
    command = [str(LINTER), "--no-cache", "--config", str(root / "pyproject.toml")]
    linted = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=False)
    assert "Contracts: " in linted.stdout, linted.stdout + linted.stderr
    found = {name.strip() for name in re.findall(r"^(.+) BROKEN\b", linted.stdout, re.MULTILINE)}
    assert bool(found) == bool(linted.returncode), linted.stdout
    return found


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A copy of the code, to break."""
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    for name, folder in FOLDERS.items():
        ignored = shutil.ignore_patterns("__pycache__", ".*")
        shutil.copytree(ROOT / folder / name, tmp_path / folder / name, ignore=ignored)
    return tmp_path


def test_the_import_contracts_hold() -> None:
    assert broken(ROOT) == set()


def test_every_root_package_has_an_exhaustive_layers_contract_and_acyclic_siblings() -> None:
    ours = {"chassis", "stack", "support", *map(package, SERVICES)}
    assert {name for name, each in layered().items() if each.get("exhaustive")} >= ours
    acyclic = next(each for each in contracts() if each["type"] == "acyclic_siblings")
    assert set(acyclic["ancestors"]) >= ours


def test_a_module_without_a_layer_is_refused_in_every_root_package(copy: Path) -> None:
    for container in layered():
        top = container.split(".")[0]
        (copy / FOLDERS[top] / container.replace(".", "/") / "throw_away.py").write_text('"""Planted."""\n')
    assert broken(copy) == {each["name"] for each in contracts() if each["type"] == "layers"}


def test_every_other_contract_refuses_a_forbidden_import(copy: Path) -> None:
    names = {each["name"] for each in contracts() if each["type"] != "layers"}
    for module, line in FORBIDDEN.values():
        with (copy / module).open("a") as file:
            file.write(f"{line}\n")
    assert names <= broken(copy)
    assert all(any(name.startswith(beginning) for beginning in FORBIDDEN) for name in names)


def test_a_layer_refuses_an_import_from_above(copy: Path) -> None:
    with (copy / "chassis/chassis/calls/retry.py").open("a") as file:
        file.write("import chassis.testing\n")
    assert layered()["chassis"]["name"] in broken(copy)
