"""Who may register, and who comes in."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from user_service.domain import BadCredentials, EmailTaken, Invalid, UserUnknown

if TYPE_CHECKING:
    from .conftest import Knobs, Service

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
        ("name", ""),
        ("name", "   "),
        ("name", "A\x00da"),
        ("name", "A\nda"),
        ("name", "a" * 201),
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
