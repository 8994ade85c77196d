"""Measures reads through the edge of a running stack: the peak of a closed loop, then p99 at half of it, open loop.

With `--against REV` a second stack of that commit is deployed in a slot of its own, measured in the same rounds, and
destroyed; that takes a deploy, memory for two stacks, and the CPU time of one stack at rest.
"""

from __future__ import annotations

import argparse
import itertools
import os
import statistics
import subprocess
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from bench.measurement.options import options
from bench.measurement.rounds import Spread, abba
from bench.measurement.stack_parts import PartClock
from bench.setup.checkout import Checkout, at_revision
from bench.traffic.api_users import BenchUser, make_users
from bench.traffic.http_client import request
from bench.traffic.load import Load, closed_loop, open_loop

from stack.config import Stack, current

CONNECTIONS = (8, 16, 32)
OTHER_STACK = "against"


@dataclass
class Target:
    """A stack with what was measured of it."""

    name: str
    stack: Stack
    state: Path
    requests: list[bytes]
    rates: dict[int, list[float]] = field(default_factory=dict)
    cpu: dict[int, list[dict[str, float]]] = field(default_factory=dict)
    late: list[float] = field(default_factory=list)
    middle: list[float] = field(default_factory=list)
    failures: Counter[int] = field(default_factory=Counter)

    @property
    def port(self) -> int:
        return self.stack.port("gateway")

    @property
    def best(self) -> int:
        """The number of connections with the highest median rate of good answers."""
        return max(self.rates, key=lambda connections: statistics.median(self.rates[connections]))

    @property
    def peak(self) -> Spread:
        return Spread.of(self.rates[self.best])

    def saturate(self, connections: int, seconds: float) -> None:
        clock = PartClock(self.state)
        load = self._counted(closed_loop(self.port, self.requests, connections, seconds))
        self.rates.setdefault(connections, []).append(load.good / load.seconds)
        used = {name: seconds / max(1, load.good) * 1e6 for name, seconds in clock.used().items()}
        self.cpu.setdefault(connections, []).append(used)

    def at_half(self, seconds: float) -> None:
        load = self._counted(open_loop(self.port, self.requests, self.peak.median / 2, seconds))
        self.late.append(load.milliseconds(0.99))
        self.middle.append(load.milliseconds(0.5))

    def _counted(self, load: Load) -> Load:
        self.failures.update({status: n for status, n in load.statuses.items() if not 200 <= status < 300})
        return load


def target(name: str, stack: Stack, root: Path | None, users: int) -> Target:
    """Makes users with orders in the stack; without `root` it is one of this checkout."""
    made = make_users(stack.url("gateway"), users, 2)
    state = stack.state if root is None else root / ".waypost" / stack.name
    return Target(name, stack, state, list(_reads(made)))


def _reads(users: list[BenchUser]) -> Iterator[bytes]:
    pairs = itertools.zip_longest(*([(user, order) for order in user.orders] for user in users))
    for user, order in itertools.chain.from_iterable(pairs):
        yield request("GET", f"/v1/orders/{order}", user.headers)


@contextmanager
def deployed(checkout: Checkout, stack: Stack) -> Iterator[None]:
    """Deploys a stack from another checkout, and destroys it at the end."""
    env = os.environ | {"WAYPOST_STACK": stack.name, "WAYPOST_SLOT": str(stack.slot)}
    for name in ("UV_PROJECT_ENVIRONMENT", "VIRTUAL_ENV", "PYTHONPATH"):
        env.pop(name, None)
    justw = str(checkout.root / "justw")
    try:
        if subprocess.run([justw, "deploy"], env=env, check=False).returncode:
            raise SystemExit(f"the stack of {checkout.name} could not be deployed")
        yield
    finally:
        with suppress(OSError):
            subprocess.run([justw, "destroy"], env=env, check=False)


def measure(chosen: argparse.Namespace) -> None:
    with ExitStack() as stack:
        targets = [target("this stack", current(), None, chosen.users)]
        if chosen.against:
            checkout = stack.enter_context(at_revision(chosen.against))
            other = Stack(OTHER_STACK, chosen.slot)
            stack.enter_context(deployed(checkout, other))
            targets.append(target(chosen.against, other, checkout.root, chosen.users))
        by_name = {each.name: each for each in targets}
        for each in targets:
            closed_loop(each.port, each.requests, CONNECTIONS[0], chosen.seconds)
        for _, name in abba(list(by_name), chosen.rounds):
            for connections in CONNECTIONS:
                by_name[name].saturate(connections, chosen.seconds)
        for _, name in abba(list(by_name), chosen.rounds):
            by_name[name].at_half(2 * chosen.seconds)
        report(targets)


def report(targets: list[Target]) -> None:
    for each in targets:
        print(f"{each.name}: peak {each.peak.text()} good requests/s with {each.best} connections")
        print(f"  other answers by status (0: no answer): {dict(each.failures) or 'none'}")
        late, middle = Spread.of(each.late), Spread.of(each.middle)
        print(f"  at half of the peak: p50 {middle.text(1)} ms, p99 {late.text(1)} ms")
        visits = each.cpu[each.best]
        for name in sorted({name for found in visits for name in found}):
            spread = Spread.of([found.get(name, 0.0) for found in visits])
            print(f"  {name:<24} {spread.text():<32} CPU µs per request")
    if len(targets) == 2:
        ours, other = targets
        print(f"peak / peak of {other.name}: {ours.peak.median / other.peak.median:.2f}")
        print(f"p99 / p99 of {other.name}: {statistics.median(ours.late) / statistics.median(other.late):.2f}")


if __name__ == "__main__":
    parser = options("through", rounds=3, seconds=5.0, against="also deploy and measure an earlier commit")
    parser.add_argument("--slot", type=int, default=6, help="of the stack of that commit (default 6)")
    parser.add_argument("--users", type=int, default=64, help="whose orders are read (default 64)")
    measure(parser.parse_args())
