"""Redirects the callers of a service to proxies, one in front of each instance, by changing Consul.

Callers find instances in Consul, so a proxy is registered there for each instance: same service, same tags, the
address of the proxy. The instance itself is put into maintenance and gets no new caller. The entry of the proxy passes
its check while the instance passes its own. Health checks bypass the proxy, so they do not detect the network fault.
"""

from __future__ import annotations

from typing import Any

from stack.chaos.proxy_pool import ProxyPool
from stack.cluster.clients import Clients
from stack.console import StackError

TAG = "chaos"
_INSTANCE = "chaos-of"
_TTL = "30s"
_MAINTENANCE = "_service_maintenance:"


def require_redirectable(clients: Clients, service: str, fixed_ports: set[int]) -> None:
    """Raises StackError if the service has no instance, or if its callers do not look it up in Consul."""
    entries = _instances(clients, service)
    if not entries:
        raise StackError(f"{service} has no instance", "Consul lists none", "./justw status")
    if service != "postgres" and any(entry["Service"]["Port"] in fixed_ports for entry in entries):
        raise StackError(
            f"the traffic to {service} cannot be redirected",
            "its callers know its port and do not ask Consul",
            "use kill or pause; or redirect the traffic of a service that it calls",
        )


class TrafficRedirect:
    """Keeps a proxy of `proxies` in front of each instance of a service; call `follow` regularly for new instances."""

    def __init__(self, clients: Clients, service: str, proxies: ProxyPool) -> None:
        self._clients, self.service, self._proxies = clients, service, proxies
        self._ports: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self._ports)

    def follow(self) -> None:
        """Registers a proxy for each instance, puts each instance into maintenance, removes proxies of ended ones."""
        entries = {entry["Service"]["ID"]: entry for entry in _instances(self._clients, self.service)}
        for ended in self._ports.keys() - entries.keys():
            self._clients.consul.agent.service.deregister(_proxy_id(ended))
            self._proxies.close(self._ports.pop(ended))
        for instance, entry in entries.items():
            if instance not in self._ports:
                self._insert(entry["Service"])
            self._mirror(instance, entry["Checks"])

    def _insert(self, instance: dict[str, Any]) -> None:
        host = instance["Address"] or "127.0.0.1"
        port = self._ports[instance["ID"]] = self._proxies.open((host, instance["Port"]))
        self._clients.consul.agent.service.register(
            self.service,
            service_id=_proxy_id(instance["ID"]),
            address="127.0.0.1",
            port=port,
            tags=[*(instance["Tags"] or []), TAG],
            meta={**(instance["Meta"] or {}), _INSTANCE: instance["ID"]},
            check={"TTL": _TTL, "Status": "passing"},
        )

    def _mirror(self, instance: str, checks: list[dict[str, Any]]) -> None:
        own = [check for check in checks if not check["CheckID"].startswith(_MAINTENANCE)]
        if len(own) == len(checks):
            self._clients.consul.agent.service.maintenance(instance, "true", reason=TAG)
        passing = all(check["Status"] == "passing" for check in own)
        report = self._clients.consul.agent.check.ttl_pass if passing else self._clients.consul.agent.check.ttl_fail
        report(f"service:{_proxy_id(instance)}")


def remove_redirect(clients: Clients, service: str) -> None:
    """Removes the proxies of a service from Consul; instances come back first, so callers always find one."""
    agent = clients.consul.agent
    known = agent.services()
    proxies = {
        name: entry["Meta"][_INSTANCE]
        for name, entry in known.items()
        if entry["Service"] == service and TAG in (entry["Tags"] or [])
    }
    for instance in set(proxies.values()) & known.keys():
        agent.service.maintenance(instance, "false")
    for name in proxies:
        agent.service.deregister(name)


def _instances(clients: Clients, service: str) -> list[dict[str, Any]]:
    found = clients.consul.health.service(service)[1]
    return [entry for entry in found if TAG not in (entry["Service"]["Tags"] or [])]


def _proxy_id(instance: str) -> str:
    return f"{TAG}-{instance}"
