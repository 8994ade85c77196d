"""The error that services raise and callers catch, and its form on the wire: google.rpc.Status with typed details.

Invariant: the caller of a service catches the error that the service raised: same code, reason, fields and retry time.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import grpc
from google.rpc import error_details_pb2, status_pb2

if TYPE_CHECKING:
    from google.protobuf.message import Message

DOMAIN = "waypost"
_DETAILS = "grpc-status-details-bin"
PUSHBACK = "grpc-retry-pushback-ms"
_CODES = {code.value[0]: code for code in grpc.StatusCode}


class ConfigurationError(Exception):
    """A setting is missing, unknown or invalid; the message names the KV key or environment, and the field."""


class RpcError(Exception):
    """A call failed or was rejected, for a reason the caller can act on.

    `reason` is a stable word in capitals (`EMAIL_TAKEN`). `fields` maps a request field to its problem. `retry_after`
    (seconds) is set if a retry may help. `pushback` (gRFC A6) limits automatic retries: the seconds before the next
    one, below 0 to forbid it.
    """

    def __init__(
        self,
        code: grpc.StatusCode,
        reason: str,
        message: str = "",
        fields: Mapping[str, str] | None = None,
        retry_after: float | None = None,
        *,
        pushback: float | None = None,
    ) -> None:
        super().__init__(message or reason)
        self.code = code
        self.reason = reason
        self.message = message or reason
        self.fields: Mapping[str, str] = dict(fields or {})
        self.retry_after = retry_after
        self.pushback = pushback

    def __repr__(self) -> str:
        return f"RpcError({self.code.name}, {self.reason!r}, {self.message!r})"


def unavailable(reason: str, message: str, retry_after: float) -> RpcError:
    """Makes the error for a call that may succeed after `retry_after` seconds."""
    return RpcError(grpc.StatusCode.UNAVAILABLE, reason, message, retry_after=retry_after)


def deadline_exceeded(message: str = "the deadline passed") -> RpcError:
    """Makes the error for a call that ran out of time; it may have taken effect or not."""
    return RpcError(grpc.StatusCode.DEADLINE_EXCEEDED, "DEADLINE_EXCEEDED", message)


def unstorable_value() -> RpcError:
    """Makes the error for input that Postgres cannot store, such as text with a NUL character."""
    return RpcError(grpc.StatusCode.INVALID_ARGUMENT, "INVALID", "a value has a character that cannot be kept")


def is_cancelled() -> bool:
    """True if this task was asked to end; otherwise a CancelledError in it comes from something that it waits for."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def to_status(error: RpcError) -> status_pb2.Status:
    """Encodes an error as google.rpc.Status: ErrorInfo always, BadRequest for fields, RetryInfo for a retry time."""
    status = status_pb2.Status(code=error.code.value[0], message=error.message)
    _pack(status, error_details_pb2.ErrorInfo(reason=error.reason, domain=DOMAIN))
    if error.fields:
        broken = error_details_pb2.BadRequest()
        for field, problem in error.fields.items():
            broken.field_violations.add(field=field, description=problem)
        _pack(status, broken)
    if error.retry_after is not None:
        retry = error_details_pb2.RetryInfo()
        retry.retry_delay.FromNanoseconds(round(error.retry_after * 1e9))
        _pack(status, retry)
    return status


def from_status(status: status_pb2.Status) -> RpcError:
    """Decodes a google.rpc.Status; without ErrorInfo, the reason is the name of the code."""
    code = _CODES.get(status.code, grpc.StatusCode.UNKNOWN)
    info, broken = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest()
    retry, retry_after = error_details_pb2.RetryInfo(), None
    for detail in status.details:
        if detail.Is(retry.DESCRIPTOR) and detail.Unpack(retry):
            retry_after = retry.retry_delay.ToNanoseconds() / 1e9
        else:
            _ = detail.Unpack(info) or detail.Unpack(broken)
    fields = {violation.field: violation.description for violation in broken.field_violations}
    return RpcError(code, info.reason or code.name, status.message, fields, retry_after)


def from_grpc(error: grpc.aio.AioRpcError) -> RpcError:
    """Converts the error of a failed gRPC call, with its typed details if the server sent them."""
    metadata: Any = error.trailing_metadata() or ()
    trailing = dict(metadata)
    code, details = error.code(), trailing.get(_DETAILS)
    if isinstance(details, bytes):
        found = from_status(status_pb2.Status.FromString(details))
    else:
        found = RpcError(code, code.name, error.details() or code.name)
    found.pushback = _pushback(trailing.get(PUSHBACK))
    return found


def _pushback(text: Any) -> float | None:
    """Parses milliseconds to seconds; a value that is not a number forbids the retry (gRFC A6)."""
    if text is None:
        return None
    try:
        return int(text) / 1000
    except ValueError:
        return -1.0


def _pack(status: status_pb2.Status, detail: Message) -> None:
    status.details.add().Pack(detail)
