"""Two of the three doors of configuration: the environment says where a process is, Consul KV how it behaves.

Invariant: nothing has a default. What is missing, unknown or invalid is refused by name, and the last good value stays.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, Generic, Literal, Protocol, TypeVar

import structlog
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from chassis.errors import ConfigurationError

log = structlog.get_logger(__name__)


class Environment(BaseSettings):
    """Where this process is: set by the Nomad job, field `bind_address` by variable BIND_ADDRESS and so on."""

    model_config = SettingsConfigDict(frozen=True, extra="ignore", case_sensitive=False, env_ignore_empty=True)

    instance_id: str = Field(description="allocation id, unique per running instance")
    version: str = Field(description="short content hash of the artifact")
    identity_dir: Path = Field(description="folder of the workload identities nomad_consul.jwt and nomad_vault.jwt")
    consul_http_addr: str = Field(description="URL of the Consul HTTP API", pattern=r"^https?://[^/]+$")
    vault_addr: str = Field(description="URL of the Vault HTTP API", pattern=r"^https?://[^/]+$")
    otel_exporter_otlp_endpoint: str = Field(description="URL of the OTLP gRPC receiver", pattern=r"^https?://[^/]+$")
    bind_address: str = Field(description="host:port this process serves at", pattern=r"^[^/]+:\d+$")

    @classmethod
    def load(cls) -> Environment:
        """Read it; raises ConfigurationError naming each variable that is missing or invalid."""
        try:
            return cls()
        except ValidationError as error:
            raise ConfigurationError(_problems("environment", error, str.upper)) from None


class Section(BaseModel):
    """A group of settings: frozen, strict, no unknown keys and no defaults. Seconds are floats named `..._seconds`."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        super().__pydantic_init_subclass__(**kwargs)
        hidden = [name for name, field in cls.model_fields.items() if not field.is_required()]
        if hidden:
            raise TypeError(f"{cls.__name__}: a setting has no default, every key stands in KV: {', '.join(hidden)}")


class ProcessSettings(Section):
    """How a process behaves; each service's `Settings` extends it."""

    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field(description="lowest level that is written")
    drain_seconds: float = Field(ge=0, le=60, description="wait between failing readiness and refusing new work")
    grace_seconds: float = Field(gt=0, le=60, description="time that work already accepted gets to finish")


K = TypeVar("K", bound=BaseModel)
L = TypeVar("L", bound=BaseModel)


class KeySource(Protocol):
    """What the settings need from Consul."""

    async def read_key(self, key: str) -> bytes | None: ...

    def watch_key(self, key: str) -> AsyncIterator[bytes | None]: ...


class Live(Generic[K]):
    """Holds the current value of settings that change while the process runs."""

    def __init__(self, value: K) -> None:
        self._value = value
        self._callbacks: list[Callable[[K], None]] = []

    @property
    def value(self) -> K:
        """The value now; read it where it is used, do not keep it."""
        return self._value

    def on_change(self, callback: Callable[[K], None]) -> None:
        """Call `callback` with each new value; its failure is logged and stops nothing."""
        self._callbacks.append(callback)

    def section(self, select: Callable[[K], L]) -> Live[L]:
        """Returns a part of this value that follows every change, for code that needs no more than that part."""
        part = Live(select(self._value))
        self.on_change(lambda value: part.replace(select(value)))
        return part

    def replace(self, value: K) -> None:
        """Puts a new, already validated value in place and calls the callbacks."""
        if value == self._value:
            return
        self._value = value
        for callback in self._callbacks:
            try:
                callback(value)
            except Exception:
                log.exception("configuration callback failed")


def parse_settings(key: str, raw: bytes | None, model: type[K]) -> K:
    """The JSON under a KV key as `model`; raises ConfigurationError with key and field, never with the value."""
    if raw is None:
        raise ConfigurationError(f"{key}: missing")
    try:
        settings = model.model_validate_json(raw)
    except ValidationError as error:
        raise ConfigurationError(_problems(key, error)) from None
    doubled: list[str] = []
    json.loads(raw, object_pairs_hook=lambda pairs: _once(pairs, doubled))
    if doubled:
        raise ConfigurationError("; ".join(f"{key}: {name}: stands twice" for name in doubled))
    return settings


async def load_settings(consul: KeySource, key: str, model: type[K]) -> Live[K]:
    """The settings at start; raises ConfigurationError when they are refused."""
    return Live(parse_settings(key, await consul.read_key(key), model))


async def watch_settings(consul: KeySource, key: str, live: Live[K]) -> None:
    """Follow the key for ever; an invalid value is refused in the log and the last good one stays."""
    model = type(live.value)
    async for raw in consul.watch_key(key):
        try:
            live.replace(parse_settings(key, raw, model))
        except ConfigurationError as refusal:
            log.error("configuration refused", key=key, problem=str(refusal))  # noqa: TRY400


def _once(pairs: list[tuple[str, Any]], doubled: list[str]) -> None:
    names = [name for name, _ in pairs]
    doubled += sorted({name for name in names if names.count(name) > 1})


def _problems(place: str, error: ValidationError, spell: Callable[[str], str] = str) -> str:
    found = []
    for problem in error.errors(include_url=False, include_input=False, include_context=False):
        field = spell(".".join(str(part) for part in problem["loc"]) or "value")
        found.append(f"{place}: {field}: {_WORDS.get(problem['type'], problem['msg'])}")
    return "; ".join(found)


_WORDS = {"missing": "missing", "extra_forbidden": "unknown key"}
