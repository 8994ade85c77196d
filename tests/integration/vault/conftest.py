"""A running Consul with its built-in authority, and an OpenBao with nothing of the mesh."""

from __future__ import annotations

import pytest

from ..chassis.servers import Server
from .private_mesh import Mesh


@pytest.fixture(scope="module")
def unchanged(bao: Server, agent: Server, tmp_path_factory: pytest.TempPathFactory) -> Mesh:
    return Mesh(bao, agent, tmp_path_factory.mktemp("stack"))
