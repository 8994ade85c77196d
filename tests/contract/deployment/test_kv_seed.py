"""The services accept the seeds in `consul/kv`: every key exists, none is unknown, each has a description."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from typing import Any

import pytest
from pydantic import BaseModel

from chassis.calls.client_settings import ClientSettings
from chassis.errors import ConfigurationError
from chassis.settings import ProcessSettings, parse_settings

from ..repository import ROOT, SERVICES, settings


def seed(service: str) -> Any:
    return json.loads((ROOT / "consul" / "kv" / "config" / f"{service}.json").read_text())


def parsed(service: str, value: Any) -> ProcessSettings:
    return parse_settings(f"config/{service}", json.dumps(value).encode(), settings(service))


def error_of(service: str, value: Any) -> str:
    with pytest.raises(ConfigurationError) as caught:
        parsed(service, value)
    return str(caught.value)


@pytest.mark.parametrize("service", SERVICES)
def test_a_seed_is_accepted_unchanged(service: str) -> None:
    assert parsed(service, seed(service)).model_dump() == seed(service)


def test_calls_to_one_service_leave_the_gateway_room_for_the_other() -> None:
    """A bulkhead as large as the limit of the gateway would not separate the called services."""
    settings = seed("gateway")
    permits = sum(settings[name]["calls_at_once"] for name in ("users", "orders"))
    assert permits < settings["limiter"]["calls_at_least"]


@pytest.mark.parametrize("service", SERVICES)
def test_retries_are_a_tenth_of_the_calls_and_no_more(service: str) -> None:
    sections = [value for value in seed(service).values() if isinstance(value, dict)]
    assert {value["retry_budget_ratio"] for value in sections if "retry_budget_ratio" in value} <= {0.1}


def test_a_called_service_has_eight_settings_at_most() -> None:
    assert len(ClientSettings.model_fields) <= 8
    assert seed("gateway")["users"].keys() == seed("gateway")["orders"].keys() == ClientSettings.model_fields.keys()


@pytest.mark.parametrize("service", SERVICES)
def test_a_missing_key_is_refused_by_name(service: str) -> None:
    for name in seed(service):
        left = {key: value for key, value in seed(service).items() if key != name}
        assert f"config/{service}: {name}: missing" in error_of(service, left)


@pytest.mark.parametrize("service", SERVICES)
def test_an_unknown_key_is_refused_by_name(service: str) -> None:
    assert f"config/{service}: surprise: unknown key" in error_of(service, seed(service) | {"surprise": 1})
    for name, value in seed(service).items():
        if isinstance(value, dict):
            changed = seed(service) | {name: value | {"surprise": 1}}
            assert f"config/{service}: {name}.surprise: unknown key" in error_of(service, changed)


@pytest.mark.parametrize("value", [10**30, 1e300, -1e300, math.inf, -math.inf, math.nan])
@pytest.mark.parametrize("service", SERVICES)
def test_every_number_has_bounds(service: str, value: float) -> None:
    for path in numbers(seed(service)):
        assert f"config/{service}: {'.'.join(path)}: " in error_of(service, changed(seed(service), path, value))


def test_a_credit_in_an_unknown_currency_is_refused() -> None:
    for code in ("ABC", "eur", "XXX"):
        assert "config/user-service: currency: " in error_of("user-service", seed("user-service") | {"currency": code})


@pytest.mark.parametrize("service", SERVICES)
def test_every_setting_has_a_description(service: str) -> None:
    assert [name for name, description in described(settings(service)) if not description] == []


def described(model: type[BaseModel]) -> list[tuple[str, str | None]]:
    found = []
    for name, field in model.model_fields.items():
        found.append((name, field.description))
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            found += described(field.annotation)
    return found


def numbers(settings: dict[str, Any]) -> Iterator[tuple[str, ...]]:
    """The path of each number in the settings."""
    for name, value in settings.items():
        if isinstance(value, dict):
            yield from ((name, *path) for path in numbers(value))
        elif isinstance(value, (int, float)):
            yield (name,)


def changed(settings: dict[str, Any], path: tuple[str, ...], value: float) -> dict[str, Any]:
    name, *rest = path
    return settings | {name: changed(settings[name], tuple(rest), value) if rest else value}


def test_every_seed_belongs_to_a_service() -> None:
    files = (ROOT / "consul" / "kv").rglob("*.*")
    assert sorted(file.relative_to(ROOT / "consul" / "kv").as_posix() for file in files) == sorted(
        f"config/{service}.json" for service in SERVICES
    )
