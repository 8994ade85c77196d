"""The reason why something that should run does not run, in words for an operator."""

from __future__ import annotations

from dataclasses import dataclass

ENVIRONMENT = 'eval "$(./justw env)"'


@dataclass(frozen=True)
class Problem:
    """A cause and its remedy; `lasting` is true if waiting alone does not end it."""

    text: str
    remedy: str
    lasting: bool = False
