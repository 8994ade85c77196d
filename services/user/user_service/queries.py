"""The queries of the User Service."""

from __future__ import annotations

from uuid import UUID

from user_service.domain import User, UserUnknown
from user_service.user_repository import UserRepository


class Queries:
    """Answers the queries."""

    def __init__(self, users: UserRepository) -> None:
        self._users = users

    async def get_user(self, user_id: UUID) -> User:
        """Returns the user with the current credit; raises UserUnknown."""
        user = await self._users.find(user_id)
        if user is None:
            raise UserUnknown("there is no such user")
        return user
