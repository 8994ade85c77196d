"""Configuration: environment variables hold addresses and identity of a process, Consul KV holds its settings.

Invariant: no setting has a default. A missing, unknown or invalid field is an error that names it; a running process
then keeps its last valid settings.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, Generic, Literal, Protocol, TypeVar

import structlog
from pydantic import BaseModel, ConfigDict, Field, FilePath, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from chassis.errors import ConfigurationError

log = structlog.get_logger(__name__)


class Environment(BaseSettings):
    """Addresses and identity of this process, from environment variables of the Nomad job (BIND_ADDRESS and so on)."""

    model_config = SettingsConfigDict(frozen=True, extra="ignore", case_sensitive=False, env_ignore_empty=True)

    instance_id: str = Field(description="allocation id, unique per running instance")
    version: str = Field(description="short content hash of the artifact")
    identity_dir: Path = Field(description="folder of the workload identities nomad_consul.jwt and nomad_vault.jwt")
    consul_http_addr: str = Field(description="URL of the Consul HTTP API", pattern=r"^https?://[^/]+$")
    consul_cacert: FilePath | None = Field(None, description="PEM file of the authorities of an https Consul")
    vault_addr: str = Field(description="URL of the Vault HTTP API", pattern=r"^https?://[^/]+$")
    vault_cacert: FilePath | None = Field(None, description="PEM file of the authorities of an https Vault")
    otel_exporter_otlp_endpoint: str = Field(description="URL of the OTLP gRPC receiver", pattern=r"^https?://[^/]+$")
    bind_address: str = Field(description="host:port this process serves at", pattern=r"^[^/]+:\d+$")
    mesh: bool = Field(description="on: gRPC by mutual TLS and by the intentions; off: plaintext, for anybody")
    health_address: str = Field(
        description="host:port at which a gRPC service of the mesh answers health checks", pattern=r"^[^/]+:\d+$"
    )

    @classmethod
    def load(cls) -> Environment:
        """Reads the environment; raises ConfigurationError naming each variable that is missing or invalid."""
        try:
            read = cls()
        except ValidationError as error:
            raise ConfigurationError(_problems("environment", error, str.upper)) from None
        for address, authorities in (("consul_http_addr", "consul_cacert"), ("vault_addr", "vault_cacert")):
            if getattr(read, address).startswith("https:") and getattr(read, authorities) is None:
                problem = f"missing: {address.upper()} is https, name a PEM file of its authorities"
                raise ConfigurationError(f"environment: {authorities.upper()}: {problem}")
        return read


class Section(BaseModel):
    """Base of all groups of settings: frozen, strict, without unknown keys or defaults. Times are in seconds."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        super().__pydantic_init_subclass__(**kwargs)
        defaulted = [name for name, field in cls.model_fields.items() if not field.is_required()]
        if defaulted:
            raise TypeError(f"{cls.__name__}: a setting has no default, every key is in KV: {', '.join(defaulted)}")


class MeshSettings(Section):
    """Certificates and intentions of the mesh."""

    leaf_seconds: float = Field(ge=30, le=3600, description="validity of the certificate, renewed at half of it")
    enforce: bool = Field(description="false: calls that are not allowed are counted and logged, and go through")


class ProcessSettings(Section):
    """Settings of every process; each service's `Settings` extends them."""

    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field(description="lowest level that is logged")
    drain_seconds: float = Field(ge=0, le=60, description="wait between failing readiness and refusing new work")
    grace_seconds: float = Field(gt=0, le=60, description="time that work already accepted gets to finish")
    traces_per_second: float = Field(ge=0, le=10_000, description="traces beginning here that are recorded in a second")
    trace_share: float = Field(ge=0, le=1, description="share of the further traces that is recorded")
    slow_seconds: float = Field(gt=0, le=3600, description="a request answered later is logged as a warning")
    mesh: MeshSettings = Field(description="certificates and intentions of the mesh")
    token_keys_refresh_seconds: float = Field(gt=0, le=86400, description="interval of reading the public token keys")
    token_keys_retry_seconds: float = Field(
        gt=0, le=60, description="least time between two reads after a failure or for an unknown key"
    )


K = TypeVar("K", bound=BaseModel)
L = TypeVar("L", bound=BaseModel)


class KeySource(Protocol):
    """The part of a Consul client that settings need."""

    async def read_key(self, key: str) -> bytes | None: ...

    def watch_key(self, key: str) -> AsyncIterator[bytes | None]: ...


class Live(Generic[K]):
    """Holds the current value of settings that may change while the process runs."""

    def __init__(self, value: K) -> None:
        self._value = value
        self._callbacks: list[Callable[[K], None]] = []

    @property
    def value(self) -> K:
        """The current settings; read them at each use, do not keep them."""
        return self._value

    def on_change(self, callback: Callable[[K], None]) -> Callable[[], None]:
        """Calls `callback` with each new value, until the returned function is called; an exception is logged."""
        self._callbacks.append(callback)
        return lambda: self._remove(callback)

    def _remove(self, callback: Callable[[K], None]) -> None:
        self._callbacks = [each for each in self._callbacks if each is not callback]

    def section(self, select: Callable[[K], L]) -> Live[L]:
        """Returns a part of these settings, which follows every change."""
        part = Live(select(self._value))
        self.on_change(lambda value: part.replace(select(value)))
        return part

    def replace(self, value: K) -> None:
        """Replaces the settings with new, validated ones and calls the callbacks."""
        if value == self._value:
            return
        self._value = value
        for callback in self._callbacks:
            try:
                callback(value)
            except Exception:
                log.exception("settings callback failed")


def parse_settings(key: str, raw: bytes | None, model: type[K]) -> K:
    """Parses the JSON of a KV key; raises ConfigurationError, which names key and field and never shows the value."""
    if raw is None:
        raise ConfigurationError(f"{key}: missing")
    try:
        settings = model.model_validate_json(raw)
    except ValidationError as error:
        raise ConfigurationError(_problems(key, error)) from None
    duplicates: list[str] = []
    json.loads(raw, object_pairs_hook=lambda pairs: _note_duplicates(pairs, duplicates))
    if duplicates:
        raise ConfigurationError("; ".join(f"{key}: {name}: duplicate key" for name in duplicates))
    return settings


async def load_settings(consul: KeySource, key: str, model: type[K]) -> Live[K]:
    """Reads and parses the settings at start; raises ConfigurationError."""
    return Live(parse_settings(key, await consul.read_key(key), model))


async def watch_settings(consul: KeySource, key: str, live: Live[K]) -> None:
    """Applies each new value of the key, without end; logs an invalid one and keeps the last valid settings."""
    model = type(live.value)
    async for raw in consul.watch_key(key):
        try:
            live.replace(parse_settings(key, raw, model))
        except ConfigurationError as error:
            log.error("invalid settings, keeping the last valid ones", key=key, problem=str(error))  # noqa: TRY400


def _note_duplicates(pairs: list[tuple[str, Any]], duplicates: list[str]) -> None:
    names = [name for name, _ in pairs]
    duplicates += sorted({name for name in names if names.count(name) > 1})


def _problems(source: str, error: ValidationError, spell: Callable[[str], str] = str) -> str:
    found = []
    for problem in error.errors(include_url=False, include_input=False, include_context=False):
        field = spell(".".join(str(part) for part in problem["loc"]) or "value")
        found.append(f"{source}: {field}: {_WORDS.get(problem['type'], problem['msg'])}")
    return "; ".join(found)


_WORDS = {"missing": "missing", "extra_forbidden": "unknown key"}
