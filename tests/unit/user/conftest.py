"""The User Service's use cases on memory."""

from __future__ import annotations

import pytest
from behaviour.user.service import FakeSigner, Knobs, Service, shipped

__all__ = ["FakeSigner", "Knobs", "Service"]


@pytest.fixture
def knobs() -> Knobs:
    return shipped


@pytest.fixture
def service() -> Service:
    return Service(shipped())
