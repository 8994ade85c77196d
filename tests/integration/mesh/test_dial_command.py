"""`./justw mesh dial` on a running stack: an ordinary client lists the services of an instance until Ctrl-C."""

from __future__ import annotations

import re
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

import grpc
import pytest
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from support.operator_commands import run, words
from support.stack_under_test import RunningStack

from stack.config import ROOT

from .raw_calls import METHODS, REACHED, code_of


@contextmanager
def dialled(service: str) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """The address that the command prints, and the command."""
    command = words("mesh", "dial", service)
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            found = re.search(r" at (127\.0\.0\.1:\d+), plaintext", line)
            assert found, line + process.communicate(timeout=10)[0]
            yield found[1], process
        finally:
            process.kill()


@pytest.mark.parametrize("service", METHODS)
def test_an_ordinary_client_may_call_everything_until_the_command_ends(running: RunningStack, service: str) -> None:
    with dialled(service) as (address, process):
        with grpc.insecure_channel(address) as channel:
            listed = ProtoReflectionDescriptorDatabase(channel).get_services()
            assert METHODS[service][0].split("/")[1] in listed
            assert {code_of(channel, path) for path in METHODS[service]} == {REACHED}
        process.send_signal(signal.SIGINT)
        assert process.wait(10) == 0
        with grpc.insecure_channel(address) as channel:
            assert code_of(channel, METHODS[service][0]) is grpc.StatusCode.UNAVAILABLE


def test_a_service_without_grpc_is_an_error(running: RunningStack) -> None:
    done = run("mesh", "dial", "gateway")
    assert done.returncode == 1
    assert "it serves no gRPC" in done.stderr
