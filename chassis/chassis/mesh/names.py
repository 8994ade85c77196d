"""The names in the certificate of a service: one for grpc, and the SPIFFE id by which the mesh knows it."""

from __future__ import annotations


def server_name(service: str) -> str:
    """Returns the DNS name in the certificate of a service, which grpc compares; it cannot compare a SPIFFE id."""
    return f"{service}.mesh"


def spiffe_id(service: str, trust_domain: str) -> str:
    """Returns the SPIFFE id of a service in the form of Consul."""
    return f"spiffe://{trust_domain}/ns/default/dc/dc1/svc/{service}"


def caller_name(found: str, trust_domain: str) -> str | None:
    """Returns the service that a SPIFFE id names; None if it is not of this trust domain and of Consul's form."""
    service = found.rpartition("/")[2]
    return service if trust_domain and service and found == spiffe_id(service, trust_domain) else None
