"""Intentions: the rules of Consul about who may call what of a service: methods of gRPC, or requests of HTTP by path.

Consul's own `authorize` denies every intention that has permissions, because it does not see requests. So the rules are
evaluated here, as Consul documents them: the intention of the highest precedence that names the caller decides, by its
action or by its first permission that matches. Without one, nothing is allowed.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import structlog

log = structlog.get_logger(__name__)

ANYBODY = "*"
_GRPC = "POST"  # the HTTP method of every gRPC call
_KEPT = 1000  # decisions by permissions; a caller of an HTTP service may invent paths
# A condition outside of these cannot be checked here: an "allow" with it allows nothing, a "deny" denies all the same.
_PATHS = ("PathExact", "PathPrefix", "PathRegex")
_KNOWN = {*_PATHS, "Methods"}
_ANYTHING = re.compile(".*", re.DOTALL)


class IntentionSource(Protocol):
    """The part of the Consul client that is needed here."""

    def watch_intentions(self, service: str) -> AsyncIterator[list[dict[str, Any]]]: ...


@dataclass(frozen=True, slots=True)
class Permission:
    """Allows or denies what matches; `is_exact` is False if it has conditions that cannot be checked here.

    Without `methods` it holds for every HTTP method.
    """

    allows: bool
    methods: frozenset[str]
    path: re.Pattern[str]
    is_exact: bool

    def decides(self, method: str, path: str) -> bool:
        """Returns whether the permission applies to a request."""
        if self.methods and method not in self.methods:
            return False
        return bool(self.path.fullmatch(path)) and (self.is_exact or not self.allows)


@dataclass(frozen=True, slots=True)
class Intention:
    """The rules for one caller, or for anybody: an action for every call, or permissions in their order."""

    caller: str
    allows: bool
    permissions: Sequence[Permission]

    def allow(self, method: str, path: str) -> bool:
        """Returns whether its permissions allow a request."""
        return next((each.allows for each in self.permissions if each.decides(method, path)), False)


class Intentions:
    """The rules for the callers of one service, kept up to date; before Consul has answered, nobody may call."""

    def __init__(self, service: str) -> None:
        self.service = service
        self._intentions: Sequence[Intention] = ()
        self._decided: dict[tuple[str, str, str], bool] = {}
        self._callbacks: list[Callable[[], None]] = []
        self.loaded = False

    def allow(self, caller: str, path: str, method: str = _GRPC) -> bool:
        """Returns whether a service may call a method of gRPC ("/package.Service/Method"), or send a request of HTTP.

        The path is without its query.
        """
        decided = self._decided.get((caller, method, path))
        if decided is None:
            deciding = (each for each in self._intentions if each.caller in {caller, ANYBODY})
            found = next(deciding, None)
            if found is None or not found.permissions:
                return found is not None and found.allows
            if len(self._decided) >= _KEPT:
                self._decided.clear()
            decided = self._decided[caller, method, path] = found.allow(method, path)
        return decided

    def replace(self, found: Sequence[Mapping[str, Any]]) -> None:
        """Applies the intentions of a destination in the form of Consul's API, highest precedence first."""
        ordered = sorted(found, key=lambda each: -int(each.get("Precedence", 0)))
        self._intentions = [_intention(each) for each in ordered]
        self._decided = {}
        self.loaded = True
        for callback in self._callbacks:
            callback()

    def on_change(self, callback: Callable[[], None]) -> None:
        """Calls `callback` after each change."""
        self._callbacks.append(callback)

    async def follow(self, source: IntentionSource) -> None:
        """Applies each change in Consul, without end; the last rules stay while Consul is away."""
        async for found in source.watch_intentions(self.service):
            self.replace(found)
            log.info("intentions changed", service=self.service, callers=[each.caller for each in self._intentions])

    def readiness(self) -> str | None:
        """Readiness probe: returns the reason while the rules are not known."""
        return None if self.loaded else "no intentions from Consul yet"


def _intention(found: Mapping[str, Any]) -> Intention:
    permissions = [_permission(each) for each in found.get("Permissions") or ()]
    # Another kind of source, a peer for example, is no service of this mesh.
    is_service = found.get("SourceType", "consul") == "consul" and not found.get("SourcePeer")
    caller = found["SourceName"] if is_service else ""
    return Intention(caller, found.get("Action") == "allow", permissions)


def _permission(found: Mapping[str, Any]) -> Permission:
    http: Mapping[str, Any] = {key: value for key, value in (found.get("HTTP") or {}).items() if value}
    is_exact = set(http) <= _KNOWN and not found.get("JWT")
    allows, methods = found.get("Action") == "allow", frozenset(http.get("Methods", ()))
    try:
        path = re.compile(next((_pattern(kind, http[kind]) for kind in _PATHS if kind in http), ".*"), re.DOTALL)
    except re.error as error:
        log.warning("a regular expression of an intention is invalid", error=str(error))
        return Permission(allows, methods, _ANYTHING, False)
    return Permission(allows, methods, path, is_exact)


def _pattern(kind: str, value: str) -> str:
    match kind:
        case "PathExact":
            return re.escape(value)
        case "PathPrefix":
            return re.escape(value) + ".*"
        case _:
            return value
