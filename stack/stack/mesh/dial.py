"""`mesh dial`: a loopback port through which an ordinary gRPC client calls a service with the operator's rights.

The client sends plaintext HTTP/2; each of its connections is forwarded byte by byte over mutual TLS to a healthy
instance. Only programs of the user who runs the command may connect.
"""

from __future__ import annotations

import asyncio
import os
import random
import re
import signal
import ssl
from collections.abc import Callable
from contextlib import suppress
from functools import partial

from consul import ConsulException
from hvac.exceptions import VaultError

from chassis.mesh.names import server_name
from stack.build.zipapps import SERVICES
from stack.cluster import agents, nomad
from stack.cluster.clients import Clients
from stack.config import Stack
from stack.console import StackError, say
from stack.machine.ports import listener
from stack.mesh import operator_leaf
from stack.mesh.loopback_peer import user_id
from stack.mesh.operator_leaf import Leaf

HOST = "127.0.0.1"
Address = tuple[str, int]
_Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]
_CHUNK_BYTES = 65_536
_HANDSHAKE_SECONDS = 5.0
_ISSUE_ERRORS = (OSError, ConsulException, VaultError, StackError)


def dial(stack: Stack, service: str, port: int) -> None:
    """Forwards connections to `port`, or to a free port if that is 0, until Ctrl-C."""
    if service not in names():
        raise StackError(f"{service!r} cannot be dialled", "it serves no gRPC", f"one of: {', '.join(names())}")
    agents.require_running(stack)
    if not is_on(Clients(stack), service):
        raise StackError(f"{service} is not in the mesh", "it speaks plaintext", "dial an address of ./justw status")
    # New clients each time: a token of the operator lives for hours, and this command may run for longer.
    issue = lambda: operator_leaf.issue(Clients(stack))  # noqa: E731
    asyncio.run(_run(Forwarder(service, issue, partial(instances, Clients(stack), service)), port))


def names() -> list[str]:
    """Returns every service that serves gRPC."""
    values = {name: nomad.job_files(name)[-1].read_text() for name in SERVICES}
    return [name for name in SERVICES if re.search(r'^protocol *= *"grpc"', values[name], re.MULTILINE)]


def is_on(clients: Clients, service: str) -> bool:
    """Returns whether the job of a service is in the mesh; that of the edge says so in its metadata."""
    job = clients.nomad.job.get_job(service)
    tasks = [task for group in job["TaskGroups"] for task in group["Tasks"]]
    return all("on" in ((task["Env"] or {}).get("MESH"), (task["Meta"] or {}).get("mesh")) for task in tasks)


def instances(clients: Clients, service: str) -> list[Address]:
    """Returns the address of each healthy instance of a service."""
    services = [entry["Service"] for entry in clients.consul.health.service(service, passing=True)[1]]
    return [(service["Address"] or HOST, service["Port"]) for service in services]


async def _run(forwarder: Forwarder, port: int) -> None:
    stopping, loop = asyncio.Event(), asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stopping.set)
    address = await forwarder.open(port)
    say(f"{forwarder.service} at {address}, plaintext, with the rights of the operator; Ctrl-C ends it")
    say(f"  for example: grpcurl -plaintext {address} list")
    await stopping.wait()
    await forwarder.close()


