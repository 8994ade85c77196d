"""Answers for the edge when no gateway does: an RFC 9457 problem like the gateway's own, with a trace id.

Types and texts are those of gateway/gateway/http/problems.py. The job carries this program as text, so it uses the
standard library only. The edge requests `/STATUS?at=URL`.
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
    502: ("answer-lost", "Answer lost", "No answer came; whether the request took effect is not known."),
    503: (
        "unavailable",
        "Temporarily unavailable",
        "A part of the system is away for the moment; try again after Retry-After seconds.",
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


class Refusal(BaseHTTPRequestHandler):
    """The answer to one request that the edge could not have answered."""

    protocol_version = "HTTP/1.1"
    timeout = 20.0  # longer than the edge keeps an idle connection

    def do_GET(self) -> None:
        asked, _, url = self.path.partition("?at=")
        status = 502 if asked == "/502" else 503
        self._refuse(status, _ORIGIN.sub("", unquote_plus(url)).partition("?")[0])

    def send_error(self, *_: Any) -> None:
        """Also to what this small server does not take, such as a request with too many headers."""
        self.headers = Message()
        self._refuse(503, "/")

    def _refuse(self, status: int, instance: str) -> None:
        name, title, detail = KINDS[status]
        found = _TRACEPARENT.fullmatch(self.headers.get("traceparent", ""))
        trace_id = found[1] if found else secrets.token_hex(16)
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
        # Nobody records this answer, and its last part says so.
        self.send_header("traceresponse", f"00-{trace_id}-{secrets.token_hex(8)}-00")
        for header, value in _SECURITY.items():
            self.send_header(header, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """A line for each would only add to an outage."""


class Refusals(ThreadingHTTPServer):
    """Listens for the edge."""

    daemon_threads = True
    request_queue_size = 128


@contextmanager
def listening(address: str) -> Iterator[None]:
    """Listens meanwhile, at HOST:PORT."""
    host, _, port = address.rpartition(":")
    server = Refusals((host, int(port)), Refusal)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield
    server.shutdown()
