"""Consul and OpenBao with https and a private authority: a process trusts that one, and no others."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from chassis.errors import RpcError
from chassis.platform.consul import ConsulClient
from chassis.process import Process
from chassis.settings import ProcessSettings
from chassis.testing import process, process_settings
from stack.build import tools

from .identities import Issuer, trust_in_consul, trust_in_vault
from .servers import Server, consul, openbao

JOB = "user-service"
SECRET = 'path "secret/data/user-service" { capabilities = ["read"] }'
KEY = 'key "config/user-service" { policy = "read" }'


@dataclass(frozen=True)
class Servers:
    vault: Server
    consul: Server
    identities: Path
    authorities: Path
    """File of the authority of both."""
    others: Path
    """File of an authority of nobody."""


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    if tools.find("consul") is None:
        pytest.skip("needs Consul (./justw deploy builds it)")
    folder, foreign = tmp_path_factory.mktemp("https"), tmp_path_factory.mktemp("foreign")
    with openbao(foreign, https=True):
        pass
    with openbao(folder, https=True) as bao, consul(folder, folder) as agent:
        issuer = Issuer()
        trust_in_vault(bao, issuer, JOB, SECRET)
        bao.call("POST", "/v1/secret/data/user-service", {"data": {"pepper": "salt"}})
        trust_in_consul(agent, issuer, JOB, KEY)
        agent.call("PUT", "/v1/kv/config/user-service", "{}")
        identities = issuer.write(folder, JOB)
        yield Servers(bao, agent, identities, folder / "vault-ca.pem", foreign / "vault-ca.pem")


def started(servers: Servers, authorities: Path) -> Process[ProcessSettings]:
    url, identities = servers.vault.url, servers.identities
    return process(JOB, process_settings(), identity_dir=identities, vault_addr=url, vault_cacert=authorities)


async def test_a_secret_is_read_by_https(servers: Servers) -> None:
    assert await started(servers, servers.authorities).vault.read_secret(JOB) == {"pepper": "salt"}


async def test_a_vault_of_another_authority_gets_no_identity(servers: Servers) -> None:
    with pytest.raises(RpcError, match="SSLError") as raised:
        await started(servers, servers.others).vault.read_secret(JOB)
    assert raised.value.reason == "VAULT_UNAVAILABLE"


async def test_a_key_is_read_by_https(servers: Servers) -> None:
    client = ConsulClient(servers.consul.url, servers.identities / "nomad_consul.jwt", servers.authorities)
    async with asyncio.timeout(10):
        await client.connect()
        assert await client.read_key("config/user-service") == b"{}"
    await client.close()


async def test_a_consul_of_another_authority_gets_no_identity(servers: Servers) -> None:
    client = ConsulClient(servers.consul.url, servers.identities / "nomad_consul.jwt", servers.others)
    with pytest.raises(Exception, match="CERTIFICATE_VERIFY_FAILED"):
        await client.login()
