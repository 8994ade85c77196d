"""Calls of any method that reach its handler and change nothing: the request is none that it could decode."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import grpc

from shop.order.v1 import order_pb2
from shop.user.v1 import user_pb2

METHODS = {
    service: [f"/{described.full_name}/{method.name}" for method in described.methods]
    for service, described in {
        "user-service": user_pb2.DESCRIPTOR.services_by_name["UserService"],
        "order-service": order_pb2.DESCRIPTOR.services_by_name["OrderService"],
    }.items()
}
"""Every method of each service."""
# The answer of a method to a caller who may call it.
REACHED = grpc.StatusCode.INTERNAL
_UNDECODABLE = b"\x0a\x7f\xff"


def code_of(channel: grpc.Channel, path: str, metadata: Sequence[tuple[str, str]] = ()) -> grpc.StatusCode:
    """The status of a call of the method at `path`; REACHED if it came to its handler."""
    error = error_of(channel, path, metadata)
    code: grpc.StatusCode = error.code()
    assert code is not REACHED or error.details() == "the request cannot be decoded"
    return code


def error_of(channel: grpc.Channel, path: str, metadata: Sequence[tuple[str, str]] = ()) -> Any:
    """The error of a call."""
    # This kind of call fits methods of every kind.
    method: Any = channel.stream_stream(path)
    try:
        answers = list(method(iter([_UNDECODABLE]), timeout=10, metadata=metadata))
    except grpc.RpcError as error:
        return error
    raise AssertionError(f"{path} has answered a request that it cannot decode: {answers}")
