"""The server of the job `artifacts`: serves its folder, and logs errors but not the requests of its health check."""

from __future__ import annotations

import re
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from stack.cluster import nomad
from stack.waiting import poll

from ..chassis.servers import free_port


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    text = (nomad.JOBS / "artifacts.nomad.hcl").read_text()
    (script,) = re.findall(r"<<-PY\n(.*?)\n\s*PY\n", text, re.DOTALL)
    (tmp_path / "artifacts.py").write_text(textwrap.dedent(script))
    (tmp_path / "served").mkdir()
    (tmp_path / "served" / "gateway.pyz").write_bytes(b"a zipapp")
    port = free_port()
    command = [sys.executable, "-I", "-S", "artifacts.py", "127.0.0.1", str(port), str(tmp_path / "served")]
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(command, cwd=tmp_path, stderr=log)
    try:
        url = f"http://127.0.0.1:{port}"
        assert poll(lambda: _answers(url), 30), (tmp_path / "log").read_text()
        yield url
    finally:
        process.kill()
        process.wait(10)


def _answers(url: str) -> bool:
    try:
        return httpx.head(url, trust_env=False).is_success
    except httpx.TransportError:
        return False


def test_it_serves_the_folder_and_logs_only_errors(server: str, tmp_path: Path) -> None:
    assert httpx.get(f"{server}/gateway.pyz", trust_env=False).content == b"a zipapp"
    assert (tmp_path / "log").read_text() == ""
    assert httpx.get(f"{server}/none.pyz", trust_env=False).status_code == 404
    assert "File not found" in (tmp_path / "log").read_text()
