"""What a caller knows of each instance, and the rules by which one is left out for a while and taken back slowly.

Invariant: at most the allowed share of the instances is left out at a time, and never all of them.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import NamedTuple

from pydantic import Field

from chassis.platform.discovery import Endpoint
from chassis.settings import Section

_FORGET = 0.1
_SAMPLES = 20
_HALF = 0.5
_COLD = 0.1


class BalancingSettings(Section):
    """When an instance is left out, for how long, and how fast a new or returned one gets its full share."""

    failures: int = Field(ge=1, le=100_000, description="calls in a row an instance fails before it is left out")
    silent_seconds: float = Field(gt=0, le=60, description="no answer for so long, while others answer: left out")
    outlier_factor: float = Field(gt=1, le=1000, description="so many times as slow as the others: left out")
    outlier_seconds: float = Field(ge=0, le=60, description="an instance this fast is never an outlier")
    left_out_seconds: float = Field(gt=0, le=300, description="how long the first time; doubles with each")
    left_out_longest_seconds: float = Field(gt=0, le=3600, description="how long at most")
    left_out_share: float = Field(ge=0, lt=1, description="largest share of the instances left out; 0 turns it off")
    return_seconds: float = Field(ge=0, le=300, description="from half to full share after coming back")
    warmup_seconds: float = Field(ge=0, le=300, description="until an instance that joins has its full share")


class Call(NamedTuple):
    """A call under way: when it began, and how long one of its method may take before that says anything."""

    began: float
    allowance: float


@dataclass(slots=True, eq=False)
class Peer:
    """An instance as its caller knows it; times are of the monotonic clock."""

    endpoint: Endpoint
    joined_at: float = float("-inf")
    outstanding: int = 0
    streams: int = 0
    failures: int = 0
    times_out: int = 0
    out_until: float = 0.0
    doubted: bool = False
    back_at: float = float("-inf")
    slowness: float = 1.0
    seconds: float = 0.0
    samples: int = 0
    answered_at: float = float("-inf")
    calls: deque[Call] = field(default_factory=deque)
    gone: bool = False

    def start(self, call: Call) -> None:
        """A call begins."""
        self.outstanding += 1
        self.calls.append(call)

    def end(self, call: Call) -> None:
        """A call has ended, or its stream has begun to answer."""
        self.outstanding -= 1
        self.calls.remove(call)

    def answered(self, began: float, now: float) -> None:
        """It answers, whatever it says; a call that began after its time out proves that it is back."""
        self.failures, self.answered_at = 0, now
        if self.doubted and began >= self.out_until:
            self.doubted, self.out_until, self.back_at = False, 0.0, now
            self.slowness, self.samples = 1.0, 0

    def took(self, seconds: float, usual: float) -> None:
        """A call that the service usually answers in `usual` seconds took `seconds` here."""
        weight = max(_FORGET, 1 / (self.samples + 1))
        self.slowness += weight * (seconds / usual - self.slowness)
        self.seconds += weight * (seconds - self.seconds)
        self.samples += 1
        if self.samples > 3 * _SAMPLES and self.times_out:
            self.times_out = 0

    def leave_out(self, now: float, settings: BalancingSettings) -> None:
        """No call for a while; then one at a time until it answers."""
        self.out_until = now + min(settings.left_out_longest_seconds, settings.left_out_seconds * 2**self.times_out)
        self.times_out = min(self.times_out + 1, 16)
        self.failures, self.doubted = 0, True

    def open_to_calls(self, now: float) -> bool:
        """Whether it takes part: not left out, and not still owing the answer that would prove it."""
        asked_again = any(call.began >= self.out_until for call in self.calls)
        return not self.doubted or (now >= self.out_until and not asked_again)

    def share(self, now: float, settings: BalancingSettings) -> float:
        """The part of a full share it gets now, 0 to 1."""
        warm = _ramp(now - self.joined_at, settings.warmup_seconds, _COLD)
        return min(warm, _ramp(now - self.back_at, settings.return_seconds, _HALF))

    def silent(self, now: float, seconds: float, others: list[Peer]) -> bool:
        """Whether it has given no answer for `seconds`, and longer than its call may take, while another answered."""
        if not self.calls or self.doubted:
            return False
        oldest = self.calls[0]
        since = max(oldest.began, self.answered_at)
        answered = any(other.answered_at > since for other in others if other is not self)
        return answered and now - since > max(seconds, oldest.allowance)

    def outlying(self, settings: BalancingSettings, others: list[Peer]) -> bool:
        """Whether it is much slower than the others are, over enough calls of each."""
        if self.samples < _SAMPLES or self.seconds < settings.outlier_seconds:
            return False
        known = [other.slowness for other in others if other is not self and other.samples >= _SAMPLES]
        return bool(known) and self.slowness > settings.outlier_factor * sum(known) / len(known)


def _ramp(age: float, seconds: float, low: float) -> float:
    return 1.0 if age >= seconds else low + (1 - low) * age / seconds
