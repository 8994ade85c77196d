"""Generates the Python stubs of the contract, from protos/shop/**.proto into protos/gen/shop; they are not committed.

The complete folder replaces the old one. It has the hash of its sources, so a second run does nothing.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

from stack.config import ROOT
from stack.console import StackError
from stack.machine.lock import exclusive

PROTOS = ROOT / "protos"
_GENERATORS = ("grpcio-tools", "mypy-protobuf", "protobuf", "googleapis-common-protos")
_HASH_FILE = ".made-from"


def generate(protos: Path = PROTOS) -> bool:
    """Updates the stubs in `protos`/gen; returns whether they were outdated. Raises StackError."""
    sources = sorted((protos / "shop").rglob("*.proto"))
    sources_hash = _fingerprint(protos, sources)
    hash_file = protos / "gen" / "shop" / _HASH_FILE
    if _read(hash_file) == sources_hash:
        return False
    with exclusive(protos / "gen" / ".lock"):
        if _read(hash_file) == sources_hash:
            return False
        _generate(protos, sources, sources_hash)
    return True


def _fingerprint(protos: Path, sources: list[Path]) -> str:
    digest = hashlib.sha256(Path(__file__).read_bytes())
    for generator in _GENERATORS:
        digest.update(f"{generator} {metadata.version(generator)}\n".encode())
    for source in sources:
        digest.update(f"{source.relative_to(protos)}\n".encode() + source.read_bytes())
    return digest.hexdigest()


def _read(file: Path) -> str:
    return file.read_text() if file.exists() else ""


def _generate(protos: Path, sources: list[Path], sources_hash: str) -> None:
    with tempfile.TemporaryDirectory(dir=protos / "gen", prefix=".new-") as folder:
        _protoc(protos, sources, Path(folder))
        shop = Path(folder, "shop")
        for package in (shop, *(path for path in shop.rglob("*") if path.is_dir())):
            (package / "__init__.py").touch()
        (shop / "py.typed").touch()
        (shop / _HASH_FILE).write_text(sources_hash)
        _swap(shop, protos / "gen" / "shop", Path(folder, "old"))


def _protoc(protos: Path, sources: list[Path], out: Path) -> None:
    # protoc writes the path that it gets into the generated code, so it gets a relative one. An absolute path may
    # also have a colon, where protoc splits.
    names = [str(source.relative_to(protos)) for source in sources]
    plugins = [
        f"--plugin={name}={Path(sys.prefix, 'bin', name)}" for name in ("protoc-gen-mypy", "protoc-gen-mypy_grpc")
    ]
    outs = [f"--{kind}_out={os.path.relpath(out, protos)}" for kind in ("python", "grpc_python", "mypy", "mypy_grpc")]
    command = [
        sys.executable,
        "-m",
        "grpc_tools.protoc",
        "-I.",
        *(f"-I{os.path.relpath(folder, protos)}" for folder in _includes()),
        *plugins,
        *outs,
        *names,
    ]
    done = subprocess.run(command, cwd=protos, capture_output=True, text=True, check=False)
    if done.returncode:
        why = done.stderr.strip() or "protoc printed nothing"
        raise StackError("the contract could not be compiled", why, "correct the .proto file named above")


def _includes() -> Iterator[Path]:
    """Yields the folders of the googleapis and of protobuf's own types."""
    yield Path(str(metadata.distribution("googleapis-common-protos").locate_file("")))
    yield Path(str(metadata.distribution("grpcio-tools").locate_file("grpc_tools/_proto")))


def _swap(new: Path, target: Path, old: Path) -> None:
    if target.exists():
        target.rename(old)
    new.rename(target)
