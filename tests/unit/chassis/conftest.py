"""Fixtures that more than one file of these tests uses."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from .backends import Backends


@pytest.fixture
async def backends() -> AsyncIterator[Backends]:
    made = Backends()
    yield made
    await made.target.close()
    for server in made.servers:
        await server.stop()
