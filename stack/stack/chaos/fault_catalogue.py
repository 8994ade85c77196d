"""Lists every fault: its name, its parameters, and its effect in one line."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from stack.chaos.faults import AgentDown, DiskFull, Fault, FaultContext, Network, Paused, Sealed, kill
from stack.chaos.proxy import Toxic
from stack.cluster.clients import Clients
from stack.config import Stack
from stack.console import StackError

MIN_SECONDS, DEFAULT_SECONDS, MAX_SECONDS = 1.0, 30.0, 600.0


@dataclass(frozen=True)
class FaultKind:
    """A fault as it is typed: with `lasting` if it has a duration, with `instant` if it has none, such as a kill."""

    name: str
    parameters: tuple[str, ...]
    description: str
    target: str = ""
    """The affected part, together with the service: two faults cannot affect the same part."""
    lasting: Callable[[FaultContext, list[str]], Fault] | None = None
    instant: Callable[[Stack, Clients, list[str]], str] | None = None

    @property
    def usage(self) -> str:
        return " ".join((self.name, *self.parameters))

    def state_id(self, arguments: Sequence[str]) -> str:
        return "-".join((self.target, *arguments[: self.parameters[:1] == ("SERVICE",)]))


def _latency(context: FaultContext, arguments: list[str]) -> Fault:
    milliseconds = _number(arguments[1], "MS", 1, 60_000)
    toxic = Toxic(latency_seconds=milliseconds / 1000)
    return Network(context, arguments[0], toxic, f"responses arrive {milliseconds:g} ms late")


def _errors(context: FaultContext, arguments: list[str]) -> Fault:
    percent = _number(arguments[1], "PERCENT", 0.1, 100)
    effect = f"{percent:g} % of the data that callers send resets its connection"
    return Network(context, arguments[0], Toxic(reset_share=percent / 100), effect)


def _slow(context: FaultContext, arguments: list[str]) -> Fault:
    rate = _number(arguments[1], "BYTES_PER_SECOND", 1, 1e9)
    return Network(context, arguments[0], Toxic(bytes_per_second=rate), f"{rate:g} bytes a second on each connection")


def _drop(context: FaultContext, arguments: list[str]) -> Fault:
    return Network(context, arguments[0], Toxic(silent=True), "connections are accepted and no data moves on them")


def _half_open(context: FaultContext, arguments: list[str]) -> Fault:
    return Network(context, arguments[0], Toxic(half_open=True), "open connections lost their peer, new ones work")


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


def _agent_down(name: str) -> Callable[[FaultContext, list[str]], Fault]:
    return lambda context, _: AgentDown(context, name)


KINDS = (
    FaultKind(
        "kill",
        ("SERVICE", "[all]"),
        "SIGKILL for one instance, or all; Nomad starts them again",
        instant=lambda stack, clients, arguments: kill(stack, clients, *arguments),
    ),
    FaultKind(
        "pause",
        ("SERVICE", "[all]"),
        "SIGSTOP for one instance, or all: connected, but without a response",
        "pause",
        lambda context, arguments: Paused(context, *arguments),
    ),
    FaultKind("latency", ("SERVICE", "MS"), "every response arrives MS later", "network", _latency),
    FaultKind("errors", ("SERVICE", "PERCENT"), "PERCENT of the sent data resets its connection", "network", _errors),
    FaultKind("drop", ("SERVICE",), "connections are accepted, no data moves on them", "network", _drop),
    FaultKind("slow", ("SERVICE", "BYTES_PER_SECOND"), "limits each direction of a connection", "network", _slow),
    FaultKind("half-open", ("SERVICE",), "open connections lose their peer without notice", "network", _half_open),
    FaultKind(
        "database kill",
        (),
        "SIGKILL for Postgres; Nomad starts it again",
        instant=lambda stack, clients, _: kill(stack, clients, "postgres"),
    ),
    FaultKind(
        "disk full",
        (),
        "Postgres rejects every new row, as with a full disk",
        "disk",
        lambda context, _: DiskFull(context),
    ),
    FaultKind("consul down", (), "the agent is killed and stays down", "consul", _agent_down("consul")),
    FaultKind(
        "vault sealed", (), "OpenBao responds, and rejects every request", "vault", lambda context, _: Sealed(context)
    ),
    FaultKind(
        "telemetry hanging",
        (),
        "the telemetry backend accepts connections and never responds",
        "pause-telemetry",
        lambda context, _: Paused(context, "telemetry"),
    ),
    FaultKind(
        "nomad down", (), "the agent is killed and stays down; its tasks continue", "nomad", _agent_down("nomad")
    ),
)


def find(words: Sequence[str]) -> tuple[FaultKind, list[str]]:
    """Returns the fault that the words name, and its arguments; raises StackError for an unknown fault."""
    for kind in KINDS:
        name = kind.name.split()
        if list(words[: len(name)]) == name:
            arguments = list(words[len(name) :])
            _require_arguments(kind, arguments)
            return kind, arguments
    raise StackError(f"no fault {' '.join(words)!r}", "it is not in the catalogue", "./justw chaos list")


def _require_arguments(kind: FaultKind, arguments: Sequence[str]) -> None:
    least = sum(not parameter.startswith("[") for parameter in kind.parameters)
    fits = least <= len(arguments) <= len(kind.parameters)
    if not fits or (len(arguments) > least and arguments[-1] != "all"):
        given = " ".join(arguments) or "nothing"
        raise StackError(f"wrong arguments for {kind.name}", f"it got {given}", f"./justw chaos {kind.usage}")
