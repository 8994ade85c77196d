"""Configuration: the errors of invalid settings, then changes while the process runs."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
import structlog
from pydantic import Field
from support.waiting import until

from chassis.errors import ConfigurationError
from chassis.settings import Environment, Live, ProcessSettings, Section, load_settings, parse_settings, watch_settings
from chassis.testing import FakeConsul

KEY = "config/gateway"
GOOD: dict[str, Any] = {
    "log_level": "INFO",
    "drain_seconds": 2.0,
    "grace_seconds": 5,
    "traces_per_second": 20,
    "trace_share": 0.01,
    "slow_seconds": 1,
    "mesh": {"leaf_seconds": 3600, "enforce": True},
    "token_keys_refresh_seconds": 60,
    "token_keys_retry_seconds": 3,
    "deadline_seconds": 1.5,
    "users": {"fail_max": 5},
}


class Called(Section):
    fail_max: int = Field(gt=0)


class Settings(ProcessSettings):
    deadline_seconds: float = Field(gt=0)
    users: Called


def raw(**changes: Any) -> str:
    return json.dumps({key: value for key, value in (GOOD | changes).items() if value is not ...})


INVALID = [
    (raw(deadline_seconds=...), "config/gateway: deadline_seconds: missing"),
    (raw(deadline_second=1), "config/gateway: deadline_second: unknown key"),
    (raw(deadline_seconds=0), "config/gateway: deadline_seconds: Input should be greater than 0"),
    (raw(deadline_seconds="1.5"), "config/gateway: deadline_seconds: Input should be a valid number"),
    (raw(log_level="LOUD"), "config/gateway: log_level: "),
    (raw(users={"fail_max": 0}), "config/gateway: users.fail_max: "),
    (raw(users={}), "config/gateway: users.fail_max: missing"),
    (raw()[:-1] + ', "grace_seconds": 5}', "config/gateway: grace_seconds: duplicate key"),
    (raw().replace('{"fail_max": 5', '{"fail_max": 5, "fail\\u005fmax": 6'), "config/gateway: fail_max: duplicate key"),
    ("{", "config/gateway: value: Invalid JSON"),
    ("[]", "config/gateway: value: "),
]


@pytest.mark.parametrize(("text", "problem"), INVALID, ids=[problem for _, problem in INVALID])
def test_the_error_of_an_invalid_setting_names_key_and_field(text: str, problem: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        parse_settings(KEY, text.encode(), Settings)
    assert str(caught.value).startswith(problem)


def test_the_error_names_every_invalid_field() -> None:
    with pytest.raises(ConfigurationError, match=r"drain_seconds: .*grace_seconds: "):
        parse_settings(KEY, raw(drain_seconds=-1, grace_seconds=-1).encode(), Settings)


def test_the_error_does_not_show_the_value() -> None:
    with pytest.raises(ConfigurationError) as caught:
        parse_settings(KEY, raw(log_level="hunter2").encode(), Settings)
    assert "hunter2" not in str(caught.value)


def test_a_class_of_settings_with_a_default_cannot_be_defined() -> None:
    with pytest.raises(TypeError, match=r"hidden: a setting has no default.*seconds"):

        class hidden(Section):  # noqa: N801
            seconds: float = 3.0


def test_settings_cannot_be_changed_in_place() -> None:
    settings = parse_settings(KEY, raw().encode(), Settings)
    with pytest.raises(ValueError, match="frozen"):
        settings.deadline_seconds = 9.0  # type: ignore[misc]


async def test_loading_a_missing_key_is_an_error() -> None:
    with pytest.raises(ConfigurationError, match="config/gateway: missing"):
        await load_settings(FakeConsul(), KEY, Settings)


@pytest.fixture
async def followed() -> AsyncIterator[tuple[FakeConsul, Live[Settings]]]:
    consul = FakeConsul()
    consul.put(KEY, raw())
    live = await load_settings(consul, KEY, Settings)
    task = asyncio.create_task(watch_settings(consul, KEY, live))
    yield consul, live
    task.cancel()


async def test_a_change_is_applied_and_passed_to_all_callbacks(followed: tuple[FakeConsul, Live[Settings]]) -> None:
    consul, live = followed
    received: list[float] = []
    live.on_change(lambda _: 1 / 0)  # type: ignore[arg-type]
    live.on_change(lambda value: received.append(value.deadline_seconds))
    consul.put(KEY, raw(deadline_seconds=9))
    await until("the new value is live", lambda: live.value.deadline_seconds == 9)
    assert received == [9.0]


def test_a_callback_is_not_called_after_it_was_removed() -> None:
    live, received = Live(Settings.model_validate_json(raw())), list[float]()
    remove = live.on_change(lambda value: received.append(value.deadline_seconds))
    for seconds in (8, 9):
        live.replace(Settings.model_validate_json(raw(deadline_seconds=seconds)))
        remove()
    assert received == [8.0]


@pytest.mark.parametrize("bad", [raw(deadline_seconds=-1), raw(extra=1), "{", None])
async def test_an_invalid_change_is_logged_and_the_last_valid_settings_stay(
    followed: tuple[FakeConsul, Live[Settings]], bad: str | None
) -> None:
    consul, live = followed
    with structlog.testing.capture_logs() as logs:
        if bad is None:
            consul.remove(KEY)
        else:
            consul.put(KEY, bad)
        await until("the error is logged", lambda: any(line["event"].startswith("invalid settings") for line in logs))
    assert live.value.deadline_seconds == 1.5
    assert logs[0]["problem"].startswith("config/gateway: ")
    consul.put(KEY, raw(deadline_seconds=3))
    await until("the next valid value is live", lambda: live.value.deadline_seconds == 3)


def test_the_error_names_missing_and_invalid_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    place(monkeypatch)
    monkeypatch.delenv("VAULT_ADDR")
    monkeypatch.setenv("BIND_ADDRESS", "8080")
    with pytest.raises(ConfigurationError) as caught:
        Environment.load()
    problems = str(caught.value).split("; ")
    assert problems[0] == "environment: VAULT_ADDR: missing"
    assert problems[1].startswith("environment: BIND_ADDRESS: ")


def test_an_empty_variable_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    place(monkeypatch)
    monkeypatch.setenv("INSTANCE_ID", "")
    with pytest.raises(ConfigurationError, match="INSTANCE_ID: missing"):
        Environment.load()


def test_no_variable_has_a_default_but_the_authorities_of_https() -> None:
    optional = {name for name, field in Environment.model_fields.items() if not field.is_required()}
    assert optional == {"consul_cacert", "vault_cacert"}


@pytest.mark.parametrize(
    ("address", "authorities"), [("CONSUL_HTTP_ADDR", "CONSUL_CACERT"), ("VAULT_ADDR", "VAULT_CACERT")]
)
def test_https_needs_a_file_of_authorities(monkeypatch: pytest.MonkeyPatch, address: str, authorities: str) -> None:
    place(monkeypatch)
    monkeypatch.setenv(address, "https://127.0.0.1:8501")
    with pytest.raises(ConfigurationError, match=f"environment: {authorities}: missing: {address} is https"):
        Environment.load()
    monkeypatch.setenv(authorities, "/nonexistent/ca.pem")
    with pytest.raises(ConfigurationError, match=f"environment: {authorities}: "):
        Environment.load()
    monkeypatch.setenv(authorities, __file__)
    Environment.load()


def place(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "INSTANCE_ID": "a1",
        "VERSION": "v1",
        "IDENTITY_DIR": "/secrets",
        "CONSUL_HTTP_ADDR": "http://127.0.0.1:8500",
        "VAULT_ADDR": "http://127.0.0.1:8200",
        "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:4317",
        "BIND_ADDRESS": "127.0.0.1:9000",
        "MESH": "on",
        "HEALTH_ADDRESS": "127.0.0.1:9001",
    }.items():
        monkeypatch.setenv(name, value)
