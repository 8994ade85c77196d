"""Who reaches a method of a service in the mesh: the attack table, on real TLS."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any

import grpc
import grpc.aio
import pytest
from google.protobuf.wrappers_pb2 import StringValue
from grpc_health.v1 import health_pb2, health_pb2_grpc
from structlog.testing import capture_logs
from support.waiting import until

from chassis.errors import RpcError, unavailable
from chassis.mesh.names import server_name
from chassis.serving import server
from chassis.settings import MeshSettings
from chassis.telemetry import metrics
from chassis.testing import process_settings

from ..backends import error_of
from ..echo_service import COUNT, NAME, READ, Stub, endless
from .authority import Authority
from .mesh_under_test import ALLOWED, SETTINGS, Mesh, code_of

DENIED, UNREACHABLE = grpc.StatusCode.PERMISSION_DENIED, grpc.StatusCode.UNAVAILABLE


@pytest.fixture
async def mesh() -> AsyncIterator[Mesh]:
    async with Mesh().running() as made:
        yield made


def permissive(mesh: Mesh) -> None:
    """Switches the check of intentions off, as a control."""
    changed = MeshSettings(leaf_seconds=3600, enforce=False)
    mesh.process.settings.replace(SETTINGS.model_copy(update={"mesh": changed}))


def denials(caller: str, path: str) -> int:
    """The calls that were refused, from the exported metric."""
    found: list[Any] = [each.data for each in metrics.collect(0) if each.name == "mesh.calls.denied"]
    wanted = {"mesh.caller": caller, "rpc.method": path, "error.type": "CALLER_NOT_ALLOWED", "mesh.enforced": "true"}
    return sum(point.value for data in found for point in data.data_points if dict(point.attributes) == wanted)


async def test_a_caller_with_an_intention_is_answered_and_the_service_knows_its_name(mesh: Mesh) -> None:
    assert await (await mesh.calling("gateway")).read("hello") == "hello"
    assert mesh.service.seen == ["hello"]


@pytest.mark.parametrize(
    "how", ["plaintext", "no certificate", "certificate of another authority", "certificate ended"]
)
async def test_without_a_valid_certificate_no_connection_is_made(mesh: Mesh, how: str) -> None:
    ways = {
        "plaintext": lambda: grpc.aio.insecure_channel(mesh.address),
        "no certificate": lambda: mesh.with_leaf(None),
        "certificate of another authority": lambda: mesh.with_leaf(Authority("foreign").leaf("gateway")),
        "certificate ended": lambda: mesh.with_leaf(mesh.authority.leaf("gateway", seconds=-60)),
    }
    async with ways[how]() as channel:
        assert await code_of(lambda: Stub(channel).read("x", timeout=3)) is UNREACHABLE
    permissive(mesh)
    async with ways[how]() as channel:
        assert await code_of(lambda: Stub(channel).read("x", timeout=3)) is UNREACHABLE
    assert mesh.service.seen == []


async def test_a_certificate_of_the_mesh_reaches_what_its_name_may_call_as_a_control(mesh: Mesh) -> None:
    async with mesh.with_leaf(mesh.authority.leaf("gateway")) as channel:
        assert await code_of(lambda: Stub(channel).read("x", timeout=3)) is grpc.StatusCode.OK
        assert await code_of(lambda: Stub(channel).say("x", timeout=3)) is DENIED
    assert mesh.service.seen == ["x"]


async def test_a_caller_without_an_intention_is_refused_counted_and_logged(mesh: Mesh) -> None:
    with capture_logs() as logged:
        error = await error_of((await mesh.calling("other")).read("x"))
    assert (error.code, error.reason) == (DENIED, "CALLER_NOT_ALLOWED")
    assert "other" in error.message
    assert mesh.service.seen == []
    assert denials("other", READ) == 1
    (line,) = [each for each in logged if each["event"] == "no intention allows the call"]
    assert (line["caller"], line["method"], line["denied"]) == ("other", READ, True)


async def test_a_method_that_no_permission_names_is_refused(mesh: Mesh) -> None:
    gateway = await mesh.calling("gateway")
    assert (await error_of(gateway.say("x"))).code is DENIED
    assert mesh.service.seen == []
    permissive(mesh)
    assert await gateway.say("as a control") == "as a control"


async def test_a_stream_is_refused_before_its_first_message(mesh: Mesh) -> None:
    assert (await error_of((await mesh.calling("gateway")).count(3))).code is DENIED
    assert mesh.service.seen == []


async def test_what_a_caller_claims_in_metadata_changes_nothing(mesh: Mesh) -> None:
    claims = [
        ("x-forwarded-client-cert", "By=spiffe://x/svc/echo"),
        ("peer_spiffe_id", "gateway"),
        ("mesh-caller", "gateway"),
    ]
    async with mesh.with_leaf(mesh.authority.leaf("other")) as channel:
        assert await code_of(lambda: Stub(channel).read("x", timeout=3, metadata=claims)) is DENIED


async def test_a_certificate_without_the_name_of_a_service_is_nobody_also_where_anybody_may_call(mesh: Mesh) -> None:
    mesh.consul.intend("echo", {"SourceName": "*", "Precedence": 8, "Action": "allow"})
    async with mesh.with_leaf(mesh.authority.leaf("gateway", domain="elsewhere.consul")) as channel:
        assert await code_of(lambda: Stub(channel).read("x", timeout=3)) is DENIED
    async with mesh.with_leaf(mesh.authority.leaf("other")) as channel:
        assert await code_of(lambda: Stub(channel).read("as a control", timeout=3)) is grpc.StatusCode.OK


async def test_reflection_and_unknown_methods_are_denied_to_whom_no_intention_allows_them(mesh: Mesh) -> None:
    paths = ("/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo", "/grpc.health.v1.Health/Check", "/a.B/C")
    async with mesh.with_leaf(mesh.authority.leaf("gateway")) as channel:
        for path in paths:
            call: Any = channel.stream_stream(path)

            async def sent(call: Any = call) -> None:
                async for _ in call(iter([b""]), timeout=3):
                    pass

            assert await code_of(sent) is DENIED


async def test_a_revoked_intention_holds_for_the_next_call_on_the_same_connection(mesh: Mesh) -> None:
    gateway = await mesh.calling("gateway")
    assert await gateway.read("before") == "before"
    mesh.consul.intend("echo")

    async def is_refused() -> bool:
        try:
            await gateway.read("after")
        except RpcError as error:
            return error.code is DENIED
        return False

    await until("it is refused", is_refused, 2)
    mesh.consul.intend("echo", ALLOWED)

    async def is_allowed() -> bool:
        return not await is_refused()

    await until("it is allowed again", is_allowed, 2)


async def test_a_stream_ends_once_its_caller_may_not_call_the_method_any_more(mesh: Mesh) -> None:
    ended: list[str] = []
    mesh.service.behave = endless(ended)
    of_other = {"SourceName": "other", "Precedence": 9, "Action": "allow"}
    mesh.consul.intend("echo", of_other | {"SourceName": "gateway"}, of_other)
    gateway, other = await mesh.calling("gateway"), await mesh.calling("other")
    streams = [asyncio.create_task(error_of(stub.count(2))) for stub in (gateway, gateway, other)]
    await until("they run", lambda: mesh.service.seen == ["2", "2", "2"])
    before = denials("gateway", COUNT)
    permissive(mesh)
    mesh.consul.intend("echo", of_other)
    await asyncio.sleep(0.3)
    assert not [stream for stream in streams if stream.done()], "the control: without the check they go on"
    mesh.process.settings.replace(SETTINGS)
    errors = await asyncio.wait_for(asyncio.gather(*streams[:2]), 5)
    assert {(error.code, error.reason) for error in errors} == {(DENIED, "CALLER_NOT_ALLOWED")}
    assert denials("gateway", COUNT) == before + 2
    assert ended == ["2", "2"]
    assert not streams[2].done()
    streams[2].cancel()
    await until("its caller has gone", lambda: len(ended) == 3)


async def test_a_stream_that_loses_its_cancellation_ends_at_its_next_message(mesh: Mesh) -> None:
    async def deaf() -> None:
        with suppress(asyncio.CancelledError):
            await asyncio.sleep(0.05)

    mesh.service.first_messages, mesh.service.pause = 1_000_000, deaf
    mesh.consul.intend("echo", {"SourceName": "gateway", "Precedence": 9, "Action": "allow"})
    gateway = await mesh.calling("gateway")
    stream = asyncio.create_task(error_of(gateway.count(0)))
    await until("it runs", lambda: mesh.service.seen == ["0"])
    mesh.consul.intend("echo")
    error = await asyncio.wait_for(stream, 10)
    assert (error.code, error.reason) == (DENIED, "CALLER_NOT_ALLOWED")


async def test_a_stream_whose_caller_does_not_read_ends_with_the_same_error(mesh: Mesh) -> None:
    mesh.service.first_messages = 1_000_000  # more than is sent ahead
    mesh.consul.intend("echo", {"SourceName": "gateway", "Precedence": 9, "Action": "allow"})
    async with mesh.with_leaf(mesh.authority.leaf("gateway")) as channel:
        stream = aiter(Stub(channel).Count(StringValue(value="0")))
        assert (await anext(stream)).value == "0"
        await asyncio.sleep(0.5)
        mesh.consul.intend("echo")

        async def read() -> None:
            async for _ in stream:
                pass

        assert await asyncio.wait_for(code_of(read), 30) is DENIED


async def test_an_instance_that_is_not_of_the_called_service_gets_no_call(mesh: Mesh) -> None:
    """Whoever registers at Consul under a name still needs the certificate of that name."""
    caller = mesh.made("gateway")
    named = [("grpc.ssl_target_name_override", server_name("user-service"))]
    key, chain = mesh.authority.leaf("gateway")
    credentials = grpc.ssl_channel_credentials(mesh.authority.roots, key, chain)
    async with grpc.aio.secure_channel(mesh.address, credentials, options=named) as channel:
        assert await code_of(lambda: Stub(channel).read("x", timeout=3)) is UNREACHABLE
    await caller.close()
    assert mesh.service.seen == []


async def test_the_health_is_open_without_a_certificate_and_nothing_else_is_there(mesh: Mesh) -> None:
    credentials = grpc.ssl_channel_credentials(mesh.authority.roots)
    named = [("grpc.ssl_target_name_override", server_name("echo"))]
    async with grpc.aio.secure_channel(mesh.health, credentials, options=named) as channel:
        health: Any = health_pb2_grpc.HealthStub(channel)

        async def is_serving() -> bool:
            found = await health.Check(health_pb2.HealthCheckRequest(), timeout=3)
            return bool(found.status == health_pb2.HealthCheckResponse.SERVING)

        await until("it serves", is_serving)
        assert await code_of(lambda: Stub(channel).read("x", timeout=3)) is grpc.StatusCode.UNIMPLEMENTED
    async with grpc.aio.insecure_channel(mesh.health) as channel:
        health = health_pb2_grpc.HealthStub(channel)
        assert await code_of(lambda: health.Check(health_pb2.HealthCheckRequest(), timeout=3)) is UNREACHABLE


async def test_before_consul_has_named_the_intentions_nobody_is_let_in() -> None:
    made = Mesh()
    made.consul._intentions.clear()
    async with made.running() as mesh:
        assert (await error_of((await mesh.calling("gateway")).read("x"))).code is DENIED
        assert (await mesh.process.readiness())["intentions"] == "no intentions from Consul yet"


async def test_sigterm_before_the_first_certificate_ends_the_process_without_a_drain() -> None:
    made = Mesh()
    made.authority.failure = unavailable("VAULT_UNAVAILABLE", "away", 1.0)
    made.process.settings.replace(process_settings(drain_seconds=60, grace_seconds=60))
    serving = asyncio.create_task(server.serve(made.process, made.service.register, [NAME]))
    await until("it waits", lambda: made.authority.requests > 0)
    made.process.stopping.set()
    await asyncio.wait_for(serving, 10)
    await made.process.close()
