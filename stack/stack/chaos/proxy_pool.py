"""Runs proxies for synchronous code: one background thread runs their event loop."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from typing import Any, TypeVar

from stack.chaos.proxy import HEALTHY, Proxy, Toxic

T = TypeVar("T")


class ProxyPool:
    """Opens and closes proxies, and applies a toxic to all of them; the listening port identifies a proxy."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._open: dict[int, Proxy] = {}
        self._toxic = HEALTHY
        threading.Thread(target=self._loop.run_forever, name="proxies", daemon=True).start()

    def open(self, target: tuple[str, int]) -> int:
        """Opens a proxy in front of `target` with the current toxic; returns its port."""
        return self._wait(self._opened(target))

    def close(self, port: int) -> None:
        self._wait(self._open.pop(port).close())

    def apply(self, toxic: Toxic) -> None:
        """Applies a toxic to every open proxy, and to those that are opened later."""
        self._wait(self._apply(toxic))

    async def _opened(self, target: tuple[str, int]) -> int:
        proxy = Proxy(target, self._toxic)
        port = await proxy.open()
        self._open[port] = proxy
        return port

    async def _apply(self, toxic: Toxic) -> None:
        self._toxic = toxic
        for proxy in self._open.values():
            proxy.apply(toxic)

    def _wait(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(10)
