"""Runs one command: `python -m stack COMMAND`; an error is printed with its reason and the next step."""

from __future__ import annotations

import sys

import httpx
import requests
import typer
from consul import ConsulException
from hvac.exceptions import VaultError
from nomad.api.exceptions import BaseNomadException

from stack.command_line import COMMANDS, app
from stack.console import StackError
from stack.machine import environment, os_errors

UNKNOWN_COMMAND = 64
INTERRUPTED = 130
# The errors of the clients when a server is unavailable or answers with an error.
_CLIENT_ERRORS = (httpx.HTTPError, requests.RequestException, ConsulException, VaultError, BaseNomadException)


def main(arguments: list[str] | None = None) -> int:
    """Runs the command and returns its exit code."""
    environment.isolate()
    arguments = sys.argv[1:] if arguments is None else arguments
    command = arguments[0] if arguments else ""
    if not command:
        print(f"no command; one of: {', '.join(COMMANDS)}", file=sys.stderr)
        return UNKNOWN_COMMAND
    try:
        code = app(arguments, prog_name="waypost", standalone_mode=False) or 0
    except typer.TyperException as error:
        return _misused(command, str(error))
    except StackError as error:
        error.show()
    except _CLIENT_ERRORS as error:
        StackError(f"{command} got an error from a server of the stack", _first_line(error), "./justw status").show()
    except OSError as error:
        os_errors.explain(command, error).show()
    else:
        if code == INTERRUPTED:
            print("\ninterrupted; run the same command again to continue", file=sys.stderr)
        return int(code)
    return 1


def _misused(command: str, why: str) -> int:
    if command not in COMMANDS:
        print(f"unknown command {command!r}; one of: {', '.join(COMMANDS)}", file=sys.stderr)
        return UNKNOWN_COMMAND
    StackError(f"{command} cannot be called like this", why, f"./justw {command} --help").show()
    return 1


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error)[:200]}".splitlines()[0]


if __name__ == "__main__":
    sys.exit(main())
