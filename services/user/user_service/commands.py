"""What the User Service does: every way its state changes."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from uuid import UUID

from uuid_utils.compat import uuid7

from user_service import domain
from user_service.access_tokens import Tokens
from user_service.domain import BadCredentials, Credit, Reservation, State, User, UserUnknown
from user_service.passwords import Passwords, TooBusy
from user_service.settings import Settings
from user_service.user_repository import Accounts, Credentials


@dataclass(frozen=True)
class Session:
    """The right to act as a user; `lifetime` in seconds."""

    token: str
    lifetime: int


class Commands:
    """The write side; `settings` gives the settings of the moment."""

    def __init__(
        self, accounts: Accounts, passwords: Passwords, tokens: Tokens, settings: Callable[[], Settings]
    ) -> None:
        self._accounts = accounts
        self._passwords = passwords
        self._tokens = tokens
        self._settings = settings

    async def register_user(self, email: str, name: str, password: str) -> User:
        """A new user with the initial credit; raises Invalid, EmailTaken, TooBusy."""
        domain.check_registration(email, name, password)
        settings = self._settings()
        user = User(uuid7(), email, name, Credit(settings.currency, settings.initial_credit, held=0))
        await self._accounts.add(user, await self._passwords.hash(password))
        return user

    async def create_session(self, email: str, password: str) -> Session:
        """A token for the user behind email and password; raises BadCredentials, TooBusy."""
        known = await self._accounts.credentials(email) if domain.may_be_email(email) else None
        matches = await self._passwords.matches(password, known.password_hash if known else None)
        if known is None or not matches:
            raise BadCredentials("email and password do not belong together")
        await self._renew(known, password)
        lifetime = self._settings().token_lifetime_seconds
        return Session(await self._tokens.issue(known.user_id, known.currency, lifetime), lifetime)

    async def reserve_credit(self, order_id: UUID, user_id: UUID, currency: str, amount: int) -> None:
        """Hold the amount for the order; raises the refusals of `domain.reserve`, UserUnknown."""
        wanted = Reservation(order_id, user_id, amount, State.HELD)
        await self._accounts.change(
            user_id, order_id, lambda credit, known: domain.reserve(credit, known, wanted, currency)
        )

    async def release_credit(self, order_id: UUID, user_id: UUID) -> None:
        """Give back what the order holds; nothing to do for an unknown user, who can hold nothing."""
        try:
            await self._accounts.change(user_id, order_id, lambda _, known: domain.release(known, order_id, user_id))
        except UserUnknown:
            return

    async def _renew(self, known: Credentials, password: str) -> None:
        """Keep a hash of today's cost: the time that another one takes would tell that the user is there."""
        if self._passwords.outdated(known.password_hash):
            with suppress(TooBusy):
                fresh = await self._passwords.hash(password)
                await self._accounts.rehash(known.user_id, known.password_hash, fresh)
