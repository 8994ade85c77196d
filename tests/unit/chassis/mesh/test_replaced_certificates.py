"""Certificates and their authority are replaced while calls are made, on real TLS."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import grpc
import pytest
from support.waiting import until

from ..echo_service import Stub
from .authority import Authority
from .mesh_under_test import Mesh, code_of


@pytest.fixture
async def mesh() -> AsyncIterator[Mesh]:
    async with Mesh().running() as made:
        yield made


async def test_calls_go_on_while_the_leaves_of_caller_and_service_are_replaced(mesh: Mesh) -> None:
    gateway = await mesh.calling("gateway")
    assert await gateway.read("first") == "first"
    stop, answered = asyncio.Event(), 0

    async def call() -> None:
        nonlocal answered
        while not stop.is_set():
            await gateway.read("x", timeout=5)
            answered += 1

    calls = [asyncio.create_task(call()) for _ in range(4)]
    processes = [mesh.process, *mesh.callers]
    for number in range(5):
        issued = mesh.authority.requests
        for each in processes:
            identity = each.join_mesh()
            assert identity is not None
            identity._reissue.set()
        await until(f"replacement {number}", lambda issued=issued: mesh.authority.requests == issued + 2)  # type: ignore[misc]
    await asyncio.sleep(0.3)
    stop.set()
    await asyncio.gather(*calls)
    assert answered > 50


async def test_calls_go_on_while_the_root_is_replaced(mesh: Mesh, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("chassis.mesh.identity._SPREAD_SECONDS", 0.3)
    gateway = await mesh.calling("gateway")
    assert await gateway.read("first") == "first"
    old, new = mesh.authority, Authority("next")
    issued = new.requests
    for each in (mesh.process, *mesh.callers):
        each.vault.sign_certificate = new.sign_certificate  # type: ignore[method-assign]
    mesh.consul.trust(new.as_consul(old))
    while new.requests < issued + 2:
        await gateway.read("x", timeout=5)
    for _ in range(100):
        await gateway.read("x", timeout=5)
    mesh.consul.trust(new.as_consul())
    for _ in range(100):
        await gateway.read("x", timeout=5)
    async with mesh.with_leaf(old.leaf("gateway"), new.roots) as channel:
        assert await code_of(lambda: Stub(channel).read("x", timeout=3)) is grpc.StatusCode.UNAVAILABLE
