"""The user for whom a call acts: its request names the user, its access token proves that the user has signed in.

The token is in the metadata of the call, `authorization: Bearer TOKEN`, and is never logged or traced.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

import grpc
from google.protobuf import descriptor_pool
from google.protobuf.descriptor import FieldDescriptor

from chassis.errors import RpcError

OPERATOR: Final = "operator"
"""The name in the certificate of an operator."""
METADATA_KEY: Final = "authorization"


class Principal(Protocol):
    """The user of a valid token."""

    @property
    def user_id(self) -> str:
        """The id as requests name it."""

    @property
    def expires_at(self) -> int:
        """The end of the token, as Unix time."""


class Verifier(Protocol):
    """The part of an AccessTokenVerifier that is needed here."""

    def known(self, token: str) -> Principal | None: ...

    async def verify(self, token: str) -> Principal: ...


@dataclass(frozen=True, slots=True)
class ActsFor:
    """The user for whom a method acts.

    `field` of the request has the id. Callers in `without_token`, as their certificate names them, may act for any
    user without a token.
    """

    field: str
    without_token: frozenset[str] = frozenset()


Rules = Mapping[str, ActsFor | None]
"""The rule of each method ("/package.Service/Method"); None if the method acts for no user."""


def rules_of(service: str, methods: Mapping[str, ActsFor | None]) -> Rules:
    """Returns the rules of a service ("package.Service"), given by the names of its methods.

    Raises ValueError unless each method of the contract has a rule, and each rule a method with that field.
    """
    described = descriptor_pool.Default().FindServiceByName(service).methods_by_name
    if wrong := sorted(set(described) ^ set(methods)):
        raise ValueError(f"{service}: a rule without a method, or a method without a rule: {', '.join(wrong)}")
    for name, rule in methods.items():
        if rule is not None and not _has_text(described[name], rule.field):
            raise ValueError(f"{service}/{name}: {rule.field} is no text field of one request")
    return {f"/{service}/{name}": rule for name, rule in methods.items()}


def _has_text(method: Any, name: str) -> bool:
    field = method.input_type.fields_by_name.get(name)
    is_text = field is not None and field.type == FieldDescriptor.TYPE_STRING and not field.is_repeated
    return is_text and not method.client_streaming


def token_metadata(token: str) -> Sequence[tuple[str, str]]:
    """Returns the metadata of a call for the user of a token."""
    return ((METADATA_KEY, f"Bearer {token}"),)


async def require_user(verifier: Verifier, metadata: Iterable[tuple[str, str | bytes]], user_id: str) -> Principal:
    """Returns the user of a call if it is the one that its request names.

    Raises RpcError: UNAUTHENTICATED (CALLER_HAS_NO_USER, TOKEN_INVALID, TOKEN_EXPIRED), PERMISSION_DENIED
    (CALLER_HAS_OTHER_USER), and UNAVAILABLE if the token cannot be verified.
    """
    values = [value for key, value in metadata if key == METADATA_KEY]
    if not values:
        message = "the call acts for a user, and has no access token"
        raise RpcError(grpc.StatusCode.UNAUTHENTICATED, "CALLER_HAS_NO_USER", message)
    scheme, _, token = str(values[0]).partition(" ")
    if len(values) > 1 or scheme != "Bearer":
        message = "the call has other credentials than one access token"
        raise RpcError(grpc.StatusCode.UNAUTHENTICATED, "TOKEN_INVALID", message)
    principal = verifier.known(token) or await verifier.verify(token)
    if principal.user_id != user_id:
        message = "the access token is of another user than the request"
        raise RpcError(grpc.StatusCode.PERMISSION_DENIED, "CALLER_HAS_OTHER_USER", message)
    return principal


def token_expired() -> RpcError:
    """Makes the error for a token whose time is over."""
    return RpcError(grpc.StatusCode.UNAUTHENTICATED, "TOKEN_EXPIRED", "The access token has expired.")
