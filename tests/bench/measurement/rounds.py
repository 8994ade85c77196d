"""Interleaved rounds: each visits all ways in order and then in reverse (ABBA), so that a drift affects all alike.

Figures are medians over the visits, and ratios are medians over the rounds, with the lowest and highest of them.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Visit:
    """What one visit of a way has measured: a number of requests, and the CPU time of each measured part."""

    requests: int
    seconds: float
    cpu: Mapping[str, float]

    @property
    def per_second(self) -> float:
        return self.requests / self.seconds

    def microseconds(self, part: str) -> float:
        """CPU µs of a part per request."""
        return self.cpu[part] / self.requests * 1e6


@dataclass(frozen=True)
class Spread:
    """A median with the lowest and the highest value."""

    median: float
    lowest: float
    highest: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        return cls(statistics.median(values), min(values), max(values))

    def text(self, digits: int = 0) -> str:
        return f"{self.median:,.{digits}f} ({self.lowest:,.{digits}f} to {self.highest:,.{digits}f})"


def abba(names: Sequence[str], rounds: int) -> Iterator[tuple[int, str]]:
    """Yields (round, name): in each round every name twice, forward and then in reverse."""
    for number in range(rounds):
        for name in (*names, *reversed(names)):
            yield number, name


class Measurement:
    """The visits of all ways, by name; each round has two of each."""

    def __init__(self, visits: Mapping[str, Sequence[Visit]]) -> None:
        self.visits = visits

    @classmethod
    def run(cls, ways: Mapping[str, Callable[[], Visit]], rounds: int) -> Measurement:
        """Visits the ways in interleaved rounds, and prints a dot for each visit."""
        visits: dict[str, list[Visit]] = {name: [] for name in ways}
        for _, name in abba(list(ways), rounds):
            visits[name].append(ways[name]())
            print(".", end="", flush=True)
        print()
        return cls(visits)

    def microseconds(self, name: str, part: str) -> Spread:
        """CPU µs per request of a part, over all visits of a way."""
        return Spread.of([visit.microseconds(part) for visit in self.visits[name]])

    def rate(self, name: str) -> Spread:
        """Requests a second, over all visits of a way."""
        return Spread.of([visit.per_second for visit in self.visits[name]])

    def ratio(self, name: str, other: str, value: Callable[[Visit], float]) -> Spread:
        """How many times the value of another way it is, over the rounds."""
        pairs = zip(self._rounds(name, value), self._rounds(other, value), strict=True)
        return Spread.of([here / there for here, there in pairs])

    def _rounds(self, name: str, value: Callable[[Visit], float]) -> list[float]:
        values = [value(visit) for visit in self.visits[name]]
        return [statistics.fmean(pair) for pair in zip(values[::2], values[1::2], strict=True)]

    def table(self, part: str) -> str:
        """One line for each way: CPU µs per request of a part, requests a second."""
        lines = [f"{'':<44} {f'CPU µs per request, {part}':<32} requests/s"]
        lines += [
            f"{name:<44} {self.microseconds(name, part).text():<32} {self.rate(name).median:,.0f}"
            for name in self.visits
        ]
        counts = [sum(visit.requests for visit in visits) for visits in self.visits.values()]
        visits = len(next(iter(self.visits.values())))
        lines.append(f"median (lowest to highest) of {visits} visits each; {min(counts):,} to {max(counts):,} requests")
        return "\n".join(lines)
