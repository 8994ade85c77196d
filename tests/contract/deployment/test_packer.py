"""The machine image installs the files of this repo: each of its services has a unit and a configuration."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from stack.config import ROOT

PACKER = ROOT / "packer"
SERVICES = ("nomad", "consul", "vault")


@pytest.mark.parametrize("service", SERVICES)
def test_a_service_of_the_image_has_a_unit_and_a_configuration(service: str) -> None:
    unit = (PACKER / "files" / f"{service}.service").read_text()
    assert f"/etc/{service}.d" in unit
    assert (PACKER / "files" / f"{service}.hcl").exists()


def test_every_file_that_the_image_copies_from_the_repo_exists() -> None:
    template = (PACKER / "node.pkr.hcl").read_text()
    named = re.findall(r'"\$\{path\.root\}/([^"]+)"', template)
    assert len(named) == 5
    for name in named:
        assert (PACKER / name).resolve().exists(), name


def test_the_installer_is_a_plain_shell_script(tmp_path: Path) -> None:
    checked = subprocess.run(["sh", "-n", str(PACKER / "install.sh")], capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stderr
