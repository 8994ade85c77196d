"""Changes to the mesh, in the order in which one needs the other."""

from __future__ import annotations

from collections.abc import Iterator

from stack.cluster.clients import Clients
from stack.cluster.mesh.certificate_authority import CertificateAuthority
from stack.cluster.mesh.config_entries import ConfigEntries
from stack.cluster.mesh.issuers import Issuers
from stack.cluster.planned_changes import Change
from stack.cluster.vault import Vault
from stack.config import Stack


def mesh_changes(stack: Stack, clients: Clients) -> Iterator[Change]:
    """Yields changes to the certificate authority, its issuer, the roles of certificates, and the config entries.

    The mounts, policies and the AppRole of OpenBao have to be as in their files.
    """
    authority = CertificateAuthority(stack, clients)
    yield from authority.changes()
    yield from Issuers(clients).changes()
    yield from Vault(stack, clients).certificate_role_changes(authority.trust_domain())
    yield from ConfigEntries(clients.consul).changes()
