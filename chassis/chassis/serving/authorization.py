"""Checks the caller of a call: its certificate names it, and the intentions say which methods it may call.

A call that acts for a user also needs the access token of that user, unless its method trusts the caller without one.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
import structlog
from opentelemetry import trace

from chassis.auth.acting_user import Rules, Verifier, require_user
from chassis.errors import RpcError
from chassis.mesh.identity import MeshIdentity
from chassis.mesh.intentions import Intentions
from chassis.mesh.names import caller_name
from chassis.settings import Live, MeshSettings
from chassis.telemetry.metrics import Counts

log = structlog.get_logger(__name__)

_LOG_SECONDS = 10.0
# The name that OpenTelemetry's conventions give to values outside a known set: a caller must not choose series.
_OTHER = "_OTHER"
_denied = Counts("mesh.calls.denied", "{call}", "calls that are not allowed, by caller, method and reason")

UserCheck = Callable[[Any, str, Any], Awaitable[float | None]]
"""`check(context, caller, request)` returns the Unix time at which the call has to end, None if no token limits it."""


class Authorization:
    """Decides on each call of a server. Without `enforce`, a call that is not allowed is counted but goes on.

    `users` are the rules of every method of the server but those of gRPC itself, and the verifier of users' tokens.
    """

    def __init__(
        self,
        identity: MeshIdentity,
        intentions: Intentions,
        settings: Live[MeshSettings],
        users: tuple[Rules, Verifier] | None = None,
    ) -> None:
        self._identity = identity
        self._intentions = intentions
        self._settings = settings
        self._users = users
        self._names: dict[bytes, str] = {}
        self._logged: dict[tuple[str, str, str], float] = {}

    def check(self, context: Any, path: str) -> str:
        """Returns the name of the caller; raises RpcError(PERMISSION_DENIED) if it may not call the method."""
        caller = self._caller(context)
        if caller == _OTHER or not self._intentions.allow(caller, path):
            message = f"no intention of Consul allows {caller} to call {path}"
            error = RpcError(grpc.StatusCode.PERMISSION_DENIED, "CALLER_NOT_ALLOWED", message)
            self._deny("no intention allows the call", caller, path, error)
        return caller

    def user_check(self, path: str) -> UserCheck | None:
        """Returns the check of the user for whom a method acts; None if it acts for nobody.

        Raises KeyError if the method has no rule. The check raises the errors of `require_user`.
        """
        if self._users is None:
            raise KeyError(path)
        rules, verifier = self._users
        rule = rules[path]
        if rule is None:
            return None

        async def check(context: Any, caller: str, request: Any) -> float | None:
            if caller in rule.without_token:
                return None
            try:
                user = await require_user(verifier, context.invocation_metadata(), getattr(request, rule.field))
            except RpcError as error:
                self._deny("no signed-in user is behind the call", caller, path, error)
                return None
            return user.expires_at if self._settings.value.enforce else None

        return check

    def _caller(self, context: Any) -> str:
        found = next(iter(context.auth_context().get("peer_spiffe_id") or ()), b"")
        name = self._names.get(found)
        if name is None:
            name = caller_name(found.decode(errors="replace"), self._identity.trust_domain) or _OTHER
            if name != _OTHER:  # their number is that of the services with a certificate
                self._names[found] = name
        return name

    def _deny(self, event: str, caller: str, path: str, error: RpcError) -> None:
        """Counts and logs a call that is not allowed; raises the error if the mesh enforces that."""
        enforced, reason = self._settings.value.enforce, error.reason
        labels = {"mesh.caller": caller, "rpc.method": path, "error.type": reason}
        _denied.series({**labels, "mesh.enforced": str(enforced).lower()}).add(1)
        trace.get_current_span().set_attribute("mesh.denied", reason)
        now = time.monotonic()
        if now - self._logged.get((caller, path, reason), float("-inf")) >= _LOG_SECONDS:
            self._logged[caller, path, reason] = now
            log.warning(event, caller=caller, method=path, reason=reason, denied=enforced)
        if enforced:
            raise error
