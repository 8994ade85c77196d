"""The mesh as Consul and Vault show it to processes of a measurement: an authority in memory, shipped intentions."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from support.mesh.authority import HOUR, Authority

from stack.cluster.mesh import config_entries
from stack.config import ROOT
from stack.mesh.operator_leaf import Leaf

_KIND = "service-intentions"
# That of an intention between two services that are both named.
_PRECEDENCE = 9


class Mesh:
    """One trust domain; all agents that share it let their processes call each other."""

    def __init__(self) -> None:
        self._authority = Authority()

    def roots(self) -> dict[str, Any]:
        """Returns trust domain and roots, in the form of Consul's agent API."""
        root = {"ID": "bench", "RootCert": self._authority.root, "Active": True}
        return {"TrustDomain": self._authority.trust_domain, "ActiveRootID": "bench", "Roots": [root]}

    def intentions(self, service: str) -> dict[str, list[dict[str, Any]]]:
        """Returns the shipped intentions of a destination, in the form of Consul's API."""
        file = ROOT / "consul" / "intentions" / f"{service}.hcl"
        found = config_entries.read(file, _KIND)["Sources"] if file.exists() else []
        fixed = {"SourceType": "consul", "DestinationName": service, "Precedence": _PRECEDENCE}
        return {service: [{"SourceName": each["Name"], **fixed, **each} for each in found]}

    def sign(self, request: str, lifetime: timedelta = HOUR) -> dict[str, Any]:
        """Returns what Vault answers to a certificate signing request (PEM)."""
        return self._authority.signed(request, lifetime)

    def leaf(self, service: str) -> Leaf:
        """Returns a certificate of a service, with its key."""
        return self._authority.leaf(service)
