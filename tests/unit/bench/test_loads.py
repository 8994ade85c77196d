"""The loads of the benchmarks: closed and open loop, lost connections, and the stand-ins of Consul and Vault."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx
import pytest
from bench.measurement import options
from bench.setup.agents import Agents, answering
from bench.setup.checkout import here
from bench.traffic.http_client import Answer, Connection, request
from bench.traffic.load import Load, closed_loop, open_loop


@pytest.fixture
def port() -> Iterator[int]:
    """A server that answers each request after 10 ms with its body; `/lost` gets no answer."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if self.path == "/lost":
                self.close_connection = True
                return
            time.sleep(0.01)
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Prints nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server.server_address[1]
    server.shutdown()


def test_a_connection_is_opened_again_after_a_loss(port: int) -> None:
    async def exchange() -> list[Answer]:
        connection = Connection(port)
        sent = [request("POST", path, body=b"hello") for path in ("/", "/lost", "/")]
        return [await connection.exchange(each) for each in sent]

    first, lost, again = asyncio.run(exchange())
    assert (first.status, first.body) == (again.status, again.body) == (200, b"hello")
    assert lost.status == 0


def test_a_closed_loop_has_one_request_of_each_connection_on_its_way(port: int) -> None:
    load = closed_loop(port, [request("POST", "/", body=b"x")], connections=4, seconds=0.5).must_be_good()
    assert 0 < load.good <= 4 * 0.5 / 0.01 + 4
    assert load.milliseconds(0.5) >= 10


def test_an_open_loop_sends_at_its_rate_and_counts_latency_from_when_a_request_was_due(port: int) -> None:
    load = open_loop(port, [request("POST", "/", body=b"x")], rate=100, seconds=0.5).must_be_good()
    assert load.good == 50
    assert load.seconds >= 0.49


def test_a_load_with_a_failure_is_no_measurement(port: int) -> None:
    load = closed_loop(port, [request("POST", "/lost", body=b"x")], connections=1, seconds=0.05)
    assert set(load.statuses) == {0}
    with pytest.raises(SystemExit):
        load.must_be_good()
    with pytest.raises(SystemExit):
        Load().must_be_good()


def test_settings_keep_only_changes_that_the_revision_has() -> None:
    settings = here().settings("gateway", log_level="ERROR", no_such_setting=1)
    assert '"log_level": "ERROR"' in settings
    assert "no_such_setting" not in settings


def test_a_blocking_query_returns_when_the_settings_change() -> None:
    with answering(Agents({"gateway": "{}"}, {"order-service": "127.0.0.1:1"})) as agents:
        url = agents.url + "/v1/kv/config/gateway"
        index = httpx.get(url).headers["x-consul-index"]
        threading.Timer(0.1, agents.change, ("gateway", '{"a": 1}')).start()
        began = time.monotonic()
        changed = httpx.get(url, params={"index": index, "wait": "5s"})
        assert 0.05 < time.monotonic() - began < 4
        assert changed.headers["x-consul-index"] > index
        assert httpx.get(agents.url + "/v1/health/service/nobody").json() == []
        (instance,) = httpx.get(agents.url + "/v1/health/service/order-service").json()
        assert instance["Service"]["Port"] == 1


def test_missing_peers_are_named_with_the_command_that_installs_them() -> None:
    with pytest.raises(SystemExit, match="uv sync --group bench"):
        options.need_peers("no_such_module_of_a_peer")
