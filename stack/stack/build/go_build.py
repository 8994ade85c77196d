"""Servers built from pinned Go modules into the user cache: once, resumable, one build at a time per user.

A binary appears by a rename, so it is whole or absent; the Go caches are private and go away at the end.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import platform
import re
import shutil
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from stack.build import toolchain
from stack.build.go_build_errors import explain
from stack.config import ROOT, cache
from stack.console import StackError, Step, say, step
from stack.machine.lock import exclusive

MODULES = ROOT / "stack" / "tools"
GB = 1_000_000_000
Heard = Callable[[str], None]
_INHERITED = ("GOROOT", "GOOS", "GOARCH", "GOEXPERIMENT", "GODEBUG", "GOBIN", "GOPATH", "CGO_ENABLED")


@dataclass(frozen=True)
class GoTool:
    """A server with its own go.mod and go.sum in stack/tools; `gigabytes` is what a build takes."""

    name: str
    module: str
    usually: str
    gigabytes: float
    flags: tuple[str, ...] = ()
    needs_cpp: bool = False

    @property
    def version(self) -> str:
        match = re.search(rf"{re.escape(self.module)} v([\d.]+)", self._pins[0].decode())
        if match is None:
            why = f"stack/tools/{self.name}/go.mod does not require {self.module}"
            raise StackError(f"{self.name} has no version", why, "restore stack/tools from git")
        return match[1]

    @property
    def minimum_go(self) -> toolchain.Version:
        match = re.search(r"^go ([\d.]+)", self._pins[0].decode(), re.MULTILINE)
        return toolchain.parse_version(match[1]) if match else ()

    def binary(self, cgo: bool) -> Path:
        """Where the built server is kept; the path changes with every pin, checksum and flag."""
        digest = hashlib.sha256(b"\0".join([*self._pins, repr(self._build_flags).encode(), b"cgo" * cgo]))
        here = f"{sys.platform}-{platform.machine()}"
        return cache() / "tools" / f"{self.name}-{self.version}-{here}-{digest.hexdigest()[:12]}" / self.name

    @property
    def _build_flags(self) -> tuple[str, ...]:
        return ("-trimpath", "-ldflags=-s -w", "-buildvcs=false", *self.flags)

    @functools.cached_property
    def _pins(self) -> tuple[bytes, bytes]:
        folder = MODULES / self.name
        return (folder / "go.mod").read_bytes(), (folder / "go.sum").read_bytes()

    def command(self, go: Path, output: Path) -> list[str]:
        return [str(go), "build", "-v", *self._build_flags, "-o", str(output), self.module]

    def listing(self, go: Path) -> list[str]:
        """Names every package that must be compiled; fetches the modules on the way."""
        stale = "{{if .Stale}}{{.ImportPath}}{{end}}"
        return [str(go), "list", "-deps", "-f", stale, *self._build_flags, self.module]


def build(tools: Sequence[GoTool]) -> None:
    """Builds what is missing, after waiting for another deploy that does so; raises StackError.

    go inherits the lock, so that one left behind by a killed deploy still counts as a build.
    """
    with exclusive(_lock(), "waiting for another deploy's build") as lock:
        cc = toolchain.compiler()
        missing = [tool for tool in tools if not tool.binary(bool(cc.command)).exists()]
        if missing:
            _require_space(missing)
            names = ", ".join(tool.name for tool in missing)
            say(f"  building {names}: once for this user, about 10 min on 2 cores; kept in {cache()}/tools")
            go = toolchain.go(_scratch(), max(tool.minimum_go for tool in missing))
            for tool in missing:
                _build(tool, go, cc.command, lock)
        _remove_caches()


def _lock() -> Path:
    return cache() / "build.lock"


def _scratch() -> Path:
    return cache() / "build"


def _require_space(tools: Sequence[GoTool]) -> None:
    _scratch().mkdir(parents=True, exist_ok=True)
    present = sum(path.lstat().st_size for path in _scratch().rglob("*")) / GB
    needed = max(2.0, sum(tool.gigabytes for tool in tools) - present)
    free = shutil.disk_usage(_scratch()).free / GB
    if free < needed:
        raise StackError(
            f"not enough disk space to build {', '.join(tool.name for tool in tools)}",
            f"{cache()} has {free:.1f} GB free; the build takes about {needed:.0f} GB, for its duration",
            "free some space, or set WAYPOST_CACHE to a folder on a larger disk",
        )


def environment(go: Path, cc: str, base: Mapping[str, str]) -> dict[str, str]:
    """The user's environment without what would change the result; proxy and checksum settings stay."""
    kept = {key: value for key, value in base.items() if key not in _INHERITED}
    folders = {key: _scratch() / key.lower() for key in ("GOMODCACHE", "GOCACHE", "GOTMPDIR", "GOPATH")}
    for folder in folders.values():
        folder.mkdir(parents=True, exist_ok=True)
    return kept | {
        **{key: str(folder) for key, folder in folders.items()},
        # Not empty: an empty GOFLAGS falls back to the one in the user's `go env -w` file.
        "GOFLAGS": "-mod=readonly -modcacherw",
        "GOTOOLCHAIN": "local",
        "GOWORK": "off",
        "CGO_ENABLED": "1" if cc else "0",
        "PATH": f"{go.parent}{os.pathsep}{base.get('PATH', '')}",
        **({"CC": cc} if cc else {}),
    }


