"""Limits what one client may have in progress, so that no client takes all permits of the gateway.

Invariant: a request beyond a limit is rejected with `Retry-After`, before any service is called. Every limit is one of
this process; two gateways together allow twice as much.
"""

from __future__ import annotations

import math
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from ipaddress import IPv6Address, ip_address, ip_network

from chassis.errors import RpcError
from chassis.settings import Live
from gateway.http.problems import Problem
from gateway.settings import ClientLimitSettings

_MAX_FAILING = 10_000


class ClientLimits:
    """The limits per user, per account and per client address; `clock` is in seconds."""

    def __init__(self, settings: Live[ClientLimitSettings], clock: Callable[[], float] = time.monotonic) -> None:
        self._settings = settings
        self._in_progress: dict[Hashable, int] = {}
        self._failures = _FailedSignIns(settings, clock)

    def call(self, user_id: str, reason: str = "TOO_MANY_REQUESTS") -> _Counted:
        """Counts a call of a user while the block runs; raises Problem, for the `reason`."""
        most = self._settings.value.calls_per_user
        return self._counted(("call", user_id), most, "requests of one user", reason)

    @contextmanager
    def watch(self, user_id: str, address: str) -> Iterator[None]:
        """Counts a watch of a user at a client address while the block runs; raises Problem."""
        settings = self._settings.value
        of_user = self._counted(("watch", user_id), settings.watches_per_user, "watches of one user")
        key = ("watches at", _network(address))
        with of_user, self._counted(key, settings.watches_per_address, "watches of one client address"):
            yield

    def password(self, address: str) -> _Counted:
        """Counts a registration or sign-in from a client address while the block runs; raises Problem."""
        most = self._settings.value.passwords_per_address
        what = "registrations and sign-ins of one client address"
        return self._counted(("passwords at", _network(address)), most, what)

    @contextmanager
    def sign_in(self, address: str, email: str) -> Iterator[None]:
        """Counts a sign-in to an account while the block runs, and its failure; raises Problem.

        The same account at another address has its own limits, so that a stranger cannot lock out its owner.
        """
        account = (_network(address), email.casefold())
        self._failures.check(account)
        in_progress = self._counted(account, self._settings.value.sign_ins_per_account, "sign-ins to one account")
        with in_progress, self.password(address):
            try:
                yield
            except RpcError as error:
                if error.reason == "BAD_CREDENTIALS":
                    self._failures.add(account)
                raise

    def _counted(self, key: Hashable, most: int, what: str, reason: str = "TOO_MANY_REQUESTS") -> _Counted:
        if self._in_progress.get(key, 0) >= most:
            detail = f"At most {most} {what} may be in progress."
            raise Problem(reason, detail, retry_after=self._settings.value.retry_after_seconds)
        return _Counted(self._in_progress, key)


class _Counted:
    """Adds one to the count of a key while a block runs."""

    __slots__ = ("_counts", "_key")

    def __init__(self, counts: dict[Hashable, int], key: Hashable) -> None:
        self._counts = counts
        self._key = key

    def __enter__(self) -> None:
        self._counts[self._key] = self._counts.get(self._key, 0) + 1

    def __exit__(self, *_: object) -> None:
        count = self._counts[self._key] - 1
        if count:
            self._counts[self._key] = count
        else:
            del self._counts[self._key]


class _FailedSignIns:
    """A bucket of failures for each account at each address, which empties at a constant rate."""

    def __init__(self, settings: Live[ClientLimitSettings], clock: Callable[[], float]) -> None:
        self._settings = settings
        self._clock = clock
        self._levels: OrderedDict[Hashable, tuple[float, float]] = OrderedDict()

    def check(self, account: Hashable) -> None:
        """Raises Problem with the time until the next attempt, if too many have failed."""
        settings = self._settings.value
        excess = self._level(account) + 1 - settings.failed_sign_ins_per_account
        if excess > 0:
            seconds = excess * settings.failed_sign_ins_seconds / settings.failed_sign_ins_per_account
            detail = "Too many attempts to sign in to this account have failed."
            raise Problem("TOO_MANY_REQUESTS", detail, retry_after=math.ceil(seconds))

    def add(self, account: Hashable) -> None:
        """Adds a failure."""
        self._levels[account] = (self._clock(), self._level(account) + 1)
        self._levels.move_to_end(account)
        while len(self._levels) > _MAX_FAILING:
            self._levels.popitem(last=False)

    def _level(self, account: Hashable) -> float:
        settings = self._settings.value
        changed_at, level = self._levels.get(account, (0.0, 0.0))
        leaked = (self._clock() - changed_at) * settings.failed_sign_ins_per_account / settings.failed_sign_ins_seconds
        return max(0.0, level - leaked)


def _network(address: str) -> str:
    """Returns the /64 network of an IPv6 address, because one client usually has all of it."""
    try:
        parsed = ip_address(address)
    except ValueError:  # a Unix socket has no address
        return address
    return str(ip_network((address, 64), strict=False)) if isinstance(parsed, IPv6Address) else address
