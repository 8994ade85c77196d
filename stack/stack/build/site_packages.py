"""The third-party packages of a service, exactly as uv.lock pins them, in a folder to pack it from.

Folders are shared by all checkouts of a user; what differs from one installation to the next is left out.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
import sysconfig
from pathlib import Path

from stack.build.toolchain import run_uv
from stack.config import cache
from stack.machine.lock import exclusive

# Installers write these, each in its own words; the rest is never read by a running service.
_DROPPED_FILES = (
    "RECORD",
    "INSTALLER",
    "REQUESTED",
    "direct_url.json",
    "uv_cache.json",
    "uv_build.json",
    ".lock",
)
_DROPPED_SUFFIXES = (".pyc", ".pyi", ".proto", ".pyx", ".pxd", ".c", ".h", ".exe")
_DROPPED_FOLDERS = ("bin", "__pycache__", "tests")
_KEPT = 2


def platform_tag() -> str:
    """What a compiled package must fit: this Python's version and this machine's kind."""
    return f"{sys.implementation.cache_tag}-{sysconfig.get_platform()}"


def site(package: str) -> Path:
    """The folder with everything `package` needs from outside the workspace; installed on first use."""
    third_party = ("--no-default-groups", "--no-emit-workspace", "--no-header", "--no-annotate")
    wanted = run_uv("export", "--locked", "--package", package, *third_party)
    digest = hashlib.sha256(f"{wanted}{platform_tag()}".encode() + Path(__file__).read_bytes())
    place = cache() / "sites" / f"{package}-{digest.hexdigest()[:12]}"
    with exclusive(cache() / "sites" / f"{package}.lock", f"waiting for another build of {package}"):
        if not place.exists():
            _install(wanted, place)
        os.utime(place)
        _prune(package)
    return place


def _install(wanted: str, place: Path) -> None:
    partial = place.with_suffix(".partial")
    shutil.rmtree(partial, ignore_errors=True)
    requirements = place.with_suffix(".txt")
    requirements.write_text(wanted)
    hashed = ("--no-deps", "--require-hashes", "--requirement", str(requirements))
    run_uv("pip", "install", *hashed, "--python", sys.executable, "--target", str(partial))
    requirements.unlink()
    _strip(partial)
    partial.rename(place)


def _strip(folder: Path) -> None:
    for path in list(folder.rglob("*")):
        dropped_folder = path.name in _DROPPED_FOLDERS and path.is_dir()
        if dropped_folder:
            shutil.rmtree(path)
        elif path.name in _DROPPED_FILES or path.suffix in _DROPPED_SUFFIXES:
            path.unlink(missing_ok=True)


def _prune(package: str) -> None:
    """Keeps the newest folders, so that going back and forth between two branches installs nothing."""
    places = [path for path in (cache() / "sites").glob(f"{package}-*") if path.is_dir()]
    for old in sorted(places, key=lambda path: path.stat().st_mtime, reverse=True)[_KEPT:]:
        shutil.rmtree(old, ignore_errors=True)
