"""The identity of a process in the mesh: its certificate (leaf) from OpenBao, and the roots that it trusts from Consul.

Invariant: the leaf is replaced when half of its time is over, or there is a new root; no leaf is used below a root that
others may not trust yet. While OpenBao is away the leaf stays in use until it ends, and while Consul is away the last
roots do.
"""

from __future__ import annotations

import asyncio
import random
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Protocol

import structlog

from chassis.backoff import backoff
from chassis.errors import RpcError, unavailable
from chassis.mesh import certificate_request
from chassis.mesh.names import server_name, spiffe_id
from chassis.platform.validity import CHECK_SECONDS, Validity
from chassis.settings import Live, MeshSettings

log = structlog.get_logger(__name__)

Supervise = Callable[[str, Callable[[], Awaitable[None]]], object]
_RETRY_SECONDS = (0.5, 10.0)
# All processes get a new root by a blocking query; the first leaf below it is used after this time at least, and after
# twice of it at most, so that not all processes make their keys at once.
_SPREAD_SECONDS = 5.0
_RENEWED_AT = (0.4, 0.6)
_CERTIFICATE = re.compile("-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----", re.DOTALL)


class CertificateAuthority(Protocol):
    """The part of the Vault client that is needed here."""

    async def sign_certificate(self, role: str, request: str, seconds: float) -> tuple[str, float]: ...


class RootSource(Protocol):
    """The part of the Consul client that is needed here."""

    def watch_roots(self) -> AsyncIterator[dict[str, Any]]: ...


@dataclass(frozen=True, slots=True)
class Trust:
    """The roots of the mesh (PEM), and the trust domain of its SPIFFE ids."""

    domain: str
    roots: bytes


@dataclass(frozen=True, slots=True)
class Leaf:
    """A certificate with its intermediate (PEM), the private key, and the time for which it is valid."""

    key: bytes = field(repr=False)
    chain: bytes
    validity: Validity


class MeshIdentity:
    """The current leaf and roots of a service; `start` keeps both up to date."""

    def __init__(self, name: str, authority: CertificateAuthority, roots: RootSource) -> None:
        self.name = name
        self._authority = authority
        self._root_source = roots
        self._trust: Trust | None = None
        self._leaf: Leaf | None = None
        self._known: frozenset[str] = frozenset()
        """The certificates (PEM) of roots, and of issuers below them, that every process knows."""
        self._first = asyncio.Event()
        self._trusted = asyncio.Event()
        self._reissue = asyncio.Event()
        self._callbacks: list[Callable[[], None]] = []

    @property
    def current(self) -> tuple[Leaf, Trust] | None:
        """The leaf and the roots for a handshake that begins now; None before the first leaf."""
        return (self._leaf, self._trust) if self._leaf and self._trust else None

    @property
    def trust_domain(self) -> str:
        """The trust domain; empty before Consul has named it."""
        return self._trust.domain if self._trust else ""

    async def ready(self) -> None:
        """Waits for the first leaf."""
        await self._first.wait()

    def on_change(self, callback: Callable[[], None]) -> None:
        """Calls `callback` after each new leaf and each change of the roots, so that new connections use them."""
        self._callbacks.append(callback)

    def start(self, supervise: Supervise, settings: Live[MeshSettings]) -> None:
        """Follows the roots and renews the leaf in the background."""
        settings.on_change(lambda _: self._reissue.set())
        supervise("mesh roots", self._follow_roots)
        supervise("mesh leaf", lambda: self._maintain(settings))

    def readiness(self) -> str | None:
        """Readiness probe: returns the reason once the leaf has ended, since no caller accepts it any more."""
        if self._leaf is None:
            return "no certificate of the mesh yet"
        return None if self._leaf.validity.left() > 0 else "the certificate of the mesh has ended"

    async def _follow_roots(self) -> None:
        async for found in self._root_source.watch_roots():
            roots = _certificates(root["RootCert"] for root in found["Roots"])
            issuers = _certificates(pem for root in found["Roots"] for pem in root.get("IntermediateCerts") or ())
            before = self._trust
            self._trust = Trust(found["TrustDomain"], "".join(f"{root}\n" for root in roots).encode())
            log.info("roots of the mesh", trust_domain=self._trust.domain, roots=len(roots))
            if before is not None and before != self._trust:
                self._notify()
            is_new = before is not None and not self._known.issuperset(roots)
            if is_new:
                await asyncio.sleep(_SPREAD_SECONDS * random.uniform(1, 2))  # noqa: S311
            self._known = frozenset((*roots, *issuers))
            self._trusted.set()
            if is_new:
                self._reissue.set()

    async def _maintain(self, settings: Live[MeshSettings]) -> None:
        await self._trusted.wait()
        while True:
            self._reissue.clear()
            self._leaf = await self._issued(settings)
            self._notify()
            self._first.set()
            await self._until_due(self._leaf)

    async def _issued(self, settings: Live[MeshSettings]) -> Leaf:
        for delay in backoff(*_RETRY_SECONDS):
            try:
                return await self._issue(settings.value.leaf_seconds)
            except (RpcError, OSError) as error:
                left = self._leaf and round(self._leaf.validity.left())
                log.warning("no new certificate of the mesh, trying again", error=str(error), seconds_left=left)
            await self._reissue_within(delay)
            self._reissue.clear()
        raise AssertionError("unreachable: the backoff has no end")

    async def _issue(self, seconds: float) -> Leaf:
        key, request = await certificate_request.make(server_name(self.name), spiffe_id(self.name, self.trust_domain))
        validity = Validity.from_now(0)
        chain, valid_seconds = await self._authority.sign_certificate(self.name, request.decode(), seconds)
        if self._known.isdisjoint(_certificates([chain])):
            raise unavailable("ROOT_NOT_SPREAD", "Consul has not announced the root above it, or just now", 1.0)
        log.info("certificate of the mesh issued", seconds=round(valid_seconds))
        return Leaf(key, chain.encode(), Validity(valid_seconds, validity.monotonic, validity.wall))

    async def _until_due(self, leaf: Leaf) -> None:
        """Waits until about half of the leaf's time is over, or another root signs."""
        due = leaf.validity.seconds * random.uniform(*_RENEWED_AT)  # noqa: S311
        await asyncio.sleep(_RETRY_SECONDS[0])  # also if it has ended already, by a clock that is ahead
        while leaf.validity.left() > due and not self._reissue.is_set():
            await self._reissue_within(min(CHECK_SECONDS, max(0.1, leaf.validity.left() - due)))

    async def _reissue_within(self, seconds: float) -> None:
        """Waits until another leaf is needed, for some seconds at most."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._reissue.wait()

    def _notify(self) -> None:
        if self._leaf is None:
            return
        for callback in self._callbacks:
            callback()


def _certificates(texts: Iterable[str]) -> list[str]:
    """Returns each certificate (PEM) in some texts."""
    return _CERTIFICATE.findall("".join(texts))
