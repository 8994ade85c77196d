"""Client-side load balancing: power of two choices among the available instances, with outlier detection.

Invariant: a removed instance gets no new call, and its connection closes when its last call has ended. Each instance
has its own connection, so an instance that returns, or another one at its address, never loses calls by that.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass

import grpc
import structlog
from opentelemetry import trace

from chassis.calls.client_settings import ClientSettings
from chassis.calls.outlier_detection import EJECTION_RULES, Call, EjectionRules, Instance
from chassis.calls.transport import FAULT_CODES, Method, NotProcessed, OutOfTime, Transport
from chassis.errors import RpcError, unavailable
from chassis.platform.discovery import Endpoint, Endpoints
from chassis.settings import Live
from chassis.telemetry.metrics import meter

log = structlog.get_logger(__name__)

# A call is unusually slow at this multiple of the typical time of its method.
_SLOW_FACTOR = 3.0
_SMOOTHING = 0.05
# Less time than this says nothing about an instance if it is not known how long the method takes.
_FAIR_SECONDS = 0.05
_ejections = meter().create_counter("balancer.ejections", description="ejections of instances, by reason")


@dataclass(slots=True, eq=False)
class Attempt(Call):
    """One attempt of a call at one instance; it ends with its block."""

    balancer: Balancer
    instance: Instance
    is_fair: bool
    """False if the end of the caller's time is no fault of the instance."""
    is_stream: bool = False

    def __enter__(self) -> Attempt:
        return self

    def __exit__(self, *_: object) -> None:
        self.balancer.end(self)


