"""`rotate mesh-ca`: replaces root and intermediate certificate authority of the mesh while it is in use.

There are two mounts for the root. Consul makes a new root in the unused one, trusts both, and makes a new intermediate,
which signs from then on. Services use such a certificate once they all trust the new root (`chassis.mesh.identity`);
then the keys of the old authority are deleted. Consul trusts the old root until no certificate below it can be valid.

Invariant: what has been done is read from Consul and OpenBao, so any run continues one that was interrupted.
"""

from __future__ import annotations

import ssl
from collections.abc import Iterator, Sequence
from itertools import chain

from cryptography import x509
from cryptography.exceptions import InvalidSignature

from stack.build.zipapps import SERVICES
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
    """Replaces the authority, or completes the last rotation if that was interrupted, and prints what happens next."""
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
    """The healthy instances of the mesh, and whether they use certificates of an authority."""

    def __init__(self, clients: Clients) -> None:
        self._clients = clients

    def outside(self, issuers: Sequence[x509.Certificate]) -> list[str]:
        """Returns the instances that present no certificate of these issuers, or accept none of the newest one."""
        context = operator_leaf.tls_context(operator_leaf.issue(self._clients))
        return [
            f"{service} at {address[0]}:{address[1]}: {problem}"
            for service, name, address in self._all()
            if (problem := _problem(context, name, address, issuers))
        ]

    def count(self) -> int:
        return len(list(self._all()))

    def _all(self) -> Iterator[tuple[str, str, dial.Address]]:
        """Yields the service in Consul, the name in its certificate, and the address of each instance."""
        for job in SERVICES:
            if job in self._clients.nomad.job and dial.is_on(self._clients, job):
                for group in self._clients.nomad.job.get_job(job)["TaskGroups"]:
                    for service in group["Services"]:
                        name = service["Name"]
                        yield from ((name, job, address) for address in dial.instances(self._clients, name))


class Rotation:
    """One rotation, which goes on where an earlier one was interrupted."""

    def __init__(self, authority: CertificateAuthority, issuers: Issuers, instances: Instances) -> None:
        self._authority, self._issuers, self._instances = authority, issuers, instances

    def run(self) -> None:
        """Makes a new root unless the last rotation has done so, waits for the instances, deletes the old keys."""
        (other,) = set(ROOT_MOUNTS) - {self._authority.root_mount()}
        root = self._authority.root(other)
        if root is None or not self._authority.is_former(root):
            self._begin(other)
            (other,) = set(ROOT_MOUNTS) - {other}
        else:
            say("  the last rotation was interrupted; this run completes it")
        apply_all(self._issuers.changes())  # none can use the new root while OpenBao signs below the old one
        self._wait_for_instances()
        self._delete_old(other)

    def _begin(self, mount: str) -> None:
        with step("a new root and intermediate", "1 s") as now:
            try:
                self._authority.use_root(mount)
            except StackError:
                apply_all(self._issuers.changes())  # the old one signs again
                raise
            now.result = f"in {mount}; Consul trusts the old root too"

    def _wait_for_instances(self) -> None:
        root, left = self._authority.root(self._authority.root_mount()) or "", list[str]()

        def all_use_it() -> bool:
            left[:] = self._instances.outside(self._issuers.below(root))
            return not left

        with step("certificates below the new root", "20 s") as now:
            if not poll(all_use_it, _INSTANCES_SECONDS, 1):
                why = f"{'; '.join(left)}. Their certificates last for 24 minutes at least"
                raise StackError("not all instances use the new root yet", why, f"./justw status, then {_AGAIN}")
            now.result = f"all {self._instances.count()} instances"

    def _delete_old(self, mount: str) -> None:
        if mount == self._authority.root_mount():  # somebody has changed Consul meanwhile
            raise StackError("the mesh cannot be rotated", f"Consul uses the root in {mount} again", _AGAIN)
        with step("the old root and intermediate", "1 s") as now:
            self._issuers.remove_others()
            self._authority.delete_root(mount)
            now.result = "their keys are deleted"
        say("  Consul trusts the old root until no certificate below it can be valid: for twice LeafCertTTL of")
        say("  consul/connect-ca.json, which it checks once an hour, so two to three hours.")


def _problem(
    context: ssl.SSLContext, service: str, address: dial.Address, issuers: Sequence[x509.Certificate]
) -> str | None:
    try:
        found = operator_leaf.presented(context, service, address)
    except OSError as error:
        return str(error) or type(error).__name__
    return None if any(_has_signed(each, found) for each in issuers) else "its certificate is of another authority"


def _has_signed(issuer: x509.Certificate, certificate: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(issuer)
    except (ValueError, InvalidSignature):
        return False
    return True
