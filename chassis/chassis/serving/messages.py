"""Receives and decodes the request of a call inside its span, so that a failure is observed.

grpc.aio itself would do this before the first interceptor: such a failure would have no span and no metric, and the
caller would get UNKNOWN with the name of a Python class. The codes are those of gRPC's list of library errors.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc
import grpc.aio
import structlog

from chassis.errors import RpcError

log = structlog.get_logger(__name__)

Context = Any
Receive = Callable[[AsyncIterator[bytes], Context], Awaitable[Any]]

_UNDECODABLE = RpcError(grpc.StatusCode.INTERNAL, "UNDECODABLE_REQUEST", "the request cannot be decoded")
_MISSING = RpcError(grpc.StatusCode.UNIMPLEMENTED, "NO_MESSAGE", "the request has no message")
_ENDED = RpcError(grpc.StatusCode.CANCELLED, "CANCELLED", "the call ended before its message was received")


def receiver(handler: Any, path: str) -> Receive:
    """Returns the function that receives the request of a call: a message, or an iterator if there may be several.

    It raises RpcError for what it cannot receive or decode. Handlers with several requests read them from the iterator,
    not with `context.read`.
    """
    decode = _decoder(handler.request_deserializer, path)

    async def one(_messages: AsyncIterator[bytes], context: Context) -> Any:
        message = await context.read()
        return decode(await _without_message(context) if message is grpc.aio.EOF else message)

    async def several(messages: AsyncIterator[bytes], _context: Context) -> Any:
        return (decode(message) async for message in messages)

    return several if handler.request_streaming else one


def _decoder(deserialize: Callable[[bytes], Any] | None, path: str) -> Callable[[bytes], Any]:
    def decode(message: bytes) -> Any:
        if deserialize is None:
            return message
        try:
            return deserialize(message)
        except Exception as error:
            log.warning("request cannot be decoded", method=path, bytes=len(message), error=type(error).__name__)
            raise _UNDECODABLE from None

    return decode


async def _without_message(context: Context) -> bytes:
    """Raises the error of a call that has ended without a message."""
    try:
        await context.send_initial_metadata(())
    except grpc.aio.InternalError:
        # The caller is gone, or gRPC's core has refused a message that is too large and has answered by itself.
        raise _ENDED from None
    raise _MISSING
