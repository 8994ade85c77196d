"""Life cycle of a process: configure, start telemetry, serve, drain. Signals are handled before the process serves.

Invariant: after a signal of DRAIN readiness fails first, accepted work is finished, and the process exits in bounded
time. A signal of IGNORED changes nothing.
"""

from __future__ import annotations

import asyncio
import inspect
import os
import signal
import sys
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from contextvars import Context
from typing import Any, Generic, TypeVar

import structlog
import uvloop

from chassis import watchdog
from chassis.backoff import backoff
from chassis.errors import ConfigurationError
from chassis.mesh import handshake_failures
from chassis.mesh.identity import MeshIdentity
from chassis.platform.consul import ConsulClient
from chassis.platform.discovery import Discovery
from chassis.platform.vault import Vault
from chassis.settings import Environment, Live, ProcessSettings, load_settings, watch_settings
from chassis.telemetry import export, logs
from chassis.telemetry.sampling import trace_rate

log = structlog.get_logger(__name__)

K = TypeVar("K", bound=ProcessSettings)
T = TypeVar("T")
Probe = Callable[[], "str | Awaitable[str | None] | None"]
FLUSH_SECONDS = 2.0
DRAIN = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT)
# Elsewhere these reload files or open logs again; settings are followed in Consul and logs go to stdout. Each of them
# would end a process that does not handle it.
IGNORED = (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGALRM)
_RESTART_SECONDS = (0.1, 5.0)
_HEALTHY_SECONDS = 30.0


class Process(Generic[K]):
    """Settings, agents and background work of a process; made by `run`, or by `chassis.testing.process` in unit tests.

    The process is ready while every probe added with `add_readiness` passes; this is the only notion of readiness, and
    gRPC health or an HTTP route reports it.
    """

    def __init__(
        self,
        name: str,
        environment: Environment,
        settings: Live[K],
        consul: ConsulClient,
        stopping: asyncio.Event | None = None,
    ) -> None:
        self.name = name
        self.environment = environment
        self.settings = settings
        self.consul = consul
        self.stopping = stopping or asyncio.Event()
        self.vault = Vault(
            environment.vault_addr, name, environment.identity_dir, self.supervise, environment.vault_cacert
        )
        self.discovery = Discovery(consul, self.supervise)
        self._mesh: MeshIdentity | None = None
        self._probes: dict[str, Probe] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._closers: list[Callable[[], Awaitable[None]]] = []

    def supervise(self, name: str, work: Callable[[], Awaitable[None]]) -> asyncio.Task[None]:
        """Runs `work()` in the background until the process ends; a failure is logged and `work()` starts again."""
        # An empty context: background work must not inherit the caller's deadline and span.
        task = asyncio.create_task(_restarting(name, work), name=name, context=Context())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def join_mesh(self) -> MeshIdentity | None:
        """Returns the identity in the mesh, kept up to date since the first call; None where there is no mesh."""
        if self._mesh is None and self.environment.mesh:
            self._mesh = MeshIdentity(self.name, self.vault, self.consul)
            self._mesh.start(self.supervise, self.settings.section(lambda now: now.mesh))
            self.add_readiness("mesh", self._mesh.readiness)
        return self._mesh

    async def wait_for_mesh(self) -> bool:
        """Waits for the first certificate where there is a mesh; returns False if SIGTERM comes first."""
        identity = self.join_mesh()
        if identity is not None:
            await _unless_stopped(self.stopping, identity.ready())
        return identity is None or not self.stopping.is_set()

    def add_readiness(self, name: str, probe: Probe) -> None:
        """Adds a readiness probe: it returns None if ready, else the reason. An exception counts as a reason."""
        self._probes[name] = probe

    async def readiness(self) -> dict[str, str]:
        """Returns "ok" or the reason for each probe; a process that is stopping is not ready."""
        results = {name: await _result(probe) for name, probe in self._probes.items()}
        if self.stopping.is_set():
            results["process"] = "stopping"
        return results

    async def wait_for_drain(self) -> None:
        """Waits for SIGTERM, then `drain_seconds` more, in which callers notice that the process is not ready."""
        await self.stopping.wait()
        log.info("draining", seconds=self.settings.value.drain_seconds)
        await asyncio.sleep(self.settings.value.drain_seconds)

    def on_close(self, closer: Callable[[], Awaitable[None]]) -> None:
        """Calls `closer` after serving has ended; the last one added is called first."""
        self._closers.append(closer)

    async def close(self) -> None:
        """Cancels background work, then calls the closers; logs a failure and continues with the rest."""
        await self._cancel_background()
        for closer in reversed(self._closers):
            try:
                await asyncio.wait_for(closer(), FLUSH_SECONDS)
            except Exception:
                log.exception("close failed", closer=getattr(closer, "__qualname__", repr(closer)))
        # A closer may have started background work.
        await self._cancel_background()
        await self.vault.close()
        await self.consul.close()

    async def _cancel_background(self) -> None:
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=FLUSH_SECONDS)


