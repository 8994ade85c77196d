"""Operator clients of the three servers: python-consul2, python-nomad and hvac, each with the operator's token."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import consul
import hvac
import nomad
from hvac.exceptions import Forbidden, InvalidRequest

from stack.cluster.credentials import Credentials
from stack.config import Stack
from stack.console import StackError

OPERATOR = "operator"
# The default of OpenBao, which holds for a server that was started with an earlier vault/server.hcl.
_LOCK_MINUTES = 15


class Clients:
    """A client for each server, created when first used."""

    def __init__(self, stack: Stack) -> None:
        self.stack = stack
        self.credentials = Credentials(stack)

    @cached_property
    def consul(self) -> Any:
        parts = urlsplit(self.stack.url("consul"))
        return consul.Consul(parts.hostname, parts.port, token=self.credentials.token("consul-management"))

    @cached_property
    def nomad(self) -> Any:
        parts = urlsplit(self.stack.url("nomad"))
        token = self.credentials.token("nomad-management")
        return nomad.Nomad(host=parts.hostname, port=parts.port, token=token, timeout=30)

    @cached_property
    def vault(self) -> Any:
        client = hvac.Client(url=self.stack.url("vault"))
        log_in(client, self.credentials.operator_password())
        return client


def log_in(client: hvac.Client, password: Path) -> None:
    """Gives a client of Vault a token of the operator; raises StackError if Vault rejects the login."""
    what = "Vault rejects the login of its user operator"
    try:
        client.auth.userpass.login(OPERATOR, password.read_text())
    except Forbidden as error:
        why = f"the user is locked until {_LOCK_MINUTES} minutes after the last wrong password, which anybody can send"
        raise StackError(
            what, why, "./justw deploy: it starts Vault with vault/server.hcl, which has no such lock"
        ) from error
    except InvalidRequest as error:
        why = f"{password} does not have the password that Vault knows"
        raise StackError(what, why, "restore that file, or remove the stack with its data: ./justw destroy") from error
