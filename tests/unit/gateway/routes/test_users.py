"""Registration, sessions and oneself."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gateway.profile_cache import Profiles
from shop.user.v1 import user_pb2

if TYPE_CHECKING:
    from ..system import System


async def test_an_email_is_taken_in_any_case(system: System) -> None:
    await system.register("Ada@example.com")
    answer = await system.register("ada@EXAMPLE.com")
    assert (answer.status_code, answer.json()["type"]) == (409, "/problems/email-taken")


async def test_a_wrong_password_and_an_unknown_email_are_the_same_refusal(system: System) -> None:
    await system.register()
    problems = []
    for email in ("ada@example.com", "eve@example.com"):
        answer = await system.http.post("/v1/sessions", json={"email": email, "password": "wrong"})
        assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "Bearer")
        problems.append(answer.json() | {"trace_id": ""})
    assert problems[0] == problems[1]
    assert problems[0]["type"] == "/problems/bad-credentials"


async def test_a_new_user_has_the_whole_credit(system: System) -> None:
    answer = await system.register()
    assert (answer.status_code, answer.headers["location"]) == (201, "/v1/users/me")
    user = answer.json()
    assert (user["email"], user["name"], user["id"][14]) == ("ada@example.com", "Ada", "7")
    assert user["credit"] == {"currency": "EUR", "limit": 100_000, "available": 100_000}


async def test_a_session_tells_how_long_its_token_lasts(system: System) -> None:
    await system.register()
    answer = await system.http.post("/v1/sessions", json={"email": "ada@example.com", "password": "correct horse"})
    assert answer.status_code == 201
    assert (answer.json()["token_type"], answer.json()["expires_in"]) == ("Bearer", 3600)


async def test_the_token_opens_oneself_and_nobody_else(system: System) -> None:
    ada, eve = await system.token(), await system.token("eve@example.com")
    for token, email in ((ada, "ada@example.com"), (eve, "eve@example.com")):
        answer = await system.http.get("/v1/users/me", headers=token)
        assert (answer.status_code, answer.json()["email"]) == (200, email)


async def test_without_the_user_service_a_profile_read_before_is_told_with_its_age(system: System) -> None:
    ada = await system.token()
    fresh = (await system.http.get("/v1/users/me", headers=ada)).json()
    await system.servers.stop("user-service")
    answer = await system.http.get("/v1/users/me", headers=ada)
    assert answer.status_code == 200
    assert int(answer.headers["age"]) >= 0
    stale = answer.json()
    assert stale.pop("problem")["type"] == "/problems/stale"
    assert stale == fresh


async def test_a_fresh_profile_has_no_age_and_no_problem(system: System) -> None:
    answer = await system.http.get("/v1/users/me", headers=await system.token())
    assert "age" not in answer.headers
    assert "problem" not in answer.json()


async def test_a_profile_never_read_or_read_too_long_ago_is_503(system: System) -> None:
    ada, eve = await system.token(), await system.token("eve@example.com")
    await system.http.get("/v1/users/me", headers=ada)
    await system.servers.stop("user-service")
    assert (await system.http.get("/v1/users/me", headers=eve)).status_code == 503
    system.change(profile_stale_seconds=0.0)
    answer = await system.http.get("/v1/users/me", headers=ada)
    assert (answer.status_code, answer.headers["retry-after"].isdigit()) == (503, True)


def test_the_profile_read_longest_ago_goes_first() -> None:
    now = [0.0]
    profiles = Profiles(lambda: 2, lambda: now[0])
    for name in ("a", "b", "a", "c"):
        now[0] += 1
        profiles.keep(user_pb2.User(id=name))
    assert profiles.last("b", within=60) is None
    assert profiles.last("a", within=60) == (user_pb2.User(id="a"), 1.0)
    assert profiles.last("a", within=0.5) is None
