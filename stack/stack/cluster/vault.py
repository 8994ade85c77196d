"""Applies the files in `vault/` to OpenBao: a path below `engines` or `auth` is a path of its API.

`engines/transit.json` is the mount `transit`, `engines/transit/keys/tokens.json` is `transit/keys/tokens`,
`auth/jwt-nomad/role/gateway.json` is `auth/jwt-nomad/role/gateway`. A file with `${random}` is written only once.
The roles of the engine `mesh` contain the trust domain of Consul's mesh.
OpenBao alone knows the password of its Postgres login: a deploy sets one only if OpenBao cannot log in, and has OpenBao
replace it at once.
"""

from __future__ import annotations

import hashlib
import json
import secrets
from collections.abc import Callable, Iterator, Set
from functools import partial
from pathlib import Path
from typing import Any

from hvac.exceptions import InvalidRequest, VaultError

from stack.build import tools
from stack.cluster.clients import Clients
from stack.cluster.planned_changes import Change, render, shown
from stack.config import ROOT, Stack
from stack.console import StackError
from stack.machine import postgres_socket
from stack.waiting import retry

FILES = ROOT / "vault"
# Two are part of OpenBao; server.hcl makes the one of the operator.
BUILT_IN = frozenset({"default", "root", "operator"})
CONNECTION = "database/config/postgres"
# Engines with changes of their own: they need more than OpenBao.
_LATER = frozenset({"database", "mesh"})
# Consul signs the certificates with it that it issues itself.
_ROLE_OF_CONSUL = "leaf-cert"
# Earlier versions kept a copy of the password of OpenBao's Postgres login there.
_FORMER = "secret/metadata/postgres"
_ROLE_SECONDS = 30


