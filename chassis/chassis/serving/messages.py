"""Receives, decodes and encodes the messages of a call inside the other interceptors, so that a failure is observed.

grpc.aio itself does this before the first interceptor: such a failure would have no span and no metric, and the caller
would get UNKNOWN with the name of a Python class. The codes are those of gRPC's list of library errors.
"""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from typing import Any

import grpc
import grpc.aio
import structlog

from chassis.errors import RpcError

log = structlog.get_logger(__name__)

Context = Any
Continuation = Callable[[grpc.HandlerCallDetails], Awaitable[Any]]

_UNDECODABLE = RpcError(grpc.StatusCode.INTERNAL, "UNDECODABLE_REQUEST", "the request cannot be decoded")
_MISSING = RpcError(grpc.StatusCode.UNIMPLEMENTED, "NO_MESSAGE", "the request has no message")
_ENDED = RpcError(grpc.StatusCode.CANCELLED, "CANCELLED", "the call ended before its message was received")


class MessageInterceptor(grpc.aio.ServerInterceptor):
    """Turns each handler of messages into a handler of bytes; raises RpcError for what it cannot receive or decode.

    Handlers with several requests read them from the iterator, not with `context.read`.
    """

    async def intercept_service(self, continuation: Continuation, handler_call_details: grpc.HandlerCallDetails) -> Any:
        """Called by grpc.aio for each call."""
        handler = await continuation(handler_call_details)
        return None if handler is None else _of_bytes(handler, handler_call_details.method)


def _of_bytes(handler: Any, path: str) -> Any:
    kind = "_".join("stream" if many else "unary" for many in (handler.request_streaming, handler.response_streaming))
    inner = getattr(handler, kind)
    decode, encode = _decoder(handler, path), handler.response_serializer or bytes

    async def request(messages: AsyncIterator[bytes], context: Context) -> Any:
        if handler.request_streaming:
            return (decode(message) async for message in messages)
        return decode(await _only_message(context))

    async def unary(messages: AsyncIterator[bytes], context: Context) -> bytes:
        return encode(await inner(await request(messages, context), context))

    async def stream(messages: AsyncIterator[bytes], context: Context) -> AsyncIterator[bytes]:
        async with aclosing(inner(await request(messages, context), context)) as responses:
            async for response in responses:
                yield encode(response)

    async def writing(messages: AsyncIterator[bytes], context: Context) -> None:
        await inner(await request(messages, context), context)

    if not handler.response_streaming:
        return grpc.stream_unary_rpc_method_handler(unary)
    if inspect.isasyncgenfunction(inner):
        return grpc.stream_stream_rpc_method_handler(stream)
    # It sends its responses with `context.write`, which uses the serializer of the handler.
    return grpc.stream_stream_rpc_method_handler(writing, response_serializer=handler.response_serializer)


def _decoder(handler: Any, path: str) -> Callable[[bytes], Any]:
    def decode(message: bytes) -> Any:
        if handler.request_deserializer is None:
            return message
        try:
            return handler.request_deserializer(message)
        except Exception as error:
            log.warning("request cannot be decoded", method=path, bytes=len(message), error=type(error).__name__)
            raise _UNDECODABLE from None

    return decode


async def _only_message(context: Context) -> bytes:
    message = await context.read()
    if message is not grpc.aio.EOF:
        return message  # type: ignore[no-any-return]
    try:
        await context.send_initial_metadata(())
    except grpc.aio.InternalError:
        # The caller is gone, or gRPC's core has refused a message that is too large and has answered by itself.
        raise _ENDED from None
    raise _MISSING
