"""The commands of the User Service: all operations that change its state."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from uuid import UUID

from uuid_utils.compat import uuid7

from chassis.settings import Live
from user_service import domain
from user_service.access_token_issuer import AccessTokenIssuer
from user_service.domain import BadCredentials, Credit, Reservation, State, User, UserUnknown
from user_service.passwords import Passwords, TooBusy
from user_service.settings import Settings
from user_service.user_repository import Credentials, UserRepository


@dataclass(frozen=True)
class Session:
    """An access token and its lifetime in seconds."""

    token: str
    lifetime: int


class Commands:
    """Carries out the commands."""

    def __init__(
        self,
        users: UserRepository,
        passwords: Passwords,
        access_tokens: AccessTokenIssuer,
        settings: Live[Settings],
    ) -> None:
        self._users = users
        self._passwords = passwords
        self._access_tokens = access_tokens
        self._settings = settings

    async def register_user(self, email: str, name: str, password: str) -> User:
        """Creates a user with the initial credit; raises Invalid, EmailTaken, TooBusy."""
        domain.check_registration(email, name, password)
        settings = self._settings.value
        user = User(uuid7(), email, name, Credit(settings.currency, settings.initial_credit, held=0))
        await self._users.add(user, await self._passwords.hash(password))
        return user

    async def create_session(self, email: str, password: str) -> Session:
        """Returns an access token for the user with this email and password; raises BadCredentials, TooBusy."""
        stored = await self._users.credentials(email) if domain.may_be_email(email) else None
        matches = await self._passwords.matches(password, stored.password_hash if stored else None)
        if stored is None or not matches:
            raise BadCredentials("email and password do not belong together")
        await self._rehash_if_outdated(stored, password)
        lifetime = self._settings.value.token_lifetime_seconds
        token = await self._access_tokens.issue(stored.user_id, stored.currency, lifetime)
        return Session(token, lifetime)

    async def reserve_credit(self, order_id: UUID, user_id: UUID, currency: str, amount: int) -> None:
        """Holds the amount for the order; raises the errors of `domain.reserve`, UserUnknown."""
        requested = Reservation(order_id, user_id, amount, State.HELD)
        await self._users.change_reservation(
            user_id, order_id, lambda credit, stored: domain.reserve(credit, stored, requested, currency)
        )

    async def release_credit(self, order_id: UUID, user_id: UUID) -> None:
        """Releases the amount that the order holds; does nothing for an unknown user, who cannot hold anything."""
        with suppress(UserUnknown):
            await self._users.change_reservation(
                user_id, order_id, lambda _, stored: domain.release(stored, order_id, user_id)
            )

    async def _rehash_if_outdated(self, stored: Credentials, password: str) -> None:
        """Keeps all hashes at the current cost, because a hash of another cost would show in the response time."""
        if self._passwords.outdated(stored.password_hash):
            with suppress(TooBusy):
                new_hash = await self._passwords.hash(password)
                await self._users.replace_hash(stored.user_id, stored.password_hash, new_hash)
