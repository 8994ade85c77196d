"""Builds servers from pinned Go modules into the user cache: once, resumable, one build at a time per user.

A binary appears by a rename, so it is complete or absent. The Go caches are private and are removed after the build.
The sources of the next server are fetched while one is compiled: the network and the processor work in parallel.
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
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from stack.build import go_toolchain
from stack.build.go_build_errors import explain
from stack.config import ROOT, cache
from stack.console import StackError, say, step
from stack.machine.environment import for_downloads
from stack.machine.lock import exclusive

MODULES = ROOT / "stack" / "tools"
GB = 1_000_000_000
_LICENCE = (
    "Nomad and Consul are under the Business Source License 1.1: source-available, not open source. It allows every",
    "use but a competing offer to others. They run as programs of their own. A recent nomad and consul on PATH are",
    "used instead of a build.",
)
_DOOMED = "build.doomed-"
OnLine = Callable[[str], None]
_REMOVED = ("GOROOT", "GOOS", "GOARCH", "GOEXPERIMENT", "GODEBUG", "GOBIN", "GOPATH", "CGO_ENABLED")


@dataclass(frozen=True)
class GoTool:
    """A server with its own go.mod and go.sum in stack/tools; a build needs `gigabytes` of disk space."""

    name: str
    module: str
    expected_time: str
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
    def minimum_go(self) -> go_toolchain.Version:
        match = re.search(r"^go ([\d.]+)", self._pins[0].decode(), re.MULTILINE)
        return go_toolchain.parse_version(match[1]) if match else ()

    def binary(self, cgo: bool) -> Path:
        """Returns the path of the built server; it changes with every pin, checksum and flag."""
        digest = hashlib.sha256(b"\0".join([*self._pins, repr(self._build_flags).encode(), b"cgo" * cgo]))
        here = f"{sys.platform}-{platform.machine()}"
        return cache() / "tools" / f"{self.name}-{self.version}-{here}-{digest.hexdigest()[:12]}" / self.name

    @property
    def _build_flags(self) -> tuple[str, ...]:
        # The linker drops all debug information, so the compiler need not write it.
        return ("-trimpath", "-gcflags=all=-dwarf=false", "-ldflags=-s -w", "-buildvcs=false", *self.flags)

    @functools.cached_property
    def _pins(self) -> tuple[bytes, bytes]:
        folder = MODULES / self.name
        return (folder / "go.mod").read_bytes(), (folder / "go.sum").read_bytes() + self._replacements()

    def _replacements(self) -> bytes:
        """Returns the content of the modules of this repository that take the place of others."""
        named = re.findall(r"=> \.\./(\S+)", (MODULES / self.name / "go.mod").read_text())
        files = [file for name in named for file in sorted((MODULES / name).rglob("*")) if file.is_file()]
        return b"".join(file.read_bytes() for file in files)

    def command(self, go: Path, output: Path) -> list[str]:
        return [str(go), "build", "-v", *self._build_flags, "-o", str(output), self.module]

    def listing(self, go: Path) -> list[str]:
        """Returns the command that fetches the modules and lists every package that must be compiled."""
        stale = "{{if .Stale}}{{.ImportPath}}{{end}}"
        return [str(go), "list", "-deps", "-f", stale, *self._build_flags, self.module]


def build(tools: Sequence[GoTool]) -> None:
    """Builds the missing servers, one deploy at a time; raises StackError.

    The go process inherits the lock: if a killed deploy leaves it running, the next deploy waits for it.
    """
    with exclusive(_lock(), "waiting for another deploy's build") as lock:
        cc = go_toolchain.compiler()
        missing = [tool for tool in tools if not tool.binary(bool(cc.command)).exists()]
        if missing:
            _require_space(missing)
            names = ", ".join(tool.name for tool in missing)
            say(f"  building {names}: once for this user, about 10 min on 2 cores; kept in {cache()}/tools")
            for line in _LICENCE:
                say(f"    {line}")
            go = go_toolchain.go(_scratch(), max(tool.minimum_go for tool in missing))
            _build_all(missing, go, environment(go, cc.command, os.environ), lock)
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
            f"{cache()} has {free:.1f} GB free; the build temporarily needs about {needed:.0f} GB",
            "free some space, or set WAYPOST_CACHE to a folder on a larger disk",
        )


def environment(go: Path, cc: str, base: Mapping[str, str]) -> dict[str, str]:
    """Returns the user's environment without variables that change the result; proxy and checksum settings stay."""
    inherited = {key: value for key, value in for_downloads(base).items() if key not in _REMOVED}
    folders = {key: _scratch() / key.lower() for key in ("GOMODCACHE", "GOCACHE", "GOTMPDIR", "GOPATH")}
    for folder in folders.values():
        folder.mkdir(parents=True, exist_ok=True)
    return inherited | {
        **{key: str(folder) for key, folder in folders.items()},
        # Not empty: an empty GOFLAGS falls back to the one in the user's `go env -w` file.
        "GOFLAGS": "-mod=readonly -modcacherw",
        "GOTOOLCHAIN": "local",
        "GOWORK": "off",
        "CGO_ENABLED": "1" if cc else "0",
        "PATH": f"{go.parent}{os.pathsep}{base.get('PATH', '')}",
        **({"CC": cc} if cc else {}),
    }


