"""Which instance gets a call: the less busy of two picked at random among those that nothing speaks against.

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
import structlog
from opentelemetry import trace

from chassis.calls.outlier_detection import BalancingSettings, Call, Peer
from chassis.calls.transport import Method, NeverSent, Transport
from chassis.errors import RpcError, unavailable
from chassis.platform.discovery import Endpoint, Endpoints
from chassis.telemetry.metrics import meter

log = structlog.get_logger(__name__)

_FAILING = {
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.INTERNAL,
    grpc.StatusCode.UNKNOWN,
}
# So many times the usual time of a method have to pass before a call of it says that something is wrong.
_UNUSUAL = 3.0
_FORGET = 0.05
_ejections = meter().create_counter("balancer.ejections", description="instances left out, by reason")


@dataclass(slots=True, eq=False)
class Turn:
    """One try of a call at one instance."""

    peer: Peer
    call: Call
    streaming: bool = False


class Balancer:
    """Spreads calls over the live instances of one service; `on_news` is called when an instance appears."""

    def __init__(
        self,
        endpoints: Endpoints,
        transport: Transport,
        on_news: Callable[[], None],
        settings: Callable[[], BalancingSettings],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._endpoints = endpoints
        self._transport = transport
        self._on_news = on_news
        self._settings = settings
        self._clock = clock
        self._peers: dict[Endpoint, Peer] = {}
        self._usual: dict[str, float] = {}
        self._closing: set[asyncio.Task[None]] = set()
        endpoints.on_change(self._follow)
        self._follow()

    @property
    def left_out(self) -> list[str]:
        """Addresses of the instances that are avoided now."""
        now = self._clock()
        return [peer.endpoint.address for peer in self._peers.values() if not peer.open_to_calls(now)]

    @contextmanager
    def pick(self, tried: Set[Endpoint], method: Method) -> Iterator[Turn]:
        """A turn at an instance, not in `tried` if another is good; raises RpcError(UNAVAILABLE) without any."""
        now = self._clock()
        usual = self._usual.get(method.path, self._settings().silent_seconds)
        turn = Turn(self._choose(tried, now), Call(now, _UNUSUAL * usual))
        turn.peer.start(turn.call)
        try:
            yield turn
        finally:
            self._end(turn)

    def streaming(self, turn: Turn) -> None:
        """The turn goes on as a stream that has begun to answer: it does not make its instance busy."""
        if not turn.streaming:
            turn.streaming = True
            turn.peer.end(turn.call)
            turn.peer.streams += 1

    def settle(self, turn: Turn, method: Method, error: RpcError | None) -> None:
        """Remember how a try ended; an instance that cannot be reached, fails or is slow is left out for a while."""
        now, peer, began = self._clock(), turn.peer, turn.call.began
        if error is not None and error.code in _FAILING:
            refused = isinstance(error, NeverSent)
            if error.code is grpc.StatusCode.DEADLINE_EXCEEDED:
                # Of a method that was never answered this is all that is known: it takes longer.
                self._usual.setdefault(method.path, now - began)
            peer.failures = self._settings().failures if refused else peer.failures + 1
            if peer.failures >= self._settings().failures or peer.doubted:
                self._leave_out(peer, now, "refused" if refused else "failures")
            return
        peer.answered(began, now)
        if error is None:
            self._timed(peer, method.path, now - began)
            if peer.outlying(self._settings(), list(self._peers.values())):
                self._leave_out(peer, now, "slow")

    def unusual(self, method: Method) -> float:
        """Seconds after which a call of the method takes unusually long; 0 while nothing is known of it."""
        return _UNUSUAL * self._usual.get(method.path, 0.0)

    def spare(self, tried: Set[Endpoint]) -> bool:
        """Whether there is a good instance that was not tried."""
        now = self._clock()
        return any(at not in tried and peer.open_to_calls(now) for at, peer in self._peers.items())

    async def close(self) -> None:
        """Close every connection."""
        for endpoint in list(self._peers):
            del self._peers[endpoint]
            await self._transport.close(endpoint.address)

    def _choose(self, tried: Set[Endpoint], now: float) -> Peer:
        peers, settings = list(self._peers.values()), self._settings()
        for peer in peers:
            if peer.silent(now, settings.silent_seconds, peers):
                self._leave_out(peer, now, "silent")
        if not peers:
            raise unavailable("UNAVAILABLE", f"no healthy instance of {self._endpoints.service}", 1.0)
        usable = [peer for peer in peers if peer.open_to_calls(now)]
        fresh = [peer for peer in usable if peer.endpoint not in tried] or usable
        if not fresh:
            return min(peers, key=lambda peer: (peer.endpoint in tried, peer.out_until))
        return _less_busy([peer for peer in fresh if _admitted(peer.share(now, settings))] or fresh)

    def _leave_out(self, peer: Peer, now: float, reason: str) -> None:
        if peer.doubted and now < peer.out_until:
            return
        out = sum(other.doubted for other in self._peers.values() if other is not peer)
        if out + 1 > self._settings().left_out_share * len(self._peers):
            return
        peer.leave_out(now, self._settings())
        told = {"service": self._endpoints.service, "reason": reason}
        _ejections.add(1, told)
        log.warning("instance left out", of=self._endpoints.service, address=peer.endpoint.address, reason=reason)
        trace.get_current_span().add_event("balancer.ejected", {**told, "server.address": peer.endpoint.address})

    def _timed(self, peer: Peer, path: str, seconds: float) -> None:
        usual = self._usual.get(path, seconds)
        self._usual[path] = usual + _FORGET * (seconds - usual)
        peer.took(seconds, max(usual, 1e-6))

    def _end(self, turn: Turn) -> None:
        peer = turn.peer
        if turn.streaming:
            peer.streams -= 1
        else:
            peer.end(turn.call)
        if peer.gone and not peer.outstanding and not peer.streams:
            self._retire(peer)

    def _follow(self) -> None:
        wanted = set(self._endpoints.current)
        for endpoint in self._peers.keys() - wanted:
            peer = self._peers.pop(endpoint)
            peer.gone = True
            if not peer.outstanding and not peer.streams:
                self._retire(peer)
        new = wanted - self._peers.keys()
        # The first ones are no newcomers: there is nobody beside whom they could warm up.
        joined_at = self._clock() if self._peers else float("-inf")
        for endpoint in new:
            self._peers[endpoint] = Peer(endpoint, joined_at)
            self._transport.open(endpoint.address)
        if new:
            self._on_news()

    def _retire(self, peer: Peer) -> None:
        if any(other.address == peer.endpoint.address for other in self._peers):
            return
        task = asyncio.create_task(self._transport.close(peer.endpoint.address))
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)


def _admitted(share: float) -> bool:
    return share >= 1 or random.random() < share  # noqa: S311


def _less_busy(peers: list[Peer]) -> Peer:
    if len(peers) == 1:
        return peers[0]
    one = random.randrange(len(peers))  # noqa: S311
    other = (one + random.randrange(1, len(peers))) % len(peers)  # noqa: S311
    return min(peers[one], peers[other], key=lambda peer: peer.outstanding)
