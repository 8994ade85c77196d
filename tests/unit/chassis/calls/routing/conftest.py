"""A channel that follows traffic rules."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from .routed_calls import RoutedCalls, routed_calls


@pytest.fixture
async def calls() -> AsyncIterator[RoutedCalls]:
    async with routed_calls() as made:
        yield made
