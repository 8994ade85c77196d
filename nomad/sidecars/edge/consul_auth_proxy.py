"""A door to Consul for a program that cannot log in itself: what comes through its socket is asked with a token.

Invariant: the token is in this process's memory only, is had by workload identity, and is fetched anew when it ends.
It runs on a bare Python, because the job carries it as text.
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

# A blocking query may take ten minutes and a sixteenth more, says Consul.
_LONGEST_SECONDS = 640.0
_AGAIN_SECONDS = 0.3
_REFUSED = {401, 403}
_PASSED_ON = ("Content-Type", "X-Consul-Index", "X-Consul-KnownLeader", "X-Consul-LastContact")


class Login:
    """The token of this process; `renewed` trades the identity for another one unless somebody else just did."""

    def __init__(self, consul: str, identity: Path) -> None:
        self._consul, self._identity = consul, identity
        self._lock = threading.Lock()
        self.token = ""

    def renewed(self, refused: str) -> str:
        with self._lock:
            if self.token == refused:
                ask = {"AuthMethod": "nomad-workloads", "BearerToken": self._identity.read_text().strip()}
                status, _, body = exchange(self._consul, "POST", "/v1/acl/login", "", json.dumps(ask).encode())
                if status != http.HTTPStatus.OK:
                    # Never without a token: to a stranger Consul says "there is nothing", which would be believed.
                    raise PermissionError(f"login refused: {body.decode(errors='replace')[:200]}")
                self.token = json.loads(body)["SecretID"]
            return self.token

    def end(self) -> None:
        if self.token:
            exchange(self._consul, "POST", "/v1/acl/logout", self.token)


def exchange(consul: str, method: str, path: str, token: str, body: bytes = b"") -> tuple[int, dict[str, str], bytes]:
    """One request to Consul: status, the headers worth passing on, and the body; raises OSError, HTTPException."""
    connection = http.client.HTTPConnection(consul, timeout=_LONGEST_SECONDS if method == "GET" else 5.0)
    try:
        connection.request(method, path, body, {"X-Consul-Token": token} if token else {})
        answer = connection.getresponse()
        headers = {name: value for name in _PASSED_ON if (value := answer.headers[name])}
        return answer.status, headers, answer.read()
    finally:
        connection.close()


class Door(ThreadingMixIn, UnixStreamServer):
    """Listens on a socket."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, socket: str, consul: str, login: Login) -> None:
        Path(socket).unlink(missing_ok=True)
        self.consul, self.login = consul, login
        super().__init__(socket, Visitor)


class Visitor(BaseHTTPRequestHandler):
    """Passes a question on; there is no way to change anything through here."""

    protocol_version = "HTTP/1.1"
    server: Door

    def do_GET(self) -> None:
        try:
            status, headers, body = self._ask()
        except (OSError, http.client.HTTPException, ValueError, KeyError) as error:
            status, headers, body = 502, {}, f"consul is away: {error}\n".encode()
        self.send_response(status)
        for name, value in (headers | {"Content-Length": str(len(body))}).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def _ask(self) -> tuple[int, dict[str, str], bytes]:
        """The answer; a Consul that is away is waited for, because the asker would back off for minutes."""
        until = time.monotonic() + _LONGEST_SECONDS
        while True:
            try:
                return self._answer()
            except (OSError, http.client.HTTPException):
                if time.monotonic() > until:
                    raise
            time.sleep(_AGAIN_SECONDS)

    def _answer(self) -> tuple[int, dict[str, str], bytes]:
        door = self.server
        token = door.login.token or door.login.renewed("")
        answer = exchange(door.consul, "GET", self.path, token)
        return exchange(door.consul, "GET", self.path, door.login.renewed(token)) if answer[0] in _REFUSED else answer

    def address_string(self) -> str:
        return "socket"

    def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
        """Every question is the same; only failures are worth a line."""
        if int(code) >= http.HTTPStatus.BAD_REQUEST:
            super().log_request(code, size)


@contextmanager
def opened(socket: str, url: str, identity: str) -> Iterator[None]:
    """Listens meanwhile; the token ends with it."""
    consul = urlsplit(url).netloc
    login = Login(consul, Path(identity))
    before = os.umask(0o177)  # nobody else may open the socket
    door = Door(socket, consul, login)
    os.umask(before)
    threading.Thread(target=door.serve_forever, daemon=True).start()
    yield
    door.shutdown()
    login.end()
