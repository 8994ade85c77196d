"""`status` says of each gateway what it can find out, and goes on."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

from nomad.api.exceptions import URLNotFoundNomadException

from stack.cluster.clients import Clients
from stack.commands import status


def test_a_gateway_whose_job_nomad_does_not_know_has_the_reason_in_its_row() -> None:
    def unknown(_: str) -> Any:
        raise URLNotFoundNomadException(SimpleNamespace(text="job not found"))

    entries = [{"Service": {"ID": "one", "Address": "127.0.0.1", "Port": 1}}]
    consul = SimpleNamespace(health=SimpleNamespace(service=lambda _: (1, entries)))
    api = SimpleNamespace(job=SimpleNamespace(get_job=unknown))
    (row,) = status._gateways(cast(Clients, SimpleNamespace(consul=consul, nomad=api)))
    (line,) = status._gateway_lines(row)
    assert line == "gateway 127.0.0.1:1 does not answer: Nomad does not say how to reach it: job not found"
