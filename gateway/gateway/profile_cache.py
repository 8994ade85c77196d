"""The last profiles that callers have read, for the time in which the User Service cannot be asked.

Invariant: a kept profile goes to its own user only, and never without its age.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable

from shop.user.v1 import user_pb2


class Profiles:
    """At most `most()` profiles, the one not read for longest dropped first; `clock` gives seconds."""

    def __init__(self, most: Callable[[], int], clock: Callable[[], float] = time.monotonic) -> None:
        self._most = most
        self._clock = clock
        self._kept: OrderedDict[str, tuple[float, user_pb2.User]] = OrderedDict()

    def keep(self, user: user_pb2.User) -> None:
        """Remember a profile as it is now."""
        self._kept[user.id] = (self._clock(), user)
        self._kept.move_to_end(user.id)
        while len(self._kept) > self._most():
            self._kept.popitem(last=False)

    def forget(self, user_id: str) -> None:
        """The user does not exist any more."""
        self._kept.pop(user_id, None)

    def last(self, user_id: str, within: float) -> tuple[user_pb2.User, float] | None:
        """The profile as it was last read and how many seconds ago that was; None when that is longer than `within`."""
        kept = self._kept.get(user_id)
        if kept is None or self._clock() - kept[0] > within:
            return None
        return kept[1], self._clock() - kept[0]
