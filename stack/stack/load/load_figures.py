"""The figures of a load: rates, latencies and errors by type, for a second or for the whole run."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

HEADER = f"{'time':>7} {'sent/s':>7} {'good/s':>7} {'p50 ms':>8} {'p99 ms':>8} {'waiting':>8}  errors"


class Latencies:
    """Latencies of any number of requests in bounded memory: each is kept with three digits."""

    def __init__(self) -> None:
        self._counts: Counter[float] = Counter()

    def add(self, seconds: float) -> None:
        self._counts[float(f"{seconds:.3g}")] += 1

    @property
    def count(self) -> int:
        return self._counts.total()

    def quantile(self, share: float) -> float:
        """Returns the seconds that this share of the requests did not exceed; 0 without any."""
        wanted, seen = share * self.count, 0
        for seconds in sorted(self._counts):
            seen += self._counts[seconds]
            if seen >= wanted:
                return seconds
        return 0.0

    def text(self, share: float) -> str:
        return f"{self.quantile(share) * 1000:.1f}" if self.count else "-"


@dataclass
class Figures:
    """What happened in some time."""

    sent: int = 0
    good: Latencies = field(default_factory=Latencies)
    errors: Counter[str] = field(default_factory=Counter)

    def answered(self, seconds: float, error: str | None) -> None:
        """Adds a request that has ended; `error` is None if it got the status that it should get."""
        if error is None:
            self.good.add(seconds)
        else:
            self.errors[error] += 1

    def line(self, elapsed: float, seconds: float, waiting: int) -> str:
        """Returns one line of the live table, for the last `seconds`."""
        errors = ", ".join(f"{count} × {name}" for name, count in self.errors.most_common(4))  # noqa: RUF001
        return (
            f"{elapsed:>6.0f}s {self.sent / seconds:>7.0f} {self.good.count / seconds:>7.0f}"
            f" {self.good.text(0.5):>8} {self.good.text(0.99):>8} {waiting:>8}  {errors or '-'}"
        )


class Summary:
    """The figures of the whole run, by kind of request."""

    def __init__(self) -> None:
        self.kinds: dict[str, Figures] = {}
        self.late = 0

    def of(self, kind: str) -> Figures:
        return self.kinds.setdefault(kind, Figures())

    def lines(self, seconds: float, cores: float) -> list[str]:
        """Returns the summary as a table, followed by the errors."""
        rows = [f"{'request':<16} {'sent':>8} {'good':>8} {'p50 ms':>8} {'p99 ms':>8}"]
        for kind, found in sorted(self.kinds.items(), key=lambda row: -row[1].sent):
            latencies = f"{found.good.text(0.5):>8} {found.good.text(0.99):>8}"
            rows.append(f"{kind:<16} {found.sent:>8} {found.good.count:>8} {latencies}")
        sent = sum(found.sent for found in self.kinds.values())
        good = sum(found.good.count for found in self.kinds.values())
        share = f" ({good / sent:.2%})" if sent else ""
        rows.append(f"{sent} requests in {seconds:.0f} s, {sent / seconds:.0f}/s; {good} good{share}")
        for kind, found in self.kinds.items():
            rows += [f"  {count} × {kind}: {name}" for name, count in found.errors.most_common()]  # noqa: RUF001
        rows.append(f"this command used {cores:.2f} core; it sent {self.late} requests more than 50 ms late")
        return rows
