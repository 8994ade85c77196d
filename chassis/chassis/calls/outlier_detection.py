"""Statistics of each instance of a called service, and the rules by which an instance is ejected and returns.

The terms are those of Envoy's outlier detection and of gRFC A50.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from chassis.calls.transport import Connection
from chassis.platform.discovery import Endpoint

_SMOOTHING = 0.1
_MIN_SAMPLES = 20
_MOST_DOUBLINGS = 4
_SHARE_ON_RETURN = 0.5
_SHARE_ON_JOINING = 0.1


@dataclass(frozen=True)
class EjectionRules:
    """Constants of outlier detection; a parameter only so that tests can vary them.

    One failure is not enough: two in a row count. An instance is stalled when it holds a call for `stall_seconds`
    while others answer, well before the deadline of that call. It is slow at `slow_factor` times the latency of the
    others, but never below `slow_seconds`, where noise is larger than that factor. At most `max_share` of the
    instances is ejected, so that outlier detection alone cannot take a service down. An instance that joins or
    returns reaches its full share of calls step by step, because its caches and connections are cold. A call that an
    instance sheds counts as its load for about `shed_seconds`, because a quick rejection does not make it less busy.
    """

    failures_in_a_row: int = 2
    stall_seconds: float = 0.6
    slow_factor: float = 5.0
    slow_seconds: float = 0.1
    max_share: float = 0.5
    return_seconds: float = 5.0
    warmup_seconds: float = 5.0
    shed_seconds: float = 1.0


EJECTION_RULES = EjectionRules()


@dataclass(slots=True, eq=False)
class Call:
    """A call under way: its start, and the seconds after which a call of its method is unusually slow."""

    began: float
    slow_after: float


@dataclass(slots=True, eq=False)
class Instance:
    """One instance as this caller sees it; times are of the monotonic clock.

    `ejected` stays true after `ejected_until` until a call that started later has been answered: the probe.
    """

    endpoint: Endpoint
    connection: Connection
    joined_at: float = float("-inf")
    outstanding: int = 0
    streams: int = 0
    failures_in_a_row: int = 0
    ejections: int = 0
    ejected: bool = False
    ejected_until: float = 0.0
    returned_at: float = float("-inf")
    relative_latency: float = 1.0
    mean_seconds: float = 0.0
    samples: int = 0
    answered_at: float = float("-inf")
    calls: deque[Call] = field(default_factory=deque)
    shed: float = 0.0
    shed_at: float = float("-inf")

    @property
    def idle(self) -> bool:
        """True if it has neither a call nor a stream."""
        return not self.outstanding and not self.streams

    @property
    def waiting_since(self) -> float | None:
        """The time since which it has had a call without answering any; None without a call, or while it is ejected."""
        return max(self.calls[0].began, self.answered_at) if self.calls and not self.ejected else None

    def full_share_from(self, rules: EjectionRules) -> float:
        """The time from which it is available and gets a full share of calls; infinite while it is ejected."""
        if self.ejected:
            return float("inf")
        return max(self.joined_at + rules.warmup_seconds, self.returned_at + rules.return_seconds)

    def start(self, call: Call) -> None:
        """Adds a call that starts now."""
        self.outstanding += 1
        self.calls.append(call)

    def end(self, call: Call) -> None:
        """Removes a call that has ended, or whose stream has begun to answer."""
        self.outstanding -= 1
        self.calls.remove(call)

    def record_answer(self, began: float, now: float) -> None:
        """Notes that it answers, with whatever result; the answer to a probe ends the ejection."""
        self.failures_in_a_row, self.answered_at = 0, now
        if self.ejected and began >= self.ejected_until:
            self.ejected, self.ejected_until, self.returned_at = False, 0.0, now
            self.relative_latency, self.samples = 1.0, 0

    def record_shed(self, now: float, seconds: float) -> None:
        """Notes that it rejected a call because it has too many: neither an answer nor a fault."""
        self.shed, self.shed_at = self._recently_shed(now, seconds) + 1, now

    def load(self, now: float, shed_seconds: float) -> float:
        """Its calls under way, and those that it shed lately, which count less as time passes without another one."""
        return self.outstanding + self._recently_shed(now, shed_seconds) if self.shed else self.outstanding

    def sheds_load(self, now: float, seconds: float) -> bool:
        """True if it shed a call within the last `seconds`."""
        return now - self.shed_at < seconds

    def record_latency(self, seconds: float, typical: float) -> None:
        """Adds a sample: a call of a method that typically takes `typical` seconds took `seconds` here."""
        weight = max(_SMOOTHING, 1 / (self.samples + 1))
        self.relative_latency += weight * (seconds / typical - self.relative_latency)
        self.mean_seconds += weight * (seconds - self.mean_seconds)
        self.samples += 1
        if self.samples > 3 * _MIN_SAMPLES and self.ejections:
            self.ejections = 0

    def eject(self, now: float, base_seconds: float) -> None:
        """Takes it out of use for `base_seconds`, doubled with each ejection in a row; then a probe decides."""
        self.ejected_until = now + base_seconds * 2**self.ejections
        self.ejections = min(self.ejections + 1, _MOST_DOUBLINGS)
        self.failures_in_a_row, self.ejected = 0, True

    def is_available(self, now: float) -> bool:
        """True if it may receive calls: not ejected, and no probe outstanding."""
        if not self.ejected:
            return True
        # A copy, because the exporter of metrics reads this in a thread of its own.
        probe_outstanding = any(call.began >= self.ejected_until for call in tuple(self.calls))
        return now >= self.ejected_until and not probe_outstanding

    def share(self, now: float, rules: EjectionRules) -> float:
        """The part of a full share of calls that it gets now, 0 to 1."""
        warm = _ramp(now - self.joined_at, rules.warmup_seconds, _SHARE_ON_JOINING)
        return min(warm, _ramp(now - self.returned_at, rules.return_seconds, _SHARE_ON_RETURN))

    def is_stalled(self, now: float, seconds: float, instances: Sequence[Instance]) -> bool:
        """True if its oldest call has been unusually slow for `seconds` without any answer, while others answered."""
        since = self.waiting_since
        if since is None or now - since <= max(seconds, self.calls[0].slow_after):
            return False
        return any(other.answered_at > since for other in instances if other is not self)

    def is_slow(self, rules: EjectionRules, instances: Sequence[Instance]) -> bool:
        """True if it is much slower than the other instances, over enough calls of each."""
        if self.samples < _MIN_SAMPLES or self.mean_seconds < rules.slow_seconds:
            return False
        others = [each.relative_latency for each in instances if each is not self and each.samples >= _MIN_SAMPLES]
        return bool(others) and self.relative_latency > rules.slow_factor * sum(others) / len(others)

    def _recently_shed(self, now: float, seconds: float) -> float:
        return self.shed * (1 - (now - self.shed_at) / seconds) if self.sheds_load(now, seconds) else 0.0


def _ramp(age: float, seconds: float, low: float) -> float:
    return 1.0 if age >= seconds else low + (1 - low) * age / seconds
