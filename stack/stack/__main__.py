"""The commands behind the Justfile: `python -m stack COMMAND`; a failed step says what, why and what next."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable

from stack import config
from stack.console import StackError
from stack.machine import os_errors


def main() -> int:
    _forget_other_clusters()
    command, arguments = (sys.argv[1] if len(sys.argv) > 1 else ""), sys.argv[2:]
    if command not in COMMANDS:
        print(f"unknown command {command!r}; one of: {', '.join(COMMANDS)}", file=sys.stderr)
        return 64
    try:
        return _run(command, arguments)
    except StackError as error:
        error.show()
    except _unreachable() as error:
        StackError(f"{command} met a part that does not answer", _first_line(error), "./justw status").show()
    except OSError as error:
        os_errors.explain(command, error).show()
    except KeyboardInterrupt:
        print("\ninterrupted; the same command takes it up again", file=sys.stderr)
        return 130
    return 1


def _run(command: str, arguments: list[str]) -> int:
    try:
        code = COMMANDS[command](arguments)
        sys.stdout.flush()
    except BrokenPipeError:
        # Who read this has gone, as `head` does: it ends as by SIGPIPE would, and writes nothing at exit either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    return code or 0


def _forget_other_clusters() -> None:
    """The client libraries prefer a shell's addresses and tokens over what they are told; ours are the stack's own."""
    for name in list(os.environ):
        if name.startswith(("NOMAD_", "CONSUL_", "VAULT_", "BAO_")):
            del os.environ[name]
    kept = [os.environ[name] for name in ("NO_PROXY", "no_proxy") if os.environ.get(name)]
    os.environ["NO_PROXY"] = os.environ["no_proxy"] = ",".join([*kept, "127.0.0.1", "localhost"])


def _unreachable() -> tuple[type[Exception], ...]:
    """What the clients raise when a server is away or refuses; imported when needed, for `protos` runs before stubs."""
    import httpx
    import requests
    from consul import ConsulException
    from hvac.exceptions import VaultError
    from nomad.api.exceptions import BaseNomadException

    return httpx.HTTPError, requests.RequestException, ConsulException, VaultError, BaseNomadException


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error)[:200]}".splitlines()[0]


def _deploy(_: list[str]) -> None:
    from stack.commands.deploy import deploy

    deploy(config.current())


def _down(_: list[str]) -> None:
    from stack.commands.teardown import down

    down(config.current())


def _destroy(_: list[str]) -> None:
    from stack.commands.teardown import destroy

    destroy(config.current())


def _plan(_: list[str]) -> int:
    from stack.commands.plan import plan

    return plan(config.current())


def _status(_: list[str]) -> None:
    from stack.commands.status import status

    status(config.current())


def _env(_: list[str]) -> None:
    from stack.commands.shell_env import exports

    exports(config.current())


def _logs(arguments: list[str]) -> None:
    from stack.commands.logs import logs

    logs(config.current(), arguments)


def _trace(arguments: list[str]) -> None:
    from stack.commands.trace import trace

    trace(config.current(), *arguments)


def _chaos(arguments: list[str]) -> None:
    from stack.commands.chaos import chaos

    chaos(config.current(), arguments)


def _audit(_: list[str]) -> int:
    from stack.operations.consistency_check import audit

    return audit(config.current())


def _rebuild(arguments: list[str]) -> int:
    from stack.operations.projection_rebuild import rebuild

    return rebuild(config.current(), arguments)


def _build(_: list[str]) -> None:
    from stack.commands.deploy import build

    build(config.current())


def _test(arguments: list[str]) -> int:
    from stack.commands.test_runner import test

    return test(arguments)


def _protos(_: list[str]) -> None:
    from stack.build import protos

    protos.generate()


# Each command imports its own parts: `protos` must work before stubs exist, `env` before tools do.
COMMANDS: dict[str, Callable[[list[str]], int | None]] = {
    "deploy": _deploy,
    "plan": _plan,
    "status": _status,
    "env": _env,
    "logs": _logs,
    "trace": _trace,
    "down": _down,
    "destroy": _destroy,
    "test": _test,
    "chaos": _chaos,
    "audit-orders": _audit,
    "projection-rebuild": _rebuild,
    "build": _build,
    "protos": _protos,
}

if __name__ == "__main__":
    sys.exit(main())
