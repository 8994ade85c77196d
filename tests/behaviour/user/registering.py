"""Who may register, and who comes in."""

from __future__ import annotations

import asyncio

import pytest
from behaviour.user.service import Knobs, Service

from user_service.domain import BadCredentials, EmailTaken, Invalid, UserUnknown

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
    with pytest.raises(Invalid) as refusal:
        await service.commands.register_user(**{**GOOD, field: value})
    assert list(refusal.value.fields) == [field]


async def test_all_broken_fields_are_named_at_once(service: Service) -> None:
    with pytest.raises(Invalid) as refusal:
        await service.commands.register_user("", "", "")
    assert set(refusal.value.fields) == {"email", "name", "password"}


@pytest.mark.parametrize("name", ["Å", "نیلوفر\u200cآبی", "👩\u200d🚀 Ada", "李", "O'Neill-Łoś"])
async def test_a_name_of_any_script_is_taken_as_it_is(service: Service, name: str) -> None:
    user = await service.commands.register_user(**{**GOOD, "name": name})
    assert (await service.queries.get_user(user.id)).name == name


async def test_of_registrations_at_once_with_one_email_one_wins(service: Service, knobs: Knobs) -> None:
    service.settings = knobs(password_concurrency=2, password_waiting=10)
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


async def test_a_new_user_has_the_initial_credit_of_the_knobs(service: Service, knobs: Knobs) -> None:
    service.settings = knobs(initial_credit=4200, currency="SEK")
    user = await service.commands.register_user(**GOOD)
    assert (user.credit.currency, user.credit.limit, user.credit.available) == ("SEK", 4200, 4200)
    assert user.id.version == 7
    assert await service.queries.get_user(user.id) == user


async def test_an_unknown_user_is_refused(service: Service) -> None:
    user = await service.commands.register_user(**GOOD)
    with pytest.raises(UserUnknown):
        await service.queries.get_user(type(user.id)(int=0))


@pytest.mark.parametrize(
    ("email", "password"), [("ada@example.com", "wrong"), ("eve@example.com", "correct horse"), ("", "")]
)
async def test_wrong_credentials_are_refused_without_saying_which_part(
    service: Service, email: str, password: str
) -> None:
    await service.commands.register_user(**GOOD)
    with pytest.raises(BadCredentials) as refusal:
        await service.commands.create_session(email, password)
    assert str(refusal.value) == "email and password do not belong together"


async def test_right_credentials_open_a_session_in_any_case_of_the_email(service: Service) -> None:
    await service.commands.register_user(**GOOD)
    session = await service.commands.create_session("ADA@example.com", "correct horse")
    assert session.lifetime == 3600
    assert session.token.count(".") == 2
