"""`rotate mesh-ca`: replaces root and intermediate certificate authority of the mesh while it is in use.

There are two mounts for the root. Consul makes a new root in the unused one, trusts both, and makes a new intermediate,
which signs from then on. Services use such a certificate once they all trust the new root (`chassis.mesh.identity`).
Consul trusts the old root until no certificate below it can be valid; after that its key is deleted.

Invariant: what has been done is read from Consul and OpenBao, so any run continues one that was interrupted.
"""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from itertools import chain

from cryptography import x509
from cryptography.exceptions import InvalidSignature

from stack.cluster import agents
from stack.cluster.clients import Clients
from stack.cluster.mesh.certificate_authority import ROOT_MOUNTS, CertificateAuthority
from stack.cluster.mesh.issuers import Issuers
from stack.cluster.planned_changes import Change, apply_all
from stack.cluster.vault import Vault
from stack.config import Stack
from stack.console import StackError, say, step
from stack.machine.lock import WAITING, exclusive
from stack.mesh import dial, operator_leaf
from stack.waiting import poll

# Services begin to use new certificates within ten seconds, and repeat a failed request for one every ten seconds.
_INSTANCES_SECONDS = 90
_AGAIN = "./justw rotate mesh-ca"


def rotate(stack: Stack) -> None:
    """Begins a rotation, or does the next step of the last one, and prints what remains to be done."""
    agents.require_running(stack)
    with exclusive(stack.lock, WAITING):
        clients = Clients(stack)
        authority = CertificateAuthority(stack, clients)
        _require_no_change(chain(Vault(stack, clients).changes(), authority.changes()))
        Rotation(authority, Issuers(clients), Instances(clients)).run()


def _require_no_change(changes: Iterator[Change]) -> None:
    """Raises StackError if mounts, policies or the configuration differ: Consul would fail after its first steps."""
    different = next(changes, None)
    if different is not None:
        raise StackError("the mesh cannot be rotated", f"{different.where} is not as in its file", "./justw deploy")


class Instances:
    """The healthy instances of the mesh, and whether they use the authority that signs now."""

    def __init__(self, clients: Clients) -> None:
        self._clients = clients

    def outside(self) -> list[str]:
        """Returns the instances that present a certificate of another authority, or accept none of this one."""
        leaf = operator_leaf.issue(self._clients)
        context = operator_leaf.tls_context(leaf)
        issuer = x509.load_pem_x509_certificates(leaf.chain)[1]
        return [
            f"{service} at {address[0]}:{address[1]}: {problem}"
            for service, name, address in self._all()
            if (problem := _problem(context, name, address, issuer))
        ]

    def count(self) -> int:
        return len(list(self._all()))

    def _all(self) -> Iterator[tuple[str, str, dial.Address]]:
        """Yields the service in Consul, the name in its certificate, and the address of each instance."""
        for job in dial.names():
            if job in self._clients.nomad.job and dial.is_on(self._clients, job):
                for group in self._clients.nomad.job.get_job(job)["TaskGroups"]:
                    for service in group["Services"]:
                        name = service["Name"]
                        yield from ((name, job, address) for address in dial.instances(self._clients, name))


class Rotation:
    """The next step of a rotation."""

    def __init__(self, authority: CertificateAuthority, issuers: Issuers, instances: Instances) -> None:
        self._authority, self._issuers, self._instances = authority, issuers, instances

    def run(self) -> None:
        """Makes the new root, or waits for the instances, or deletes the old root, whichever is next."""
        (other,) = set(ROOT_MOUNTS) - {self._authority.root_mount()}
        root = self._authority.root(other)
        if root is None or not self._authority.is_former(root):
            self._begin(other)
            self._wait_for_instances()
        elif root in self._authority.trusted_roots():
            self._wait_for_instances()
        else:
            self._finish(other)

    def _begin(self, mount: str) -> None:
        with step("a new root and intermediate", "1 s") as now:
            try:
                self._authority.use_root(mount)
            except StackError:
                apply_all(self._issuers.changes())  # the old one signs again
                raise
            now.result = f"in {mount}; Consul trusts the old root too"

    def _wait_for_instances(self) -> None:
        left: list[str] = []

        def all_use_it() -> bool:
            left[:] = self._instances.outside()
            return not left

        with step("certificates below the new root", "20 s") as now:
            if not poll(all_use_it, _INSTANCES_SECONDS, 1):
                why = f"{'; '.join(left)}. Their certificates last for 24 minutes at least"
                raise StackError("not all instances use the new root yet", why, f"./justw status, then {_AGAIN}")
            now.result = f"all {self._instances.count()} instances"
        say("  Consul trusts the old root until no certificate below it can be valid: for twice LeafCertTTL of")
        say("  consul/connect-ca.json, which it checks once an hour, so two to three hours.")
        say(f"  To do after that: {_AGAIN} deletes the key of the old root.")

    def _finish(self, mount: str) -> None:
        with step("the old root", "1 s") as now:
            self._issuers.remove_others()
            self._authority.delete_root(mount)
            now.result = "Consul trusts it no more; its key is deleted"
        say(f"  The last rotation is complete. {_AGAIN} begins another one.")


def _problem(context: ssl.SSLContext, service: str, address: dial.Address, issuer: x509.Certificate) -> str | None:
    try:
        operator_leaf.presented(context, service, address).verify_directly_issued_by(issuer)
    except OSError as error:
        return str(error) or type(error).__name__
    except (ValueError, InvalidSignature):
        return "another authority has signed its certificate"
    return None
