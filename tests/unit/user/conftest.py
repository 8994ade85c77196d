"""The User Service's use cases on memory."""

from __future__ import annotations

import pytest
from behaviour.user.service import FakeSigner, Service, SettingsFactory, shipped

from chassis.settings import Live

__all__ = ["FakeSigner", "Service", "SettingsFactory"]


@pytest.fixture
def make_settings() -> SettingsFactory:
    return shipped


@pytest.fixture
def service() -> Service:
    return Service(Live(shipped()))