def _build_all(tools: Sequence[GoTool], go: Path, env: dict[str, str], lock: int) -> None:
    fetcher = ThreadPoolExecutor(max_workers=1)
    try:
        fetched = [fetcher.submit(_fetch, tool, go, env, lock) for tool in tools]
        for tool, stale in zip(tools, fetched, strict=True):
            with step(f"fetching {tool.name} {tool.version}", "30 s"):
                packages = stale.result()
            _compile(tool, go, env, lock, packages)
    finally:
        fetcher.shutdown(cancel_futures=True)


def _fetch(tool: GoTool, go: Path, env: dict[str, str], lock: int) -> int:
    """Fetches the modules of a server and returns how many packages must be compiled."""
    return len(_run(tool, env, lock, tool.listing(go), lambda _: None))


def _compile(tool: GoTool, go: Path, env: dict[str, str], lock: int, packages: int) -> None:
    final = tool.binary(env["CGO_ENABLED"] == "1")
    partial = final.parent.with_name(f"{final.parent.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    with step(f"building {tool.name} {tool.version}", tool.expected_time) as now:
        compiled = 0

        def on_line(line: str) -> None:
            nonlocal compiled
            compiled += not re.search(r"[#\s]", line)
            now.detail = f"{compiled}/{packages} packages"

        _run(tool, env, lock, tool.command(go, partial / tool.name), on_line)
    final.parent.parent.mkdir(parents=True, exist_ok=True)
    partial.rename(final.parent)


def _run(tool: GoTool, env: dict[str, str], lock: int, command: list[str], on_line: OnLine) -> list[str]:
    """Runs go; passes each line of its progress to `on_line` and the log; returns the words of its output."""
    log = _scratch() / f"{tool.name}.log"
    last: deque[str] = deque(maxlen=200)
    with (_scratch() / f"{tool.name}.stdout").open("w+") as out, log.open("a") as log_file:
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
        with _terminated_on_error(child):
            for line in child.stderr or ():
                log_file.write(line)
                last.append(line.rstrip())
                on_line(line.rstrip())
        out.seek(0)
        words = out.read().split()
    if child.returncode:
        raise explain(tool.name, list(last), log)
    return words


@contextlib.contextmanager
def _terminated_on_error(child: subprocess.Popen[str]) -> Iterator[None]:
    """Waits for the child; terminates it if an exception such as Ctrl-C comes first."""
    with child:
        try:
            yield
        except BaseException:
            child.terminate()
            raise


def tidy() -> None:
    """Removes the rest of an interrupted clean-up, unless another deploy is building."""
    if not _leftovers():
        return
    with contextlib.suppress(BlockingIOError), exclusive(_lock(), patient=False):
        _remove_caches()


def _remove_caches() -> None:
    """Frees the disk space of the build, in the background; the built servers stay.

    The rename comes first, so that a partly removed module cache is never used as a complete one.
    """
    if _scratch().exists():
        _scratch().rename(cache() / f"{_DOOMED}{os.getpid()}")
    if doomed := _doomed():
        say("  the build caches are removed in the background")
        subprocess.Popen(["nice", "rm", "-rf", *map(str, doomed)], start_new_session=True, stdin=subprocess.DEVNULL)


def _leftovers() -> bool:
    return _scratch().exists() or bool(_doomed())


def _doomed() -> list[Path]:
    return list(cache().glob(f"{_DOOMED}*"))
