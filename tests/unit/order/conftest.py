"""Fixtures: the Order Service on memory, with a fake of the User Service."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from behaviour.order.support import service as behaviour
from behaviour.order.support.service import ADA, EVE, TEA, SettingsFactory, shipped
from behaviour.order.support.storages import MemoryStorage

from chassis.testing import process
from order_service.order_watches import OrderWatches

__all__ = ["ADA", "EVE", "TEA", "Service", "SettingsFactory"]


class Service(behaviour.Service):
    """The service in a process without servers, with its watches."""

    def __init__(self) -> None:
        super().__init__(shipped(), MemoryStorage())
        self.process = process("order-service", self.settings.value)
        self.process.settings = self.settings
        self.watches = OrderWatches(self.process, self.store, self.queries, backlog=1)


@pytest.fixture
def make_settings() -> SettingsFactory:
    return shipped


@pytest.fixture
async def service() -> AsyncIterator[Service]:
    made = Service()
    yield made
    await made.process.close()
