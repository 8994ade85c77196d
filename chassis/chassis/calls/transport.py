"""Transport of calls to one instance: a small interface, which a faster client can implement, and grpc.aio behind it.

Invariant: every failure is an RpcError; it is NotProcessed only if no handler can have begun to work on the call.
CancelledError is raised only in a task that was cancelled itself.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Generator, Sequence
from contextlib import suppress
from contextvars import Context
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol
from weakref import WeakSet

import grpc
import grpc.aio
from google.protobuf import descriptor_pool
from google.protobuf.descriptor_pb2 import MethodOptions

from chassis.errors import RpcError, from_grpc, is_cancelled
from chassis.telemetry.metrics import DurationSeries

Metadata = Sequence[tuple[str, str]]

# Status codes that show a fault of the called instance, as opposed to a rejected request.
FAULT_CODES = frozenset(
    {
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.INTERNAL,
        grpc.StatusCode.UNKNOWN,
    }
)
_OPTIONS = (
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 3_000),
)
_OVERLOADED = "OVERLOADED"
_REPLACE_SECONDS = 10.0
# Calls that are still in progress after this time, on a channel that was replaced, end with it.
_LONGEST_CALL_SECONDS = 3600.0
_UNAVAILABLE = (grpc.StatusCode.UNAVAILABLE, "UNAVAILABLE")
# grpc has no status for a connection that was never established, only these beginnings. fragile: grpc-error-text
_NOT_CONNECTED = (
    "failed to connect to all addresses",
    "no connection established",
    "errors resolving",
    "DNS resolution",
)


class NotProcessed(RpcError):  # noqa: N818 - says how far the call got
    """The call did not reach a handler, so it may be repeated even if its method is not idempotent."""

    @property
    def is_shed_load(self) -> bool:
        """True if the instance works and rejected the call because it has too many."""
        return self.code is grpc.StatusCode.RESOURCE_EXHAUSTED


class OutOfTime(RpcError):  # noqa: N818 - says whose time it was
    """The caller had too little time left for the call, which says nothing about the called service."""

    def __init__(self) -> None:
        super().__init__(
            grpc.StatusCode.DEADLINE_EXCEEDED, "DEADLINE_EXCEEDED", "the time left was too short for the call"
        )


@dataclass(frozen=True)
class Method:
    """One rpc of a generated stub; `path` is /package.Service/Name."""

    path: str
    serialize: Callable[[Any], bytes]
    deserialize: Callable[[bytes], Any]
    idempotent: bool
    durations: dict[str, DurationSeries] = field(default_factory=dict, compare=False, repr=False)
    """The metric of its calls by status code, and by subset if any; each series is made at the first such call."""

    @cached_property
    def name(self) -> str:
        """The path without its leading slash, as spans are named."""
        return self.path.strip("/")

    @cached_property
    def attributes(self) -> dict[str, str]:
        """Telemetry attributes of every call of this method."""
        service, _, name = self.name.partition("/")
        return {"rpc.system": "grpc", "rpc.service": service, "rpc.method": name}


class UnaryCall(Protocol):
    """A call under way. Awaiting it returns the response."""

    def __await__(self) -> Generator[Any, None, Any]: ...

    def done(self) -> bool:
        """True once its response or its error has arrived."""

    def cancel(self) -> None:
        """Ends the call with RpcError(UNAVAILABLE), unless it has ended."""


class Connection(Protocol):
    """Calls one instance; every failure is an RpcError."""

    def unary(self, method: Method, request: Any, timeout: float, metadata: Metadata) -> UnaryCall:
        """Sends one request, whose response is due within `timeout` seconds."""

    def stream(
        self, method: Method, request: Any, timeout: float | None, metadata: Metadata
    ) -> AsyncGenerator[Any, None]:
        """Sends one request and yields its responses; `timeout` bounds the whole stream."""

    async def close(self) -> None:
        """Closes the connection; a call that is still under way fails with UNAVAILABLE."""


class Transport(Protocol):
    """Makes connections to instances."""

    def connect(self, address: str) -> Connection:
        """Starts to connect to `address` (host:port). Each connection is closed on its own, also at one address."""


def is_idempotent(path: str) -> bool:
    """True if the contract (`option idempotency_level`) permits to repeat a call of the method."""
    try:
        method = descriptor_pool.Default().FindMethodByName(path.strip("/").replace("/", "."))
    except KeyError:
        return False
    return bool(method.GetOptions().idempotency_level != MethodOptions.IDEMPOTENCY_UNKNOWN)


MakeChannel = Callable[[str, Sequence[tuple[str, int | str]]], grpc.aio.Channel | None]
"""Makes a channel to an address with options; None while there are no credentials for it."""


class GrpcTransport:
    """Makes connections of grpc.aio, whose channels `make_channel` makes."""

    def __init__(self, make_channel: MakeChannel = grpc.aio.insecure_channel) -> None:
        self._make_channel = make_channel
        self._connections: WeakSet[GrpcConnection] = WeakSet()

    def connect(self, address: str) -> Connection:
        """See Transport."""
        connection = GrpcConnection(lambda: self._make_channel(address, _OPTIONS))
        self._connections.add(connection)
        return connection

    def renew(self) -> None:
        """Replaces each channel by one with the credentials of the moment; calls in progress end on the old one."""
        for connection in tuple(self._connections):
            connection.renew()


class GrpcConnection:
    """One grpc.aio channel at a time. Channels to the same address share their socket inside of grpc."""

    def __init__(self, make_channel: Callable[[], grpc.aio.Channel | None]) -> None:
        self._make_channel = make_channel
        self._channel = make_channel()
        if self._channel is not None:
            self._channel.get_state(try_to_connect=True)
        self._calls: dict[str, Any] = {}
        self._renewals: set[asyncio.Task[None]] = set()
        self._renewal = 0
        self._closed = False

    def renew(self) -> None:
        """Starts to replace the channel; calls use the new one from the moment at which it is connected."""
        if not self._closed:
            task = asyncio.create_task(self._replace(), context=Context())
            self._renewals.add(task)
            task.add_done_callback(self._renewals.discard)

    async def _replace(self) -> None:
        self._renewal += 1
        renewal, channel = self._renewal, self._make_channel()
        if channel is None:
            return
        if self._channel is None:
            self._channel = channel
            return
        try:
            with suppress(TimeoutError):  # if the instance cannot be reached, the old channel would not reach it either
                async with asyncio.timeout(_REPLACE_SECONDS):
                    await channel.channel_ready()
            if renewal == self._renewal:  # otherwise a later one has newer credentials
                channel, self._channel, self._calls = self._channel, channel, {}
            await channel.close(_LONGEST_CALL_SECONDS)
        except asyncio.CancelledError:
            await channel.close(None)
            raise

    def unary(self, method: Method, request: Any, timeout: float, metadata: Metadata) -> UnaryCall:
        """See Connection."""
        call = self._calls.get(method.path) or self._add(method, "unary_unary")
        return GrpcCall(call(request, timeout=timeout, metadata=grpc.aio.Metadata(*metadata)))

    async def stream(
        self,
        method: Method,
        request: Any,
        timeout: float | None,  # noqa: ASYNC109
        metadata: Metadata,
    ) -> AsyncGenerator[Any, None]:
        """See Connection."""
        call = self._calls.get(method.path) or self._add(method, "unary_stream")
        responses = call(request, timeout=timeout, metadata=metadata)
        try:
            async for response in responses:
                yield response
        except grpc.aio.AioRpcError as error:
            raise _translated(error) from error
        except asyncio.CancelledError:
            _raise_if_closed()
            raise
        finally:
            responses.cancel()

    async def close(self) -> None:
        """See Connection."""
        self._closed = True
        for renewal in self._renewals:
            renewal.cancel()
        if self._channel is not None:
            await self._channel.close(None)

    def _add(self, method: Method, kind: str) -> Any:
        if self._channel is None:
            raise NotProcessed(*_UNAVAILABLE, "no certificate of the mesh yet")
        make = getattr(self._channel, kind)
        call = self._calls[method.path] = make(method.path, method.serialize, method.deserialize)
        return call


class GrpcCall:
    """One unary call of grpc.aio."""

    __slots__ = ("_call",)

    def __init__(self, call: grpc.aio.UnaryUnaryCall[Any, Any]) -> None:
        self._call = call

    def done(self) -> bool:
        """See UnaryCall."""
        return self._call.done()

    def cancel(self) -> None:
        """See UnaryCall."""
        self._call.cancel()

    def __await__(self) -> Generator[Any, None, Any]:
        try:
            return (yield from self._call.__await__())
        except grpc.aio.AioRpcError as error:
            raise _translated(error) from error
        except asyncio.CancelledError:
            _raise_if_closed()
            raise


def _raise_if_closed() -> None:
    """Raises RpcError(UNAVAILABLE) for a CancelledError that does not come from this task's own cancellation.

    grpc.aio ends the calls of a channel that is closed as if their caller had cancelled them.
    """
    if not is_cancelled():
        raise _connection_lost("the connection was closed") from None


def _translated(error: grpc.aio.AioRpcError) -> RpcError:
    found, code, details = from_grpc(error), error.code(), error.details() or ""
    if found.reason == _OVERLOADED and code is grpc.StatusCode.RESOURCE_EXHAUSTED:
        return NotProcessed(code, found.reason, found.message, None, found.retry_after, pushback=found.pushback)
    if found.reason != code.name:
        return found
    # A handler may fail with the same code and a similar text, but its answer has metadata or a text of its own.
    has_metadata = bool(error.initial_metadata() or error.trailing_metadata())
    if code is grpc.StatusCode.CANCELLED:
        not_accepted = not has_metadata and details == "CANCELLED"  # fragile: grpc-cancelled
        return NotProcessed(*_UNAVAILABLE, details) if not_accepted else _connection_lost(details)
    if code is grpc.StatusCode.UNAVAILABLE and not has_metadata and details.startswith(_NOT_CONNECTED):
        return NotProcessed(*_UNAVAILABLE, details)
    return found


def _connection_lost(message: str) -> RpcError:
    return RpcError(*_UNAVAILABLE, message)
