"""A small gRPC service for these tests, without generated stubs: it answers, fails, waits or streams on demand."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import grpc
import grpc.aio
from google.protobuf import descriptor_pb2, descriptor_pool
from google.protobuf.wrappers_pb2 import StringValue

from chassis.serving.interceptor import CallInterceptor
from chassis.serving.limiter import Limiter

NAME = "test.Echo"
SAY, READ, COUNT = f"/{NAME}/Say", f"/{NAME}/Read", f"/{NAME}/Count"
Behaviour = Callable[[str, Any], Awaitable[str]]


def declare() -> None:
    """Adds the contract to the descriptor pool: Read is idempotent, Say is not."""
    file = descriptor_pb2.FileDescriptorProto(name="test_echo.proto", package="test", syntax="proto3")
    file.dependency.append("google/protobuf/wrappers.proto")
    service = file.service.add(name="Echo")
    kind = ".google.protobuf.StringValue"
    for name in ("Say", "Read", "Count"):
        service.method.add(name=name, input_type=kind, output_type=kind)
    service.method[1].options.idempotency_level = descriptor_pb2.MethodOptions.NO_SIDE_EFFECTS
    descriptor_pool.Default().AddSerializedFile(file.SerializeToString())


@dataclass
class Echo:
    """One instance: its behaviour, and the requests it received."""

    behave: Behaviour
    limiter: Limiter | None = None
    exempt: tuple[str, ...] = ()
    seen: list[str] = field(default_factory=list)
    metadata: dict[str, str] = field(default_factory=dict)
    address: str = ""
    first_messages: int = 0
    """Messages of each stream besides those that were asked for."""
    pause: Callable[[], Awaitable[None]] | None = None
    """Awaited before each message of a stream."""
    server: grpc.aio.Server | None = None

    def register(self, server: grpc.aio.Server) -> None:
        decode, encode = StringValue.FromString, StringValue.SerializeToString
        unary = grpc.unary_unary_rpc_method_handler(self._say, decode, encode)
        stream = grpc.unary_stream_rpc_method_handler(self._count, decode, encode)
        handlers = {"Say": unary, "Read": unary, "Count": stream}
        server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler(NAME, handlers)])

    async def start(self, address: str = "127.0.0.1:0") -> Echo:
        interceptor = CallInterceptor(self.limiter, self.exempt)
        self.server = grpc.aio.server(interceptors=[interceptor], options=[("grpc.so_reuseport", 0)])
        self.register(self.server)
        port = self.server.add_insecure_port(address)
        await self.server.start()
        self.address = f"127.0.0.1:{port}"
        return self

    async def stop(self, grace: float | None = None) -> None:
        if self.server is not None:
            await self.server.stop(grace)

    async def _say(self, request: StringValue, context: Any) -> StringValue:
        self.seen.append(request.value)
        self.metadata = {key: str(value) for key, value in context.invocation_metadata()}
        return StringValue(value=await self.behave(request.value, context))

    async def _count(self, request: StringValue, context: Any) -> AsyncIterator[StringValue]:
        self.seen.append(request.value)
        asked = int(request.value) if request.value.isdigit() else 0
        for number in range(self.first_messages + asked):
            if self.pause is not None:
                await self.pause()
            yield StringValue(value=str(number))
        await self.behave(request.value, context)


async def echo(text: str, _context: Any) -> str:
    return text


async def never(_text: str, _context: Any) -> str:
    await asyncio.Event().wait()
    return ""


def endless(ended: list[str]) -> Callable[[str, Any], Awaitable[str]]:
    """A behaviour that does not answer, and notes the text of each call that was ended."""

    async def behave(text: str, _context: Any) -> str:
        try:
            await asyncio.Event().wait()
        finally:
            ended.append(text)
        return text

    return behave


class Stub:
    """Makes calls as a generated stub does."""

    def __init__(self, channel: Any) -> None:
        decode, encode = StringValue.FromString, StringValue.SerializeToString
        self.Say = channel.unary_unary(SAY, request_serializer=encode, response_deserializer=decode)
        self.Read = channel.unary_unary(READ, request_serializer=encode, response_deserializer=decode)
        self.Count = channel.unary_stream(COUNT, request_serializer=encode, response_deserializer=decode)

    async def say(self, text: str, **options: Any) -> str:
        return str((await self.Say(StringValue(value=text), **options)).value)

    async def read(self, text: str, **options: Any) -> str:
        return str((await self.Read(StringValue(value=text), **options)).value)

    async def count(self, number: int, **options: Any) -> list[str]:
        return [answer.value async for answer in self.Count(StringValue(value=str(number)), **options)]


declare()
