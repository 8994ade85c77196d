"""The leaf of a process is there in time, is replaced in time, and lasts while OpenBao and Consul are away."""

from __future__ import annotations

import asyncio
import shutil
import sys
from collections.abc import AsyncIterator

import pytest
import uvloop
from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from support.waiting import until

from chassis.errors import unavailable
from chassis.mesh import certificate_request
from chassis.mesh.identity import MeshIdentity
from chassis.mesh.names import caller_name, spiffe_id
from chassis.settings import Live, MeshSettings
from chassis.testing import FakeConsul

from .authority import DOMAIN, Authority


class Member:
    """An identity with its background work."""

    def __init__(self, leaf_seconds: float = 3600) -> None:
        self.consul, self.authority = FakeConsul(), Authority()
        self.identity = MeshIdentity("order-service", self.authority, self.consul)
        self.settings = Live(MeshSettings(leaf_seconds=leaf_seconds, enforce=True))
        self.changes = 0
        self.tasks: list[asyncio.Task[None]] = []
        self.identity.on_change(self._changed)
        self.identity.start(lambda _, work: self.tasks.append(asyncio.ensure_future(work())), self.settings)

    def _changed(self) -> None:
        self.changes += 1


@pytest.fixture
async def member() -> AsyncIterator[Member]:
    made = Member()
    yield made
    for task in made.tasks:
        task.cancel()
    await asyncio.wait(made.tasks)


async def test_a_request_has_both_names_and_its_key_never_was_on_disk() -> None:
    key, request = await certificate_request.make("order-service.mesh", spiffe_id("order-service", DOMAIN))
    asked = x509.load_pem_x509_csr(request)
    names = asked.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["order-service.mesh"]
    assert names.get_values_for_type(x509.UniformResourceIdentifier) == [spiffe_id("order-service", DOMAIN)]
    assert load_pem_private_key(key, None).public_key() == asked.public_key()
    assert asked.is_signature_valid


async def test_a_request_that_cannot_be_made_is_an_error_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(certificate_request, "_PROGRAM", "raise SystemExit('no entropy')")
    with pytest.raises(OSError, match="no entropy"):
        await certificate_request.make("a.mesh", "spiffe://a")


def test_a_child_process_that_ends_before_it_took_its_input_is_an_error_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """On the loop of the services, which fails in another way then; whether it notices the end first, is a race."""
    monkeypatch.setattr(sys, "executable", shutil.which("false"))

    async def attempts() -> list[BaseException | tuple[bytes, bytes]]:
        makes = (certificate_request.make("a.mesh", "spiffe://a") for _ in range(30))
        return await asyncio.gather(*makes, return_exceptions=True)

    assert {type(found) for found in uvloop.run(attempts())} == {OSError}


async def test_the_identity_is_ready_once_consul_named_the_roots_and_openbao_signed(member: Member) -> None:
    assert member.identity.current is None
    assert member.identity.readiness() == "no certificate of the mesh yet"
    member.consul.trust(member.authority.as_consul())
    await asyncio.wait_for(member.identity.ready(), 10)
    assert member.identity.current is not None
    leaf, trust = member.identity.current
    assert (trust.domain, trust.roots) == (DOMAIN, member.authority.roots)
    assert leaf.chain.count(b"BEGIN CERTIFICATE") == 3
    assert b"PRIVATE" not in repr(leaf).encode()
    assert member.identity.readiness() is None


async def test_the_leaf_is_renewed_at_about_half_of_its_time(member: Member) -> None:
    member.authority.seconds = 2
    member.consul.trust(member.authority.as_consul())
    await until("three leaves", lambda: member.authority.requests >= 3, 10)
    assert member.identity.readiness() is None
    assert member.changes >= 2


