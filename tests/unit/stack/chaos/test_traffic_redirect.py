"""A proxy stands in for an instance in Consul, also for traffic rules."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

from stack.chaos.proxy_pool import ProxyPool
from stack.chaos.traffic_redirect import TAG, TrafficRedirect
from stack.cluster.clients import Clients


def test_a_proxy_is_in_the_subsets_of_its_instance() -> None:
    made: list[dict[str, Any]] = []
    meta = {"version": "2", "canary": "true"}
    instance = {"ID": "one", "Address": "127.0.0.1", "Port": 1, "Tags": ["grpc"], "Meta": meta}
    entries = [{"Service": instance, "Checks": [{"CheckID": "own", "Status": "passing"}]}]
    service = SimpleNamespace(register=lambda _, **values: made.append(values), maintenance=lambda *_, **__: None)
    check = SimpleNamespace(ttl_pass=lambda _: None)
    consul = SimpleNamespace(
        health=SimpleNamespace(service=lambda _: (1, entries)), agent=SimpleNamespace(service=service, check=check)
    )
    proxies = cast(ProxyPool, SimpleNamespace(open=lambda _: 2))
    TrafficRedirect(cast(Clients, SimpleNamespace(consul=consul)), "user-service", proxies).follow()
    assert [(each["port"], each["tags"]) for each in made] == [(2, ["grpc", TAG])]
    assert meta.items() < made[0]["meta"].items()
