"""Rewrites a zip archive so that equal content gives equal bytes, on every machine and at any time."""

from __future__ import annotations

import stat
import zipfile
from pathlib import Path

_SHEBANG = b"#!/usr/bin/env python3\n"
# Compared with the default of 6: half the time for 6 % more bytes. A developer waits for it after each change.
_COMPRESSION = 3
_EPOCH = (1980, 1, 1, 0, 0, 0)


def repack(archive: Path, target: Path) -> None:
    """Writes a shebang and the members of `archive` to `target`: sorted, with a fixed time and one of two modes."""
    with zipfile.ZipFile(archive) as source, target.open("wb") as file:
        file.write(_SHEBANG)
        with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as packed:
            for member in sorted(source.infolist(), key=lambda member: member.filename):
                packed.writestr(_plain(member), source.read(member), compresslevel=_COMPRESSION)
    target.chmod(0o755)


def _plain(member: zipfile.ZipInfo) -> zipfile.ZipInfo:
    plain = zipfile.ZipInfo(member.filename, _EPOCH)
    executable = member.external_attr >> 16 & stat.S_IXUSR
    plain.external_attr = (stat.S_IFREG | (0o755 if executable else 0o644)) << 16
    plain.create_system = 3
    plain.compress_type = zipfile.ZIP_DEFLATED
    return plain