async def test_while_openbao_is_away_the_leaf_stays_and_readiness_says_when_it_has_ended(member: Member) -> None:
    member.authority.seconds = 2
    member.consul.trust(member.authority.as_consul())
    await asyncio.wait_for(member.identity.ready(), 10)
    member.authority.failure = unavailable("VAULT_UNAVAILABLE", "away", 1.0)
    assert member.identity.readiness() is None
    await until("it has ended", lambda: member.identity.readiness() == "the certificate of the mesh has ended", 5)
    member.authority.failure = None
    await until("it is replaced", lambda: member.identity.readiness() is None, 15)


async def test_another_validity_in_the_settings_holds_at_once(member: Member) -> None:
    member.consul.trust(member.authority.as_consul())
    await asyncio.wait_for(member.identity.ready(), 10)
    member.settings.replace(MeshSettings(leaf_seconds=60, enforce=True))
    await until("a new leaf", lambda: member.authority.requests == 2)


async def test_a_new_root_is_trusted_before_the_first_leaf_below_it_is_used(
    member: Member, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("chassis.mesh.identity._SPREAD_SECONDS", 0.5)
    old, new = member.authority, Authority("next")
    member.consul.trust(old.as_consul())
    await asyncio.wait_for(member.identity.ready(), 10)
    first, _ = member.identity.current or pytest.fail("it is ready")
    member.identity._authority = new
    member.settings.replace(MeshSettings(leaf_seconds=60, enforce=True))
    await until("OpenBao signs below a root that Consul has not announced", lambda: new.requests >= 2)
    member.consul.trust(new.as_consul(old))
    await until("both are trusted", lambda: new.roots in trusted(member))
    assert old.roots in trusted(member)
    assert (member.identity.current or [None])[0] is first
    await until("a leaf below the new root", lambda: (member.identity.current or [first])[0] is not first)


async def test_a_new_intermediate_below_a_known_root_is_used_at_once_and_replaces_no_leaf(member: Member) -> None:
    """Consul makes one at each of its starts."""
    member.consul.trust(member.authority.as_consul())
    await asyncio.wait_for(member.identity.ready(), 10)
    changes = member.changes
    member.authority.replace_intermediate()
    member.settings.replace(MeshSettings(leaf_seconds=60, enforce=True))
    await until("a new leaf", lambda: member.changes == changes + 1)
    member.consul.trust(member.authority.as_consul())
    await asyncio.sleep(0.3)
    assert (member.authority.requests, member.changes) == (2, changes + 1)


async def test_once_another_root_signs_the_leaf_is_replaced_at_once(
    member: Member, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("chassis.mesh.identity._SPREAD_SECONDS", 0.1)
    new = Authority("next")
    member.consul.trust(member.authority.as_consul())
    await asyncio.wait_for(member.identity.ready(), 10)
    member.identity._authority = new
    member.consul.trust(new.as_consul(member.authority))
    await until("a leaf below the new root", lambda: new.requests == 1)
    member.consul.trust(new.as_consul())
    await until("the old one is not trusted", lambda: member.authority.roots not in trusted(member))
    assert new.requests == 1


def trusted(member: Member) -> bytes:
    assert member.identity.current is not None
    return member.identity.current[1].roots


@pytest.mark.parametrize(
    ("found", "name"),
    [
        (f"spiffe://{DOMAIN}/ns/default/dc/dc1/svc/gateway", "gateway"),
        (f"spiffe://{DOMAIN}/ns/default/dc/dc1/svc/", None),
        (f"spiffe://{DOMAIN}/ns/default/dc/dc2/svc/gateway", None),
        (f"spiffe://{DOMAIN}/ns/other/dc/dc1/svc/gateway", None),
        (f"spiffe://{DOMAIN}.evil/ns/default/dc/dc1/svc/gateway", None),
        (f"spiffe://{DOMAIN}/gateway/mesh/dc/dc1/svc/gateway", None),
        ("spiffe://other.consul/ns/default/dc/dc1/svc/gateway", None),
        ("gateway", None),
        ("", None),
    ],
)
def test_a_caller_is_named_by_a_spiffe_id_of_this_mesh_only(found: str, name: str | None) -> None:
    assert caller_name(found, DOMAIN) == name
    assert caller_name(found, "") is None
