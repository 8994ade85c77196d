"""Checks the caller of a call: its certificate names it, and the intentions say which methods it may call.

A stream is checked again at each change of the intentions, because it may run for hours.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import grpc
import grpc.aio
import structlog

from chassis.errors import RpcError
from chassis.mesh.identity import MeshIdentity
from chassis.mesh.intentions import Intentions
from chassis.mesh.names import caller_name
from chassis.serving.call_errors import answer_error
from chassis.settings import Live, MeshSettings
from chassis.telemetry.metrics import Counts, CountSeries

log = structlog.get_logger(__name__)

_LOG_SECONDS = 10.0
# The name that OpenTelemetry's conventions give to values outside a known set: a caller must not choose series.
_OTHER = "_OTHER"
_allowed = Counts("mesh.calls", "{call}", "calls that an intention allows, by caller and method")
_denied = Counts("mesh.calls.denied", "{call}", "calls that no intention allows, by caller and method")


@dataclass(slots=True)
class _Stream:
    """A stream in progress; `denial` is the error that its caller gets once it may not call the method any more."""

    context: Any
    caller: str
    path: str
    denial: RpcError | None = None
    is_answered: bool = False


class Authorization:
    """Decides on each call of a server. Without `enforce`, a call that no intention allows is counted but goes on."""

    def __init__(self, identity: MeshIdentity, intentions: Intentions, settings: Live[MeshSettings]) -> None:
        self._identity = identity
        self._intentions = intentions
        self._settings = settings
        self._names: dict[bytes, str] = {}
        self._counts: dict[tuple[str, str], CountSeries] = {}
        self._logged: dict[tuple[str, str], float] = {}
        self._streams: dict[asyncio.Task[Any], _Stream] = {}
        self._answering: set[asyncio.Task[None]] = set()
        intentions.on_change(self._check_streams)
        settings.on_change(lambda _: self._check_streams())

    def check(self, context: Any, path: str) -> str:
        """Returns the name of the caller; raises RpcError(PERMISSION_DENIED) if it may not call the method."""
        caller = self._caller(context)
        if self._allows(caller, path):
            (self._counts.get((caller, path)) or self._add_count(caller, path)).add(1)
        else:
            self._deny(caller, path)
        return caller

    def follow(self, context: Any, caller: str, path: str) -> None:
        """Ends the stream that this task serves once the caller may not call the method any more."""
        task = asyncio.current_task()
        if task is not None:
            self._streams[task] = _Stream(context, caller, path)
            task.add_done_callback(self._forget)

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

    def _add_count(self, caller: str, path: str) -> CountSeries:
        series = self._counts[caller, path] = _allowed.series({"mesh.caller": caller, "rpc.method": path})
        return series

    def _forget(self, task: asyncio.Task[Any]) -> None:
        stream = self._streams.pop(task)
        if stream.denial is not None and not stream.is_answered:
            # It waited for a caller that does not read, in grpc.aio, which sends no status then.
            answering = asyncio.create_task(self._answer(stream.denial, stream))
            self._answering.add(answering)
            answering.add_done_callback(self._answering.discard)

    async def _answer(self, denial: RpcError, stream: _Stream) -> None:
        with suppress(grpc.aio.AbortError, asyncio.CancelledError):
            await answer_error(denial, stream.path, stream.context)

    def _check_streams(self) -> None:
        for task, stream in self._streams.items():
            if stream.denial is None and not self._allows(stream.caller, stream.path):
                try:
                    self._deny(stream.caller, stream.path)
                except RpcError as error:
                    stream.denial = error
                    task.cancel()

    def _caller(self, context: Any) -> str:
        found = next(iter(context.auth_context().get("peer_spiffe_id") or ()), b"")
        name = self._names.get(found)
        if name is None:
            name = caller_name(found.decode(errors="replace"), self._identity.trust_domain) or _OTHER
            if name != _OTHER:  # their number is that of the services with a certificate
                self._names[found] = name
        return name

    def _deny(self, caller: str, path: str) -> None:
        enforced = self._settings.value.enforce
        _denied.series({"mesh.caller": caller, "rpc.method": path, "mesh.enforced": str(enforced).lower()}).add(1)
        now = time.monotonic()
        if now - self._logged.get((caller, path), float("-inf")) >= _LOG_SECONDS:
            self._logged[caller, path] = now
            log.warning("no intention allows the call", caller=caller, method=path, denied=enforced)
        if enforced:
            raise RpcError(
                grpc.StatusCode.PERMISSION_DENIED,
                "CALLER_NOT_ALLOWED",
                f"no intention of Consul allows {caller} to call {path}",
            )
