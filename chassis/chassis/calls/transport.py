"""Transport of calls to one instance: a small interface, which a faster client can implement, and grpc.aio behind it.

Invariant: every failure is an RpcError; it is NotProcessed only if no handler can have begun to work on the call.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import grpc
import grpc.aio
from google.protobuf import descriptor_pool
from google.protobuf.descriptor_pb2 import MethodOptions

from chassis.errors import RpcError, from_grpc

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
# grpc has no status for a connection that was never established, only these texts. fragile: grpc-error-text
_NOT_CONNECTED = ("failed to connect", "connection refused", "no connection established", "dns resolution")


class NotProcessed(RpcError):  # noqa: N818 - says how far the call got
    """The call did not reach a handler, so it may be repeated even if its method is not idempotent."""


@dataclass(frozen=True)
class Method:
    """One rpc of a generated stub; `path` is /package.Service/Name."""

    path: str
    serialize: Callable[[Any], bytes]
    deserialize: Callable[[bytes], Any]
    idempotent: bool

    @cached_property
    def name(self) -> str:
        """The path without its leading slash, as spans are named."""
        return self.path.strip("/")

    @cached_property
    def attributes(self) -> dict[str, str]:
        """Telemetry attributes of every call of this method."""
        service, _, name = self.name.partition("/")
        return {"rpc.system": "grpc", "rpc.service": service, "rpc.method": name}


class Transport(Protocol):
    """Calls instances by address (host:port); every failure is an RpcError."""

    def open(self, address: str) -> None:
        """Starts to connect, before the first call needs the connection."""

    async def unary(self, address: str, method: Method, request: Any, timeout: float, metadata: Metadata) -> Any:  # noqa: ASYNC109
        """Sends one request and returns its response, within `timeout` seconds."""

    def stream(
        self, address: str, method: Method, request: Any, timeout: float | None, metadata: Metadata
    ) -> AsyncIterator[Any]:
        """Sends one request and yields its responses; `timeout` bounds the whole stream."""

    async def close(self, address: str) -> None:
        """Closes the connection, on which there is no call any more."""


def is_idempotent(path: str) -> bool:
    """True if the contract (`option idempotency_level`) permits to repeat a call of the method."""
    try:
        method = descriptor_pool.Default().FindMethodByName(path.strip("/").replace("/", "."))
    except KeyError:
        return False
    return bool(method.GetOptions().idempotency_level != MethodOptions.IDEMPOTENCY_UNKNOWN)


class GrpcTransport:
    """One grpc.aio channel per address."""

    def __init__(self) -> None:
        self._channels: dict[str, grpc.aio.Channel] = {}
        self._calls: dict[tuple[str, str], Any] = {}

    def open(self, address: str) -> None:
        """See Transport."""
        self._channel(address).get_state(try_to_connect=True)

    async def unary(self, address: str, method: Method, request: Any, timeout: float, metadata: Metadata) -> Any:  # noqa: ASYNC109
        """See Transport."""
        call = self._call(address, method, "unary_unary")
        try:
            return await call(request, timeout=timeout, metadata=metadata)
        except grpc.aio.AioRpcError as error:
            raise _translated(error) from error

    async def stream(
        self,
        address: str,
        method: Method,
        request: Any,
        timeout: float | None,  # noqa: ASYNC109
        metadata: Metadata,
    ) -> AsyncIterator[Any]:
        """See Transport."""
        responses = self._call(address, method, "unary_stream")(request, timeout=timeout, metadata=metadata)
        try:
            async for response in responses:
                yield response
        except grpc.aio.AioRpcError as error:
            raise _translated(error) from error
        finally:
            responses.cancel()

    async def close(self, address: str) -> None:
        """See Transport."""
        self._calls = {key: call for key, call in self._calls.items() if key[0] != address}
        channel = self._channels.pop(address, None)
        if channel is not None:
            await channel.close(None)

    def _channel(self, address: str) -> grpc.aio.Channel:
        if address not in self._channels:
            self._channels[address] = grpc.aio.insecure_channel(address, options=_OPTIONS)
        return self._channels[address]

    def _call(self, address: str, method: Method, kind: str) -> Any:
        key = (address, method.path)
        if key not in self._calls:
            make = getattr(self._channel(address), kind)
            self._calls[key] = make(method.path, method.serialize, method.deserialize)
        return self._calls[key]


def _translated(error: grpc.aio.AioRpcError) -> RpcError:
    found, code, details = from_grpc(error), error.code(), error.details() or ""
    if found.reason == _OVERLOADED and code is grpc.StatusCode.RESOURCE_EXHAUSTED:
        return NotProcessed(code, found.reason, found.message, None, found.retry_after, pushback=found.pushback)
    if found.reason != code.name:
        return found
    # A server that stops ends calls it has not accepted as CANCELLED (grpc#41785), running ones as UNAVAILABLE.
    not_accepted = code is grpc.StatusCode.CANCELLED  # fragile: grpc-cancelled
    not_connected = code is grpc.StatusCode.UNAVAILABLE and any(text in details.lower() for text in _NOT_CONNECTED)
    if not_accepted or not_connected:
        return NotProcessed(grpc.StatusCode.UNAVAILABLE, "UNAVAILABLE", details or "cancelled")
    return found
