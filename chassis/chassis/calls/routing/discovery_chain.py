"""Parses the discovery chain that Consul compiles from the traffic rules of a service: routes, splits and resolvers.

Invariant: a chain is followed as a whole or not at all. What it names beyond `followed_fields` is listed in
`Rules.not_followed`; a route with such a condition applies to no call.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from chassis.calls.routing.followed_fields import ROUTE, SPLIT, not_followed

_RESOLVER = {
    "Default": None,
    "ConnectTimeout": None,
    "RequestTimeout": None,
    "Target": None,
    "Failover": {"Targets": None},
}
# Consul writes it into every chain whose resolver gives none. Connections have limits of their own.
_CONNECT_SECONDS = 5.0
_UNITS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_PART = r"(\d+(?:\.\d*)?|\.\d+)(ns|us|µs|ms|s|m|h)"


class InvalidChainError(Exception):
    """The chain cannot be followed; the text says why."""


@dataclass(frozen=True, slots=True)
class Subset:
    """The instances of a service that match a filter expression of Consul; without a name and a filter, all of them."""

    service: str
    name: str = ""
    filter: str = ""

    @property
    def label(self) -> str:
        """The name in logs, metrics and spans, as Consul writes it: v2.user-service."""
        return f"{self.name}.{self.service}" if self.name else self.service


@dataclass(frozen=True, slots=True)
class Leg:
    """One way of a split: its share of the calls, 0 to 1, and the subsets, of which the first with an instance is used.

    A call may take `seconds` at most, and is attempted `attempts` times at most, None: as often as the settings say.
    """

    share: float
    subsets: Sequence[Subset]
    seconds: float = math.inf
    attempts: int | None = None


@dataclass(frozen=True, slots=True)
class Route:
    """Applies to calls of the method `path`, or of all whose path begins with it; their calls are split over `legs`."""

    path: str
    is_prefix: bool
    legs: Sequence[Leg]

    def matches(self, path: str) -> bool:
        """Returns whether the route applies to a method ("/package.Service/Method")."""
        return path.startswith(self.path) if self.is_prefix else path == self.path


@dataclass(frozen=True, slots=True)
class Rules:
    """The routes of a service in their order, the last one for all calls; and what of the chain is not followed."""

    routes: Sequence[Route]
    not_followed: Sequence[tuple[str, str]] = ()
    """Config entry and field, as ("service-router user-service", "Routes[0].Match.HTTP.Header")."""


def without_rules(service: str) -> Rules:
    """Returns the rules of a service for which nothing is set: any healthy instance."""
    return Rules((Route("/", True, (Leg(1.0, (Subset(service),)),)),))


def parse(chain: Mapping[str, Any]) -> Rules:
    """Parses a chain in the form of Consul's API; raises InvalidChainError if it cannot be followed."""
    try:
        return _Chain(chain).rules()
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise InvalidChainError(f"it has an unknown form ({type(error).__name__}: {error})") from error


def seconds(duration: str | float) -> float:
    """Returns the seconds of a duration as Go writes it, "1m30s"; a number is nanoseconds. Raises ValueError."""
    if not isinstance(duration, str):
        return duration * _UNITS["ns"]
    sign, text = (-1.0, duration[1:]) if duration.startswith("-") else (1.0, duration)
    if not re.fullmatch(f"0|({_PART})+", text):
        raise ValueError(f"not a duration such as 2s or 1m30s: {duration!r}")
    return sign * sum(float(number) * _UNITS[unit] for number, unit in re.findall(_PART, text))


