"""Passwords: refused when too many wait, never kept in clear, as dear for a stranger as for a user."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

import pytest

from user_service.passwords import Passwords, TooBusy

if TYPE_CHECKING:
    from .conftest import SettingsFactory


async def test_more_passwords_than_may_wait_are_refused_at_once(make_settings: SettingsFactory) -> None:
    settings = make_settings(password_concurrency=1, password_waiting=2)
    passwords = Passwords(lambda: settings, b"pepper")
    outcomes = await asyncio.gather(*(passwords.hash("p") for _ in range(5)), return_exceptions=True)
    assert [type(outcome) for outcome in outcomes].count(TooBusy) == 2
    assert sum(isinstance(outcome, str) for outcome in outcomes) == 3


async def test_after_a_rush_passwords_are_accepted_again(make_settings: SettingsFactory) -> None:
    settings = make_settings(password_concurrency=1, password_waiting=0)
    passwords = Passwords(lambda: settings, b"pepper")
    await asyncio.gather(*(passwords.hash("p") for _ in range(3)), return_exceptions=True)
    assert await passwords.matches("p", await passwords.hash("p"))


async def test_a_caller_who_leaves_does_not_free_a_place_before_the_work_is_done(
    make_settings: SettingsFactory,
) -> None:
    settings = make_settings(password_concurrency=1, password_waiting=0, password_memory_kib=65536)
    passwords = Passwords(lambda: settings, b"pepper")
    leaving = asyncio.create_task(passwords.hash("p"))
    await asyncio.sleep(0)
    leaving.cancel()
    with pytest.raises(TooBusy):
        await passwords.hash("p")


async def test_a_hash_is_argon2id_with_the_cost_of_the_settings(make_settings: SettingsFactory) -> None:
    settings = make_settings(password_memory_kib=9216, password_passes=3)
    encoded = await Passwords(lambda: settings, b"pepper").hash("correct horse")
    assert encoded.startswith("$argon2id$v=19$m=9216,t=3,p=1$")
    assert "correct" not in encoded


async def test_no_password_matches_an_unknown_user(make_settings: SettingsFactory) -> None:
    passwords = Passwords(make_settings, b"pepper")
    assert not await passwords.matches("nobody", None)
    assert not await passwords.matches("", None)


async def test_a_hash_that_is_none_matches_nothing(make_settings: SettingsFactory) -> None:
    assert not await Passwords(make_settings, b"pepper").matches("p", "not a hash")


async def test_a_hash_is_worth_nothing_without_the_pepper(make_settings: SettingsFactory) -> None:
    encoded = await Passwords(make_settings, b"pepper").hash("correct horse")
    assert await Passwords(make_settings, b"pepper").matches("correct horse", encoded)
    assert not await Passwords(make_settings, b"salt").matches("correct horse", encoded)


async def test_a_changed_number_of_threads_is_followed_and_loses_no_work(make_settings: SettingsFactory) -> None:
    settings = [make_settings(password_concurrency=1, password_waiting=8)]
    passwords = Passwords(lambda: settings[0], b"pepper")
    waiting = [asyncio.create_task(passwords.hash("p")) for _ in range(3)]
    await asyncio.sleep(0)
    settings[0] = make_settings(password_concurrency=4, password_waiting=8)
    assert await passwords.matches("p", await passwords.hash("p"))
    assert len(await asyncio.gather(*waiting)) == 3


async def test_after_a_change_of_the_settings_a_stranger_costs_as_much_as_a_user_again(
    make_settings: SettingsFactory,
) -> None:
    settings = [make_settings()]
    passwords = Passwords(lambda: settings[0], b"pepper")
    cheap = await passwords.hash("p")
    settings[0] = make_settings(password_memory_kib=65536, password_passes=4)
    dear = await passwords.hash("p")
    assert passwords.outdated(cheap)
    assert not passwords.outdated(dear)
    user = min([await seconds(passwords, dear) for _ in range(3)])
    stranger = min([await seconds(passwords, None) for _ in range(3)])
    assert 0.5 < stranger / user < 2


async def seconds(passwords: Passwords, known: str | None) -> float:
    began = time.perf_counter()
    await passwords.matches("wrong", known)
    return time.perf_counter() - began
