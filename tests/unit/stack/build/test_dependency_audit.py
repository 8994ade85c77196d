"""The dependency audit: a vulnerability fails, an unreachable source does not."""

from __future__ import annotations

import json
from typing import Any

import pytest

from stack.build import dependency_audit
from stack.build.dependency_audit import Report, parse

SOUND: dict[str, Any] = {"name": "idna", "version": "3.11", "vulns": []}
UNKNOWN: dict[str, Any] = {"name": "local", "skip_reason": "not found"}
VULNERABLE: dict[str, Any] = {"name": "h2", "version": "4.0", "vulns": [{"id": "CVE-1", "fix_versions": ["4.1"]}]}


def printed(*packages: dict[str, Any]) -> str:
    return json.dumps({"dependencies": packages})


def test_output_without_json_means_that_the_source_was_not_reached() -> None:
    assert parse("requests.exceptions.ConnectionError: no such host") is None


def test_a_vulnerability_names_package_version_and_fix() -> None:
    assert parse(printed(SOUND, UNKNOWN, VULNERABLE)) == Report(["h2 4.0: CVE-1, fixed in 4.1"], 2, 1)


@pytest.mark.parametrize(
    ("output", "code", "line"),
    [
        ("", 0, "cannot be reached"),
        (printed(UNKNOWN), 0, "cannot be reached"),
        (printed(SOUND, UNKNOWN), 0, "1 packages checked, 1 unknown"),
        (printed(VULNERABLE), 1, "h2 4.0: CVE-1"),
    ],
)
def test_only_a_known_vulnerability_fails(
    output: str, code: int, line: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(dependency_audit, "locked_requirements", lambda *_: "")
    monkeypatch.setattr(dependency_audit, "audit", lambda _: parse(output))
    assert dependency_audit.main() == code
    assert line in capsys.readouterr().out