class _Chain:
    """A chain while it is parsed."""

    def __init__(self, chain: Mapping[str, Any]) -> None:
        self._service: str = chain["ServiceName"]
        self._datacenter: str = chain["Datacenter"]
        self._start: str = chain["StartNode"]
        self._nodes: Mapping[str, Any] = chain["Nodes"]
        self._targets: Mapping[str, Any] = chain["Targets"]
        self._not_followed: dict[tuple[str, str], None] = {}

    def rules(self) -> Rules:
        node = self._nodes[self._start]
        if node["Type"] == "router":
            definitions = [route.get("Definition") or {} for route in node["Routes"]]
            self._report("service-router", self._service, not_followed({"Routes": definitions}, {"Routes": ROUTE}))
            found = (self._route(route, each) for route, each in zip(node["Routes"], definitions, strict=True))
            routes = [route for route in found if route]
        else:
            routes = [Route("/", True, self._split(self._start))]
        if not routes or not routes[-1].matches("/"):
            raise InvalidChainError("it has no route for all other calls")
        return Rules(tuple(routes), tuple(self._not_followed))

    def _route(self, route: Mapping[str, Any], definition: Mapping[str, Any]) -> Route | None:
        """Returns None for a route with a condition that is not followed."""
        match, destination = definition.get("Match") or {}, definition.get("Destination") or {}
        if any(not_followed(match, ROUTE["Match"])):
            return None
        path = match.get("HTTP") or {}
        legs = self._split(
            route["NextNode"], _limit(destination.get("RequestTimeout")), _attempts(destination.get("NumRetries"))
        )
        return Route(path.get("PathExact") or path.get("PathPrefix") or "/", not path.get("PathExact"), legs)

    def _split(self, name: str, limit: float | None = None, attempts: int | None = None) -> Sequence[Leg]:
        found = list(self._legs(name, 1.0, limit, attempts))
        total = sum(leg.share for leg in found)
        if not total > 0:
            raise InvalidChainError(f"the weights of {name} are 0")
        return tuple(Leg(leg.share / total, leg.subsets, leg.seconds, leg.attempts) for leg in found)

    def _legs(self, name: str, share: float, limit: float | None, attempts: int | None) -> Iterator[Leg]:
        node = self._nodes[name]
        if node["Type"] == "splitter":
            definitions = [split.get("Definition") or {} for split in node["Splits"]]
            self._report_node("service-splitter", node, not_followed({"Splits": definitions}, {"Splits": SPLIT}))
            for split in node["Splits"]:
                if weight := split.get("Weight"):
                    yield from self._legs(split["NextNode"], share * weight / 100, limit, attempts)
        elif node["Type"] == "resolver":
            resolver = node["Resolver"]
            self._report_node("service-resolver", node, not_followed(resolver, _RESOLVER))
            if seconds(resolver.get("ConnectTimeout", "5s")) != _CONNECT_SECONDS:
                self._report_node("service-resolver", node, iter(["ConnectTimeout"]))
            # The timeout of a route replaces that of a resolver.
            limit = _limit(resolver.get("RequestTimeout")) if limit is None else limit
            yield Leg(share, tuple(self._subsets(resolver)), math.inf if limit is None else limit, attempts)
        else:
            raise InvalidChainError(f"{name} is a {node['Type']}")

    def _subsets(self, resolver: Mapping[str, Any]) -> Iterator[Subset]:
        """Yields the subset of a resolver, then those to which it fails over."""
        target = self._targets[resolver["Target"]]
        if elsewhere := self._elsewhere(target):
            raise InvalidChainError(f"{resolver['Target']} is in another {elsewhere}")
        yield _subset(target)
        for name in (resolver.get("Failover") or {}).get("Targets") or ():
            target = self._targets[name]
            if elsewhere := self._elsewhere(target):
                self._report("service-resolver", target["Service"], iter([f"Failover to another {elsewhere}"]))
            else:
                yield _subset(target)

    def _elsewhere(self, target: Mapping[str, Any]) -> str | None:
        """Returns what the target is in that is not that of this process."""
        if target.get("Peer") or target.get("External"):
            return "cluster"
        return "datacenter" if target["Datacenter"] != self._datacenter else None

    def _report_node(self, kind: str, node: Mapping[str, Any], fields: Iterator[str]) -> None:
        # The name of a node is that of its service with subset and namespace, that of its target has the service.
        target = self._targets[node["Resolver"]["Target"]] if node.get("Resolver") else {}
        name = target.get("Service") or node["Name"].partition(".")[0]
        self._report(kind, name, fields)
        if node.get("LoadBalancer"):
            self._report("service-resolver", name, iter(["LoadBalancer"]))

    def _report(self, kind: str, name: str, fields: Iterator[str]) -> None:
        self._not_followed.update(dict.fromkeys((f"{kind} {name}", field) for field in fields))


def _subset(target: Mapping[str, Any]) -> Subset:
    # Calls go to passing instances only, whether the subset says OnlyPassing or not.
    filter_ = (target.get("Subset") or {}).get("Filter") or ""
    return Subset(target["Service"], target.get("ServiceSubset") or "", filter_)


def _limit(duration: str | float | None) -> float | None:
    """Returns the seconds of a timeout, infinite for a negative one, None for one that is not set."""
    if not duration:
        return None
    found = seconds(duration)
    return found if found > 0 else math.inf


def _attempts(retries: int | None) -> int | None:
    return retries + 1 if retries else None
