"""The commands behind the Justfile with their arguments: `python -m stack COMMAND`, help by `--help`."""

from __future__ import annotations

import os
import signal
import sys
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from stack import config
from stack.build import protos as grpc_stubs
from stack.commands import chaos as faults
from stack.commands import deploy as deployment
from stack.commands import logs as log_tails
from stack.commands import plan as plans
from stack.commands import shell_env, teardown, test_runner
from stack.commands import status as overview
from stack.commands import trace as traces
from stack.load import live_load
from stack.mesh import ca_rotation, dial
from stack.mesh import overview as mesh_overview
from stack.operations import consistency_check, rebuild


class _Commands(TyperGroup):
    """Exits as a process that SIGPIPE ended does, once the reader of the output has gone."""

    def invoke(self, ctx: Any) -> Any:
        try:
            code = super().invoke(ctx)
            sys.stdout.flush()
        except BrokenPipeError:
            # Python flushes standard output once more at exit; there it must not fail again.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(128 + signal.SIGPIPE) from None
        return code


app = typer.Typer(
    cls=_Commands,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Runs Waypost on this machine; the recipes of ./justw call these commands.",
    epilog="WAYPOST_STACK and WAYPOST_SLOT choose the stack. A step that fails says what, why and what to do next.",
)
_Json = Annotated[bool, typer.Option("--json", help="Print one JSON document instead of text.")]


@app.command()
def deploy() -> None:
    """Bring up the whole system, or bring it up to date; ends with a real order."""
    deployment.deploy(config.current())


@app.command()
def plan(as_json: _Json = False) -> int:
    """Show what deploy would change, as a diff. Exit code 0: nothing, 2: something.

    \b
    With --json:
      {"changes": [{"where", "action": "add" | "change" | "remove", "before", "after", "notes": [text]}],
       "kept": [KV key that was changed by hand], "notes": [text]}
    """
    return plans.plan(config.current(), as_json)


@app.command()
def status(as_json: _Json = False) -> None:
    """Show what runs: agents, jobs, instances of services, breakers, versions.

    \b
    With --json:
      {"stack", "folder",
       "agents": [{"name", "version", "pid", "url"}],
       "jobs": [{"name", "status", "version", "running", "wanted"}],
       "instances": [{"service", "address", "port", "passing", "version"}],
       "gateways": [{"address", "status", "error", "dependencies": {name: state}, "breakers": {name: state}}],
       "workers": [{"instance", "leader"}], "projections": [{"name", "events_behind"}],
       "outbox": null | {"pending", "oldest_seconds"},
       "memory": {"mebibytes", "processes"}}
    """
    overview.status(config.current(), as_json)


@app.command()
def env() -> None:
    """Print export lines with addresses and operator credentials."""
    shell_env.exports(config.current())


@app.command()
def logs(service: Annotated[str, typer.Argument(autocompletion=log_tails.names)]) -> None:
    """Show the last log lines of a job or an agent."""
    log_tails.logs(config.current(), service)


@app.command()
def trace(trace_id: Annotated[str, typer.Argument(help="32 hex digits, from the header traceresponse.")]) -> None:
    """Show a trace as a waterfall."""
    traces.trace(config.current(), trace_id)


@app.command()
def down() -> None:
    """Stop everything, keep the data."""
    teardown.down(config.current())


@app.command()
def destroy() -> None:
    """Remove everything: processes, mounts, data."""
    teardown.destroy(config.current())


@app.command("test")
def run_tests(tiers: Annotated[list[str] | None, typer.Argument(autocompletion=test_runner.names)] = None) -> int:
    """Run the tests, or some tiers of them: unit contract integration infra chaos, and long for the slow tests."""
    return test_runner.test(tiers or [])


@app.command()
def chaos(
    words: Annotated[
        list[str] | None,
        typer.Argument(help="list, off, or a fault with its arguments.", autocompletion=faults.first_words),
    ] = None,
    seconds: Annotated[str | None, typer.Option("--for", help="How many seconds the fault lasts.")] = None,
) -> None:
    """Cause a fault for a limited time: `list` shows all faults, `off` ends those that are active."""
    faults.chaos(config.current(), words or [], seconds)


@app.command()
def load(
    rate: Annotated[float, typer.Argument(help="Requests a second.")],
    seconds: Annotated[float | None, typer.Option("--for", help="How many seconds; without it, until Ctrl-C.")] = None,
) -> None:
    """Send an open-loop load to the running stack, and show rates, latencies and errors live."""
    live_load.load(config.current(), rate, seconds)


@app.command("audit-orders")
def audit_orders() -> int:
    """Search the whole store for orders that are lost, placed twice or hold wrong credit. Exit code 1: findings."""
    return consistency_check.check(config.current())


@app.command("projection-rebuild")
def projection_rebuild(name: Annotated[str, typer.Argument(autocompletion=lambda: list(rebuild.PROJECTIONS))]) -> int:
    """Rebuild a read table from all events and switch over to it: orders."""
    return rebuild.rebuild(config.current(), name)


@app.command()
def build() -> None:
    """Build the zipapps."""
    deployment.build(config.current())


@app.command()
def protos() -> None:
    """Generate the gRPC stubs."""
    grpc_stubs.generate()


mesh = typer.Typer(help="Work with the mesh, in which gRPC services accept nobody without a certificate.")
app.add_typer(mesh, name="mesh")


@mesh.command("dial")
def mesh_dial(
    service: Annotated[str, typer.Argument(autocompletion=dial.names)],
    port: Annotated[int, typer.Option(min=0, max=65535, help="Loopback port to listen at; 0 is a free one.")] = 0,
) -> None:
    """Let an ordinary gRPC client call a service with the operator's rights, through a loopback port, until Ctrl-C."""
    dial.dial(config.current(), service, port)


@mesh.command("show")
def mesh_show(as_json: _Json = False) -> None:
    """Show who may call which method and who has, the certificates of healthy instances, and the roots.

    \b
    With --json:
      {"trust_domain",
       "mesh": {service: true | false | null (not deployed)},
       "services": [{"name", "enforced", "callers": [name, "*" for all others],
                     "methods": [{"path", "allowed": [caller]}], "problem": null | text}],
       "recent": null (no mesh, or no telemetry) |
                 {"minutes", "calls": [{"service", "caller", "method", "allowed", "denied"}],
                  "failed_handshakes": [{"service", "reason", "count"}]},
       "certificates": [{"service", "address", "error": null} +
                        {"names": [text], "serial", "issuer", "minutes_left"}, or "error": text],
       "roots": [{"id", "active", "ends"}]}
    """
    mesh_overview.show(config.current(), as_json)


rotate = typer.Typer(help="Replace keys and certificates that live long, while the system runs.")
app.add_typer(rotate, name="rotate")


@rotate.command("mesh-ca")
def rotate_mesh_ca() -> None:
    """Replace root and intermediate authority of the mesh. Another run continues one that was interrupted."""
    ca_rotation.rotate(config.current())


_REGISTERED = app.registered_commands  # fragile: typer-registered-commands
_GROUPS = app.registered_groups  # fragile: typer-registered-commands
COMMANDS = (
    *(command.name or command.callback.__name__ for command in _REGISTERED if command.callback),
    *(str(group.name) for group in _GROUPS),
)
