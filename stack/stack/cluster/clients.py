"""Operator clients of the three servers: python-consul2, python-nomad and hvac, each with the operator's token."""

from __future__ import annotations

from functools import cached_property
from typing import Any
from urllib.parse import urlsplit

import consul
import hvac
import nomad

from stack.cluster.credentials import Credentials
from stack.config import Stack


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
        client.auth.userpass.login("operator", self.credentials.operator_password().read_text())
        return client
