"""Runs the state machines of orders and their credit on Postgres: fewer examples, real transactions."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import AsyncExitStack

import pytest
from behaviour.order.aggregate import Orders
from behaviour.order.saga import Saga
from behaviour.order.support.service import Storage
from behaviour.order.support.state_machine import Machine
from behaviour.order.support.storages import PostgresStorage, on_postgres
from behaviour.state_machines import drive
from support.postgres.private_postgres import Postgres


class Opened:
    """A storage on one event loop for all examples; each starts with empty tables."""

    def __init__(self, runner: asyncio.Runner, storage: PostgresStorage) -> None:
        self.runner = runner
        self.storage = storage

    def empty(self) -> Storage:
        self.runner.run(self.storage.empty())
        return self.storage


@pytest.fixture
def opened(postgres: Postgres, tables: str) -> Iterator[Opened]:
    with asyncio.Runner() as runner:
        stack = AsyncExitStack()
        storage = runner.run(stack.enter_async_context(on_postgres(postgres, tables)))
        try:
            yield Opened(runner, storage)
        finally:
            runner.run(stack.aclose())


@pytest.mark.parametrize("machine", [Orders, Saga])
def test_orders_and_their_credit_equal_their_model(opened: Opened, machine: type[Machine]) -> None:
    class OnPostgres(machine):  # type: ignore[misc, valid-type]
        def open(self) -> Storage:
            self.runner = opened.runner
            return opened.empty()

        def close(self) -> None:
            """Keeps it open for the next example."""

    drive(OnPostgres, examples=15, steps=15)
