"""Rules of registration and of sessions."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from uuid import uuid4

import grpc
import pytest
from behaviour.user.service import Service, SettingsFactory

from chassis.errors import RpcError
from user_service.domain import BadCredentials, EmailTaken, Invalid, UserUnknown
from user_service.passwords import TooBusy

GOOD = {"email": "ada@example.com", "name": "Ada", "password": "correct horse"}


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("email", ""),
        ("email", "ada"),
        ("email", "ada@"),
        ("email", "@example.com"),
        ("email", "a da@example.com"),
        ("email", "a@b@c"),
        ("email", "ada@exam\x00ple.com"),
        ("email", "a" * 250 + "@x.io"),
        ("email", "\u200b@example.com"),
        ("email", "ada\u200b@example.com"),
        ("email", "ada@exam\u00adple.com"),
        ("email", "ada\u3164@example.com"),
        ("email", "\u2066ada@example.com"),
        ("name", ""),
        ("name", "   "),
        ("name", "A\x00da"),
        ("name", "A\nda"),
        ("name", "a" * 201),
        ("name", "\u200b\u200d\ufeff"),
        ("name", " \u2060 "),
        ("name", "\u3164"),
        ("name", "\u2800\u034f\ufe0f"),
        ("name", "A\u202eda"),
        ("password", "1234567"),
        ("password", "p" * 257),
    ],
)
async def test_a_registration_that_breaks_a_rule_names_the_field(service: Service, field: str, value: str) -> None:
    with pytest.raises(Invalid) as error:
        await service.commands.register_user(**{**GOOD, field: value})
    assert list(error.value.fields) == [field]


async def test_all_broken_fields_are_named_in_one_error(service: Service) -> None:
    with pytest.raises(Invalid) as error:
        await service.commands.register_user("", "", "")
    assert set(error.value.fields) == {"email", "name", "password"}


@pytest.mark.parametrize("name", ["Å", "نیلوفر\u200cآبی", "👩\u200d🚀 Ada", "李", "O'Neill-Łoś"])
async def test_a_name_of_any_script_is_stored_unchanged(service: Service, name: str) -> None:
    user = await service.commands.register_user(**{**GOOD, "name": name})
    assert (await service.queries.get_user(user.id)).name == name


async def test_of_concurrent_registrations_with_one_email_one_succeeds(
    service: Service, make_settings: SettingsFactory
) -> None:
    service.settings.replace(make_settings(password_threads=2, password_queue_size=10))
    outcomes = await asyncio.gather(*(service.commands.register_user(**GOOD) for _ in range(4)), return_exceptions=True)
    assert sum(isinstance(outcome, EmailTaken) for outcome in outcomes) == 3


@pytest.mark.parametrize("spelling", ["ada@example.com", "ADA@EXAMPLE.COM", "Ada@Example.com"])
async def test_an_email_is_taken_in_any_case(service: Service, spelling: str) -> None:
    await service.commands.register_user(**GOOD)
    with pytest.raises(EmailTaken):
        await service.commands.register_user(**{**GOOD, "email": spelling})


async def test_an_email_outside_ascii_is_taken_in_any_case_too(service: Service) -> None:
    await service.commands.register_user("ÅSA@exämple.com", "Åsa", "correct horse")
    with pytest.raises(EmailTaken):
        await service.commands.register_user("åsa@EXÄMPLE.com", "Åsa", "correct horse")


async def test_a_new_user_has_the_initial_credit_of_the_settings(
    service: Service, make_settings: SettingsFactory
) -> None:
    service.settings.replace(make_settings(initial_credit=4200, currency="SEK"))
    user = await service.commands.register_user(**GOOD)
    assert (user.credit.currency, user.credit.limit, user.credit.available) == ("SEK", 4200, 4200)
    assert user.id.version == 7
    assert await service.queries.get_user(user.id) == user


async def test_an_unknown_user_is_not_found(service: Service) -> None:
    user = await service.commands.register_user(**GOOD)
    with pytest.raises(UserUnknown):
        await service.queries.get_user(type(user.id)(int=0))


@pytest.mark.parametrize(
    ("email", "password"),
    [
        ("ada@example.com", "wrong"),
        ("ada@example.com", "\x00"),
        ("eve@example.com", "correct horse"),
        ("a\x00@b.c", "correct horse"),
        ("ada@example.com\x00", "correct horse"),
        ("", ""),
    ],
)
async def test_wrong_credentials_are_rejected_without_naming_the_wrong_part(
    service: Service, email: str, password: str
) -> None:
    await service.commands.register_user(**GOOD)
    with pytest.raises(BadCredentials) as error:
        await service.commands.create_session(email, password)
    assert str(error.value) == "email and password do not belong together"


async def test_right_credentials_create_a_session_in_any_case_of_the_email(service: Service) -> None:
    await service.commands.register_user(**GOOD)
    session = await service.commands.create_session("ADA@example.com", "correct horse")
    assert session.lifetime == 3600
    assert session.token.count(".") == 2


async def test_text_that_postgres_cannot_store_is_an_invalid_argument(service: Service) -> None:
    user = await service.commands.register_user(**GOOD)
    attempts = [
        service.users.credentials("a\x00@b.c"),
        service.users.replace_hash(user.id, "old", "ne\x00w"),
        service.users.add(replace(user, id=uuid4(), email="e@v.e", name="E\x00ve"), "hash"),
    ]
    for attempt in attempts:
        with pytest.raises(RpcError) as error:
            await attempt
        assert (error.value.code, error.value.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID")


async def hash_of_ada(service: Service) -> str:
    found = await service.users.credentials(GOOD["email"])
    assert found is not None
    return found.password_hash


async def test_a_hash_gets_the_cost_of_the_settings_at_the_next_session_and_not_before(
    service: Service, make_settings: SettingsFactory
) -> None:
    await service.commands.register_user(**GOOD)
    first = await hash_of_ada(service)
    service.settings.replace(make_settings(password_passes=2))
    with pytest.raises(BadCredentials):
        await service.commands.create_session(GOOD["email"], "wrong")
    assert await hash_of_ada(service) == first
    await service.commands.create_session(GOOD["email"], GOOD["password"])
    second = await hash_of_ada(service)
    assert ",t=1," in first
    assert ",t=2," in second
    await service.commands.create_session(GOOD["email"], GOOD["password"])
    assert await hash_of_ada(service) == second


async def test_a_session_is_created_although_the_queue_is_full_for_a_new_hash(
    service: Service, make_settings: SettingsFactory
) -> None:
    await service.commands.register_user(**GOOD)
    first = await hash_of_ada(service)
    service.settings.replace(make_settings(password_passes=2))

    async def busy(password: str) -> str:
        raise TooBusy("the queue is full")

    service.commands._passwords.hash = busy  # type: ignore[method-assign]
    assert (await service.commands.create_session(GOOD["email"], GOOD["password"])).token
    assert await hash_of_ada(service) == first


async def test_a_hash_that_has_changed_meanwhile_is_not_replaced(service: Service) -> None:
    user = await service.commands.register_user(**GOOD)
    first = await hash_of_ada(service)
    await service.users.replace_hash(user.id, first, "second")
    await service.users.replace_hash(user.id, first, "third")
    assert await hash_of_ada(service) == "second"
