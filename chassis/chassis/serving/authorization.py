"""Checks the caller of a call: its certificate names it, and the intentions say what it may call.

A call that acts for a user also needs the access token of that user, unless its method trusts the caller without one. A
stream is checked again at each change of the intentions, because it may run for hours.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from http import HTTPMethod
from typing import TYPE_CHECKING, Any

import grpc
import grpc.aio
import structlog
from opentelemetry import trace

from chassis.auth.acting_user import Rules, Verifier, require_user
from chassis.errors import RpcError
from chassis.mesh.identity import MeshIdentity
from chassis.mesh.intentions import Intentions
from chassis.mesh.names import caller_name
from chassis.serving.call_errors import answer_error
from chassis.settings import Live, MeshSettings
from chassis.telemetry.metrics import Counts, CountSeries

if TYPE_CHECKING:
    from chassis.process import Process

log = structlog.get_logger(__name__)

_LOG_SECONDS = 10.0
# The name that OpenTelemetry's conventions give to values outside a known set: a caller must not choose series.
_OTHER = "_OTHER"
_METHODS = frozenset(HTTPMethod)
_allowed = Counts("mesh.calls", "{call}", "calls that an intention allows, by caller and method")
_denied = Counts("mesh.calls.denied", "{call}", "calls that are not allowed, by caller, method and reason")

UserCheck = Callable[[Any, str, Any], Awaitable[float | None]]
"""`check(context, caller, request)` returns the Unix time at which the call has to end, None if no token limits it."""
Users = tuple[Rules, Verifier]
"""The rules of every method of a server but those of gRPC itself, and the verifier of users' tokens."""


def authorization_of(process: Process[Any], users: Users | None = None) -> Authorization | None:
    """Returns the authorization for a server of a process, which follows the intentions; None where there is no mesh.

    The process is not ready before the intentions are known.
    """
    identity = process.join_mesh()
    if identity is None:
        return None
    intentions = Intentions(process.name)
    process.supervise("intentions", lambda: intentions.follow(process.consul))
    process.add_readiness("intentions", intentions.readiness)
    settings = process.settings.section(lambda settings: settings.mesh)
    return Authorization(identity, intentions, settings, users)


@dataclass(slots=True)
class Stream:
    """A stream in progress; `denial` is the error that its caller gets once it may not call the method any more."""

    context: Any
    caller: str
    path: str
    denial: RpcError | None = None
    is_answered: bool = False

    def require_allowed(self) -> None:
        """Raises the denial, also if the code that serves the stream has lost the cancellation, as `wait_for` may."""
        if self.denial is not None:
            self.is_answered = True
            raise self.denial


