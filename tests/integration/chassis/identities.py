"""Workload identities as Nomad writes them: JWTs signed by a key that Consul and Vault are configured to trust."""

from __future__ import annotations

import time
from pathlib import Path

import jwt
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey, generate_private_key
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from .servers import Server


class Issuer:
    """Signs workload identities in place of Nomad."""

    def __init__(self) -> None:
        self._key: RSAPrivateKey = generate_private_key(public_exponent=65537, key_size=2048)

    def public_key(self) -> str:
        """Return the public key as PEM, for `jwt_validation_pubkeys`."""
        spki = PublicFormat.SubjectPublicKeyInfo
        return self._key.public_key().public_bytes(Encoding.PEM, spki).decode()

    def write(self, folder: Path, job: str) -> Path:
        """Write `nomad_consul.jwt` and `nomad_vault.jwt` of a job; returns the folder."""
        for name, audience in (("consul", "consul.io"), ("vault", "vault.io")):
            now = int(time.time())
            times = {"iat": now - 10, "nbf": now - 10, "exp": now + 3600}
            claims = {"aud": audience, "sub": job, "nomad_job_id": job, **times}
            (folder / f"nomad_{name}.jwt").write_text(jwt.encode(claims, self._key, "RS256"))
        return folder


def trust_in_consul(agent: Server, issuer: Issuer, job: str, rules: str) -> None:
    """Creates an auth method of Consul for identities of the issuer, and the role of a job with its rules."""
    method = {
        "Name": "nomad-workloads",
        "Type": "jwt",
        "MaxTokenTTL": "60s",
        "Config": {
            "JWTValidationPubKeys": [issuer.public_key()],
            "BoundAudiences": ["consul.io"],
            "ClaimMappings": {"nomad_job_id": "nomad_job_id"},
        },
    }
    rule = {"AuthMethod": "nomad-workloads", "BindType": "role", "BindName": "${value.nomad_job_id}"}
    agent.call("PUT", "/v1/acl/policy", {"Name": job, "Rules": rules})
    agent.call("PUT", "/v1/acl/role", {"Name": job, "Policies": [{"Name": job}]})
    agent.call("PUT", "/v1/acl/auth-method", method)
    agent.call("PUT", "/v1/acl/binding-rule", rule)
