"""Passes the access token of the signed-in user on with each call to a service, which verifies it itself.

Invariant: a call has the token that was verified for the request in progress, or none; whatever else a client sends is
not passed on.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from chassis.auth.acting_user import token_metadata
from chassis.calls.client import Channel
from gateway.auth.authentication import access_token


class UserChannel:
    """Makes the calls of a generated stub for the user of the request in progress."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel

    def unary_unary(self, *method: Any, **options: Any) -> Callable[..., Any]:
        """See Channel."""
        return _for_user(self._channel.unary_unary(*method, **options))

    def unary_stream(self, *method: Any, **options: Any) -> Callable[..., Any]:
        """See Channel."""
        return _for_user(self._channel.unary_stream(*method, **options))


def _for_user(call: Callable[..., Any]) -> Callable[..., Any]:
    def with_token(request: Any, **options: Any) -> Any:
        token = access_token()
        return call(request, metadata=token_metadata(token), **options) if token else call(request, **options)

    return with_token
