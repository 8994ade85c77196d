"""Builds the zipapps of the services: one reproducible file for each, which needs only a Python installation.

The sources are hashed first, so a deploy without a change builds nothing.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from stack.build import protos, reproducible_zip, site_packages
from stack.config import ROOT
from stack.console import StackError
from stack.machine.lock import exclusive

SERVICES = {
    "user-service": "services/user/user_service",
    "order-service": "services/order/order_service",
    "gateway": "gateway/gateway",
}
_SHARED = ("chassis/chassis", "protos/gen/shop", "protos/src/shop_contract")


@dataclass(frozen=True)
class Artifact:
    """A built zipapp; `version` is the beginning of the hash of its content."""

    name: str
    path: Path
    sha256: str

    @property
    def version(self) -> str:
        return self.sha256[:12]


def build(stack_state_dir: Path) -> dict[str, Artifact]:
    """Builds the outdated zipapps in `stack_state_dir`/artifacts and returns all; raises StackError."""
    with (
        exclusive(stack_state_dir / "zipapps.lock", "waiting for another build"),
        ThreadPoolExecutor() as pool,
    ):
        protos.generate()
        artifacts = pool.map(lambda name: _artifact(name, stack_state_dir / "artifacts"), SERVICES)
        return {artifact.name: artifact for artifact in artifacts}


def unpack(stack_state_dir: Path, artifacts: Iterable[Artifact]) -> None:
    """Unpacks and compiles each artifact for this machine, as its first start would; raises StackError.

    That costs 4 to 6 s of processor time. On a busy machine a start would not be healthy in time with it.
    """
    with (
        exclusive(stack_state_dir / "zipapps.lock", "waiting for another build"),
        ThreadPoolExecutor() as pool,
    ):
        list(pool.map(lambda artifact: _unpack(artifact, stack_state_dir), artifacts))


def _unpack(artifact: Artifact, stack_state_dir: Path) -> None:
    # shiv names the folder after the file that runs, which the job calls NAME.pyz; fragile: shiv-unpack-folder
    file = f"{artifact.name}.pyz"
    if (stack_state_dir / "zipapps" / f"{file}_{_build_id(artifact.path)}").exists():
        return
    with tempfile.TemporaryDirectory(prefix=".unpack-", dir=artifact.path.parent) as scratch:
        os.link(artifact.path, Path(scratch, file))
        # In place of the service: int() returns 0, the exit code.
        env = {"SHIV_ROOT": str(stack_state_dir / "zipapps"), "SHIV_ENTRY_POINT": "builtins:int"}
        command = [sys.executable, "-I", "-S", str(Path(scratch, file))]
        done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    if done.returncode:
        why = done.stderr.strip()[-500:] or "it printed nothing"
        raise StackError(f"{artifact.name} could not be unpacked", why, f"look for free space on {stack_state_dir}")


def prune(stack_state_dir: Path, needed: set[str]) -> None:
    """Removes every zipapp whose file is not `needed`, and its unpacked folder."""
    with exclusive(stack_state_dir / "zipapps.lock", "waiting for another build"):
        for name in SERVICES:
            built = list((stack_state_dir / "artifacts").glob(f"{name}-*.pyz"))
            # The names of the folders that shiv unpacks to; fragile: shiv-unpack-folder
            kept = {f"{name}.pyz_{_build_id(path)}" for path in built if path.name in needed}
            for path in built:
                if path.name not in needed:
                    path.unlink()
            for unpacked in (stack_state_dir / "zipapps").glob(f"{name}.pyz_*"):
                if unpacked.name.removesuffix(".tmp") not in kept:
                    shutil.rmtree(unpacked, ignore_errors=True)


def _artifact(name: str, folder: Path) -> Artifact:
    inputs = _fingerprint(name)
    known = _recorded(name, folder, inputs)
    if known:
        return known
    artifact = _build(name, folder)
    _record(artifact, inputs)
    return artifact


def _fingerprint(name: str) -> str:
    """Returns the hash of all inputs: our code, the lock file, this Python and the code that builds."""
    digest = hashlib.sha256(f"{site_packages.platform_tag()} shiv {metadata.version('shiv')}\n".encode())
    for file in (Path(__file__), Path(reproducible_zip.__file__), Path(site_packages.__file__), ROOT / "uv.lock"):
        digest.update(file.read_bytes())
    for inside, file in _sources(name):
        content = file.read_bytes()
        digest.update(f"{inside} {len(content)}\n".encode() + content)
    return digest.hexdigest()


def _sources(name: str) -> Iterator[tuple[str, Path]]:
    """Yields our own files with their path in the archive, without the files of editors and of Python."""
    for folder in (SERVICES[name], *_SHARED):
        package = ROOT / folder
        for file in sorted(package.rglob("*")):
            inside = file.relative_to(package.parent)
            hidden = any(part.startswith(".") or part == "__pycache__" for part in inside.parts)
            if file.is_file() and not hidden and not file.name.endswith((".pyc", ".pyi", "~")):
                yield inside.as_posix(), file


def _build(name: str, folder: Path) -> Artifact:
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".new-", dir=folder) as scratch:
        ours, raw, packed = (Path(scratch, part) for part in ("ours", "raw.pyz", "packed.pyz"))
        for inside, file in _sources(name):
            (ours / inside).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, ours / inside)
        _shiv(name, [site_packages.site(name), ours], raw)
        reproducible_zip.repack(raw, packed)
        sha256 = hashlib.sha256(packed.read_bytes()).hexdigest()
        artifact = Artifact(name, folder / f"{name}-{sha256[:12]}.pyz", sha256)
        packed.replace(artifact.path)
    return artifact


def _shiv(name: str, folders: list[Path], output: Path) -> None:
    entry = f"{Path(SERVICES[name]).name}.__main__:main"
    command = [sys.executable, "-m", "shiv", "--reproducible", "--compile-pyc", "--uncompressed"]
    for folder in folders:
        command += ["--site-packages", str(folder)]
    # shiv would use the SOURCE_DATE_EPOCH of the user.
    env = {key: value for key, value in os.environ.items() if key != "SOURCE_DATE_EPOCH"}
    command += ["--entry-point", entry, "--output-file", str(output)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    if done.returncode:
        why = (done.stderr or done.stdout).strip()[-500:] or "shiv printed nothing"
        raise StackError(f"{name} could not be packed", why, f"look for free space on the disk of {output.parent}")


def _recorded(name: str, folder: Path, inputs: str) -> Artifact | None:
    """Returns the artifact of an earlier run if its inputs are the same and its file is complete."""
    try:
        record = json.loads((folder / f"{name}.json").read_text())
        artifact = Artifact(name, folder / record["file"], record["sha256"])
        whole = artifact.path.stat().st_size == record["size"]
    except (FileNotFoundError, ValueError, KeyError):
        return None
    return artifact if whole and record["made_from"] == inputs else None


def _record(artifact: Artifact, inputs: str) -> None:
    path = artifact.path
    os.utime(path)
    record = {
        "made_from": inputs,
        "file": path.name,
        "sha256": artifact.sha256,
        "size": path.stat().st_size,
    }
    partial = path.with_name(f"{artifact.name}.json.new")
    partial.write_text(json.dumps(record, indent=1))
    partial.replace(path.with_name(f"{artifact.name}.json"))


def _build_id(path: Path) -> str:
    with zipfile.ZipFile(path) as archive:
        return str(json.loads(archive.read("environment.json"))["build_id"])  # fragile: shiv-unpack-folder
