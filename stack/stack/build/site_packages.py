"""Installs the third-party packages of a service, as pinned in uv.lock, into a folder that is copied into its zipapp.

All checkouts of a user share the folders. Files that differ between two equal installations are removed.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
import sysconfig
from pathlib import Path

from stack.build.go_toolchain import install, locked_requirements
from stack.config import cache
from stack.machine.lock import exclusive

# The files of installers differ between installations; the other files are never read by a running service.
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
    """Returns the Python version and the machine type that a compiled package must match."""
    return f"{sys.implementation.cache_tag}-{sysconfig.get_platform()}"


def site(package: str) -> Path:
    """Returns the folder with all third-party packages that `package` needs; installs them on first use."""
    third_party = ("--no-default-groups", "--no-emit-workspace", "--no-header", "--no-annotate")
    requirements = locked_requirements("--package", package, *third_party)
    digest = hashlib.sha256(f"{requirements}{platform_tag()}".encode() + Path(__file__).read_bytes())
    folder = cache() / "sites" / f"{package}-{digest.hexdigest()[:12]}"
    with exclusive(cache() / "sites" / f"{package}.lock", f"waiting for another build of {package}"):
        if not folder.exists():
            _install(requirements, folder)
        os.utime(folder)
        _prune(package)
    return folder


def _install(requirements: str, folder: Path) -> None:
    partial = folder.with_suffix(".partial")
    shutil.rmtree(partial, ignore_errors=True)
    file = folder.with_suffix(".txt")
    file.write_text(requirements)
    install(file, partial)
    file.unlink()
    _strip(partial)
    partial.rename(folder)


def _strip(folder: Path) -> None:
    for path in list(folder.rglob("*")):
        dropped_folder = path.name in _DROPPED_FOLDERS and path.is_dir()
        if dropped_folder:
            shutil.rmtree(path)
        elif path.name in _DROPPED_FILES or path.suffix in _DROPPED_SUFFIXES:
            path.unlink(missing_ok=True)


def _prune(package: str) -> None:
    """Removes old folders; the newest two stay, so that a switch between two branches installs nothing."""
    folders = [path for path in (cache() / "sites").glob(f"{package}-*") if path.is_dir()]
    for old in sorted(folders, key=lambda path: path.stat().st_mtime, reverse=True)[_KEPT:]:
        shutil.rmtree(old, ignore_errors=True)