class Vault:
    """Compares the running server with the files and yields the differences as changes."""

    def __init__(self, stack: Stack, clients: Clients) -> None:
        self.stack, self.api = stack, clients.vault
        self._remembered = stack.state / "vault" / "written.json"

    def changes(self) -> Iterator[Change]:
        """Yields changes to policies, engines, secrets and roles."""
        for file in sorted((FILES / "policies").glob("*.hcl")):
            yield from self._policy(file)
        yield from self._remove_without_file("sys/policies/acl", FILES / "policies", BUILT_IN)
        for root, mounts in ((FILES / "engines", "sys/mounts"), (FILES / "auth", "sys/auth")):
            for file in sorted(root.glob("*.json")):
                yield from self._mount(file, mounts)
                if file.stem not in _LATER:
                    yield from self._below(root, file.with_suffix(""))
        for method in ("approle", "jwt-nomad"):
            yield from self._remove_without_file(f"auth/{method}/role", FILES / "auth" / method / "role")

    def database_changes(self) -> Iterator[Change]:
        """Yields changes to the database engine, which needs a running Postgres."""
        yield from self._below(FILES / "engines", FILES / "engines" / "database")
        if found := self._read(_FORMER):
            before = shown({"versions": sorted(found["versions"])})
            yield Change("vault secret/postgres", before, "", self._remove_old_secret)
        yield from self._remove_without_file("database/roles", FILES / "engines" / "database" / "roles")

    def certificate_role_changes(self, trust_domain: str) -> Iterator[Change]:
        """Yields changes to the roles with which workloads get their certificates signed."""
        folder = FILES / "engines" / "mesh"
        yield from self._below(FILES / "engines", folder, trust_domain=trust_domain)
        yield from self._remove_without_file("mesh/roles", folder / "roles", {_ROLE_OF_CONSUL})

    def _remove_without_file(self, path: str, folder: Path, kept: Set[str] = frozenset()) -> Iterator[Change]:
        """Yields the removal of every policy or role without a file: its grants are in no review."""
        listed = self.api.list(path)
        found = set(listed["data"]["keys"]) if listed else set()
        for name in sorted(found - {file.stem for file in folder.iterdir()} - kept):
            delete = partial(self.api.delete, f"{path}/{name}")
            yield Change(f"vault {path}/{name}", shown(self._read(f"{path}/{name}")), "", delete)

    def _policy(self, file: Path) -> Iterator[Change]:
        path, wanted = f"sys/policies/acl/{file.stem}", file.read_text()
        found = self._read(path)
        if found is None or found["policy"] != wanted:
            before = found["policy"] if found else ""
            yield Change(f"vault policy {file.stem}", before, wanted, lambda: self._write(path, {"policy": wanted}))

    def _mount(self, file: Path, mounts: str) -> Iterator[Change]:
        wanted, path = json.loads(file.read_text()), f"{mounts}/{file.stem}"
        found, where = self._read(mounts).get(f"{file.stem}/"), f"vault {mounts.removeprefix('sys/')} {file.stem}"
        if found is None:
            yield Change(where, "", shown(wanted), lambda: self._write(path, wanted))
        elif _tunable(found) != _tunable(wanted):
            tune = partial(self._write, f"{path}/tune", _tunable(wanted))
            yield Change(where, shown(_tunable(found)), shown(_tunable(wanted)), tune)

    def _below(self, root: Path, folder: Path, **values: str) -> Iterator[Change]:
        for file in sorted(folder.rglob("*.json")):
            yield from self._entry(file.relative_to(root.parent).with_suffix("").as_posix(), file, **values)

    def _entry(self, name: str, file: Path, **values: str) -> Iterator[Change]:
        path = name.removeprefix("engines/")
        found = _flat(self._read(path))
        if found is not None and "${random}" in file.read_text():
            return
        text = render(file, self.stack, random=secrets.token_urlsafe(24), **values)
        wanted = json.loads(text)
        locked_out = path == CONNECTION and self._is_locked_out()
        if found is None or not _covers(found, wanted) or self._digest(path) != _hash(text) or locked_out:
            before = shown({key: found.get(key) for key in wanted}) if found else ""
            after = shown({key: value for key, value in wanted.items() if key != "data"})
            notes = ("OpenBao cannot log in to Postgres: it gets a new password",) if found and locked_out else ()
            write = self._connect if locked_out else self._put
            yield Change(f"vault {path}", before, after, partial(write, path, wanted, text), notes)

    def _is_locked_out(self) -> bool:
        """Returns whether OpenBao fails to log in to a Postgres that answers the superuser."""
        try:
            self._write("database/reset/postgres", {})
        except VaultError:
            return self._postgres_answers()
        return False

    def _postgres_answers(self) -> bool:
        try:
            self._sql("SELECT 1")
        except StackError:
            return False
        return True

    def _connect(self, path: str, wanted: dict[str, Any], text: str) -> None:
        """Writes the connection with a new password, which OpenBao then replaces by one that only it knows."""
        password = secrets.token_urlsafe(24)
        # A task of job `postgres` creates the role, shortly after Postgres accepts connections.
        set_password = partial(self._sql, f"ALTER ROLE vault PASSWORD '{password}'")
        retry(set_password, _ROLE_SECONDS, lambda error: isinstance(error, StackError))
        self._put(path, wanted | {"password": password}, text)
        self._write("database/rotate-root/postgres", {})

    def _remove_old_secret(self) -> None:
        self._write("database/rotate-root/postgres", {})
        self.api.delete(_FORMER)

    def _sql(self, statement: str) -> str:
        return postgres_socket.execute(self.stack, tools.installed().postgres_bin, "postgres", statement)

    def _put(self, path: str, wanted: dict[str, Any], text: str) -> None:
        self._write(path, wanted)
        digests = json.loads(self._remembered.read_text()) if self._remembered.exists() else {}
        self._remembered.write_text(json.dumps(digests | {path: _hash(text)}, indent=2) + "\n")

    def _digest(self, path: str) -> str | None:
        digests: dict[str, str] = json.loads(self._remembered.read_text()) if self._remembered.exists() else {}
        return digests.get(path)

    def _read(self, path: str) -> Any:
        answer = self._when_upgraded(lambda: self.api.read(path))
        return answer["data"] if answer else None

    def _write(self, path: str, data: dict[str, Any]) -> None:
        self._when_upgraded(lambda: self.api.write_data(path, data=data))

    def _when_upgraded(self, call: Callable[[], Any]) -> Any:
        """Returns the result of a call; a new KV mount rejects calls while it upgrades itself to versions."""
        return retry(call, 10, _is_upgrading, interval=0.1)


def _is_upgrading(error: Exception) -> bool:
    return isinstance(error, InvalidRequest) and "Upgrading" in str(error)  # fragile: openbao-error-text


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _covers(found: dict[str, Any], wanted: dict[str, Any]) -> bool:
    """Returns whether the readable fields agree; secrets cannot be read, the digest of the file covers them."""
    return all(found[key] == value for key, value in wanted.items() if key in found)


def _flat(found: Any) -> Any:
    """Returns one object: a database connection is written as one and read as two, one inside the other."""
    return found and found | found.get("connection_details", {})


def _tunable(mount: dict[str, Any]) -> dict[str, Any]:
    """Returns the fields of a mount that may change; without a lease in the file, the server's default holds."""
    config = mount.get("config", {})
    leases = {name: config.get(name) or "system" for name in ("default_lease_ttl", "max_lease_ttl")}
    return leases | {name: mount.get(name) or {} for name in ("description", "options")}
