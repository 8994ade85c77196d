"""The operator's login at Vault: wrong passwords of others do not lock it, and a rejection says what to do."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import hvac
import pytest

from stack.cluster.clients import log_in
from stack.config import ROOT
from stack.console import StackError
from stack.waiting import poll

from ..chassis.servers import Server, free_port

LOCKOUT = re.compile(r'^user_lockout "userpass" \{\n.*?^\}\n', re.MULTILINE | re.DOTALL)
PASSWORD = "the-long-random-one"


@contextmanager
def vault(folder: Path, config: str) -> Iterator[Server]:
    """Starts OpenBao with the text of a server.hcl, as a deploy does; keeps its data in the folder."""
    port, cluster = free_port(), free_port()
    address = f"http://127.0.0.1:{port}"
    (folder / "data").mkdir(exist_ok=True)
    (folder / "key").write_bytes(b"0123456789abcdef" * 2)
    (folder / "operator-password").write_text(PASSWORD)
    (folder / "server.hcl").write_text(config)
    stack = {
        "api_addr": address,
        "cluster_addr": f"http://127.0.0.1:{cluster}",
        "listener": [
            {"tcp": {"address": f"127.0.0.1:{port}", "cluster_address": f"127.0.0.1:{cluster}", "tls_disable": True}}
        ],
        "storage": {"raft": {"path": str(folder / "data"), "node_id": "1", "performance_multiplier": "1"}},
        "seal": {"static": {"current_key_id": "1", "current_key": f"file://{folder / 'key'}"}},
    }
    (folder / "stack.json").write_text(json.dumps(stack))
    bao = Path(sys.executable).parent / "bao"
    command = ["env", "-C", str(folder), str(bao), "server", "-config=server.hcl", "-config=stack.json"]
    server = Server(command, address, "/v1/sys/health", "X-Vault-Token", folder / "log")
    try:
        server.start()
        _wait_until_active(address)
        yield server
    finally:
        server.kill()


def _wait_until_active(address: str) -> None:
    health = f"{address}/v1/sys/health"
    assert poll(lambda: httpx.get(health, trust_env=False).status_code == 200, 30), "OpenBao did not unseal itself"


def guess(server: Server, times: int = 8) -> None:
    for _ in range(times):
        login = f"{server.url}/v1/auth/userpass/login/operator"
        assert httpx.post(login, json={"password": "wrong"}, trust_env=False).status_code in {400, 403}


@pytest.fixture
def password(tmp_path: Path) -> Path:
    file = tmp_path / "secrets"
    file.write_text(PASSWORD)
    return file


def test_wrong_passwords_do_not_lock_the_operator_out(tmp_path: Path, password: Path) -> None:
    with vault(tmp_path, (ROOT / "vault" / "server.hcl").read_text()) as server:
        guess(server)
        client = hvac.Client(url=server.url)
        log_in(client, password)
        assert client.lookup_token()["data"]["policies"] == ["default", "operator"]


def test_a_lock_of_an_earlier_server_is_explained_and_ends_with_the_next_start(tmp_path: Path, password: Path) -> None:
    now = (ROOT / "vault" / "server.hcl").read_text()
    earlier, removed = LOCKOUT.subn("", now)
    assert removed == 1
    with vault(tmp_path, earlier) as server:
        log_in(hvac.Client(url=server.url), password)
        guess(server)
        with pytest.raises(StackError, match="locked until 15 minutes") as rejected:
            log_in(hvac.Client(url=server.url), password)
        assert "deploy" in rejected.value.next_step
    with vault(tmp_path, now) as server:
        log_in(hvac.Client(url=server.url), password)


def test_a_password_of_another_stack_is_named(tmp_path: Path, password: Path) -> None:
    password.write_text("another")
    with (
        vault(tmp_path, (ROOT / "vault" / "server.hcl").read_text()) as server,
        pytest.raises(StackError, match=re.escape(str(password))),
    ):
        log_in(hvac.Client(url=server.url), password)
