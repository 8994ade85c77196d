"""Workload identities as Nomad writes them: JWTs signed by a key that Consul and Vault are configured to trust."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey, generate_private_key
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from .servers import Server


def trust_in_vault(bao: Server, issuer: Issuer, job: str, policy: str) -> None:
    """Let a job of the issuer log in to OpenBao; its tokens have the policy."""
    bao.call("POST", "/v1/sys/auth/jwt-nomad", {"type": "jwt"})
    bao.call("POST", "/v1/auth/jwt-nomad/config", {"jwt_validation_pubkeys": [issuer.public_key()]})
    bao.call("PUT", f"/v1/sys/policies/acl/{job}", {"policy": policy})
    allow_login(bao, job)


def allow_login(bao: Server, job: str, **changes: Any) -> None:
    """Write the role with which a job logs in to OpenBao."""
    role = {
        "role_type": "jwt",
        "bound_audiences": ["vault.io"],
        "user_claim": "nomad_job_id",
        "token_policies": [job],
        # Written too, because a role keeps what an earlier test gave it.
        "token_ttl": 0,
        "token_max_ttl": 0,
        "token_period": 0,
    }
    bao.call("POST", f"/v1/auth/jwt-nomad/role/{job}", role | changes)


def trust_in_consul(agent: Server, issuer: Issuer, job: str, policy: str) -> None:
    """Let a job of the issuer log in to Consul: it gets the Consul role of its name, which has the policy."""
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
    agent.call("PUT", "/v1/acl/policy", {"Name": job, "Rules": policy})
    agent.call("PUT", "/v1/acl/role", {"Name": job, "Policies": [{"Name": job}]})
    agent.call("PUT", "/v1/acl/auth-method", method)
    agent.call("PUT", "/v1/acl/binding-rule", rule)


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
