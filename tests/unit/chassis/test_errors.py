"""Errors keep code, reason, fields and retry time on the wire."""

from __future__ import annotations

import grpc
import pytest
from google.rpc import status_pb2

from chassis.errors import RpcError, from_grpc, from_status, to_status, unavailable

ERRORS = [
    RpcError(grpc.StatusCode.NOT_FOUND, "ORDER_NOT_FOUND"),
    RpcError(grpc.StatusCode.ALREADY_EXISTS, "EMAIL_TAKEN", "that address has an account"),
    RpcError(grpc.StatusCode.INVALID_ARGUMENT, "INVALID", "no", {"email": "is not one", "lines[0].sku": "missing"}),
    unavailable("BREAKER_OPEN", "breaker user-service is open", 2.5),
]


@pytest.mark.parametrize("error", ERRORS, ids=lambda e: e.reason)
def test_an_error_survives_the_wire(error: RpcError) -> None:
    wire = status_pb2.Status.FromString(to_status(error).SerializeToString())
    assert vars(from_status(wire)) == vars(error)


def test_an_error_without_details_is_named_after_its_code() -> None:
    bare = grpc.aio.AioRpcError(grpc.StatusCode.UNAVAILABLE, grpc.aio.Metadata(), grpc.aio.Metadata(), "gone", "")
    error = from_grpc(bare)
    assert (error.reason, error.message, error.retry_after) == ("UNAVAILABLE", "gone", None)


def test_an_undefined_code_becomes_unknown() -> None:
    assert from_status(status_pb2.Status(code=77, message="?")).code is grpc.StatusCode.UNKNOWN


def test_a_message_is_never_empty() -> None:
    assert str(RpcError(grpc.StatusCode.INTERNAL, "INTERNAL")) == "INTERNAL"
