"""Makes OpenBao the certificate authority of Consul's mesh, as `consul/connect-ca.json` says.

The running Consul is changed by its API, so no agent restarts. Consul logs in to OpenBao by AppRole. At each login it
reads the role id and the secret id from the credentials of the stack, so a new secret id needs no change in Consul.
The root is in one of two mounts, because Consul takes a new root only from another mount than that of the old one.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import datetime
from functools import partial
from typing import Any

from consul import ConsulException
from cryptography import x509
from hvac.exceptions import InvalidPath, InvalidRequest

from stack.cluster.clients import Clients
from stack.cluster.planned_changes import Change, render, shown
from stack.config import ROOT, Stack
from stack.console import StackError
from stack.waiting import retry, wait_until

FILE = ROOT / "consul" / "connect-ca.json"
ROLE = "consul-ca"
ROOT_MOUNTS = ("mesh-root", "mesh-root-2")
ROLE_ID, SECRET_ID = f"{ROLE}-role-id", f"{ROLE}-secret-id"
_SECONDS = 15


class CertificateAuthority:
    """Compares Consul's login to OpenBao and its certificate authority with the file."""

    def __init__(self, stack: Stack, clients: Clients) -> None:
        self.stack, self.credentials = stack, clients.credentials
        self._certificates = clients.consul.connect.certificates
        self._vault = clients.vault

    def changes(self) -> Iterator[Change]:
        """Yields changes to the login, then to the certificate authority, which needs it."""
        if not self._is_known_login():
            stored = (self.credentials.folder / SECRET_ID).exists()
            before = "OpenBao does not know the stored secret id" if stored else ""
            yield Change(f"vault login of {ROLE}", before, f"a new secret id in {SECRET_ID}", self._replace_login)
        wanted, found = self._wanted(self.root_mount()), self._certificates.current()
        if (found["Provider"], found["Config"]) != (wanted["Provider"], wanted["Config"]):
            before = shown({"Provider": found["Provider"], "Config": _readable(found["Config"], wanted["Config"])})
            yield Change("consul certificate authority", before, shown(wanted), partial(self._configure, wanted))

    def root_mount(self) -> str:
        """Returns the mount of the root that Consul uses; the first one before Consul uses OpenBao."""
        mount: str = self._certificates.current()["Config"].get("RootPKIPath", "")
        return mount if mount in ROOT_MOUNTS else ROOT_MOUNTS[0]

    def use_root(self, mount: str) -> None:
        """Makes the root of a mount the active one; Consul creates it if there is none, and trusts the old root too.

        Raises StackError if Consul rejects it.
        """
        self._configure(self._wanted(mount))

    def root(self, mount: str) -> str | None:
        """Returns the root certificate (PEM) of a mount; None if it has none."""
        issuers = self._vault.list(f"{mount}/issuers")
        return self._vault.read(f"{mount}/cert/ca")["data"]["certificate"].strip() if issuers else None

    def is_former(self, root: str) -> bool:
        """Returns whether a root certificate (PEM) was the active one before; False if it is, or is to be the next."""
        roots = self._roots()["Roots"]
        active = next(each["RootCert"].strip() for each in roots if each["Active"])
        if root == active:
            return False
        # Consul lists a former one for some hours.
        return root in {each["RootCert"].strip() for each in roots} or _begins(root) < _begins(active)

    def delete_root(self, mount: str) -> None:
        """Deletes the root certificate of a mount with its key."""
        self._vault.delete(f"{mount}/root")

    def trust_domain(self) -> str:
        """Returns the domain of all SPIFFE ids of the mesh, which stays the same when the root is replaced."""

        def failure() -> StackError:
            return StackError("Consul has no trust domain", "its mesh has not started", "./justw logs consul")

        return wait_until(lambda: str(self._roots().get("TrustDomain", "")), _SECONDS, failure)

    def _is_known_login(self) -> bool:
        """Returns whether OpenBao would accept the stored ids; no login, because a failed one counts towards a lock."""
        role_id, secret_id = (self._stored(name) for name in (ROLE_ID, SECRET_ID))
        if not secret_id:
            return False
        try:
            role = self._vault.auth.approle.read_role_id(ROLE)
            secret = self._vault.auth.approle.read_secret_id(ROLE, secret_id)
        except (InvalidPath, InvalidRequest):
            return False
        # For an unknown secret id the answer has no content, which hvac returns as a response.
        return isinstance(secret, dict) and role["data"]["role_id"] == role_id

    def _stored(self, name: str) -> str:
        file = self.credentials.folder / name
        return file.read_text() if file.exists() else ""

    def _replace_login(self) -> None:
        """Stores a new secret id; all others become invalid."""
        approle = self._vault.auth.approle
        for accessor in self._accessors():
            approle.destroy_secret_id_accessor(ROLE, accessor)
        self.credentials.store(ROLE_ID, approle.read_role_id(ROLE)["data"]["role_id"])
        self.credentials.store(SECRET_ID, approle.generate_secret_id(ROLE)["data"]["secret_id"])

    def _accessors(self) -> list[str]:
        try:
            return list(self._vault.auth.approle.list_secret_id_accessors(ROLE)["data"]["keys"])
        except InvalidPath:
            return []

    def _wanted(self, root_mount: str) -> dict[str, Any]:
        values = {"vault_url": self.stack.url("vault"), "secrets": str(self.stack.secrets), "root_mount": root_mount}
        text = render(FILE, self.stack, **values)
        wanted: dict[str, Any] = json.loads(text)
        return wanted

    def _configure(self, wanted: dict[str, Any]) -> None:
        """Returns once Consul's active root is that of OpenBao; Consul retires its previous root by cross-signing."""
        put = partial(self._certificates.put, wanted["Config"], wanted["Provider"])
        try:
            # A Consul that has just started rejects it until its previous authority is ready.
            retry(put, _SECONDS, lambda error: isinstance(error, ConsulException))
        except ConsulException as error:
            what = f"Consul does not accept {FILE.relative_to(ROOT)}"
            why = " ".join(str(error).split())
            raise StackError(what, why, "./justw logs consul, ./justw logs vault") from error
        mount = wanted["Config"]["RootPKIPath"]
        why = f"its active root is not the certificate of {mount} in OpenBao"
        failure = StackError("Consul has not changed its certificate authority", why, "./justw logs consul")
        wait_until(lambda: self._is_active(self.root(mount)), _SECONDS, lambda: failure)

    def _is_active(self, root: str | None) -> bool:
        return any(each["Active"] and each["RootCert"].strip() == root for each in self._roots()["Roots"])

    def _roots(self) -> dict[str, Any]:
        found: dict[str, Any] = self._certificates.list()
        return found


def _begins(certificate: str) -> datetime:
    return x509.load_pem_x509_certificate(certificate.encode()).not_valid_before_utc


def _readable(found: dict[str, Any], wanted: dict[str, Any]) -> dict[str, Any]:
    """Returns the fields of the file with their values, all others without: a key or token may be among them."""
    return {key: value if key in wanted else "…" for key, value in found.items()}
