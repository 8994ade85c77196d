"""The life of a process: configure, observe, serve, drain. The signal handler stands before anything is served.

Invariant: after SIGTERM readiness fails first, work accepted is finished, and the process ends in bounded time.
"""

from __future__ import annotations

import asyncio
import inspect
import os
import signal
import sys
import time
from collections.abc import Awaitable, Callable
from contextvars import Context
from typing import Any, Generic, TypeVar

import structlog
import uvloop

from chassis.backoff import backoff
from chassis.errors import ConfigurationError
from chassis.platform.consul import ConsulClient
from chassis.platform.discovery import Discovery
from chassis.platform.vault import Vault
from chassis.settings import Environment, Live, ProcessSettings, load_settings, watch_settings
from chassis.telemetry import export, logs

log = structlog.get_logger(__name__)

K = TypeVar("K", bound=ProcessSettings)
Probe = Callable[[], "str | Awaitable[str | None] | None"]
FLUSH_SECONDS = 2.0
_RESTART_SECONDS = (0.1, 5.0)
_WORKED_SECONDS = 30.0


class Process(Generic[K]):
    """What every part of a process stands on; made by `run`, or by `chassis.testing.process` in a unit test."""

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
        self.vault = Vault(environment.vault_addr, name, environment.identity_dir, self.supervise)
        self.discovery = Discovery(consul, self.supervise)
        self._probes: dict[str, Probe] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._closers: list[Callable[[], Awaitable[None]]] = []

    def supervise(self, name: str, work: Callable[[], Awaitable[None]]) -> asyncio.Task[None]:
        """Run `work()` in the background until the process ends; when it fails, log it and start it again."""
        # An empty context: the deadline and span of whoever asked do not belong to background work.
        task = asyncio.create_task(_restarting(name, work), name=name, context=Context())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def add_readiness(self, name: str, probe: Probe) -> None:
        """Ask `probe` whether the process can work: it returns None or "ok", or says (or raises) why not."""
        self._probes[name] = probe

    async def readiness(self) -> dict[str, str]:
        """Each probe's answer, "ok" or the reason; a process that stops is not ready."""
        answers = {name: await _answer(probe) for name, probe in self._probes.items()}
        if self.stopping.is_set():
            answers["process"] = "stopping"
        return answers

    async def until_drained(self) -> None:
        """Return when the process was told to stop and everyone had `drain_seconds` to see that it is not ready."""
        await self.stopping.wait()
        log.info("draining", seconds=self.settings.value.drain_seconds)
        await asyncio.sleep(self.settings.value.drain_seconds)

    def on_close(self, closer: Callable[[], Awaitable[None]]) -> None:
        """Call `closer` after serving has ended, last one first."""
        self._closers.append(closer)

    async def close(self) -> None:
        """End the background work, then close what it stood on; a failure is logged and the rest goes on."""
        await self._end_background()
        for closer in reversed(self._closers):
            try:
                await asyncio.wait_for(closer(), FLUSH_SECONDS)
            except Exception:
                log.exception("close failed")
        # A closer may have left something to be done in the background.
        await self._end_background()
        await self.vault.close()
        await self.consul.close()

    async def _end_background(self) -> None:
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=FLUSH_SECONDS)


def run(name: str, settings: type[K], compose: Callable[[Process[K]], Awaitable[int | None]]) -> None:
    """Live one life and exit: with what `compose` returns (None is 0), 1 when configuration is refused or it fails."""
    loop = uvloop.new_event_loop()
    asyncio.set_event_loop(loop)
    code = loop.run_until_complete(live(name, settings, compose))
    export.stop(FLUSH_SECONDS)
    sys.stdout.flush()
    # Threads stuck in a dead collector or database would hold a normal exit up for minutes.
    os._exit(code)


async def live(name: str, settings: type[K], compose: Callable[[Process[K]], Awaitable[int | None]]) -> int:
    """`run` without the event loop and without the exit: the exit code of one life."""
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    logs.to_stdout(name)
    try:
        process = await _until(stopping, configure(name, settings, stopping))
        return await _serve(process, compose) if process is not None else 0
    except ConfigurationError as refusal:
        log.critical("configuration refused, the process does not start", problem=str(refusal))
        return 1
    except Exception:
        log.exception("process failed")
        return 1


async def configure(name: str, settings: type[K], stopping: asyncio.Event) -> Process[K]:
    """Read the environment, log in to Consul, load the settings and start telemetry; retries until Consul answers."""
    environment = Environment.load()
    consul = ConsulClient(environment.consul_http_addr, environment.identity_dir / "nomad_consul.jwt")
    await consul.reachable()
    values = await load_settings(consul, f"config/{name}", settings)
    export.start(name, environment.version, environment.instance_id, environment.otel_exporter_otlp_endpoint)
    logs.set_level(values.value.log_level)
    values.on_change(lambda now: logs.set_level(now.log_level))
    process = Process(name, environment, values, consul, stopping)
    process.supervise("settings", lambda: watch_settings(consul, f"config/{name}", values))
    return process


async def _serve(process: Process[K], compose: Callable[[Process[K]], Awaitable[int | None]]) -> int:
    log.info("starting", version=process.environment.version, instance=process.environment.instance_id)
    serving = asyncio.ensure_future(compose(process))
    stopped = asyncio.ensure_future(process.stopping.wait())
    try:
        await asyncio.wait({serving, stopped}, return_when=asyncio.FIRST_COMPLETED)
        settings = process.settings.value
        return await asyncio.wait_for(serving, settings.drain_seconds + settings.grace_seconds + FLUSH_SECONDS) or 0
    except TimeoutError:
        log.warning("drain took too long, the rest is abandoned")
        return 0
    finally:
        stopped.cancel()
        await process.close()
        log.info("stopped")


async def _until(stopping: asyncio.Event, work: Awaitable[Process[K]]) -> Process[K] | None:
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
            log.exception("task failed, starting it again", task=name)
        if time.monotonic() - started > _WORKED_SECONDS:
            delays = backoff(*_RESTART_SECONDS)
        await asyncio.sleep(next(delays))


async def _answer(probe: Probe) -> str:
    try:
        answer: Any = probe()
        if inspect.isawaitable(answer):
            answer = await asyncio.wait_for(answer, FLUSH_SECONDS)
    except Exception as error:
        return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    return answer or "ok"
