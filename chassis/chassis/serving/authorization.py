"""Checks the caller of a call: its certificate names it, and the intentions say what it may call."""

from __future__ import annotations

import time
from collections.abc import Mapping
from http import HTTPMethod
from typing import TYPE_CHECKING, Any

import grpc
import structlog
from opentelemetry import trace

from chassis.errors import RpcError
from chassis.mesh.identity import MeshIdentity
from chassis.mesh.intentions import Intentions
from chassis.mesh.names import caller_name
from chassis.settings import Live, MeshSettings
from chassis.telemetry.metrics import Counts

if TYPE_CHECKING:
    from chassis.process import Process

log = structlog.get_logger(__name__)

_LOG_SECONDS = 10.0
# The name that OpenTelemetry's conventions give to values outside a known set: a caller must not choose series.
_OTHER = "_OTHER"
_METHODS = frozenset(HTTPMethod)
_denied = Counts("mesh.calls.denied", "{call}", "calls that no intention allows, by caller and method")


def authorization_of(process: Process[Any]) -> Authorization | None:
    """Returns the authorization for a server of a process, which follows the intentions; None where there is no mesh.

    The process is not ready before the intentions are known.
    """
    identity = process.join_mesh()
    if identity is None:
        return None
    intentions = Intentions(process.name)
    process.supervise("intentions", lambda: intentions.follow(process.consul))
    process.add_readiness("intentions", intentions.readiness)
    return Authorization(identity, intentions, process.settings.section(lambda settings: settings.mesh))


class Authorization:
    """Decides on each call of a server. Without `enforce`, a call that no intention allows is counted but goes on."""

    def __init__(self, identity: MeshIdentity, intentions: Intentions, settings: Live[MeshSettings]) -> None:
        self._identity = identity
        self._intentions = intentions
        self._settings = settings
        self._names: dict[bytes, str] = {}
        self._logged: dict[tuple[str, str], float] = {}

    def check(self, context: Any, path: str) -> str:
        """Returns the name of the caller; raises RpcError(PERMISSION_DENIED) if it may not call the method of gRPC."""
        caller = self._name(next(iter(context.auth_context().get("peer_spiffe_id") or ()), b""))
        if caller == _OTHER or not self._intentions.allow(caller, path):
            self._deny(caller, path, {"rpc.method": path})
        return caller

    def check_request(self, peer: bytes, method: str, path: str) -> str:
        """Does the same for an HTTP request of a peer with this SPIFFE id; the path is without its query."""
        caller = self._name(peer)
        if caller == _OTHER or not self._intentions.allow(caller, path, method):
            known = method if method in _METHODS else _OTHER
            self._deny(caller, f"{known} requests", {"http.request.method": known})
        return caller

    def _name(self, found: bytes) -> str:
        name = self._names.get(found)
        if name is None:
            name = caller_name(found.decode(errors="replace"), self._identity.trust_domain) or _OTHER
            if name != _OTHER:  # their number is that of the services with a certificate
                self._names[found] = name
        return name

    def _deny(self, caller: str, what: str, labels: Mapping[str, str]) -> None:
        enforced = self._settings.value.enforce
        trace.get_current_span().set_attribute("mesh.caller", caller)
        _denied.series({"mesh.caller": caller, **labels, "mesh.enforced": str(enforced).lower()}).add(1)
        now = time.monotonic()
        if now - self._logged.get((caller, what), float("-inf")) >= _LOG_SECONDS:
            self._logged[caller, what] = now
            log.warning("no intention allows the call", caller=caller, method=what, denied=enforced)
        if enforced:
            raise RpcError(
                grpc.StatusCode.PERMISSION_DENIED,
                "CALLER_NOT_ALLOWED",
                f"no intention of Consul allows {caller} to call {what}",
            )
