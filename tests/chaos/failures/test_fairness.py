"""Hypothesis: one client never takes the places of others, whatever it sends.

Faults: a crowd that reads with one token; many sign-ins to one account; many watches of one user. Observed: the answers
of another user meanwhile, and that the surplus is rejected with a hint when to retry.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from threading import Thread

import httpx
import pytest
from support.stack_under_test import RunningStack
from support.traffic import api_user, connections
from support.traffic.api_user import ApiUser
from support.traffic.connections import Address, Crowd
from support.traffic.load import Request
from support.traffic.performance_targets import Effort, efforts

PENNY = [{"sku": "penny", "quantity": 1, "unit_price": 1}]
PACE_SECONDS = 0.05

pytestmark = [pytest.mark.timeout(300), pytest.mark.usefixtures("healthy")]


@pytest.fixture
def edge(running: RunningStack) -> Address:
    return Address.of(running.url("gateway"))


@pytest.fixture
def other(http: httpx.Client) -> ApiUser:
    """The user who must not notice anything."""
    return api_user.register(http)


@efforts(8, 30)
def test_a_crowd_of_one_user_leaves_places_for_another_user(
    edge: Address, reading: Callable[[int], Request], other: ApiUser, effort: Effort
) -> None:
    """With `-m long`, every request of the other user is answered. Without, other tests may starve the machine."""
    own, request, answers = f"/v1/orders/{other.place(PENNY).json()['id']}", reading(0), Counter[int]()
    crowd = Crowd(edge, connections.head("GET", request.path, request.headers))
    with connections.many_open_files():
        crowding = Thread(target=crowd.run, args=(400, effort.amount))
        crowding.start()
        while crowding.is_alive():
            answers[other.get(own).status_code] += 1
            time.sleep(PACE_SECONDS)
    print(f"crowd {dict(crowd.outcomes)}, another user {dict(answers)}")
    assert set(answers) <= {httpx.codes.OK, httpx.codes.SERVICE_UNAVAILABLE}
    assert answers[httpx.codes.OK] >= effort.bound(1.0, 0.8) * answers.total()
    assert crowd.outcomes["503 with a hint"] > 0


def test_many_sign_ins_to_one_account_leave_places_for_another_account(
    running: RunningStack, user: ApiUser, other: ApiUser
) -> None:
    def sign_in(who: ApiUser) -> httpx.Response:
        credentials = {"email": who.email, "password": who.password}
        return httpx.post(f"{running.url('gateway')}/v1/sessions", json=credentials, timeout=20)

    with ThreadPoolExecutor(50) as pool:
        crowd = [pool.submit(sign_in, user) for _ in range(150)]
        others = [sign_in(other).status_code for _ in range(5)]
    seen = [task.result() for task in crowd]
    print(f"crowd {Counter(response.status_code for response in seen)}, another account {others}")
    assert others == [httpx.codes.CREATED] * 5
    rejected = [response for response in seen if not response.is_success]
    assert {response.status_code for response in rejected} <= {429, 503}
    assert 429 in {response.status_code for response in rejected}
    assert all(int(response.headers["retry-after"]) >= 1 for response in rejected)


def test_watches_of_one_user_leave_places_for_watches_of_another_user(
    edge: Address, reading: Callable[[int], Request], other: ApiUser
) -> None:
    request, own = reading(0), f"/v1/orders/{other.place(PENNY).json()['id']}/watch"
    with connections.many_open_files(), ExitStack() as held:

        def watch(path: str, headers: dict[str, str]) -> int:
            connection = held.enter_context(edge.connect())
            connection.sendall(connections.head("GET", path, headers))
            return int(connection.recv(4096).split()[1])

        seen = Counter(watch(f"{request.path}/watch", request.headers) for _ in range(300))
        print(f"300 watches: {dict(seen)}")
        assert set(seen) == {200, 429}
        assert watch(own, other.headers) == 200
        assert other.get("/v1/orders").status_code == httpx.codes.OK
