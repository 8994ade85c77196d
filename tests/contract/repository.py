"""Reads the checkout as data: its files, its services, and the blocks of HCL files."""

from __future__ import annotations

import importlib
import re
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from chassis.settings import ProcessSettings
from stack.build.zipapps import SERVICES
from stack.cluster import nomad
from stack.config import ROOT

__all__ = ["ROOT", "SERVICES", "blocks", "job_text", "keys", "package", "settings", "tracked"]


@cache
def tracked() -> tuple[Path, ...]:
    """Every file that git has or would take, from the root of the checkout."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip(f"git does not know this checkout: {listed.stderr.strip()}")
    paths = (Path(name) for name in listed.stdout.split("\0") if name)
    return tuple(sorted(path for path in paths if (ROOT / path).is_file()))


def job_text(job: str) -> str:
    """The file of a job; for a service the shared file, followed by the file with its own variables."""
    return "\n".join(file.read_text() for file in nomad.job_files(job))


def package(service: str) -> str:
    """The Python package of a service, which is also its database, schema and owner role."""
    return Path(SERVICES[service]).name


def settings(service: str) -> type[ProcessSettings]:
    found: type[ProcessSettings] = importlib.import_module(f"{package(service)}.settings").Settings
    return found


def blocks(text: str, head: str) -> Iterator[tuple[tuple[str, ...], str]]:
    """Labels (the groups of `head`, a pattern) and body of each HCL block that begins a line with it."""
    code = re.sub(r"^\s*(#|//).*$", "", text, flags=re.MULTILINE)
    for match in re.finditer(rf"^\s*{head}\s*\{{", code, re.MULTILINE):
        depth, end = 1, match.end()
        while depth:
            depth += {"{": 1, "}": -1}.get(code[end], 0)
            end += 1
        yield match.groups(), code[match.end() : end - 1]


def keys(body: str) -> set[str]:
    """The names a block assigns."""
    return set(re.findall(r"^\s*(\w+)\s*=", body, re.MULTILINE))
