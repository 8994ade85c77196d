"""Serves the error pages of the edge, for requests without a response of a gateway: RFC 9457 problems with a trace id.

Types and texts are those of gateway/gateway/http/problems.py. It needs only the standard library, because the job
carries its source text. The edge requests `/STATUS?at=URL`.
"""

from __future__ import annotations

import json
import re
import secrets
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote_plus

KINDS = {
    502: (
        "answer-lost",
        "Answer lost",
        "The connection was lost before the answer; the request may have taken effect.",
    ),
    503: (
        "unavailable",
        "Temporarily unavailable",
        "A part of the system is temporarily unavailable; try again after Retry-After seconds.",
    ),
}
_RETRY_AFTER = "1"
_SECURITY = {
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'",
}
_ORIGIN = re.compile(r"^https?://[^/?]*")
_TRACEPARENT = re.compile(r"[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")


class Handler(BaseHTTPRequestHandler):
    """Responds with the problem that belongs to the requested status."""

    protocol_version = "HTTP/1.1"
    timeout = 20.0  # longer than the edge keeps an idle connection

    def do_GET(self) -> None:
        requested, _, url = self.path.partition("?at=")
        status = 502 if requested == "/502" else 503
        self._send_problem(status, _ORIGIN.sub("", unquote_plus(url)).partition("?")[0])

    def send_error(self, *_: Any) -> None:
        """Replaces the HTML error pages of the standard library, for example for a request with too many headers."""
        self.headers = Message()
        self._send_problem(503, "/")

    def _send_problem(self, status: int, instance: str) -> None:
        name, title, detail = KINDS[status]
        match = _TRACEPARENT.fullmatch(self.headers.get("traceparent", ""))
        trace_id = match[1] if match else secrets.token_hex(16)
        problem = {
            "type": f"/problems/{name}",
            "title": title,
            "status": status,
            "detail": detail,
            "instance": instance,
            "trace_id": trace_id,
        }
        body = json.dumps(problem, separators=(",", ":"), ensure_ascii=False).encode()
        self.send_response_only(status)
        self.send_header("Content-Type", "application/problem+json")
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Retry-After", _RETRY_AFTER)
        # The last part says that no span of this response is recorded.
        self.send_header("traceresponse", f"00-{trace_id}-{secrets.token_hex(8)}-00")
        for header, value in _SECURITY.items():
            self.send_header(header, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Logs nothing: a line for each request would make an outage worse."""


class Server(ThreadingHTTPServer):
    """Accepts the requests of the edge."""

    daemon_threads = True
    request_queue_size = 128


@contextmanager
def serving(address: str) -> Iterator[None]:
    """Listens at HOST:PORT within the context."""
    host, _, port = address.rpartition(":")
    server = Server((host, int(port)), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield
    server.shutdown()
