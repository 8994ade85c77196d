"""Puts a proxy between the callers of a service and each of its instances, by way of Consul.

Callers find instances in Consul, so each one gets a stand-in there: same service, same tags, the proxy's address. The
instance itself is put into maintenance and gets no new caller. A stand-in passes its check while the instance passes
its own, which goes around the proxy: a fault of the network is one that health checks do not see.
"""

from __future__ import annotations

from typing import Any

from stack.chaos.proxy_pool import Proxies
from stack.cluster.clients import Clients
from stack.console import StackError

TAG = "chaos"
_OF = "chaos-of"
_TTL = "30s"
_MAINTENANCE = "_service_maintenance:"


def require_divertible(clients: Clients, service: str, fixed_ports: set[int]) -> None:
    """Refuses a service that nobody looks up in Consul, by name."""
    entries = _instances(clients, service)
    if not entries:
        raise StackError(f"{service} has no instance", "Consul knows none", "./justw status")
    if service != "postgres" and any(entry["Service"]["Port"] in fixed_ports for entry in entries):
        raise StackError(
            f"no network fault can be put before {service}",
            "its callers know its port and do not ask Consul",
            "kill and pause act on it; or put the fault before what it calls",
        )


class Diversion:
    """The instances of one service behind `proxies`; `follow` again and again keeps up with new ones."""

    def __init__(self, clients: Clients, service: str, proxies: Proxies) -> None:
        self._clients, self.service, self._proxies = clients, service, proxies
        self._ports: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self._ports)

    def follow(self) -> None:
        """Brings Consul to: a stand-in for each instance, each instance in maintenance."""
        entries = {entry["Service"]["ID"]: entry for entry in _instances(self._clients, self.service)}
        for gone in self._ports.keys() - entries.keys():
            self._clients.consul.agent.service.deregister(_stand_in(gone))
            self._proxies.close(self._ports.pop(gone))
        for instance, entry in entries.items():
            if instance not in self._ports:
                self._insert(entry["Service"])
            self._mirror(instance, entry["Checks"])

    def _insert(self, instance: dict[str, Any]) -> None:
        host = instance["Address"] or "127.0.0.1"
        port = self._ports[instance["ID"]] = self._proxies.open((host, instance["Port"]))
        self._clients.consul.agent.service.register(
            self.service,
            service_id=_stand_in(instance["ID"]),
            address="127.0.0.1",
            port=port,
            tags=[*(instance["Tags"] or []), TAG],
            meta={_OF: instance["ID"]},
            check={"TTL": _TTL, "Status": "passing"},
        )

    def _mirror(self, instance: str, checks: list[dict[str, Any]]) -> None:
        own = [check for check in checks if not check["CheckID"].startswith(_MAINTENANCE)]
        if len(own) == len(checks):
            self._clients.consul.agent.service.maintenance(instance, "true", reason=TAG)
        passing = all(check["Status"] == "passing" for check in own)
        report = self._clients.consul.agent.check.ttl_pass if passing else self._clients.consul.agent.check.ttl_fail
        report(f"service:{_stand_in(instance)}")


def lift(clients: Clients, service: str) -> None:
    """Takes the stand-ins of a service out, whoever put them in; instances come back first: callers miss nothing."""
    agent = clients.consul.agent
    known = agent.services()
    stand_ins = {
        name: entry["Meta"][_OF]
        for name, entry in known.items()
        if entry["Service"] == service and TAG in (entry["Tags"] or [])
    }
    for instance in set(stand_ins.values()) & known.keys():
        agent.service.maintenance(instance, "false")
    for name in stand_ins:
        agent.service.deregister(name)


def _instances(clients: Clients, service: str) -> list[dict[str, Any]]:
    found = clients.consul.health.service(service)[1]
    return [entry for entry in found if TAG not in (entry["Service"]["Tags"] or [])]


def _stand_in(instance: str) -> str:
    return f"{TAG}-{instance}"
