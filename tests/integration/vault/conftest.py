"""A running Consul with its built-in authority, and an OpenBao with nothing of the mesh."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from stack.build import tools

from ..chassis.servers import Server, consul
from .private_mesh import Mesh


@pytest.fixture(scope="module")
def agent(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    if tools.find("consul") is None:
        pytest.skip("needs Consul (./justw deploy builds it)")
    with consul(tmp_path_factory.mktemp("consul")) as server:
        yield server


@pytest.fixture(scope="module")
def unchanged(bao: Server, agent: Server, tmp_path_factory: pytest.TempPathFactory) -> Mesh:
    return Mesh(bao, agent, tmp_path_factory.mktemp("stack"))
