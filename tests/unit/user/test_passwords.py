"""Passwords are rejected when the queue is full, never stored in clear, and cost the same for an unknown user."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

import pytest

from chassis.settings import Live
from user_service.passwords import Passwords, TooBusy

if TYPE_CHECKING:
    from .conftest import SettingsFactory


async def test_passwords_beyond_the_queue_are_rejected_immediately(make_settings: SettingsFactory) -> None:
    settings = make_settings(password_threads=1, password_queue_size=2)
    passwords = Passwords(Live(settings), b"pepper")
    outcomes = await asyncio.gather(*(passwords.hash("p") for _ in range(5)), return_exceptions=True)
    assert [type(outcome) for outcome in outcomes].count(TooBusy) == 2
    assert sum(isinstance(outcome, str) for outcome in outcomes) == 3


async def test_after_an_overload_passwords_are_accepted_again(make_settings: SettingsFactory) -> None:
    settings = make_settings(password_threads=1, password_queue_size=0)
    passwords = Passwords(Live(settings), b"pepper")
    await asyncio.gather(*(passwords.hash("p") for _ in range(3)), return_exceptions=True)
    assert await passwords.matches("p", await passwords.hash("p"))


async def test_a_cancelled_caller_frees_its_place_in_the_queue_only_when_the_work_is_done(
    make_settings: SettingsFactory,
) -> None:
    settings = make_settings(password_threads=1, password_queue_size=0, password_memory_kib=65536)
    passwords = Passwords(Live(settings), b"pepper")
    leaving = asyncio.create_task(passwords.hash("p"))
    await asyncio.sleep(0)
    leaving.cancel()
    with pytest.raises(TooBusy):
        await passwords.hash("p")


async def test_a_hash_is_argon2id_with_the_cost_of_the_settings(make_settings: SettingsFactory) -> None:
    settings = make_settings(password_memory_kib=9216, password_passes=3)
    encoded = await Passwords(Live(settings), b"pepper").hash("correct horse")
    assert encoded.startswith("$argon2id$v=19$m=9216,t=3,p=1$")
    assert "correct" not in encoded


async def test_no_password_matches_an_unknown_user(make_settings: SettingsFactory) -> None:
    passwords = Passwords(Live(make_settings()), b"pepper")
    assert not await passwords.matches("nobody", None)
    assert not await passwords.matches("", None)


async def test_a_malformed_hash_matches_nothing(make_settings: SettingsFactory) -> None:
    assert not await Passwords(Live(make_settings()), b"pepper").matches("p", "not a hash")


async def test_a_hash_matches_with_the_same_pepper_only(make_settings: SettingsFactory) -> None:
    encoded = await Passwords(Live(make_settings()), b"pepper").hash("correct horse")
    assert await Passwords(Live(make_settings()), b"pepper").matches("correct horse", encoded)
    assert not await Passwords(Live(make_settings()), b"salt").matches("correct horse", encoded)


async def test_a_changed_number_of_threads_applies_and_loses_no_work(make_settings: SettingsFactory) -> None:
    settings = Live(make_settings(password_threads=1, password_queue_size=8))
    passwords = Passwords(settings, b"pepper")
    waiting = [asyncio.create_task(passwords.hash("p")) for _ in range(3)]
    await asyncio.sleep(0)
    settings.replace(make_settings(password_threads=4, password_queue_size=8))
    assert await passwords.matches("p", await passwords.hash("p"))
    assert len(await asyncio.gather(*waiting)) == 3


async def test_an_unknown_user_costs_as_much_as_a_rehashed_one_after_a_change_of_the_settings(
    make_settings: SettingsFactory,
) -> None:
    settings = Live(make_settings())
    passwords = Passwords(settings, b"pepper")
    cheap = await passwords.hash("p")
    settings.replace(make_settings(password_memory_kib=65536, password_passes=4))
    costly = await passwords.hash("p")
    assert passwords.outdated(cheap)
    assert not passwords.outdated(costly)
    user = min([await seconds(passwords, costly) for _ in range(3)])
    unknown = min([await seconds(passwords, None) for _ in range(3)])
    assert 0.5 < unknown / user < 2


async def seconds(passwords: Passwords, encoded: str | None) -> float:
    began = time.perf_counter()
    await passwords.matches("wrong", encoded)
    return time.perf_counter() - began
