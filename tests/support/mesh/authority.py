"""A certificate authority of a test: signs leaves as OpenBao does for the mesh, and is foreign to a deployed one."""

from __future__ import annotations

import time
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from chassis.mesh.names import server_name, spiffe_id
from stack.mesh.operator_leaf import Leaf

TRUST_DOMAIN = "11111111-2222-3333-4444-555555555555.consul"
HOUR = timedelta(hours=1)
_PEM = serialization.Encoding.PEM


@dataclass(frozen=True)
class _Signer:
    """A name and the key that signs for it."""

    name: x509.Name
    key: ec.EllipticCurvePrivateKey

    def sign(self, subject: x509.Name, public: Any, lifetime: timedelta, *extensions: x509.ExtensionType) -> str:
        """Returns a certificate (PEM); with a negative lifetime it has ended already."""
        now = datetime.now(UTC)
        builder = x509.CertificateBuilder().issuer_name(self.name).subject_name(subject).public_key(public)
        builder = builder.serial_number(x509.random_serial_number())
        builder = builder.not_valid_before(min(now, now + lifetime) - HOUR).not_valid_after(now + lifetime)
        issuer = x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key())
        for extension in (*extensions, issuer, x509.SubjectKeyIdentifier.from_public_key(public)):
            builder = builder.add_extension(extension, critical=isinstance(extension, x509.BasicConstraints))
        return builder.sign(self.key, hashes.SHA256()).public_bytes(_PEM).decode()


class Authority:
    """A root and an intermediate, which signs; both keys are in memory only."""

    def __init__(self, trust_domain: str = TRUST_DOMAIN) -> None:
        self.trust_domain = trust_domain
        self._root = _signer("Root of a test")
        self.root = self._root.sign(self._root.name, self._root.key.public_key(), 24 * HOUR, _authority(1))
        self.replace_intermediate()

    def replace_intermediate(self) -> None:
        """Signs with a new intermediate from now on."""
        self._signer = _signer("Intermediate of a test")
        public = self._signer.key.public_key()
        self.intermediate = self._root.sign(self._signer.name, public, 24 * HOUR, _authority(0))

    def leaf(self, name: str, lifetime: timedelta = HOUR) -> Leaf:
        """Returns a leaf with the two names of a service; a negative lifetime has ended already."""
        key = ec.generate_private_key(ec.SECP256R1())
        uri = spiffe_id(name, self.trust_domain)
        names = x509.SubjectAlternativeName([x509.DNSName(server_name(name)), x509.UniformResourceIdentifier(uri)])
        chain = self._leaf(key.public_key(), names, lifetime) + self.intermediate
        plain = key.private_bytes(_PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        now = time.time()
        return Leaf(plain, chain.encode(), self.root.encode(), now, now + lifetime.total_seconds())

    def signed(self, request: str, lifetime: timedelta = HOUR) -> dict[str, Any]:
        """Returns what OpenBao answers to a certificate signing request."""
        asked = x509.load_pem_x509_csr(request.encode())
        names = asked.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        return {
            "certificate": self._leaf(asked.public_key(), names, lifetime).strip(),
            "issuing_ca": self.intermediate.strip(),
            "ca_chain": [self.intermediate.strip(), self.root.strip()],
            "expiration": int(time.time() + lifetime.total_seconds()),
        }

    def _leaf(self, public: Any, names: x509.SubjectAlternativeName, lifetime: timedelta) -> str:
        usage = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH])
        constraints = x509.BasicConstraints(ca=False, path_length=None)
        return self._signer.sign(x509.Name([]), public, lifetime, constraints, names, usage)


def _signer(name: str) -> _Signer:
    key = ec.generate_private_key(ec.SECP256R1())
    return _Signer(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]), key)


def _authority(path_length: int) -> x509.BasicConstraints:
    return x509.BasicConstraints(ca=True, path_length=path_length)
