"""Follows the discovery chain of a called service in Consul, and chooses the target of each call by it.

Invariant: a new chain applies to the next call, once Consul has listed the instances of all its targets. Until then,
and while Consul is away or the chain cannot be followed, the last one applies. A call stays at its target; a target
that is not used any more ends after its last call.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextvars import Context
from typing import Any, Protocol

import structlog

from chassis.calls.routing import discovery_chain
from chassis.calls.routing.discovery_chain import InvalidChainError, Rules, Subset, without_rules
from chassis.calls.routing.target import Target
from chassis.telemetry.metrics import Counts

log = structlog.get_logger(__name__)

_LOAD_SECONDS = 1.0
_IDLE_CHECK_SECONDS = 1.0
_kept = Counts(
    "traffic_rules.kept", "{event}", "times that the last traffic rules stayed in use, by service and reason"
)


class ChainSource(Protocol):
    """The part of the Consul client that is needed here."""

    def watch_discovery_chain(
        self, service: str, on_outage: Callable[[], None] | None = None
    ) -> AsyncIterator[dict[str, Any]]: ...


class Leg:
    """The targets of a part of the calls, and their limits."""

    __slots__ = ("_failover", "_target", "attempts", "seconds")

    def __init__(self, targets: Sequence[Target], seconds: float, attempts: int | None) -> None:
        self._target, *self._failover = targets
        self.seconds = seconds
        self.attempts = attempts

    @property
    def target(self) -> Target:
        """The first target that has an instance, the first one of all if none has."""
        if not self._failover or self._target.endpoints.current:
            return self._target
        return next((each for each in self._failover if each.endpoints.current), self._target)


class Split:
    """Divides calls over legs by their shares."""

    __slots__ = ("_shares", "legs")

    def __init__(self, legs: Sequence[Leg], shares: Sequence[float]) -> None:
        self.legs = legs
        self._shares = shares

    def choose(self) -> Leg:
        """Returns the leg for one call, at random."""
        legs = self.legs
        if len(legs) == 1:
            return legs[0]
        left = random.random()  # noqa: S311
        for leg, share in zip(legs, self._shares, strict=True):
            left -= share
            if left < 0:
                return leg
        return legs[-1]  # the shares add up to 1, but for rounding


class Routes:
    """The routes of a service with their targets."""

    def __init__(self, rules: Rules, targets: Mapping[Subset, Target]) -> None:
        self._routes = [(route, _split(route.legs, targets)) for route in rules.routes]
        self._by_path: dict[str, Split] = {}
        self.targets = targets

    def choose(self, path: str) -> Leg:
        """Returns the leg for one call of a method."""
        split = self._by_path.get(path)
        if split is None:
            # The methods of a stub are few, so what was found is kept.
            split = self._by_path[path] = next(split for route, split in self._routes if route.matches(path))
        return split.choose()

    def without_instance(self) -> list[Target]:
        """Returns the targets of the legs that have no instance, also not to fail over to."""
        targets = [leg.target for _, split in self._routes for leg in split.legs]
        return [target for target in targets if not target.endpoints.current]


class Router:
    """The current routes of a service; `follow` keeps them up to date. `make_target` starts to watch a subset."""

    def __init__(self, service: str, make_target: Callable[[Subset], Target]) -> None:
        self.service = service
        self.current: Routes | None = None
        self._make_target = make_target
        self._loaded = asyncio.Event()
        self._targets: dict[Subset, Target] = {}
        self._rules: Rules | None = None
        self._switch: asyncio.Task[None] | None = None
        self._retiring: dict[asyncio.Task[None], Target] = {}

    async def ready(self, timeout: float) -> None:  # noqa: ASYNC109
        """Waits at most `timeout` seconds for the first routes. Raises TimeoutError."""
        await asyncio.wait_for(self._loaded.wait(), timeout)

    async def follow(self, consul: ChainSource) -> None:
        """Applies each change of the chain in Consul, without end."""
        async for chain in consul.watch_discovery_chain(self.service, lambda: self._keep("unreachable")):
            try:
                rules = discovery_chain.parse(chain)
            except InvalidChainError as error:
                self._keep("invalid")
                log.warning("traffic rules cannot be followed, the last ones stay", target=self.service, why=str(error))
                if self._rules is not None:
                    continue
                rules = without_rules(self.service)
            if rules == self._rules:  # Consul adds what does not concern calls
                continue
            for entry, field in rules.not_followed:
                log.warning("a field of a traffic rule is not followed", entry=entry, field=field)
            self.apply(rules)

    def apply(self, rules: Rules) -> None:
        """Starts to switch to other rules, instead of those to which a switch has not ended yet."""
        if self._switch is not None:
            self._switch.cancel()
        self._rules = rules
        self._switch = asyncio.create_task(self._switch_to(rules), context=Context())

    async def close(self) -> None:
        """Ends all targets, with the calls that are under way."""
        tasks = [*self._retiring, *([self._switch] if self._switch else [])]
        targets = [*self._targets.values(), *self._retiring.values()]
        for task in tasks:
            task.cancel()
        for target in targets:
            await target.close()

    async def _switch_to(self, rules: Rules) -> None:
        wanted = {subset for route in rules.routes for leg in route.legs for subset in leg.subsets}
        for subset in wanted - self._targets.keys():
            self._targets[subset] = self._make_target(subset)
        await self._load([self._targets[subset] for subset in wanted])
        self.current = Routes(rules, {subset: self._targets[subset] for subset in wanted})
        self._loaded.set()
        log.info("traffic rules applied", target=self.service, subsets=sorted(subset.label for subset in wanted))
        for subset in self._targets.keys() - wanted:
            self._retire(self._targets.pop(subset))

    async def _load(self, targets: Sequence[Target]) -> None:
        """Waits until the instances of all targets are known, and reports it if that takes long."""
        try:
            async with asyncio.timeout(_LOAD_SECONDS):
                for target in targets:
                    await target.endpoints.ready(None)
        except TimeoutError:
            missing = [target.name for target in targets if not target.endpoints.loaded]
            self._keep("no instances read")
            log.warning("traffic rules wait for the instances of a target", target=self.service, missing=missing)
            for target in targets:
                await target.endpoints.ready(None)

    def _retire(self, target: Target) -> None:
        task = asyncio.create_task(_end_when_idle(target), context=Context())
        self._retiring[task] = target
        task.add_done_callback(self._retiring.pop)

    def _keep(self, reason: str) -> None:
        _kept.series({"rpc.service": self.service, "reason": reason}).add(1)


def _split(legs: Sequence[discovery_chain.Leg], targets: Mapping[Subset, Target]) -> Split:
    made = [Leg([targets[subset] for subset in leg.subsets], leg.seconds, leg.attempts) for leg in legs]
    return Split(made, [leg.share for leg in legs])


async def _end_when_idle(target: Target) -> None:
    while not target.bulkhead.idle:  # noqa: ASYNC110 - an event would cost something at each call
        await asyncio.sleep(_IDLE_CHECK_SECONDS)
    target.stop()
