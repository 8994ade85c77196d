"""The life cycle of a process: starts that fail, the order of the drain, background work that fails."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
import structlog
from grpc_health.v1 import health_pb2, health_pb2_grpc
from support.waiting import until

from chassis import process as process_module
from chassis.deadline import deadline, remaining
from chassis.process import Process
from chassis.serving import server
from chassis.settings import ProcessSettings
from chassis.telemetry import export, logs
from chassis.telemetry.sampling import trace_rate
from chassis.testing import FakeConsul, process, process_settings

from .echo_service import NAME, Echo, Stub
from .test_settings import place

SETTINGS = process_settings(drain_seconds=0.3, grace_seconds=5.0)


@pytest.fixture
async def alive() -> AsyncIterator[Process[ProcessSettings]]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    made = process("user-service", SETTINGS, bind_address=f"127.0.0.1:{port}")
    yield made
    await made.close()


async def test_readiness_has_the_result_of_every_probe(alive: Process[ProcessSettings]) -> None:
    async def asleep() -> str:
        return "no login yet"

    alive.add_readiness("postgres", lambda: None)
    alive.add_readiness("vault", asleep)
    alive.add_readiness("disk", lambda: 1 / 0)  # type: ignore[arg-type, return-value]
    results = await alive.readiness()
    assert results == {"postgres": "ok", "vault": "no login yet", "disk": "ZeroDivisionError: division by zero"}


async def test_a_process_that_stops_is_not_ready(alive: Process[ProcessSettings]) -> None:
    alive.stopping.set()
    assert (await alive.readiness())["process"] == "stopping"


async def test_background_work_that_fails_is_logged_and_started_again(alive: Process[ProcessSettings]) -> None:
    starts: list[int] = []

    async def work() -> None:
        starts.append(1)
        if len(starts) < 3:
            raise RuntimeError("again")

    with structlog.testing.capture_logs() as logs:
        await alive.supervise("loop", work)
    assert len(starts) == 3
    assert [line["task"] for line in logs] == ["loop", "loop"]


async def test_background_work_does_not_inherit_a_deadline(alive: Process[ProcessSettings]) -> None:
    found: list[float | None] = []

    async def work() -> None:
        found.append(remaining())

    with deadline(1.0):
        await alive.supervise("loop", work)
    assert found == [None]


async def test_closers_run_in_reverse_order_and_continue_after_a_failure(alive: Process[ProcessSettings]) -> None:
    closed: list[str] = []

    def closer(name: str, fault: bool = False) -> Callable[[], Awaitable[None]]:
        async def close() -> None:
            closed.append(name)
            if fault:
                raise RuntimeError

        return close

    alive.on_close(closer("first"))
    alive.on_close(closer("second", fault=True))
    with structlog.testing.capture_logs() as logs:
        await alive.close()
    assert closed == ["second", "first"]
    assert [entry["closer"].rpartition(".")[2] for entry in logs if entry["event"] == "close failed"] == ["close"]


async def test_after_sigterm_health_fails_first_and_accepted_calls_finish(
    alive: Process[ProcessSettings],
) -> None:
    gate = asyncio.Event()

    async def slow(text: str, _context: Any) -> str:
        await gate.wait()
        return text

    echo = Echo(slow)
    serving = asyncio.create_task(server.serve(alive, echo.register, [NAME]))
    async with grpc.aio.insecure_channel(alive.environment.bind_address) as channel:
        stub = Stub(channel)
        health: Any = health_pb2_grpc.HealthStub(channel)

        async def status() -> int:
            answer = await health.Check(health_pb2.HealthCheckRequest(service=NAME), wait_for_ready=True, timeout=5)
            return int(answer.status)

        assert await status() == health_pb2.HealthCheckResponse.SERVING
        accepted = asyncio.create_task(stub.say("kept"))
        await until("the call is accepted", lambda: echo.seen == ["kept"])
        alive.stopping.set()
        await asyncio.sleep(0)
        while await status() == health_pb2.HealthCheckResponse.SERVING:
            await asyncio.sleep(0.01)
        late = asyncio.create_task(stub.say("late"))
        await until("a call during the drain is accepted", lambda: "late" in echo.seen)
        gate.set()
        assert (await accepted, await late) == ("kept", "late")
    async with asyncio.timeout(3):
        await serving


async def test_health_follows_readiness(alive: Process[ProcessSettings], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("chassis.serving.health._PROBE_SECONDS", 0.02)
    state: dict[str, str | None] = {"postgres": "unavailable"}
    alive.add_readiness("postgres", lambda: state["postgres"])
    serving = asyncio.create_task(server.serve(alive, lambda _: None, []))
    async with grpc.aio.insecure_channel(alive.environment.bind_address) as channel:
        health: Any = health_pb2_grpc.HealthStub(channel)
        watch = health.Watch(health_pb2.HealthCheckRequest(), wait_for_ready=True, timeout=5)
        assert (await watch.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING
        state["postgres"] = None
        assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVING
        watch.cancel()
    alive.stopping.set()
    await serving


async def test_an_address_in_use_is_an_error_and_is_not_shared(alive: Process[ProcessSettings]) -> None:
    taken = await Echo(lambda text, _: asyncio.sleep(0, text)).start(alive.environment.bind_address)
    with pytest.raises(RuntimeError, match=alive.environment.bind_address):
        await server.serve(alive, lambda _: None, [])
    await taken.stop()


@pytest.fixture
def placed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> FakeConsul:
    """An environment and a Consul with settings, sufficient to run a whole process."""
    place(monkeypatch)
    consul = FakeConsul()
    consul.put("config/gateway", json.dumps(SETTINGS.model_dump()))
    monkeypatch.setattr(process_module, "ConsulClient", lambda *_: consul)
    monkeypatch.setattr(export, "start", lambda *_: None)
    monkeypatch.setattr(logs, "to_stdout", lambda *_: None)
    return consul


async def test_a_missing_variable_stops_the_start_and_is_named_in_one_log_line(
    placed: FakeConsul, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("VAULT_ADDR")
    with structlog.testing.capture_logs() as logs:
        assert await process_module.live("gateway", ProcessSettings, _never) == 1
    assert [line["problem"] for line in logs] == ["environment: VAULT_ADDR: missing"]


async def test_an_invalid_setting_stops_the_start(placed: FakeConsul) -> None:
    placed.put("config/gateway", "{}")
    with structlog.testing.capture_logs() as logs:
        assert await process_module.live("gateway", ProcessSettings, _never) == 1
    assert "config/gateway: log_level: missing" in logs[-1]["problem"]


async def test_telemetry_follows_the_settings_of_a_running_process(placed: FakeConsul) -> None:
    async def compose(started: Process[ProcessSettings]) -> int:
        assert all(trace_rate.admits() for _ in range(100))
        assert not logs.is_slow(1.0)
        changed = {"traces_per_second": 0.0, "trace_share": 0.0, "slow_seconds": 0.5}
        placed.put("config/gateway", json.dumps(SETTINGS.model_dump() | changed))
        await until("traces are not recorded any more", lambda: not trace_rate.admits())
        return int(not logs.is_slow(1.0))

    try:
        assert await process_module.live("gateway", ProcessSettings, compose) == 0
    finally:
        trace_rate.change(0.0, 1.0)
        logs.set_slow(1.0)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGQUIT])
async def test_the_exit_code_after_a_signal_to_end_is_zero(placed: FakeConsul, number: signal.Signals) -> None:
    done: list[str] = []

    async def compose(started: Process[ProcessSettings]) -> None:
        os.kill(os.getpid(), number)
        await started.wait_for_drain()
        done.append("drained")

    began = time.monotonic()
    assert await process_module.live("gateway", ProcessSettings, compose) == 0
    assert done == ["drained"]
    assert time.monotonic() - began >= 0.3


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGALRM])
async def test_a_signal_to_reload_ends_nothing(placed: FakeConsul, number: signal.Signals) -> None:
    async def compose(started: Process[ProcessSettings]) -> int:
        os.kill(os.getpid(), number)
        await asyncio.sleep(0.1)
        return 5 if started.stopping.is_set() else 0

    with structlog.testing.capture_logs() as logs:
        assert await process_module.live("gateway", ProcessSettings, compose) == 0
    assert [line["signal"] for line in logs if line["event"] == "signal ignored"] == [number.name]


async def test_sigterm_while_consul_is_unavailable_stops_the_start(
    placed: FakeConsul, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def endless() -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        await asyncio.Event().wait()

    monkeypatch.setattr(placed, "connect", endless)
    async with asyncio.timeout(2):
        assert await process_module.live("gateway", ProcessSettings, _never) == 0


async def test_the_process_exits_in_time_while_its_work_does_not_end(
    placed: FakeConsul, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process_module, "FLUSH_SECONDS", 0.1)
    placed.put("config/gateway", json.dumps(SETTINGS.model_dump() | {"drain_seconds": 0, "grace_seconds": 0.1}))

    async def stuck(started: Process[ProcessSettings]) -> None:
        started.stopping.set()
        await asyncio.Event().wait()

    async with asyncio.timeout(3):
        assert await process_module.live("gateway", ProcessSettings, stuck) == 0


async def test_the_exit_code_after_a_failed_composition_is_one(placed: FakeConsul) -> None:
    async def broken(_started: Process[ProcessSettings]) -> None:
        raise RuntimeError("no port")

    with structlog.testing.capture_logs() as logs:
        assert await process_module.live("gateway", ProcessSettings, broken) == 1
    assert any(line["event"] == "process failed" for line in logs)


async def _never(_started: Process[ProcessSettings]) -> None:
    raise AssertionError("composed although the start failed")
