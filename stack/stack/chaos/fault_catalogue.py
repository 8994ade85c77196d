"""Every fault that can be ordered: its name, its arguments, and what it will do in one line."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from stack.chaos.faults import AgentDown, DiskFull, Fault, Network, Paused, Scene, Sealed, kill
from stack.chaos.proxy import Toxic
from stack.cluster.clients import Clients
from stack.config import Stack
from stack.console import StackError

SHORTEST, USUAL, LONGEST = 1.0, 30.0, 600.0


@dataclass(frozen=True)
class Kind:
    """A fault as a person orders it; what acts for a while has `make`, what is over at once has `strike`."""

    name: str
    parameters: tuple[str, ...]
    does: str
    subject: str = ""
    """What it acts on, before the service: two faults cannot act on the same."""
    make: Callable[[Scene, list[str]], Fault] | None = None
    strike: Callable[[Stack, Clients, list[str]], str] | None = None

    @property
    def usage(self) -> str:
        return " ".join((self.name, *self.parameters))

    def record_id(self, arguments: Sequence[str]) -> str:
        return "-".join((self.subject, *arguments[: self.parameters[:1] == ("SERVICE",)]))


def _latency(scene: Scene, arguments: list[str]) -> Fault:
    milliseconds = _number(arguments[1], "MS", 1, 60_000)
    return Network(scene, arguments[0], Toxic(latency_seconds=milliseconds / 1000), f"answers {milliseconds:g} ms late")


def _errors(scene: Scene, arguments: list[str]) -> Fault:
    percent = _number(arguments[1], "PERCENT", 0.1, 100)
    does = f"{percent:g} % of what is sent resets its connection"
    return Network(scene, arguments[0], Toxic(reset_share=percent / 100), does)


def _slow(scene: Scene, arguments: list[str]) -> Fault:
    rate = _number(arguments[1], "BYTES_PER_SECOND", 1, 1e9)
    return Network(scene, arguments[0], Toxic(bytes_per_second=rate), f"{rate:g} bytes a second on each connection")


def _drop(scene: Scene, arguments: list[str]) -> Fault:
    return Network(scene, arguments[0], Toxic(silent=True), "connections are accepted, nothing moves on them")


def _half_open(scene: Scene, arguments: list[str]) -> Fault:
    return Network(scene, arguments[0], Toxic(half_open=True), "open connections lost their peer, new ones work")


def _number(text: str, name: str, least: float, most: float) -> float:
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not least <= value <= most:
        raise StackError(
            f"{name} is {text!r}",
            f"it has to be a number from {least:g} to {most:g}",
            "./justw chaos list",
        )
    return value


def _agent_down(name: str) -> Callable[[Scene, list[str]], Fault]:
    return lambda scene, _: AgentDown(scene, name)


KINDS = (
    Kind(
        "kill",
        ("SERVICE", "[all]"),
        "SIGKILL for one instance, or all; Nomad starts them again",
        strike=lambda stack, clients, arguments: kill(stack, clients, *arguments),
    ),
    Kind(
        "pause",
        ("SERVICE", "[all]"),
        "SIGSTOP for one instance, or all: connected and silent",
        "pause",
        lambda scene, arguments: Paused(scene, *arguments),
    ),
    Kind("latency", ("SERVICE", "MS"), "every answer comes that much later", "network", _latency),
    Kind("errors", ("SERVICE", "PERCENT"), "so much of what is sent resets its connection", "network", _errors),
    Kind("drop", ("SERVICE",), "connections are accepted, nothing moves on them", "network", _drop),
    Kind("slow", ("SERVICE", "BYTES_PER_SECOND"), "a thin line, for each connection and direction", "network", _slow),
    Kind("half-open", ("SERVICE",), "open connections lose their peer and are not told", "network", _half_open),
    Kind(
        "database kill",
        (),
        "SIGKILL for Postgres; Nomad starts it again",
        strike=lambda stack, clients, _: kill(stack, clients, "postgres"),
    ),
    Kind(
        "disk full",
        (),
        "Postgres refuses every new row as a full disk does",
        "disk",
        lambda scene, _: DiskFull(scene),
    ),
    Kind("consul down", (), "the agent is killed and stays away", "consul", _agent_down("consul")),
    Kind("vault sealed", (), "OpenBao answers and refuses everything", "vault", lambda scene, _: Sealed(scene)),
    Kind(
        "telemetry hanging",
        (),
        "the telemetry backend accepts and never answers",
        "pause-telemetry",
        lambda scene, _: Paused(scene, "telemetry"),
    ),
    Kind("nomad down", (), "the agent is killed and stays away; its tasks go on", "nomad", _agent_down("nomad")),
)


def find(words: Sequence[str]) -> tuple[Kind, list[str]]:
    """The fault that the words order, and its arguments; refuses what is not in the catalogue."""
    for kind in KINDS:
        name = kind.name.split()
        if list(words[: len(name)]) == name:
            arguments = list(words[len(name) :])
            _require_arguments(kind, arguments)
            return kind, arguments
    raise StackError(f"no fault {' '.join(words)!r}", "it is not in the catalogue", "./justw chaos list")


def _require_arguments(kind: Kind, arguments: Sequence[str]) -> None:
    least = sum(not parameter.startswith("[") for parameter in kind.parameters)
    fits = least <= len(arguments) <= len(kind.parameters)
    if not fits or (len(arguments) > least and arguments[-1] != "all"):
        given = " ".join(arguments) or "nothing"
        raise StackError(f"{kind.name} cannot be ordered like that", f"it got {given}", f"./justw chaos {kind.usage}")