def run(name: str, settings: type[K], compose: Callable[[Process[K]], Awaitable[int | None]]) -> None:
    """Runs `compose` as a whole process. Exits with its result (None is 0), 1 if it fails or settings are invalid."""
    loop = uvloop.new_event_loop()
    asyncio.set_event_loop(loop)
    watchdog.start(loop)
    code = loop.run_until_complete(live(name, settings, compose))
    export.stop(FLUSH_SECONDS)
    with suppress(OSError):  # a stdout that Nomad has closed must not change the exit code
        sys.stdout.flush()
    # A normal exit would wait minutes for threads that hang in a dead collector or database.
    os._exit(code)


async def live(name: str, settings: type[K], compose: Callable[[Process[K]], Awaitable[int | None]]) -> int:
    """Runs `compose` like `run`, but in the current event loop; returns the exit code."""
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    logs.to_stdout(name)
    for number in DRAIN:
        loop.add_signal_handler(number, stopping.set)
    for number in IGNORED:
        loop.add_signal_handler(number, _ignore, number)
    try:
        process = await _unless_stopped(stopping, configure(name, settings, stopping))
        return await _serve(process, compose) if process is not None else 0
    except ConfigurationError as error:
        log.critical("invalid configuration, the process does not start", problem=str(error))
        return 1
    except Exception:
        log.exception("process failed")
        return 1


def _ignore(number: signal.Signals) -> None:
    log.info("signal ignored", signal=number.name)


async def configure(name: str, settings: type[K], stopping: asyncio.Event) -> Process[K]:
    """Reads the environment, connects to Consul (retries until it answers), loads settings and starts telemetry."""
    environment = Environment.load()
    if environment.mesh:
        handshake_failures.start()
    identity = environment.identity_dir / "nomad_consul.jwt"
    consul = ConsulClient(environment.consul_http_addr, identity, environment.consul_cacert)
    await consul.connect()
    values = await load_settings(consul, f"config/{name}", settings)
    export.start(name, environment.version, environment.instance_id, environment.otel_exporter_otlp_endpoint)
    _apply(values.value)
    values.on_change(_apply)
    process = Process(name, environment, values, consul, stopping)
    process.supervise("settings", lambda: watch_settings(consul, f"config/{name}", values))
    process.join_mesh()  # as early as possible: the first certificate takes a moment
    return process


def _apply(settings: ProcessSettings) -> None:
    """Makes telemetry follow the settings."""
    logs.set_level(settings.log_level)
    logs.set_slow(settings.slow_seconds)
    trace_rate.change(settings.traces_per_second, settings.trace_share)


async def _serve(process: Process[K], compose: Callable[[Process[K]], Awaitable[int | None]]) -> int:
    log.info("starting", version=process.environment.version, instance=process.environment.instance_id)
    serving = asyncio.ensure_future(compose(process))
    stopped = asyncio.ensure_future(process.stopping.wait())
    try:
        await asyncio.wait({serving, stopped}, return_when=asyncio.FIRST_COMPLETED)
        settings = process.settings.value
        return await asyncio.wait_for(serving, settings.drain_seconds + settings.grace_seconds + FLUSH_SECONDS) or 0
    except TimeoutError:
        log.warning("drain exceeded its time limit, remaining work is abandoned")
        return 0
    finally:
        stopped.cancel()
        await process.close()
        log.info("stopped")


async def _unless_stopped(stopping: asyncio.Event, work: Awaitable[T]) -> T | None:
    """Returns the result of `work`; cancels it and returns None if the process receives SIGTERM first."""
    started = asyncio.ensure_future(work)
    stopped = asyncio.ensure_future(stopping.wait())
    done, _ = await asyncio.wait({started, stopped}, return_when=asyncio.FIRST_COMPLETED)
    for task in (started, stopped):
        if task not in done:
            task.cancel()
    return started.result() if started in done else None


async def _restarting(name: str, work: Callable[[], Awaitable[None]]) -> None:
    delays = backoff(*_RESTART_SECONDS)
    while True:
        started = time.monotonic()
        try:
            return await work()
        except Exception:
            log.exception("task failed, restarting it", task=name)
        if time.monotonic() - started > _HEALTHY_SECONDS:
            delays = backoff(*_RESTART_SECONDS)
        await asyncio.sleep(next(delays))


async def _result(probe: Probe) -> str:
    try:
        reason: Any = probe()
        if inspect.isawaitable(reason):
            reason = await asyncio.wait_for(reason, FLUSH_SECONDS)
    except Exception as error:
        return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    return reason or "ok"
