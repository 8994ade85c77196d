"""Registration, sessions and the profile of the signed-in user."""

from __future__ import annotations

from typing import TYPE_CHECKING

from chassis.settings import Live
from gateway.profile_cache import ProfileCache
from gateway.settings import Settings
from shop.user.v1 import user_pb2

from ..backend_services import make_settings

if TYPE_CHECKING:
    from ..running_gateway import RunningGateway


async def test_an_email_is_taken_in_any_case(gateway: RunningGateway) -> None:
    await gateway.register("Ada@example.com")
    response = await gateway.register("ada@EXAMPLE.com")
    assert (response.status_code, response.json()["type"]) == (409, "/problems/email-taken")


async def test_a_wrong_password_and_an_unknown_email_are_the_same_problem(gateway: RunningGateway) -> None:
    await gateway.register()
    problems = []
    for email in ("ada@example.com", "eve@example.com"):
        response = await gateway.http.post("/v1/sessions", json={"email": email, "password": "wrong"})
        assert (response.status_code, response.headers["www-authenticate"]) == (401, "Bearer")
        problems.append(response.json() | {"trace_id": ""})
    assert problems[0] == problems[1]
    assert problems[0]["type"] == "/problems/bad-credentials"


async def test_a_new_user_has_the_whole_credit(gateway: RunningGateway) -> None:
    response = await gateway.register()
    assert (response.status_code, response.headers["location"]) == (201, "/v1/users/me")
    user = response.json()
    assert (user["email"], user["name"], user["id"][14]) == ("ada@example.com", "Ada", "7")
    assert user["credit"] == {"currency": "EUR", "limit": 100_000, "available": 100_000}


async def test_a_session_contains_the_lifetime_of_its_token(gateway: RunningGateway) -> None:
    await gateway.register()
    response = await gateway.http.post("/v1/sessions", json={"email": "ada@example.com", "password": "correct horse"})
    assert response.status_code == 201
    assert (response.json()["token_type"], response.json()["expires_in"]) == ("Bearer", 3600)


async def test_a_token_reads_the_profile_of_its_own_user(gateway: RunningGateway) -> None:
    ada, eve = await gateway.token(), await gateway.token("eve@example.com")
    for token, email in ((ada, "ada@example.com"), (eve, "eve@example.com")):
        response = await gateway.http.get("/v1/users/me", headers=token)
        assert (response.status_code, response.json()["email"]) == (200, email)


async def test_without_the_user_service_a_cached_profile_is_returned_with_its_age(gateway: RunningGateway) -> None:
    ada = await gateway.token()
    fresh = (await gateway.http.get("/v1/users/me", headers=ada)).json()
    await gateway.servers.stop("user-service")
    response = await gateway.http.get("/v1/users/me", headers=ada)
    assert response.status_code == 200
    assert int(response.headers["age"]) >= 0
    stale = response.json()
    assert stale.pop("problem")["type"] == "/problems/stale"
    assert stale == fresh


async def test_a_fresh_profile_has_no_age_and_no_problem(gateway: RunningGateway) -> None:
    response = await gateway.http.get("/v1/users/me", headers=await gateway.token())
    assert "age" not in response.headers
    assert "problem" not in response.json()


async def test_a_profile_that_is_not_cached_or_too_old_is_503(gateway: RunningGateway) -> None:
    ada, eve = await gateway.token(), await gateway.token("eve@example.com")
    await gateway.http.get("/v1/users/me", headers=ada)
    await gateway.servers.stop("user-service")
    assert (await gateway.http.get("/v1/users/me", headers=eve)).status_code == 503
    gateway.change(profile_cache_max_age_seconds=0.0)
    response = await gateway.http.get("/v1/users/me", headers=ada)
    assert (response.status_code, response.headers["retry-after"].isdigit()) == (503, True)


def test_the_least_recently_stored_profile_is_evicted_first() -> None:
    now = [0.0]
    settings = Live(make_settings("gateway", Settings, profile_cache_size=2, profile_cache_max_age_seconds=60.0))
    profiles = ProfileCache(settings, lambda: now[0])
    for name in ("a", "b", "a", "c"):
        now[0] += 1
        profiles.store(user_pb2.User(id=name))
    assert profiles.get("b") is None
    assert profiles.get("a") == (user_pb2.User(id="a"), 1.0)
    now[0] += 60
    assert profiles.get("a") is None
