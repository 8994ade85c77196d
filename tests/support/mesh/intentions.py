"""Changes intentions of a running stack for a while."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import httpx

from stack.cluster.clients import Clients


@contextmanager
def without_source(clients: Clients, service: str, source: str) -> Iterator[None]:
    """Removes a caller from the intentions of a service for a while."""
    headers = {"X-Consul-Token": clients.credentials.token("consul-management")}
    with httpx.Client(base_url=clients.stack.url("consul"), headers=headers, timeout=10) as consul:
        found = consul.get(f"/v1/config/service-intentions/{service}").raise_for_status().json()
        entry = {name: found[name] for name in ("Kind", "Name", "Sources")}
        left = [each for each in entry["Sources"] if each["Name"] != source]
        assert len(left) == len(entry["Sources"]) - 1
        consul.put("/v1/config", json=entry | {"Sources": left}).raise_for_status()
        try:
            yield
        finally:
            consul.put("/v1/config", json=entry).raise_for_status()
