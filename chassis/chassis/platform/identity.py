"""Reads the workload identities that Nomad writes and rotates: from the file at each login, never from a cache."""

from __future__ import annotations

from pathlib import Path

from chassis.errors import ConfigurationError


def read_identity(path: Path) -> str:
    """Returns the JWT in a file. Raises ConfigurationError with the file's name if it cannot be read."""
    try:
        return path.read_text().strip()
    except OSError as error:
        raise ConfigurationError(f"identity: {path}: {error.strerror}") from None
