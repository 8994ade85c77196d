"""Settings in a newcomer's shell that belong to other projects: each command works as without them.

The table in docs/environments.md has a row for each; `test_the_document_has_every_setting` keeps it complete.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.operator_commands import stack_in_a_free_slot
from support.stack_under_test import RunningStack

from stack.config import ROOT, cache
from stack.machine.environment import for_downloads

NOWHERE = "127.0.0.1:9"
_PROGRAMS = (
    "sh",
    "sed",
    "cat",
    "cksum",
    "dirname",
    "env",
    "id",
    "readlink",
    "sort",
    "tail",
    "cut",
    "mkdir",
    "mktemp",
    "rm",
)
SETTINGS = {
    "ALL_PROXY socks5": {"ALL_PROXY": f"socks5://{NOWHERE}", "all_proxy": f"socks5h://{NOWHERE}"},
    "ALL_PROXY socks": {"ALL_PROXY": f"socks://{NOWHERE}/"},
    "ALL_PROXY unknown scheme": {"ALL_PROXY": f"gopher://{NOWHERE}"},
    "HTTP_PROXY": {"HTTP_PROXY": f"http://{NOWHERE}", "https_proxy": "no address", "http_proxy": f"http://{NOWHERE}"},
    "NO_PROXY IPv6": {
        "HTTP_PROXY": f"http://{NOWHERE}",
        "NO_PROXY": "localhost,::1,[::1],fd07:b51a:cc66::/64,192.168.0.0/16,*",
    },
    "SSL_CERT_FILE": {"SSL_CERT_FILE": "/gone/ca.pem", "SSL_CERT_DIR": "/gone", "REQUESTS_CA_BUNDLE": "/gone/ca.pem"},
    "UV_DEFAULT_INDEX": {"UV_DEFAULT_INDEX": f"http://{NOWHERE}/simple"},
    "UV_INDEX_URL": {"UV_INDEX_URL": f"http://{NOWHERE}/simple", "UV_EXTRA_INDEX_URL": f"http://{NOWHERE}/more"},
    "UV_EXCLUDE_NEWER": {"UV_EXCLUDE_NEWER": "2020-01-01"},
    "UV_ENV_FILE": {"UV_ENV_FILE": ".env"},
    "UV_PROJECT": {"UV_PROJECT": "/gone", "UV_WORKING_DIR": "/gone", "UV_WORKING_DIRECTORY": "/gone"},
    "UV_ISOLATED": {"UV_ISOLATED": "1", "UV_NO_SYNC": "1", "UV_FROZEN": "1", "UV_LOCKED": "1", "UV_PYTHON": "3.8"},
    "JUST_DRY_RUN": {"JUST_DRY_RUN": "1", "JUST_JUSTFILE": "/gone", "JUST_QUIET": "1"},
    "PYTHONWARNINGS": {"PYTHONWARNINGS": "error", "PYTHONOPTIMIZE": "2", "PYTHONHOME": "/gone", "PYTHONINSPECT": "1"},
    "Terminal": {"LC_ALL": "C", "PYTHONIOENCODING": "ascii", "TERM": "dumb", "NO_COLOR": "1"},
    "Other cluster": {"NOMAD_ADDR": f"http://{NOWHERE}", "CONSUL_HTTP_TOKEN": "other", "VAULT_NAMESPACE": "other"},
}


def plan(environment: dict[str, str], shell: str = "") -> tuple[int, str, str]:
    done = subprocess.run(
        ["/bin/sh", "-c", f"{shell} exec ./justw plan"],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    return done.returncode, done.stdout.strip(), done.stderr.strip()


@pytest.mark.parametrize("setting", SETTINGS)
def test_a_setting_for_other_projects_has_no_effect(running: RunningStack, setting: str) -> None:
    code, output, errors = plan(os.environ | SETTINGS[setting])
    assert (code, output) == (0, "no change"), errors
    assert re.sub(r"justw: SSL_CERT_FILE is ignored: /gone/ca.pem cannot be read", "", errors) == ""


def test_without_a_home_the_one_of_the_user_is_used(running: RunningStack) -> None:
    without = {name: value for name, value in os.environ.items() if name != "HOME"}
    assert plan(without) == (0, "no change", "")


@pytest.fixture
def strange_checkout(tmp_path: Path) -> Iterator[tuple[Path, dict[str, str]]]:
    """A fresh clone below a folder with a colon and a space, made by somebody with a narrow umask."""
    place = Path(tempfile.mkdtemp(dir="/tmp"))  # short, because sockets of Postgres have short paths
    checkout = place / "a: b" / "way:post"
    narrow("git", "clone", "--quiet", str(ROOT), str(checkout), cwd=tmp_path, env=dict(os.environ))
    (tmp_path / "uv").mkdir()
    (tmp_path / "uv" / "uv.toml").write_text('exclude-newer = "2020-01-01"\n')
    stack = stack_in_a_free_slot("strange")
    if stack is None:
        pytest.skip("every slot is taken by another stack")
    mine = for_downloads(os.environ)
    env = {name: value for name, value in mine.items() if not name.startswith("WAYPOST_")}
    env |= {"WAYPOST_STACK": "strange", "WAYPOST_SLOT": str(stack.slot), "XDG_CONFIG_HOME": str(tmp_path)}
    env |= {"WAYPOST_CACHE": str(cache())}
    env |= SETTINGS["UV_DEFAULT_INDEX"] | SETTINGS["PYTHONWARNINGS"] | SETTINGS["UV_PROJECT"]
    try:
        yield checkout, env
    finally:
        narrow("./justw", "destroy", cwd=checkout, env=env)
        shutil.rmtree(place)


@pytest.mark.long
@pytest.mark.timeout(400)
def test_a_first_deploy_in_a_strange_place_works(strange_checkout: tuple[Path, dict[str, str]]) -> None:
    checkout, env = strange_checkout
    narrow("./justw", "deploy", cwd=checkout, env=env)
    assert narrow("./justw", "plan", cwd=checkout, env=env).stdout.strip() == "no change"


def narrow(*words: str, cwd: Path, env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """Runs a command with a umask that leaves nothing to others; fails the test with its output."""
    command = ["/bin/sh", "-c", 'umask 077; exec "$@"', "-", *words]
    done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done


def test_the_document_has_every_setting() -> None:
    document = (ROOT / "docs" / "environments.md").read_text()
    named = {name for settings in SETTINGS.values() for name in settings}
    assert {name for name in named if f"`{name.upper()}`" not in document} == set()


@pytest.mark.parametrize(("version", "accepted"), [("3.10", False), ("3.11", True), ("3.14", True), ("3.15", False)])
def test_a_python_that_does_not_fit_is_named_first(tmp_path: Path, version: str, accepted: bool) -> None:
    """A checkout without an environment, on a machine that has this Python only."""
    (tmp_path / "bin").mkdir()
    for program in _PROGRAMS:
        (tmp_path / "bin" / program).symlink_to(shutil.which(program) or program)
    python = tmp_path / "bin" / "python3"
    change = f"import sys; sys.version_info = ({version.replace('.', ', ')}, 0, 'final', 0); exec(sys.argv[2])"
    python.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -c "{change}" "$@"\n')
    python.chmod(0o755)
    for file in ("justw", "pyproject.toml", "uv.lock"):
        shutil.copy(ROOT / file, tmp_path)
    env = {"PATH": str(tmp_path / "bin"), "HOME": str(tmp_path), "PIP_INDEX_URL": f"http://{NOWHERE}/simple"}
    done = subprocess.run([tmp_path / "justw"], env=env, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 1
    assert ("no Python to run on" in done.stderr) == (not accepted), done.stderr