class Forwarder:
    """Forwards plaintext connections of this user to the healthy instances of a service, each to one of them.

    `issue` returns a new leaf; it is called again when half of the leaf's time is over, or no instance accepts it. A
    connection that cannot be forwarded is closed, and `report` gets the reason.
    """

    def __init__(
        self,
        service: str,
        issue: Callable[[], Leaf],
        find_instances: Callable[[], list[Address]],
        report: Callable[[str], None] = say,
    ) -> None:
        self.service = service
        self._issue, self._find_instances, self._report = issue, find_instances, report
        self._leaf: Leaf | None = None
        self._is_doubted = False
        self._issuing = asyncio.Lock()
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.Task[None]] = set()

    async def open(self, port: int = 0) -> str:
        """Listens at a loopback port, 0 for a free one, and returns host:port; raises StackError if it is taken."""
        await self._current_leaf()  # an error in it ends the command
        try:
            self._server = await asyncio.start_server(self._accepted, HOST, port)
        except OSError as error:
            why = listener(port) or str(error)
            raise StackError(f"port {port} cannot be opened", why, "choose another --port, or none") from error
        return "{}:{}".format(*self._server.sockets[0].getsockname())

    async def close(self) -> None:
        """Stops listening and ends the connections."""
        if self._server is not None:
            self._server.close()
        for task in list(self._connections):
            task.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    def _accepted(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(self._forward(reader, writer))
        self._connections.add(task)
        task.add_done_callback(self._connections.discard)

    async def _forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            self._require_own_user(writer)
            instance = await self._connect()
            try:
                await _exchange((reader, writer), instance)
            finally:
                instance[1].close()
        except _ISSUE_ERRORS as error:
            self._report(f"a connection to {self.service} failed: {error}")
        finally:
            writer.close()

    def _require_own_user(self, writer: asyncio.StreamWriter) -> None:
        """Raises PermissionError unless the process at the other end belongs to the user of this one."""
        user = user_id(writer.get_extra_info("peername")[:2], writer.get_extra_info("sockname")[:2])
        if user != os.geteuid():
            raise PermissionError(f"it came from another user (id {'unknown' if user is None else user})")

    async def _connect(self) -> _Streams:
        """Returns a connection to a random instance, or to another one if that fails."""
        context = operator_leaf.tls_context(await self._current_leaf())
        found = await asyncio.to_thread(self._find_instances)
        if not found:
            raise ConnectionError("it has no healthy instance")
        problems = []
        for host, port in random.sample(found, len(found)):
            try:
                return await self._handshake(host, port, context)
            except OSError as error:
                problems.append(error)
        # The roots may have changed, so the next connection begins with new ones.
        self._is_doubted = True
        raise problems[-1]

    async def _handshake(self, host: str, port: int, context: ssl.SSLContext) -> _Streams:
        name = server_name(self.service)
        return await asyncio.open_connection(
            host, port, ssl=context, server_hostname=name, ssl_handshake_timeout=_HANDSHAKE_SECONDS
        )

    async def _current_leaf(self) -> Leaf:
        """Returns the leaf, a new one if it is due; keeps a valid one while OpenBao or Consul is unavailable."""
        async with self._issuing:
            if self._leaf is None or self._leaf.is_due() or self._is_doubted:
                try:
                    self._leaf = await asyncio.to_thread(self._issue)
                    self._is_doubted = False
                except _ISSUE_ERRORS as error:
                    if self._leaf is None or self._leaf.is_over():
                        raise
                    self._report(f"no new certificate, the last one stays in use: {error}")
            return self._leaf


async def _exchange(client: _Streams, instance: _Streams) -> None:
    """Copies bytes both ways until one side ends; raises OSError if the instance ends without a proper end."""
    work = [asyncio.create_task(_send(client[0], instance[1])), asyncio.create_task(_receive(instance[0], client[1]))]
    try:
        done, _ = await asyncio.wait(work, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        for task in work:
            task.cancel()
        await asyncio.gather(*work, return_exceptions=True)


async def _send(client: asyncio.StreamReader, instance: asyncio.StreamWriter) -> None:
    while True:
        data = b""
        with suppress(ConnectionError):  # a client that goes away ends the connection, and no more
            data = await client.read(_CHUNK_BYTES)
        if not data:
            return
        instance.write(data)
        await instance.drain()


async def _receive(instance: asyncio.StreamReader, client: asyncio.StreamWriter) -> None:
    answers = False
    while data := await instance.read(_CHUNK_BYTES):
        answers = True
        client.write(data)
        with suppress(ConnectionError):
            await client.drain()
    if not answers:
        # With TLS 1.3 a client learns only after its handshake that the server does not accept its certificate.
        raise ConnectionError("the instance closed it without an answer, so it may not accept the certificate")
