"""Answers a call that has failed, with a google.rpc.Status.

Invariant: a handler raises only RpcError; any other exception is a defect, logged and hidden from the caller.
"""

from __future__ import annotations

import asyncio
from typing import Any, NoReturn

import grpc
import grpc.aio
import structlog
from grpc_status import rpc_status

from chassis.deadline import remaining
from chassis.errors import PUSHBACK, RpcError, deadline_exceeded, is_cancelled, to_status, unavailable

log = structlog.get_logger(__name__)

_INTERNAL = RpcError(grpc.StatusCode.INTERNAL, "INTERNAL", "internal error")
_INTERRUPTED = unavailable("UNAVAILABLE", "a part of the service has stopped", 1.0)


def with_deadline(error: BaseException) -> BaseException:
    """Returns the error of a passed deadline for a TimeoutError after it, any other error as it is."""
    return deadline_exceeded() if isinstance(error, TimeoutError) and remaining() == 0 else error


async def answer_error(error: BaseException, path: str, context: Any) -> NoReturn:
    """Ends a call with the status of an error; logs an unexpected one. Raises what makes grpc.aio end the call."""
    if isinstance(error, RpcError):
        await _abort(context, error)
    if isinstance(error, grpc.aio.AbortError):
        raise error
    if isinstance(error, asyncio.CancelledError) and not is_cancelled():
        # Something that the handler waited for was cancelled. grpc.aio would send no status, and the caller would wait.
        log.error("a gRPC call was ended from within", method=path, exc_info=error)
        await _abort(context, _INTERRUPTED)
    if isinstance(error, Exception):
        log.error("unexpected error in a gRPC call", method=path, exc_info=error)
        await _abort(context, _INTERNAL)
    raise error


async def _abort(context: Any, error: RpcError) -> NoReturn:
    status: Any = rpc_status.to_status(to_status(error))
    # Together with the details: metadata that was set before would be replaced by them.
    pushback = () if error.pushback is None else ((PUSHBACK, str(round(error.pushback * 1000))),)
    try:
        await context.abort(status.code, status.details, (*status.trailing_metadata, *pushback))
    except grpc.aio.InternalError:
        # The core has answered already, or the caller is gone. Only this makes grpc.aio end a call without a log line.
        raise asyncio.CancelledError from None
    raise AssertionError("context.abort has returned")
