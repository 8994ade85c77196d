"""Which instance gets a call: the less busy of two picked at random; one that just failed only when no other is left.

Invariant: an instance that leaves the set gets no new call, and its connection closes when its last call has ended.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Iterator, Set
from contextlib import contextmanager
from dataclasses import dataclass

import grpc

from chassis.discovery import Endpoint, Endpoints
from chassis.errors import RpcError, unavailable
from chassis.transport import Transport

_PENALTY_SECONDS = (1.0, 16.0)
_EJECTING = {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED}


@dataclass(slots=True, eq=False)
class Peer:
    """An instance as its caller knows it."""

    endpoint: Endpoint
    outstanding: int = 0
    failures: int = 0
    avoided_until: float = 0.0
    gone: bool = False


class Balancer:
    """Spreads calls over the live instances of one service; `on_news` is called when an instance appears."""

    def __init__(self, endpoints: Endpoints, transport: Transport, on_news: Callable[[], None]) -> None:
        self._endpoints = endpoints
        self._transport = transport
        self._on_news = on_news
        self._peers: dict[Endpoint, Peer] = {}
        self._closing: set[asyncio.Task[None]] = set()
        endpoints.on_change(self._follow)
        self._follow()

    @contextmanager
    def pick(self, tried: Set[Endpoint]) -> Iterator[Peer]:
        """An instance not in `tried`, busy until the block ends; raises RpcError(UNAVAILABLE) when there is none."""
        peer = self._choose([peer for peer in self._peers.values() if peer.endpoint not in tried])
        peer.outstanding += 1
        try:
            yield peer
        finally:
            peer.outstanding -= 1
            if peer.gone and not peer.outstanding:
                self._retire(peer)

    def settle(self, peer: Peer, error: RpcError | None) -> None:
        """Remember how a call ended: avoid an instance that cannot be reached or does not answer."""
        if error is None or error.code not in _EJECTING:
            peer.failures, peer.avoided_until = 0, 0.0
            return
        shortest, longest = _PENALTY_SECONDS
        peer.avoided_until = time.monotonic() + min(longest, shortest * 2**peer.failures)
        peer.failures = min(peer.failures + 1, 10)

    def spare(self, tried: Set[Endpoint]) -> bool:
        """Whether there is an instance that was not tried."""
        return any(endpoint not in tried for endpoint in self._peers)

    async def close(self) -> None:
        """Close every connection."""
        for endpoint in list(self._peers):
            del self._peers[endpoint]
            await self._transport.close(endpoint.address)

    def _choose(self, candidates: list[Peer]) -> Peer:
        if not candidates:
            raise unavailable("UNAVAILABLE", f"no healthy instance of {self._endpoints.service}", 1.0)
        now = time.monotonic()
        good = [peer for peer in candidates if peer.avoided_until <= now]
        if not good:
            return min(candidates, key=lambda peer: peer.avoided_until)
        if len(good) == 1:
            return good[0]
        one = random.randrange(len(good))  # noqa: S311
        other = (one + random.randrange(1, len(good))) % len(good)  # noqa: S311
        return min(good[one], good[other], key=lambda peer: peer.outstanding)

    def _follow(self) -> None:
        wanted = set(self._endpoints.current)
        for endpoint in self._peers.keys() - wanted:
            peer = self._peers.pop(endpoint)
            peer.gone = True
            if not peer.outstanding:
                self._retire(peer)
        new = wanted - self._peers.keys()
        for endpoint in new:
            self._peers[endpoint] = Peer(endpoint)
            self._transport.open(endpoint.address)
        if new:
            self._on_news()

    def _retire(self, peer: Peer) -> None:
        if any(other.address == peer.endpoint.address for other in self._peers):
            return
        task = asyncio.create_task(self._transport.close(peer.endpoint.address))
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)
