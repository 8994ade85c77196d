"""Several stacks on one machine: names, slots and ports."""

from __future__ import annotations

import pytest

from stack import config
from stack.config import LAST_SLOT, Stack
from stack.console import StackError


def test_the_default_stack_has_the_documented_ports(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WAYPOST_STACK", raising=False)
    monkeypatch.delenv("WAYPOST_SLOT", raising=False)
    stack = config.current()
    documented = {"gateway": 8080, "nomad": 4646, "consul": 8500, "vault": 8200, "telemetry": 8000, "otlp_grpc": 4317}
    assert {name: stack.port(name) for name in documented} == documented


def test_no_two_slots_share_a_port() -> None:
    stacks = [Stack("any", slot) for slot in range(LAST_SLOT + 1)]
    fixed = [port for stack in stacks for port in stack.ports().values()]
    handed_out = [port for stack in stacks for port in range(*stack.dynamic_ports)]
    assert len({*fixed, *handed_out}) == len(fixed) + len(handed_out)
    # Above 32767 the kernel takes ports for outgoing connections.
    assert max(fixed + handed_out) < 32_768


@pytest.mark.parametrize("slot", ["", "ten", "10", "-1"])
def test_an_unknown_stack_needs_a_slot(monkeypatch: pytest.MonkeyPatch, slot: str) -> None:
    monkeypatch.setenv("WAYPOST_STACK", "second")
    monkeypatch.setenv("WAYPOST_SLOT", slot)
    with pytest.raises(StackError, match="WAYPOST_SLOT"):
        config.current()


def test_a_stack_name_is_a_plain_word(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WAYPOST_STACK", "../elsewhere")
    with pytest.raises(StackError, match="plain word"):
        config.current()
