"""The gateway of this checkout, whose calls go to ORDER_SERVICE by a plain stub: without any resilience layer.

`gateway_with_direct_calls.py ORDER_SERVICE`. What it saves is the price of deadline, bulkhead, breaker, retry and
balancing.
"""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import grpc.aio

import gateway.__main__ as program


class DirectChannel:
    """What a generated stub and the gateway need of a channel, on one connection of grpc.aio."""

    def __init__(self, address: str) -> None:
        self._channel = grpc.aio.insecure_channel(address)
        self.breaker = SimpleNamespace(state="closed")

    def unary_unary(self, path: str, request_serializer: Any, response_deserializer: Any, **_: Any) -> Any:
        return self._channel.unary_unary(path, request_serializer, response_deserializer)

    def unary_stream(self, path: str, request_serializer: Any, response_deserializer: Any, **_: Any) -> Any:
        return self._channel.unary_stream(path, request_serializer, response_deserializer)


if __name__ == "__main__":
    address = sys.argv[1]
    program.client.connect = lambda *_args, **_more: DirectChannel(address)  # type: ignore[assignment,return-value]
    program.main()
