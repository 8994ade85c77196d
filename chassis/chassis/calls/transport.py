"""How a call gets to one instance: the small interface a faster client can take over, and grpc.aio behind it.

Invariant: a failure comes out as RpcError; as NeverSent only when no server can have begun to work on the call.
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

_OPTIONS = (
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 3_000),
)
OVERLOADED = "OVERLOADED"
_SHED = "Concurrent RPC limit exceeded"
_NOT_CONNECTED = ("failed to connect", "connection refused", "no connection established", "dns resolution")


class NeverSent(RpcError):  # noqa: N818 - says when, not what
    """The call did not reach a handler, so it may be made again whatever it does."""


@dataclass(frozen=True)
class Method:
    """One rpc of a generated stub; `path` is /package.Service/Name."""

    path: str
    serialize: Callable[[Any], bytes]
    deserialize: Callable[[bytes], Any]
    repeatable: bool

    @cached_property
    def name(self) -> str:
        """Full name without the leading slash, as spans are called."""
        return self.path.strip("/")

    @cached_property
    def attributes(self) -> dict[str, str]:
        """What telemetry says about every call of it."""
        service, _, name = self.name.partition("/")
        return {"rpc.system": "grpc", "rpc.service": service, "rpc.method": name}


class Transport(Protocol):
    """Calls instances by address (host:port); every failure is an RpcError."""

    def open(self, address: str) -> None:
        """Begin to connect, before the first call needs it."""

    async def unary(self, address: str, method: Method, request: Any, seconds: float, metadata: Metadata) -> Any:
        """One request, one answer, within `seconds`."""

    def stream(
        self, address: str, method: Method, request: Any, seconds: float | None, metadata: Metadata
    ) -> AsyncIterator[Any]:
        """One request, many answers."""

    async def close(self, address: str) -> None:
        """Let the connection go; there is no call on it any more."""


def repeatable(path: str) -> bool:
    """Whether the contract (`option idempotency_level`) says that a call may be made twice."""
    try:
        method = descriptor_pool.Default().FindMethodByName(path.strip("/").replace("/", "."))
    except KeyError:
        return False
    return bool(method.GetOptions().idempotency_level != MethodOptions.IDEMPOTENCY_UNKNOWN)


class GrpcTransport:
    """One grpc.aio channel for each address."""

    def __init__(self) -> None:
        self._channels: dict[str, grpc.aio.Channel] = {}
        self._calls: dict[tuple[str, str], Any] = {}

    def open(self, address: str) -> None:
        """See Transport."""
        self._channel(address).get_state(try_to_connect=True)

    async def unary(self, address: str, method: Method, request: Any, seconds: float, metadata: Metadata) -> Any:
        """See Transport."""
        call = self._call(address, method, "unary_unary")
        try:
            return await call(request, timeout=seconds, metadata=metadata)
        except grpc.aio.AioRpcError as error:
            raise _meaning(error) from error

    async def stream(
        self, address: str, method: Method, request: Any, seconds: float | None, metadata: Metadata
    ) -> AsyncIterator[Any]:
        """See Transport."""
        answers = self._call(address, method, "unary_stream")(request, timeout=seconds, metadata=metadata)
        try:
            async for answer in answers:
                yield answer
        except grpc.aio.AioRpcError as error:
            raise _meaning(error) from error
        finally:
            answers.cancel()

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
            self._calls[key] = make(method.path, method.serialize, method.deserialize, _registered_method=True)
        return self._calls[key]


def _meaning(error: grpc.aio.AioRpcError) -> RpcError:
    found, code, details = from_grpc(error), error.code(), error.details() or ""
    if found.reason == OVERLOADED and code is grpc.StatusCode.RESOURCE_EXHAUSTED:
        return NeverSent(code, found.reason, found.message, None, found.retry_after, pushback=found.pushback)
    if found.reason != code.name:
        return found
    if code is grpc.StatusCode.RESOURCE_EXHAUSTED and details.startswith(_SHED):
        return NeverSent(code, code.name, "the server has enough to do", pushback=found.pushback)
    # A server that stops ends what it has not accepted as CANCELLED (grpc#41785), what it cuts off as UNAVAILABLE.
    unaccepted = code is grpc.StatusCode.CANCELLED
    unconnected = code is grpc.StatusCode.UNAVAILABLE and any(sign in details.lower() for sign in _NOT_CONNECTED)
    if unaccepted or unconnected:
        return NeverSent(grpc.StatusCode.UNAVAILABLE, "UNAVAILABLE", details or "cancelled")
    return found
