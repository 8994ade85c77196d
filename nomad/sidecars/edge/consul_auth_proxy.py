"""Forwards requests from a Unix socket to Consul and adds a token, for a program that cannot log in itself.

Invariant: the token is obtained by workload identity, exists only in the memory of this process, and is renewed when
Consul rejects it. It needs only the standard library, because the job carries its source text.
"""

from __future__ import annotations

import http.client
import json
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from socketserver import ThreadingMixIn, UnixStreamServer
from urllib.parse import urlsplit

# Consul limits a blocking query to ten minutes, plus a sixteenth.
_LONGEST_SECONDS = 640.0
_RETRY_SECONDS = 0.3
_REJECTED = {401, 403}
_FORWARDED = ("Content-Type", "X-Consul-Index", "X-Consul-KnownLeader", "X-Consul-LastContact")


class Login:
    """Holds the token of this process."""

    def __init__(self, consul: str, identity: Path) -> None:
        self._consul, self._identity = consul, identity
        self._lock = threading.Lock()
        self.token = ""

    def renew(self, rejected: str) -> str:
        """Logs in again, unless another thread has replaced the rejected token already; returns the token."""
        with self._lock:
            if self.token == rejected:
                request = {"AuthMethod": "nomad-workloads", "BearerToken": self._identity.read_text().strip()}
                status, _, body = exchange(self._consul, "POST", "/v1/acl/login", "", json.dumps(request).encode())
                if status != http.HTTPStatus.OK:
                    # Never continue without a token: Consul would return an empty list, and Traefik would trust it.
                    raise PermissionError(f"login refused: {body.decode(errors='replace')[:200]}")
                self.token = json.loads(body)["SecretID"]
            return self.token

    def end(self) -> None:
        """Revokes the token."""
        if self.token:
            exchange(self._consul, "POST", "/v1/acl/logout", self.token)


def exchange(consul: str, method: str, path: str, token: str, body: bytes = b"") -> tuple[int, dict[str, str], bytes]:
    """Sends one request to Consul; returns status, forwarded headers and body. Raises OSError, HTTPException."""
    connection = http.client.HTTPConnection(consul, timeout=_LONGEST_SECONDS if method == "GET" else 5.0)
    try:
        connection.request(method, path, body, {"X-Consul-Token": token} if token else {})
        response = connection.getresponse()
        headers = {name: value for name in _FORWARDED if (value := response.headers[name])}
        return response.status, headers, response.read()
    finally:
        connection.close()


class Server(ThreadingMixIn, UnixStreamServer):
    """Listens on a Unix socket."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, socket: str, consul: str, login: Login) -> None:
        Path(socket).unlink(missing_ok=True)
        self.consul, self.login = consul, login
        super().__init__(socket, Handler)


class Handler(BaseHTTPRequestHandler):
    """Forwards GET requests; no other method exists, so nothing can be changed in Consul."""

    protocol_version = "HTTP/1.1"
    server: Server

    def do_GET(self) -> None:
        try:
            status, headers, body = self._forward_until_available()
        except (OSError, http.client.HTTPException, ValueError, KeyError) as error:
            status, headers, body = 502, {}, f"consul is unavailable: {error}\n".encode()
        self.send_response(status)
        for name, value in (headers | {"Content-Length": str(len(body))}).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def _forward_until_available(self) -> tuple[int, dict[str, str], bytes]:
        """Retries while Consul is unavailable: after an error Traefik would wait for minutes."""
        until = time.monotonic() + _LONGEST_SECONDS
        while True:
            try:
                return self._forward()
            except (OSError, http.client.HTTPException):
                if time.monotonic() > until:
                    raise
            time.sleep(_RETRY_SECONDS)

    def _forward(self) -> tuple[int, dict[str, str], bytes]:
        consul, login = self.server.consul, self.server.login
        token = login.token or login.renew("")
        response = exchange(consul, "GET", self.path, token)
        return exchange(consul, "GET", self.path, login.renew(token)) if response[0] in _REJECTED else response

    def address_string(self) -> str:
        return "socket"

    def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
        """Logs failures only: Traefik repeats the same requests all the time."""
        if int(code) >= http.HTTPStatus.BAD_REQUEST:
            super().log_request(code, size)


@contextmanager
def serving(socket: str, url: str, identity: str) -> Iterator[None]:
    """Listens on `socket` within the context, and revokes the token at its end."""
    consul = urlsplit(url).netloc
    login = Login(consul, Path(identity))
    before = os.umask(0o177)  # no other user may open the socket
    server = Server(socket, consul, login)
    os.umask(before)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield
    server.shutdown()
    login.end()
