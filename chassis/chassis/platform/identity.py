"""The workload identities Nomad writes and rotates: read again for each login, never kept."""

from __future__ import annotations

from pathlib import Path

from chassis.errors import ConfigurationError


def read_identity(path: Path) -> str:
    """The JWT in a file; raises ConfigurationError naming the file when it cannot be read."""
    try:
        return path.read_text().strip()
    except OSError as error:
        raise ConfigurationError(f"identity: {path}: {error.strerror}") from None
