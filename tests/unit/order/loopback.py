"""A gRPC channel without a network."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any


class Loopback:
    """A channel to a servicer in this process: messages are serialized, the network is left out."""

    def __init__(self, servicer: Any) -> None:
        self._servicer = servicer

    def unary_unary(
        self, path: str, request_serializer: Any, response_deserializer: Any, **_: Any
    ) -> Callable[[Any], Awaitable[Any]]:
        method = getattr(self._servicer, path.rpartition("/")[2])

        async def call(request: Any) -> Any:
            sent = type(request).FromString(request_serializer(request))
            return response_deserializer((await method(sent, None)).SerializeToString())

        return call
