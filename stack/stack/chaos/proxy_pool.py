"""Proxies for code that does not run on an event loop: one loop in a thread of its own carries them all."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from typing import Any, TypeVar

from stack.chaos.proxy import HEALTHY, Proxy, Toxic

T = TypeVar("T")


class Proxies:
    """Opens, poisons and closes proxies; each is known by the port it listens on."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._open: dict[int, Proxy] = {}
        self._toxic = HEALTHY
        threading.Thread(target=self._loop.run_forever, name="proxies", daemon=True).start()

    def open(self, target: tuple[str, int]) -> int:
        """The port of a new proxy in front of `target`, which behaves like all others."""
        return self._wait(self._opened(target))

    def close(self, port: int) -> None:
        self._wait(self._open.pop(port).close())

    def become(self, toxic: Toxic) -> None:
        """Every proxy behaves like that from now on, later ones too."""
        self._wait(self._become(toxic))

    async def _opened(self, target: tuple[str, int]) -> int:
        proxy = Proxy(target, self._toxic)
        port = await proxy.open()
        self._open[port] = proxy
        return port

    async def _become(self, toxic: Toxic) -> None:
        self._toxic = toxic
        for proxy in self._open.values():
            proxy.become(toxic)

    def _wait(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(10)
