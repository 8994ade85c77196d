"""Describes a stack: its name, slot, ports and folders.

A slot shifts every port, so several stacks run on one machine; two slots share no port.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from stack.console import StackError

ROOT = Path(__file__).resolve().parents[2]
LAST_SLOT = 9
KNOWN_SLOTS = {"dev": 0, "test": 1, "test_second": 8}

_BASE_PORTS = {
    "gateway": 8080,
    "gateway_https": 8443,
    "nomad": 4646,
    "nomad_rpc": 4647,
    "nomad_serf": 4648,
    "consul": 8500,
    "consul_server": 8300,
    "consul_serf_lan": 8301,
    "consul_serf_wan": 8302,
    "consul_grpc": 8502,
    "consul_dns": 8600,
    "vault": 8200,
    "vault_cluster": 8201,
    "telemetry": 8000,
    "otlp_grpc": 4317,
    "otlp_http": 4318,
    "postgres": 7432,
    "artifacts": 7070,
}


@dataclass(frozen=True)
class Stack:
    """An isolated system: its name, its slot (0-9), and the ports and folders that follow from them."""

    name: str
    slot: int

    def port(self, name: str) -> int:
        """Returns the TCP port of a named part; slot 0 has the documented ports."""
        base = _BASE_PORTS[name]
        return base if self.slot == 0 else base + 10_000 + 1_000 * (self.slot - 1)

    def ports(self) -> dict[str, int]:
        """Returns every fixed port by its name."""
        return {name: self.port(name) for name in _BASE_PORTS}

    @property
    def dynamic_ports(self) -> tuple[int, int]:
        """Returns the first and last port that Nomad may assign; the ranges of two slots never overlap."""
        first = 28_000 + 400 * self.slot
        return first, first + 399

    def url(self, name: str) -> str:
        """Returns the address of a named part."""
        scheme = "https" if name.endswith("_https") else "http"
        return f"{scheme}://127.0.0.1:{self.port(name)}"

    @property
    def state(self) -> Path:
        return ROOT / ".waypost" / self.name

    @property
    def lock(self) -> Path:
        """Returns the lock of all commands that change the stack; outside the state folder, which `destroy` removes."""
        return self.state.with_suffix(".lock")

    @property
    def secrets(self) -> Path:
        """Returns the folder of the operator's credentials and keys; only the owner can read it."""
        return self.state / "secrets"

    @property
    def artifacts(self) -> Path:
        return self.state / "artifacts"

    @property
    def logs(self) -> Path:
        return self.state / "logs"


def current() -> Stack:
    """Returns the stack named by WAYPOST_STACK (default `dev`); other names than the known ones need WAYPOST_SLOT."""
    name = os.environ.get("WAYPOST_STACK", "dev")
    if not name.isidentifier():
        raise StackError(
            f"stack name {name!r} is not a plain word",
            "WAYPOST_STACK names a folder",
            "use letters, digits and _",
        )
    return Stack(name, _slot(name))


def _slot(name: str) -> int:
    text = os.environ.get("WAYPOST_SLOT", str(KNOWN_SLOTS.get(name, "")))
    if text.isdigit() and int(text) <= LAST_SLOT:
        return int(text)
    raise StackError(
        f"stack {name!r} has no slot",
        f"WAYPOST_SLOT is {text!r}, not a number from 0 to {LAST_SLOT}",
        "set WAYPOST_SLOT to a number that no other stack uses: 2 to 7, or 9; 0 is dev, the tests use 1 and 8",
    )


def cache() -> Path:
    """Returns the folder of built tools, which all checkouts of this user share."""
    base = os.environ.get("WAYPOST_CACHE") or os.environ.get("XDG_CACHE_HOME")
    if os.environ.get("WAYPOST_CACHE"):
        return Path(str(base)).expanduser()
    return (Path(base) if base else Path.home() / ".cache") / "waypost"