def _build(tool: GoTool, go: Path, cc: str, lock: int) -> None:
    run = functools.partial(_run, tool, environment(go, cc, os.environ), lock)
    with step(f"fetching {tool.name} {tool.version}", "30 s") as now:
        stale = run(tool.listing(go), _count(now, "modules", lambda line: "downloading" in line))
    final = tool.binary(bool(cc))
    partial = final.parent.with_name(f"{final.parent.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    with step(f"building {tool.name} {tool.version}", tool.usually) as now:
        compiled = _count(now, f"/{len(stale)} packages", lambda line: not re.search(r"[#\s]", line))
        run(tool.command(go, partial / tool.name), compiled)
    final.parent.parent.mkdir(parents=True, exist_ok=True)
    partial.rename(final.parent)


def _count(now: Step, unit: str, counts: Callable[[str], bool]) -> Heard:
    seen = 0

    def on_line(line: str) -> None:
        nonlocal seen
        seen += counts(line)
        now.detail = f"{seen}{unit}" if unit.startswith("/") else f"{seen} {unit}"

    return on_line


def _run(tool: GoTool, env: dict[str, str], lock: int, command: list[str], heard: Heard) -> list[str]:
    """Runs go, each line of its progress to `heard` and the log; returns what it printed as its result."""
    log = _scratch() / f"{tool.name}.log"
    last: deque[str] = deque(maxlen=200)
    with (_scratch() / "stdout").open("w+") as out, log.open("a") as kept:
        child = subprocess.Popen(
            command,
            cwd=MODULES / tool.name,
            env=env,
            stdout=out,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            pass_fds=[lock],
        )
        with _ended(child):
            for line in child.stderr or ():
                kept.write(line)
                last.append(line.rstrip())
                heard(line.rstrip())
        out.seek(0)
        answer = out.read().split()
    if child.returncode:
        raise explain(tool.name, list(last), log)
    return answer


@contextlib.contextmanager
def _ended(child: subprocess.Popen[str]) -> Iterator[None]:
    """Waits for the child; when this side stops first (Ctrl-C), the child is ended too."""
    with child:
        try:
            yield
        except BaseException:
            child.terminate()
            raise


def tidy() -> None:
    """Removes what a killed clean-up left behind, unless another deploy is building."""
    if not _leftovers():
        return
    with contextlib.suppress(BlockingIOError), exclusive(_lock(), patient=False):
        _remove_caches()


def _remove_caches() -> None:
    """Gives back what the build took, keeping the built servers.

    The rename comes first: a half removed module cache must never be taken for a whole one.
    """
    if not _leftovers():
        return
    with step("removing the build caches", "30 s"):
        shutil.rmtree(_doomed(), ignore_errors=True)
        if _scratch().exists():
            _scratch().rename(_doomed())
        shutil.rmtree(_doomed(), ignore_errors=True)


def _leftovers() -> bool:
    return _scratch().exists() or _doomed().exists()


def _doomed() -> Path:
    return cache() / "build.doomed"
