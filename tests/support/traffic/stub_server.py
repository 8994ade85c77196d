"""A stub server between callers and the instances of a service: counts every call, and fails or delays it.

It is registered in Consul in place of the instances, so that calls are counted where they arrive. In the mesh it has
a certificate of the service, and forwards calls as the operator.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import grpc
import grpc.aio
from grpc_status import rpc_status
from support.mesh.channels import caller_credentials, named
from support.stack_under_test import RunningStack, eventually

from chassis.errors import PUSHBACK, RpcError, to_status
from stack.chaos.traffic_redirect import TAG, TrafficRedirect, remove_redirect
from stack.cluster.clients import Clients
from stack.mesh.dial import is_on
from stack.mesh.operator_leaf import issue

T = TypeVar("T")
_SECONDS = 30.0


@dataclass
class StubInstance:
    """One port of a stub server: it may be slower than the others, and sheds calls beyond `most` in progress."""

    extra_pause: float = 0.0
    most: float = float("inf")
    in_progress: int = 0
    shed: int = 0


class _Tls:
    """The credentials of the stub in the mesh."""

    def __init__(self, clients: Clients, service: str) -> None:
        own = issue(clients, service)
        self.server = grpc.ssl_server_credentials([(own.key, own.chain)], own.roots, require_client_auth=True)
        self.caller, self.target_name = caller_credentials(issue(clients)), named(service)


class StubServer:
    """Forwards every unary call to an instance after `pause` seconds, or fails it while `failing`."""

    def __init__(self, clients: Clients, service: str) -> None:
        self._tls = _Tls(clients, service) if is_on(clients, service) else None
        self.instances: dict[int, StubInstance] = {}
        """The open ports."""
        self.failing = False
        self.pause = 0.0
        self.attempts: list[float] = []
        """When each call arrived, of time.time()."""
        self.cancelled = 0
        self._servers: dict[int, grpc.aio.Server] = {}
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()

    def open(self, target: tuple[str, int]) -> int:
        """Opens a port that forwards to `target`; returns it."""
        return self._wait(self._open(*target))

    def close(self, port: int) -> None:
        self.instances.pop(port)
        self._wait(self._servers.pop(port).stop(1))

    def end(self) -> None:
        """Close every port."""
        for port in list(self._servers):
            self.close(port)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)

    def between(self, began: float, ended: float) -> int:
        """How many calls arrived between two moments of time.time()."""
        return sum(began <= at < ended for at in self.attempts)

    async def _open(self, host: str, port: int) -> int:
        server, instance = grpc.aio.server(), StubInstance()
        if self._tls is None:
            channel = grpc.aio.insecure_channel(f"{host}:{port}")
            own = server.add_insecure_port("127.0.0.1:0")
        else:
            channel = grpc.aio.secure_channel(f"{host}:{port}", self._tls.caller, self._tls.target_name)
            own = server.add_secure_port("127.0.0.1:0", self._tls.server)
        server.add_generic_rpc_handlers([_Every(self, instance, channel)])
        await server.start()
        self._servers[own], self.instances[own] = server, instance
        return own

    def _wait(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(10)


class _Every(grpc.GenericRpcHandler):
    """One handler for all methods; messages stay bytes."""

    def __init__(self, stub: StubServer, instance: StubInstance, channel: grpc.aio.Channel) -> None:
        self._stub, self._instance, self._channel = stub, instance, channel

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
        path, metadata = handler_call_details.method, handler_call_details.invocation_metadata
        instance = self._instance

        async def answer(request: bytes, context: Any) -> Any:
            self._stub.attempts.append(time.time())
            if instance.in_progress >= instance.most:
                instance.shed += 1
                await _shed(context)
            instance.in_progress += 1
            try:
                await asyncio.sleep(self._stub.pause + instance.extra_pause)
                if self._stub.failing:
                    await context.abort(grpc.StatusCode.UNAVAILABLE, "fails on purpose")
                sent = [(key, value) for key, value in metadata if key == "traceparent"]
                return await self._channel.unary_unary(path, None, None)(request, timeout=_SECONDS, metadata=sent)
            except asyncio.CancelledError:
                self._stub.cancelled += 1
                raise
            finally:
                instance.in_progress -= 1

        return grpc.unary_unary_rpc_method_handler(answer)  # type: ignore[no-untyped-call]


async def _shed(context: Any) -> None:
    """Rejects a call as the limiter of a service does."""
    overloaded = RpcError(grpc.StatusCode.RESOURCE_EXHAUSTED, "OVERLOADED", "full on purpose", retry_after=1.0)
    status: Any = rpc_status.to_status(to_status(overloaded))
    await context.abort(status.code, status.details, (*status.trailing_metadata, (PUSHBACK, "-1000")))


@contextmanager
def stubbed(running: RunningStack, service: str) -> Iterator[StubServer]:
    """Redirects all calls to a service through a stub server, which forwards them at first."""
    stub = StubServer(running.clients, service)
    redirect = TrafficRedirect(running.clients, service, stub)  # type: ignore[arg-type]
    stopping = threading.Event()

    def follow() -> None:
        while not stopping.wait(2.0):
            redirect.follow()

    following = threading.Thread(target=follow, daemon=True)
    try:
        redirect.follow()
        following.start()
        found = lambda: [entry["Service"]["Tags"] for entry in running.instances(service)]  # noqa: E731
        eventually("callers find stubs only", lambda: found() and all(TAG in tags for tags in found()))
        yield stub
    finally:
        stub.failing, stub.pause = False, 0.0
        stopping.set()
        if following.ident:
            following.join(10)
        remove_redirect(running.clients, service)
        running.wait_until_healthy()
        stub.end()