class Balancer:
    """Spreads calls over the live instances of one service; `on_new_instance` is called when an instance appears."""

    def __init__(
        self,
        endpoints: Endpoints,
        transport: Transport,
        on_new_instance: Callable[[], None],
        settings: Live[ClientSettings],
        *,
        rules: EjectionRules = EJECTION_RULES,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._endpoints = endpoints
        self._transport = transport
        self._on_new_instance = on_new_instance
        self._settings = settings
        self._rules = rules
        self._clock = clock
        self._instances: dict[Endpoint, Instance] = {}
        self._current: tuple[Instance, ...] = ()
        self._full_shares_from = float("-inf")
        self._stalled_from = float("-inf")
        self._retired: dict[Endpoint, Instance] = {}
        self._typical_seconds: dict[str, float] = {}
        self._answered: set[str] = set()
        self._closing: set[asyncio.Task[None]] = set()
        endpoints.on_change(self._update_instances)
        self._update_instances()

    @property
    def ejected(self) -> list[str]:
        """Addresses of the instances that get no calls now; the exporter of metrics reads this in its own thread."""
        now = self._clock()
        return [each.endpoint.address for each in self._current if not each.is_available(now)]

    def pick(self, tried: Set[Endpoint], method: Method, seconds: float) -> Attempt:
        """Starts an attempt at an instance, if possible not in `tried`; raises RpcError(UNAVAILABLE) without any.

        `seconds` is the time that the caller has for it. The attempt is a context manager, and ends with its block.
        """
        now = self._clock()
        typical = self._typical_seconds.get(method.path, self._rules.stall_seconds)
        is_fair = seconds >= self._fair_seconds(method)
        instance = self._choose(tried, now)
        attempt = Attempt(now, _SLOW_FACTOR * typical, self, instance, is_fair)
        instance.start(attempt)
        return attempt

    def end(self, attempt: Attempt) -> None:
        """Ends an attempt, and disconnects its instance if that has left and this was its last call."""
        instance = attempt.instance
        if attempt.is_stream:
            instance.streams -= 1
        else:
            instance.end(attempt)
        if self._retired and instance.idle and self._retired.get(instance.endpoint) is instance:
            del self._retired[instance.endpoint]
            self._disconnect(instance)

    def mark_as_stream(self, attempt: Attempt) -> None:
        """Stops counting the attempt as load of its instance: it is a stream that has begun to answer."""
        if not attempt.is_stream:
            attempt.is_stream, attempt.is_fair = True, False  # it lasts as long as its caller wants
            attempt.instance.end(attempt)
            attempt.instance.streams += 1

    def record(self, attempt: Attempt, method: Method, error: RpcError | None) -> None:
        """Counts the result of an attempt and ejects an instance that is unreachable, fails or is slow."""
        now, instance, began = self._clock(), attempt.instance, attempt.began
        if error is None:
            self._record_answer(instance, began, now)
            self._record_latency(instance, method.path, now - began)
            if instance.is_slow(self._rules, self._current):
                self._eject_outlier(instance, now, "slow")
            return
        if isinstance(error, OutOfTime):
            return
        if isinstance(error, NotProcessed) and error.is_shed_load:
            self._record_shed(instance, began, now)
            return
        if error.code in FAULT_CODES:
            if error.code is grpc.StatusCode.DEADLINE_EXCEEDED:
                # A method that was never answered takes at least this long.
                self._typical_seconds.setdefault(method.path, now - began)
            self._record_failure(instance, now, unreachable=isinstance(error, NotProcessed))
            return
        self._record_answer(instance, began, now)

    def slow_after(self, method: Method) -> float:
        """Returns the seconds after which a call of the method is unusually slow; 0 if it has not been called yet."""
        return _SLOW_FACTOR * self._typical_seconds.get(method.path, 0.0)

    def has_alternative(self, tried: Set[Endpoint], *, with_capacity: bool = False) -> bool:
        """True if there is an available instance that was not tried; `with_capacity`: and that shed no call lately."""
        now, seconds = self._clock(), self._rules.shed_seconds
        if not with_capacity and now >= self._full_shares_from and len(self._current) > len(tried):
            return True
        for each in self._current:
            has_capacity = not (with_capacity and each.sheds_load(now, seconds))
            if has_capacity and each.endpoint not in tried and each.is_available(now):
                return True
        return False

    async def close(self) -> None:
        """Closes every connection."""
        closing = [*self._instances.values(), *self._retired.values()]
        self._instances.clear()
        self._retired.clear()
        self._current = ()
        for instance in closing:
            await instance.connection.close()

    def _choose(self, tried: Set[Endpoint], now: float) -> Instance:
        instances, rules = self._current, self._rules
        if not instances:
            raise unavailable("UNAVAILABLE", f"no healthy instance of {self._endpoints.name}", 1.0)
        if now > self._stalled_from:
            self._eject_stalled(now)
        if not tried and now >= self._full_shares_from:
            return _less_busy_of_two(instances, now, rules.shed_seconds)
        candidates = self._candidates(tried, now)
        if not candidates:
            return min(instances, key=lambda each: (each.endpoint in tried, each.ejected_until))
        drawn = [each for each in candidates if _drawn(each.share(now, rules))] or candidates
        return _less_busy_of_two(drawn, now, rules.shed_seconds)

    def _candidates(self, tried: Set[Endpoint], now: float) -> list[Instance]:
        available = [each for each in self._current if each.is_available(now)]
        if not tried:
            return available
        untried = [each for each in available if each.endpoint not in tried] or available
        # A retry of shed load may be made only once, so it goes to an instance with capacity if there is one.
        return [each for each in untried if not each.sheds_load(now, self._rules.shed_seconds)] or untried

    def _fair_seconds(self, method: Method) -> float:
        """The time that an instance needs to prove itself; without it, a timeout is no fault of the instance."""
        if method.path in self._answered:
            return self._typical_seconds[method.path]
        return min(_FAIR_SECONDS, self._settings.value.deadline_seconds / 2)

    def _eject_stalled(self, now: float) -> None:
        """Ejects stalled instances, and sets the time before which no further instance can be stalled."""
        instances, seconds = self._current, self._rules.stall_seconds
        for each in instances:
            if each.is_stalled(now, seconds, instances):
                self._eject_outlier(each, now, "stalled")
        self._stalled_from = seconds + min(
            now if each.waiting_since is None else each.waiting_since for each in instances
        )

    def _record_answer(self, instance: Instance, began: float, now: float) -> None:
        was_ejected = instance.ejected
        instance.record_answer(began, now)
        if was_ejected:
            self._note_shares()

    def _record_shed(self, instance: Instance, began: float, now: float) -> None:
        instance.record_shed(now, self._rules.shed_seconds)
        if instance.ejected and began >= instance.ejected_until:
            # The probe was rejected: the instance has not proved that it is back.
            self._eject(instance, now, "overloaded")

    def _record_failure(self, instance: Instance, now: float, unreachable: bool) -> None:
        instance.failures_in_a_row += 1
        # A failed probe is enough: the instance has not proved that it is back.
        if unreachable or instance.ejected or instance.failures_in_a_row >= self._rules.failures_in_a_row:
            self._eject(instance, now, "unreachable" if unreachable else "failures")

    def _eject_outlier(self, instance: Instance, now: float, reason: str) -> None:
        """Ejects an instance that still works, unless its calls would go to instances that have too many already."""
        others = [each for each in self._current if each is not instance and not each.ejected]
        if not all(each.sheds_load(now, self._rules.shed_seconds) for each in others):
            self._eject(instance, now, reason)

    def _eject(self, instance: Instance, now: float, reason: str) -> None:
        seconds = self._settings.value.ejection_seconds
        if not seconds or (instance.ejected and now < instance.ejected_until):
            return
        ejected = 1 + sum(other.ejected for other in self._current if other is not instance)
        if ejected > self._rules.max_share * len(self._current):
            return
        instance.eject(now, seconds)
        self._note_shares()
        attributes = {"service": self._endpoints.name, "reason": reason}
        address = instance.endpoint.address
        _ejections.add(1, attributes)
        log.warning("instance ejected", target=self._endpoints.name, address=address, reason=reason)
        trace.get_current_span().add_event("balancer.ejected", {**attributes, "server.address": address})

    def _record_latency(self, instance: Instance, path: str, seconds: float) -> None:
        typical = self._typical_seconds.get(path, seconds)
        self._answered.add(path)
        self._typical_seconds[path] = typical + _SMOOTHING * (seconds - typical)
        instance.record_latency(seconds, max(typical, 1e-6))

    def _update_instances(self) -> None:
        listed = set(self._endpoints.current)
        for endpoint in self._instances.keys() - listed:
            self._retire(self._instances.pop(endpoint))
        new = listed - self._instances.keys()
        # The first instances get full shares: no other instance could take calls while they warm up.
        joined_at = self._clock() if self._instances else float("-inf")
        for endpoint in new:
            # An instance that returns while it still has calls keeps its statistics.
            returned = self._retired.pop(endpoint) if endpoint in self._retired else None
            self._instances[endpoint] = returned or self._connect(endpoint, joined_at)
        self._current = tuple(self._instances.values())
        self._note_shares()
        self._stalled_from = float("-inf")
        if new:
            self._on_new_instance()

    def _note_shares(self) -> None:
        """Sets the time from which every instance gets a full share, unless one is ejected, returns or joins."""
        self._full_shares_from = max((each.full_share_from(self._rules) for each in self._current), default=0.0)

    def _connect(self, endpoint: Endpoint, joined_at: float) -> Instance:
        return Instance(endpoint, self._transport.connect(endpoint.address), joined_at)

    def _retire(self, instance: Instance) -> None:
        if instance.idle:
            self._disconnect(instance)
        else:
            self._retired[instance.endpoint] = instance

    def _disconnect(self, instance: Instance) -> None:
        task = asyncio.create_task(instance.connection.close())
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)


def _drawn(share: float) -> bool:
    return share >= 1 or random.random() < share  # noqa: S311


def _less_busy_of_two(instances: Sequence[Instance], now: float, shed_seconds: float) -> Instance:
    """Returns the less busy of two random instances, either of them if they are equally busy."""
    number = len(instances)
    if number == 1:
        return instances[0]
    at = int(random.random() * number)  # noqa: S311
    further = 1 if number == 2 else 1 + int(random.random() * (number - 1))  # noqa: S311
    one, other = instances[at], instances[(at + further) % number]
    return one if one.load(now, shed_seconds) <= other.load(now, shed_seconds) else other
