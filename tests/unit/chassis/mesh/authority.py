"""OpenBao and Consul as the authority of the mesh, in memory: they sign requests, and name the roots."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from cryptography import x509
from support.mesh import authority

from chassis.mesh.names import server_name, spiffe_id

DOMAIN = authority.TRUST_DOMAIN


class Authority:
    """Signs what it is asked for, for as long as that says, or for `seconds`; raises `failure` if that is set."""

    def __init__(self, name: str = "mesh") -> None:
        self.name = name
        self.requests = 0
        self.seconds: float | None = None
        self.failure: Exception | None = None
        self._authority = authority.Authority()

    @property
    def roots(self) -> bytes:
        return self._authority.root.encode()

    def replace_intermediate(self) -> None:
        """Signs with another intermediate below the same root from now on."""
        self._authority.replace_intermediate()

    def as_consul(self, *others: Authority) -> dict[str, Any]:
        """The roots in the form of Consul's agent API; this one signs."""
        roots = [
            {"ID": each.name, "RootCert": each.roots.decode(), "IntermediateCerts": [each._authority.intermediate]}
            for each in (self, *others)
        ]
        return {"TrustDomain": DOMAIN, "ActiveRootID": self.name, "Roots": roots}

    def leaf(self, service: str, seconds: float = 3600, domain: str = DOMAIN) -> tuple[bytes, bytes]:
        """Returns key and chain of a service of a trust domain; with `seconds` below 0 they have ended."""
        self._authority.trust_domain = domain
        made = self._authority.leaf(service, timedelta(seconds=seconds))
        return made.key, made.chain

    async def sign_certificate(self, role: str, request: str, seconds: float) -> tuple[str, float]:
        """See chassis.mesh.identity.CertificateAuthority."""
        self.requests += 1
        if self.failure is not None:
            raise self.failure
        asked = x509.load_pem_x509_csr(request.encode())
        names = asked.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        assert names.get_values_for_type(x509.DNSName) == [server_name(role)]
        assert names.get_values_for_type(x509.UniformResourceIdentifier) == [spiffe_id(role, DOMAIN)]
        seconds = seconds if self.seconds is None else self.seconds
        signed = self._authority.signed(request, timedelta(seconds=seconds))
        return "\n".join([signed["certificate"], *signed["ca_chain"]]) + "\n", seconds
