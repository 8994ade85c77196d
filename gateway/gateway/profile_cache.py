"""Caches the last profile that each user has read, for requests while the User Service is unavailable.

Invariant: a cached profile is returned only to its own user, and always with its age.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable

from chassis.settings import Live
from gateway.settings import Settings
from shop.user.v1 import user_pb2


class ProfileCache:
    """Holds at most `profile_cache_size` profiles and evicts the least recently stored; `clock` is in seconds."""

    def __init__(self, settings: Live[Settings], clock: Callable[[], float] = time.monotonic) -> None:
        self._settings = settings
        self._clock = clock
        self._stored: OrderedDict[str, tuple[float, user_pb2.User]] = OrderedDict()

    def store(self, user: user_pb2.User) -> None:
        """Stores a profile that was just read."""
        self._stored[user.id] = (self._clock(), user)
        self._stored.move_to_end(user.id)
        while len(self._stored) > self._settings.value.profile_cache_size:
            self._stored.popitem(last=False)

    def remove(self, user_id: str) -> None:
        """Removes the profile of a user who does not exist any more."""
        self._stored.pop(user_id, None)

    def get(self, user_id: str) -> tuple[user_pb2.User, float] | None:
        """Returns the profile and its age in seconds, or None if it is older than `profile_cache_max_age_seconds`."""
        stored = self._stored.get(user_id)
        if stored is None:
            return None
        read_at, user = stored
        age = self._clock() - read_at
        return (user, age) if age <= self._settings.value.profile_cache_max_age_seconds else None
