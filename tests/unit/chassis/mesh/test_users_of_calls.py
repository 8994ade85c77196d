"""A caller with the right certificate still needs the token of the user for whom it calls: the attack table, on TLS."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any
from uuid import uuid4

import grpc
import pytest
from google.protobuf.wrappers_pb2 import StringValue
from structlog.testing import capture_logs
from support.mesh.access_tokens import TokenKey
from support.waiting import until

from chassis.auth.acting_user import OPERATOR, ActsFor, token_metadata
from chassis.errors import RpcError, unavailable
from chassis.settings import MeshSettings
from chassis.telemetry import metrics

from ..backends import error_of
from ..echo_service import READ, SAY, Stub
from .mesh_under_test import SETTINGS, Mesh

USER = str(uuid4())
WORKER = "other"
RULES = {"Read": ActsFor("value", frozenset({OPERATOR})), "Say": ActsFor("value", frozenset({OPERATOR, WORKER}))}
UNAUTHENTICATED, DENIED = grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED


@pytest.fixture
async def mesh() -> AsyncIterator[Mesh]:
    """In which every caller may call every method, but not for every user."""
    made = Mesh(RULES)
    made.consul.intend("echo", {"SourceName": "*", "Precedence": 8, "Action": "allow"})
    async with made.running():
        await until("it is ready", lambda: _ready(made))
        yield made


async def _ready(mesh: Mesh) -> bool:
    return set((await mesh.process.readiness()).values()) == {"ok"}


def permissive(mesh: Mesh) -> None:
    changed = MeshSettings(leaf_seconds=3600, enforce=False)
    mesh.process.settings.replace(SETTINGS.model_copy(update={"mesh": changed}))


def denials(reason: str, enforced: bool = True, caller: str = "gateway", path: str = READ) -> int:
    """The calls that were denied for a reason, from the exported metric."""
    wanted = {"mesh.caller": caller, "rpc.method": path, "error.type": reason, "mesh.enforced": str(enforced).lower()}
    found: list[Any] = [each.data for each in metrics.collect(0) if each.name == "mesh.calls.denied"]
    points = (point for data in found for point in data.data_points)
    return sum(point.value for point in points if dict(point.attributes) == wanted)


Metadata = Sequence[tuple[str, str]]
ATTACKS: dict[str, tuple[Callable[[Mesh], Metadata], grpc.StatusCode, str]] = {
    "no token": (lambda _: (), UNAUTHENTICATED, "CALLER_HAS_NO_USER"),
    "names in metadata": (
        lambda _: (("user_id", USER), ("mesh-caller", OPERATOR)), UNAUTHENTICATED, "CALLER_HAS_NO_USER",
    ),
    "forged token": (lambda _: token_metadata(TokenKey().token(USER)), UNAUTHENTICATED, "TOKEN_INVALID"),
    "no JWT": (lambda _: token_metadata("no-token-at-all"), UNAUTHENTICATED, "TOKEN_INVALID"),
    "expired token": (
        lambda mesh: token_metadata(mesh.key.token(USER, exp=int(time.time()) - 1)), UNAUTHENTICATED, "TOKEN_EXPIRED",
    ),
    "token of another user": (lambda mesh: token_metadata(mesh.key.token()), DENIED, "CALLER_HAS_OTHER_USER"),
}  # fmt: skip


@pytest.mark.parametrize("attack", ATTACKS)
async def test_a_caller_without_the_token_of_the_user_is_refused_counted_and_logged(mesh: Mesh, attack: str) -> None:
    metadata, code, reason = ATTACKS[attack]
    gateway, sent, before = await mesh.calling("gateway"), metadata(mesh), denials(reason)
    with capture_logs() as logged:
        errors = [await error_of(gateway.read(USER, metadata=sent)) for _ in range(3)]
    assert {(error.code, error.reason) for error in errors} == {(code, reason)}
    assert mesh.service.seen == []
    assert denials(reason) == before + 3
    (line,) = [each for each in logged if each["event"] == "no signed-in user is behind the call"]
    assert (line["caller"], line["method"], line["reason"], line["denied"]) == ("gateway", READ, reason, True)
    tokens = [value.split()[-1] for key, value in sent if key == "authorization"]
    assert not [token for token in tokens if token in f"{logged}{errors}"]


@pytest.mark.parametrize("attack", ATTACKS)
async def test_without_enforcement_the_same_call_is_counted_and_answered(mesh: Mesh, attack: str) -> None:
    """The control: it is the check that refuses the call."""
    permissive(mesh)
    metadata, _, reason = ATTACKS[attack]
    before = denials(reason, enforced=False)
    gateway = await mesh.calling("gateway")
    assert await gateway.read(USER, metadata=metadata(mesh)) == USER
    assert denials(reason, enforced=False) == before + 1


async def test_the_user_of_the_token_is_served(mesh: Mesh) -> None:
    gateway, token = await mesh.calling("gateway"), mesh.key.token(USER)
    for _ in range(2):
        assert await gateway.read(USER, metadata=token_metadata(token)) == USER
    assert mesh.service.seen == [USER, USER]


async def test_a_caller_that_the_method_trusts_needs_no_token_and_no_other_one_is_trusted(mesh: Mesh) -> None:
    operator, worker, gateway = [await mesh.calling(name) for name in (OPERATOR, WORKER, "gateway")]
    assert await operator.read(USER) == USER
    assert await operator.say(USER) == USER
    assert await worker.say(USER) == USER
    for call in (worker.read(USER), gateway.say(USER), gateway.read(USER)):
        assert (await error_of(call)).reason == "CALLER_HAS_NO_USER"


async def test_a_method_that_acts_for_nobody_needs_no_token(mesh: Mesh) -> None:
    assert await (await mesh.calling("gateway")).count(2) == ["0", "1"]


async def test_before_the_keys_are_known_the_process_is_not_ready_and_a_token_proves_nothing() -> None:
    made = Mesh(RULES)
    made.consul.intend("echo", {"SourceName": "*", "Precedence": 8, "Action": "allow"})

    async def failing(key: str) -> dict[int, bytes]:
        raise unavailable("VAULT_UNAVAILABLE", "vault is unavailable", 1)

    made.process.vault.public_keys = failing  # type: ignore[method-assign]
    async with made.running():
        gateway, sent = await made.calling("gateway"), token_metadata(made.key.token(USER))
        error = await error_of(gateway.read(USER, metadata=sent))
        assert error.code is grpc.StatusCode.UNAVAILABLE
        assert (await made.process.readiness())["token keys"] == "none was read yet"
        assert made.service.seen == []


async def test_a_server_whose_method_has_no_rule_answers_no_call_of_it() -> None:
    async with Mesh().running() as other:
        other.users.rules.pop(SAY)  # type: ignore[attr-defined]
        other.consul.intend("echo", {"SourceName": "*", "Precedence": 8, "Action": "allow"})
        gateway = await other.calling("gateway")
        assert await gateway.read(USER) == USER
        assert isinstance(await error_of(gateway.say(USER)), RpcError)
        assert other.service.seen == [USER]


# --- streams


async def test_a_stream_ends_when_the_token_of_its_user_does() -> None:
    made = Mesh({"Count": ActsFor("value")})
    made.consul.intend("echo", {"SourceName": "*", "Precedence": 8, "Action": "allow"})
    ended: list[str] = []

    async def waits(text: str, _: Any) -> str:
        try:
            await asyncio.Event().wait()
        finally:
            ended.append(text)
        return text

    async with made.running():
        await until("it is ready", lambda: _ready(made))
        gateway = await made.calling("gateway")
        await gateway.read(USER)  # connects
        made.service.behave, made.service.first_messages = waits, 2
        expires = int(time.time()) + 5
        token = made.key.token(USER, exp=expires)
        messages = await stream(gateway, USER, token)
        assert [message.value for message in messages[:-1]] == ["0", "1"]
        assert (messages[-1].code, messages[-1].reason) == (UNAUTHENTICATED, "TOKEN_EXPIRED")
        assert time.time() >= expires
        await until("its work has ended", lambda: bool(ended))


async def test_a_stream_that_always_has_a_message_ends_with_the_token_too() -> None:
    made = Mesh({"Count": ActsFor("value")})
    made.consul.intend("echo", {"SourceName": "*", "Precedence": 8, "Action": "allow"})
    made.service.first_messages = 1_000_000_000
    async with made.running():
        await until("it is ready", lambda: _ready(made))
        gateway = await made.calling("gateway")
        await gateway.read(USER)  # connects
        messages = await stream(gateway, USER, made.key.token(USER, exp=int(time.time()) + 5))
    assert messages[-1].reason == "TOKEN_EXPIRED"


async def stream(gateway: Stub, user: str, token: str) -> list[Any]:
    """The messages of a stream, and the error that ends it."""
    found: list[Any] = []
    try:
        async for message in gateway.Count(StringValue(value=user), metadata=token_metadata(token)):
            found.append(message)  # noqa: PERF401 - those before the error count
    except RpcError as error:
        return [*found, error]
    raise AssertionError("the stream has ended without an error")


async def test_a_stream_without_a_token_is_refused_before_its_first_message() -> None:
    made = Mesh({"Count": ActsFor("value")})
    made.consul.intend("echo", {"SourceName": "*", "Precedence": 8, "Action": "allow"})
    async with made.running():
        assert (await error_of((await made.calling("gateway")).count(3))).reason == "CALLER_HAS_NO_USER"
        assert made.service.seen == []
