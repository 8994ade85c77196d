"""Consul and Vault as one process of ours sees them: settings, instances, token keys, a database login, and the mesh.

So a real process of any revision starts as in a stack, without one. Blocking queries wait until something changes.
"""

from __future__ import annotations

import json
import re
import threading
from base64 import b64encode
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from bench.setup.mesh import Mesh

Answer = tuple[int, Any]
_LEASE_SECONDS = 86_400


class Agents:
    """What the agents answer: `settings` by program, addresses by service, the raw public key of the access tokens.

    A process belongs to `mesh` if there is one; without one it is started outside of any mesh.
    """

    def __init__(
        self,
        settings: Mapping[str, str],
        services: Mapping[str, str],
        token_key: bytes = b"",
        mesh: Mesh | None = None,
    ) -> None:
        self._settings, self._services, self._token_key = dict(settings), dict(services), token_key
        self.mesh = mesh
        self._index, self._changed = 1, threading.Condition()
        self.url = ""

    def change(self, program: str, settings: str) -> None:
        """Replaces the settings of a program while it runs."""
        with self._changed:
            self._settings[program] = settings
            self._index += 1
            self._changed.notify_all()

    def wait(self, index: int, seconds: float) -> int:
        """Waits for a change after `index`; returns the current index."""
        with self._changed:
            self._changed.wait_for(lambda: self._index > index, seconds)
            return self._index

    def key(self, name: str) -> Answer:
        value = self._settings.get(name)
        if value is None:
            return 404, None
        encoded = b64encode(value.encode()).decode()
        return 200, [{"Key": f"config/{name}", "Value": encoded, "Flags": 0, "ModifyIndex": 1}]

    def service(self, name: str) -> Answer:
        address = self._services.get(name)
        if address is None:
            return 200, []
        host, _, port = address.rpartition(":")
        instance = {"ID": address, "Service": name, "Address": host, "Port": int(port), "Tags": []}
        return 200, [{"Node": {"Address": host}, "Service": instance, "Checks": []}]

    def token_keys(self) -> Answer:
        return 200, {"data": {"keys": {"1": {"public_key": b64encode(self._token_key).decode()}}}}


@dataclass(frozen=True)
class _Request:
    """The name that the pattern of a path has found, the query, and the body."""

    name: str
    query: Mapping[str, str]
    body: bytes


def _routes(agents: Agents) -> Mapping[str, Callable[[_Request], Answer]]:
    """What is answered by the pattern of the path, whatever the method."""
    lease = {"lease_id": "bench", "lease_duration": _LEASE_SECONDS, "renewable": True}
    login = {"auth": {"client_token": "bench", "lease_duration": _LEASE_SECONDS}}
    return {
        r"/v1/kv/config/(.+)": lambda asked: agents.key(asked.name),
        r"/v1/health/service/(.+)": lambda asked: agents.service(asked.name),
        r"/v1/acl/(login)": lambda _: (200, {"SecretID": "bench"}),
        r"/v1/acl/(.+)": lambda _: (200, True),
        r"/v1/status/(leader)": lambda _: (200, "127.0.0.1:8300"),
        r"/v1/auth/(.+)": lambda _: (200, login),
        r"/v1/sys/leases/(renew)": lambda _: (200, lease),
        r"/v1/sys/(health)": lambda _: (200, {"initialized": True}),
        r"/v1/transit/keys/(.+)": lambda _: agents.token_keys(),
        # A login of this name exists in the private Postgres; it accepts every password.
        r"/v1/database/creds/(.+)": lambda asked: (
            200,
            {**lease, "data": {"username": asked.name, "password": "-"}},
        ),
        **(_mesh_routes(agents.mesh) if agents.mesh else {}),
    }


def _mesh_routes(mesh: Mesh) -> Mapping[str, Callable[[_Request], Answer]]:
    return {
        r"/v1/agent/connect/ca/(roots)": lambda _: (200, mesh.roots()),
        r"/v1/connect/intentions/(match)": lambda asked: (200, mesh.intentions(asked.query["name"])),
        r"/v1/mesh/sign/(.+)": lambda asked: (200, {"data": mesh.sign(json.loads(asked.body)["csr"])}),
    }


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_: Any) -> None:
        """Prints nothing: a process that ends cuts its blocking queries."""


@contextmanager
def answering(agents: Agents) -> Iterator[Agents]:
    """Answers for the agents at `agents.url` until the block ends."""
    routes = {re.compile(pattern): answer for pattern, answer in _routes(agents).items()}

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _answer(self) -> None:
            sent = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            path, query = urlsplit(self.path).path, dict(parse_qsl(urlsplit(self.path).query))
            index = agents.wait(int(query.get("index", 0)), float(query.get("wait", "0").rstrip("s")))
            found = ((answer, match) for pattern, answer in routes.items() if (match := pattern.fullmatch(path)))
            answer, match = next(found, (None, None))
            status, body = answer(_Request(match[1], query, sent)) if answer and match else (404, None)
            text = json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(text)))
            self.send_header("X-Consul-Index", str(index))
            self.end_headers()
            self.wfile.write(text)

        do_GET = do_PUT = do_POST = _answer  # noqa: N815 - the names that http.server calls

        def log_message(self, *_: Any) -> None:
            """Prints nothing."""

    server = _Server(("127.0.0.1", 0), Handler)
    agents.url = f"http://127.0.0.1:{server.server_address[1]}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield agents
    finally:
        server.shutdown()
