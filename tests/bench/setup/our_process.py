"""Starts a real process of ours, of any checkout, as a job of a stack does; the agents answer from this process."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from bench.setup.agents import Agents, answering
from bench.setup.checkout import Checkout
from bench.setup.processes import Server, free_port, serving


@contextmanager
def started(
    checkout: Checkout, command: Sequence[str], agents: Agents, otlp: str, env: Mapping[str, str] | None = None
) -> Iterator[Server]:
    """Runs `python COMMAND` of the checkout until the block ends; yields it once it serves.

    It joins the mesh of its agents, if they have one; then its health checks have a port of their own.
    """
    port = free_port()
    with tempfile.TemporaryDirectory(prefix="waypost-bench-") as folder, answering(agents):
        for name in ("nomad_consul.jwt", "nomad_vault.jwt"):
            (Path(folder) / name).write_text("identity of the benchmark")
        environment = {
            "BIND_ADDRESS": f"127.0.0.1:{port}",
            "CONSUL_HTTP_ADDR": agents.url,
            "HEALTH_ADDRESS": f"127.0.0.1:{free_port()}",
            "IDENTITY_DIR": folder,
            "INSTANCE_ID": "bench",
            "MESH": "on" if agents.mesh else "off",
            "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://{otlp}",
            "VAULT_ADDR": agents.url,
            "VERSION": "bench",
            **(env or {}),
        }
        with serving([checkout.python, *command], port, environment) as server:
            yield server