class Authorization:
    """Decides on each call of a server. Without `enforce`, a call that is not allowed is counted but goes on.

    `users` are the rules of every method of the server but those of gRPC itself, and the verifier of users' tokens.
    """

    def __init__(
        self,
        identity: MeshIdentity,
        intentions: Intentions,
        settings: Live[MeshSettings],
        users: Users | None = None,
    ) -> None:
        self._identity = identity
        self._intentions = intentions
        self._settings = settings
        self._users = users
        self._names: dict[bytes, str] = {}
        self._counts: dict[tuple[str, str], CountSeries] = {}
        self._logged: dict[tuple[str, str, str], float] = {}
        self._streams: dict[asyncio.Task[Any], Stream] = {}
        self._answering: set[asyncio.Task[None]] = set()
        intentions.on_change(self._check_streams)
        settings.on_change(lambda _: self._check_streams())

    def check(self, context: Any, path: str) -> str:
        """Returns the name of the caller; raises RpcError(PERMISSION_DENIED) if it may not call the method of gRPC."""
        caller = self._name(next(iter(context.auth_context().get("peer_spiffe_id") or ()), b""))
        if self._allows(caller, path):
            self._count(caller, path, {"rpc.method": path})
        else:
            self._deny_caller(caller, path, {"rpc.method": path})
        return caller

    def check_request(self, peer: bytes, method: str, path: str) -> str:
        """Does the same for an HTTP request of a peer with this SPIFFE id; the path is without its query."""
        caller, known = self._name(peer), method if method in _METHODS else _OTHER
        if caller != _OTHER and self._intentions.allow(caller, path, method):
            self._count(caller, known, {"http.request.method": known})
        else:
            self._deny_caller(caller, f"{known} requests", {"http.request.method": known})
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
                known = error.code is not grpc.StatusCode.UNAVAILABLE
                event = "no signed-in user is behind the call" if known else "the token of a user cannot be verified"
                self._deny(event, caller, path, {"rpc.method": path}, error)
                return None
            return user.expires_at if self._settings.value.enforce else None

        return check

    def follow(self, context: Any, caller: str, path: str) -> Stream:
        """Ends the stream that this task serves once the caller may not call the method any more."""
        task, stream = asyncio.current_task(), Stream(context, caller, path)
        if task is not None:
            self._streams[task] = stream
            task.add_done_callback(self._forget)
        return stream

    def denial(self, error: BaseException) -> BaseException:
        """Returns the error for the caller if `follow` has ended the stream of this task, any other error as it is."""
        task = asyncio.current_task()
        stream = self._streams.get(task) if task is not None else None
        if task is None or stream is None or stream.denial is None or not isinstance(error, asyncio.CancelledError):
            return error
        task.uncancel()
        stream.is_answered = True
        return stream.denial

    def _allows(self, caller: str, path: str) -> bool:
        return caller != _OTHER and self._intentions.allow(caller, path)

    def _count(self, caller: str, what: str, labels: Mapping[str, str]) -> None:
        series = self._counts.get((caller, what))
        if series is None:
            series = self._counts[caller, what] = _allowed.series({"mesh.caller": caller, **labels})
        series.add(1)

    def _forget(self, task: asyncio.Task[Any]) -> None:
        stream = self._streams.pop(task)
        if stream.denial is not None and not stream.is_answered:
            # It waited for a caller that does not read, in grpc.aio, which sends no status then.
            answering = asyncio.create_task(self._answer(stream.denial, stream))
            self._answering.add(answering)
            answering.add_done_callback(self._answering.discard)

    async def _answer(self, denial: RpcError, stream: Stream) -> None:
        with suppress(grpc.aio.AbortError, asyncio.CancelledError):
            await answer_error(denial, stream.path, stream.context)

    def _check_streams(self) -> None:
        if not self._settings.value.enforce:
            return
        for task, stream in self._streams.items():
            if stream.denial is None and not self._allows(stream.caller, stream.path):
                try:
                    self._deny_caller(stream.caller, stream.path, {"rpc.method": stream.path})
                except RpcError as error:
                    stream.denial = error
                    task.cancel()

    def _deny_caller(self, caller: str, what: str, labels: Mapping[str, str]) -> None:
        message = f"no intention of Consul allows {caller} to call {what}"
        error = RpcError(grpc.StatusCode.PERMISSION_DENIED, "CALLER_NOT_ALLOWED", message)
        self._deny("no intention allows the call", caller, what, labels, error)

    def _name(self, found: bytes) -> str:
        name = self._names.get(found)
        if name is None:
            name = caller_name(found.decode(errors="replace"), self._identity.trust_domain) or _OTHER
            if name != _OTHER:  # their number is that of the services with a certificate
                self._names[found] = name
        return name

    def _deny(self, event: str, caller: str, what: str, labels: Mapping[str, str], error: RpcError) -> None:
        """Counts and logs a call that is not allowed; raises the error if the mesh enforces that."""
        enforced, reason = self._settings.value.enforce, error.reason
        span = trace.get_current_span()
        span.set_attribute("mesh.caller", caller)
        span.set_attribute("mesh.denied", reason)
        found = {"mesh.caller": caller, **labels, "error.type": reason, "mesh.enforced": str(enforced).lower()}
        _denied.series(found).add(1)
        now = time.monotonic()
        if now - self._logged.get((caller, what, reason), float("-inf")) >= _LOG_SECONDS:
            self._logged[caller, what, reason] = now
            log.warning(event, caller=caller, method=what, reason=reason, denied=enforced)
        if enforced:
            raise error
