"""The base of the state machines of orders: a storage and an event loop, both new for each example."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from behaviour.order.support.service import Storage
from behaviour.order.support.storages import MemoryStorage
from hypothesis.stateful import RuleBasedStateMachine

T = TypeVar("T")


class Machine(RuleBasedStateMachine):
    """Runs on memory; a subclass may `open` and `close` another storage."""

    def __init__(self) -> None:
        super().__init__()
        self.storage = self.open()

    def open(self) -> Storage:
        self.runner = asyncio.Runner()
        return MemoryStorage()

    def close(self) -> None:
        self.runner.close()

    def teardown(self) -> None:
        self.close()

    def run(self, wanted: Coroutine[Any, Any, T]) -> T:
        return self.runner.run(wanted)
