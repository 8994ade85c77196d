"""Checks the locked packages for known vulnerabilities with pip-audit: `python -m stack.build.dependency_audit`.

A source that cannot be reached is reported and does not fail, so that lint works offline.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stack.build.go_toolchain import locked_requirements
from stack.console import say

_DEPLOYED = ("--no-emit-workspace", "--no-default-groups", "--no-header", "--no-annotate")


@dataclass(frozen=True)
class Report:
    """Vulnerabilities found, one line each; how many packages were checked, and how many are unknown to the source."""

    vulnerabilities: list[str]
    checked: int
    skipped: int


def audit(requirements: str) -> Report | None:
    """Runs pip-audit on pinned and hashed requirements; returns None if its source cannot be reached."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "requirements.txt")
        file.write_text(requirements)
        command = [sys.executable, "-m", "pip_audit", "--disable-pip", "--require-hashes", "--requirement", str(file)]
        options = ["--format", "json", "--progress-spinner", "off", "--timeout", "10"]
        done = subprocess.run([*command, *options], capture_output=True, text=True, check=False)
    return parse(done.stdout)


def parse(output: str) -> Report | None:
    """Reads the JSON that pip-audit prints; without any it did not reach its source, and the result is None."""
    try:
        packages: list[dict[str, Any]] = json.loads(output)["dependencies"]
    except json.JSONDecodeError:
        return None
    known = [package for package in packages if "skip_reason" not in package]
    found = [
        f"{package['name']} {package['version']}: {problem['id']}, fixed in {', '.join(problem['fix_versions']) or '-'}"
        for package in known
        for problem in package["vulns"]
    ]
    return Report(found, len(known), len(packages) - len(known))


def main() -> int:
    """Prints the result; returns 1 if a locked package has a known vulnerability."""
    report = audit(locked_requirements(*_DEPLOYED))
    if report is None or not report.checked:
        say("dependency audit: the source of vulnerabilities cannot be reached, nothing was checked")
        return 0
    for line in report.vulnerabilities:
        say(f"dependency audit: {line}")
    say(f"dependency audit: {report.checked} packages checked, {report.skipped} unknown to the source")
    return 1 if report.vulnerabilities else 0


if __name__ == "__main__":
    sys.exit(main())
