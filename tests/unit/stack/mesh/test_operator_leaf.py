"""The leaf of the operator has its names, a key that stays in memory, and the roots of the mesh."""

from __future__ import annotations

import ssl
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from support.mesh.authority import TRUST_DOMAIN, Authority

from stack.cluster.clients import Clients
from stack.mesh import operator_leaf


class Servers:
    """OpenBao and Consul as their clients show them; `asked` has each role, request and mount."""

    def __init__(self, authority: Authority, *further_roots: str) -> None:
        self.authority, self.asked = authority, list[tuple[str, str, str]]()
        roots = [{"RootCert": root} for root in (authority.root, *further_roots)]
        listed = {"TrustDomain": authority.trust_domain, "Roots": roots}
        certificates = SimpleNamespace(list=lambda: listed)
        pki = SimpleNamespace(sign_certificate=self._sign)
        made = SimpleNamespace(
            consul=SimpleNamespace(connect=SimpleNamespace(certificates=certificates)),
            vault=SimpleNamespace(secrets=SimpleNamespace(pki=pki)),
        )
        self.clients = cast(Clients, made)

    def _sign(self, name: str, csr: str, common_name: str, mount_point: str) -> dict[str, Any]:
        assert common_name == ""
        self.asked.append((name, csr, mount_point))
        return {"data": self.authority.signed(csr)}


@pytest.fixture
def servers() -> Servers:
    return Servers(Authority())


def names(csr: str) -> tuple[list[str], list[str]]:
    """The DNS names and the URIs of a request."""
    asked = x509.load_pem_x509_csr(csr.encode()).extensions
    found = asked.get_extension_for_class(x509.SubjectAlternativeName).value
    return found.get_values_for_type(x509.DNSName), found.get_values_for_type(x509.UniformResourceIdentifier)


def test_openbao_signs_the_names_of_the_operator_by_the_role_of_the_operator(servers: Servers) -> None:
    operator_leaf.issue(servers.clients)
    ((role, csr, mount),) = servers.asked
    assert (role, mount) == ("operator", "mesh")
    assert names(csr) == (["operator.mesh"], [f"spiffe://{TRUST_DOMAIN}/ns/default/dc/dc1/svc/operator"])
    assert x509.load_pem_x509_csr(csr.encode()).is_signature_valid


def test_a_leaf_has_its_key_the_intermediates_and_every_root(servers: Servers) -> None:
    other = Authority()
    leaf = operator_leaf.issue(Servers(servers.authority, other.root).clients)
    own, intermediate, *_ = x509.load_pem_x509_certificates(leaf.chain)
    assert load_pem_private_key(leaf.key, None).public_key() == own.public_key()
    own.verify_directly_issued_by(intermediate)
    assert x509.load_pem_x509_certificates(leaf.roots) == [
        x509.load_pem_x509_certificate(root.encode()) for root in (servers.authority.root, other.root)
    ]


def test_each_leaf_has_a_key_of_its_own_which_is_not_printed(servers: Servers) -> None:
    one, other = (operator_leaf.issue(servers.clients) for _ in range(2))
    assert one.key != other.key
    assert "PRIVATE KEY" not in repr(one)


def test_a_leaf_is_due_after_half_of_its_time_and_over_at_its_end(servers: Servers) -> None:
    leaf, now = operator_leaf.issue(servers.clients), time.time()
    assert leaf.ends == pytest.approx(now + 3600, abs=5)
    assert [leaf.is_due(), leaf.is_over()] == [False, False]
    half = replace(leaf, begins=now - 31, ends=now + 29)
    assert [half.is_due(), half.is_over()] == [True, False]
    assert replace(leaf, begins=now - 60, ends=now - 1).is_over()


def test_a_client_verifies_the_name_and_the_roots_of_the_mesh_alone_and_speaks_http_2(servers: Servers) -> None:
    context = operator_leaf.tls_context(operator_leaf.issue(servers.clients))
    assert (context.check_hostname, context.verify_mode) == (True, ssl.CERT_REQUIRED)
    (root,) = context.get_ca_certs(binary_form=True)
    assert root == ssl.PEM_cert_to_DER_cert(servers.authority.root)


def test_the_key_is_loaded_from_memory_and_no_open_file_keeps_it(servers: Servers) -> None:
    leaf = operator_leaf.issue(servers.clients)
    before, used = open_files(), list[str]()

    class Watched(ssl.SSLContext):
        def load_cert_chain(self, certfile: Any, *arguments: Any, **options: Any) -> None:
            used.append(str(Path(certfile).readlink()))
            super().load_cert_chain(certfile, *arguments, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ssl, "SSLContext", Watched)
        operator_leaf.tls_context(leaf)
    assert [name.startswith("/memfd:") for name in used] == [True]
    assert open_files() == before


def open_files() -> list[str]:
    """The memory files that this process has open."""
    links = (str(link.readlink()) for link in Path("/proc/self/fd").iterdir() if link.is_symlink())
    return [name for name in links if name.startswith("/memfd:")]
