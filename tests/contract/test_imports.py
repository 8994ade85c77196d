"""Who may import whom: the contracts of pyproject.toml hold, cover every package, and are able to fail."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

from .checkout import ROOT, SERVICES, package

LINTER = Path(sys.executable).with_name("lint-imports")
FOLDERS = ("chassis", "gateway", "services/order", "services/user", "stack", "protos/gen", "protos/src")
# An import for each contract, and which part of the code must not have it.
FORBIDDEN = {
    "services/user/user_service/domain.py": "import grpc",
    "services/order/order_service/domain.py": "from chassis import errors",
    "services/user/user_service/queries.py": "from user_service import commands",
    "services/order/order_service/commands.py": "from order_service import rpc",
    "services/order/order_service/queries.py": "from shop.order.v1 import order_pb2",
    "gateway/gateway/app.py": "import user_service.access_tokens",
    "chassis/chassis/calls/client.py": "from stack import config",
}


def contracts() -> dict[str, Any]:
    found: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]
    return found


def lint(root: Path) -> subprocess.CompletedProcess[str]:
    search = os.pathsep.join(str(root / folder) for folder in FOLDERS)
    environment = os.environ | {"PYTHONPATH": search}
    command = [str(LINTER), "--no-cache", "--config", str(root / "pyproject.toml")]
    return subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=False)


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The code in a place where it may be broken."""
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    for folder in FOLDERS:
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__", ".*"))
    return tmp_path


def test_the_import_contracts_hold() -> None:
    linted = lint(ROOT)
    assert linted.returncode == 0, linted.stdout
    assert f"Contracts: {len(contracts()['contracts'])} kept, 0 broken." in linted.stdout


def test_the_contracts_cover_every_package() -> None:
    assert set(contracts()["root_packages"]) == {"chassis", "shop", "stack", *map(package, SERVICES)}


def test_every_contract_is_able_to_fail(copy: Path) -> None:
    for module, line in FORBIDDEN.items():
        with (copy / module).open("a") as file:
            file.write(f"{line}\n")
    linted = lint(copy)
    assert linted.returncode == 1
    assert f"Contracts: 0 kept, {len(contracts()['contracts'])} broken." in linted.stdout, linted.stdout
