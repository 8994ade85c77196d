"""The issuers in OpenBao's mount `mesh`: the intermediate authority that signs, and those that it has replaced.

Consul replaces it at each of its starts, and with the root, in two steps: OpenBao signs with a new one, then Consul
announces it. Services use no leaf below a root that is not announced. So if Consul fails in between, the former one has
to sign again.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

from cryptography import x509

from stack.cluster.clients import Clients
from stack.cluster.planned_changes import Change

_MOUNT = "mesh"


class Issuers:
    """Compares the issuers with those that Consul announces."""

    def __init__(self, clients: Clients) -> None:
        self._vault = clients.vault
        self._certificates = clients.consul.connect.certificates

    def changes(self) -> Iterator[Change]:
        """Yields a change if OpenBao signs with an issuer that Consul does not announce, and has one that it does."""
        issuers = self._all()
        signing = next((each for each, found in issuers.items() if found["is_default"]), None)
        with_key = {found["certificate"]: each for each, found in issuers.items() if found["key_id"]}
        usable = [with_key[pem] for pem in self._announced() if pem in with_key]
        if signing and usable and signing not in usable:
            use = partial(self._vault.write_data, f"{_MOUNT}/config/issuers", data={"default": usable[-1]})
            yield Change(f"vault {_MOUNT}/config/issuers", signing, usable[-1], use, (_NOTE,))

    def below(self, root: str) -> list[x509.Certificate]:
        """Returns those that a root (PEM) has signed."""
        signer = x509.load_pem_x509_certificate(root.encode())
        found = [x509.load_pem_x509_certificate(each["certificate"].encode()) for each in self._all().values()]
        return [each for each in found if each.issuer == signer.subject != each.subject]

    def remove_others(self) -> None:
        """Deletes every issuer that does not belong to the active root of Consul, and every key without an issuer."""
        kept, keys = self._announced(), self._listed("keys")  # a key that Consul makes meanwhile is not among them
        for each, found in self._all().items():
            if found["certificate"] not in kept and not found["is_default"]:
                self._vault.delete(f"{_MOUNT}/issuer/{each}")
        # OpenBao deletes no key that an issuer names. An interrupted run may have left one.
        for key in keys.keys() - {found["key_id"] for found in self._listed("issuers").values()}:
            self._vault.delete(f"{_MOUNT}/key/{key}")

    def _all(self) -> dict[str, dict[str, Any]]:
        issuers = self._listed("issuers")
        return {each: found | {"certificate": self._certificate(each)} for each, found in issuers.items()}

    def _listed(self, kind: str) -> dict[str, dict[str, Any]]:
        listed = self._vault.list(f"{_MOUNT}/{kind}")
        found: dict[str, dict[str, Any]] = listed["data"]["key_info"] if listed else {}
        return found

    def _certificate(self, issuer: str) -> str:
        return str(self._vault.read(f"{_MOUNT}/issuer/{issuer}")["data"]["certificate"]).strip()

    def _announced(self) -> list[str]:
        """Returns the certificates (PEM) of Consul's active root and of the issuers below it, the newest at the end."""
        active = [root for root in self._certificates.list()["Roots"] if root["Active"]]
        return [pem.strip() for root in active for pem in (root["RootCert"], *(root["IntermediateCerts"] or ()))]


_NOTE = "a rotation was interrupted before Consul announced the new issuer: ./justw rotate mesh-ca begins it again"
