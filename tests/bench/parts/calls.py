"""Measures the CPU time of a call: by a plain stub of grpc.aio, by our channel, and with one of its layers off."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

from bench.measurement.options import options
from bench.measurement.rounds import Measurement, Visit
from bench.setup.checkout import Checkout, checkouts
from bench.setup.processes import free_port, serving

WARM_UP_SECONDS = 1.0
SETUP = Path(__file__).parents[1] / "setup"
DIRECT, OURS = "stub of grpc.aio", "our channel"
WAYS = {
    DIRECT: "direct",
    OURS: "channel",
    "our channel, by traffic rules": "split",
    "our channel, every call recorded": "recorded",
    "without telemetry": "no_telemetry",
    "without balancing": "no_balancing",
    "without retries": "no_retries",
    "without breaker": "no_breaker",
    "without bulkhead": "no_bulkhead",
}
WAYS_OF_ANOTHER = {OURS: "channel", "our channel, every call recorded": "recorded"}


class Caller:
    """A process that makes the calls in one way."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def visit(self, seconds: float) -> Visit:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{seconds}\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit("the caller has ended")
        measured = json.loads(line)
        return Visit(measured["calls"], measured["seconds"], {"caller": measured["cpu"]})


@contextmanager
def calling(checkout: Checkout, way: str, *addresses: str) -> Iterator[Caller]:
    """Starts the caller of a checkout, with some calls before the first measured ones."""
    tests = checkout.root / "tests"
    command = [checkout.python, str(tests / "bench" / "peers" / "order_caller.py"), way, *addresses]
    environment = {name: value for name, value in os.environ.items() if name != "VIRTUAL_ENV"}
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env={**environment, "PYTHONPATH": str(tests)}
    ) as process:
        try:
            caller = Caller(process)
            caller.visit(WARM_UP_SECONDS)
            yield caller
        finally:
            process.terminate()


def main() -> None:
    # Short visits, so that a change of the machine's load in a round concerns all ways alike.
    wanted = options(
        "calls", rounds=10, seconds=0.3, against="an earlier commit, whose channel is measured too"
    ).parse_args()
    with ExitStack() as stack:
        ports = {name: free_port() for name in ("order_stub.py", "otlp_sink.py")}
        service, sink = (
            stack.enter_context(serving([sys.executable, str(SETUP / name), str(port)], port))
            for name, port in ports.items()
        )
        ways = {}
        for checkout in stack.enter_context(checkouts(wanted.against)):
            ours = checkout.python == sys.executable
            for name, way in (WAYS if ours else WAYS_OF_ANOTHER).items():
                label = name if ours else f"{name}, {checkout.name}"
                caller = stack.enter_context(calling(checkout, way, service.address, sink.address))
                ways[label] = partial(caller.visit, wanted.seconds)
        measured = Measurement.run(ways, wanted.rounds)
    print(measured.table("caller"))
    for name in ways:
        if name != DIRECT:
            ratio = measured.ratio(name, DIRECT, lambda visit: visit.microseconds("caller"))
            print(f"{name:<44} {ratio.text(2)} times the {DIRECT}")


if __name__ == "__main__":
    main()
