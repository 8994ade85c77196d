"""What the User Service tells."""

from __future__ import annotations

from uuid import UUID

from user_service.domain import User, UserUnknown
from user_service.user_repository import Accounts


class Queries:
    """The read side."""

    def __init__(self, accounts: Accounts) -> None:
        self._accounts = accounts

    async def get_user(self, user_id: UUID) -> User:
        """The user as of now; raises UserUnknown."""
        user = await self._accounts.find(user_id)
        if user is None:
            raise UserUnknown("there is no such user")
        return user
