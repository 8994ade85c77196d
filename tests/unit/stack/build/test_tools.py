"""Which program is used for which tool; its version is read once until its file changes."""

from __future__ import annotations

from pathlib import Path

import pytest

from stack.build import go_build, go_toolchain, tools
from stack.console import StackError


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("WAYPOST_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("WAYPOST_TOOLS_FROM_PATH", raising=False)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    return tmp_path / "cache"


def program(path: Path, says: str) -> Path:
    """A program that prints `says`; it counts its runs in a file next to it."""
    path.write_text(f'#!/bin/sh\necho x >>"$0.asked"\necho "{says}"\n')
    path.chmod(0o755)
    return path


def no_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(go_toolchain, "compiler", lambda: go_toolchain.Compiler("", cpp=False))


@pytest.mark.parametrize(
    ("name", "file", "says"),
    [
        ("nomad", "nomad", "Nomad v1.10.9"),
        ("nomad", "nomad", "Nomad v1.12.0+ent"),
        ("nomad", "nomad", "no such flag"),
        ("consul", "consul", "Consul v1.21.5"),
        ("bao", "vault", "Vault v2.9.0 (a1b2c3), built 2026-01-01"),
        ("telemetry", "otel-desktop-viewer", "otel-desktop-viewer version 0.3.0"),
    ],
)
def test_an_unsuitable_program_on_path_is_not_used(name: str, file: str, says: str, tmp_path: Path) -> None:
    found = program(tmp_path / file, says)
    assert tools.find(name) != found


@pytest.mark.parametrize(
    ("name", "file", "says"),
    [
        ("nomad", "nomad", "Nomad v2.0.1\nBuildDate 2026-11-02"),
        ("consul", "consul", "Consul v1.22.0"),
        ("bao", "vault", "OpenBao v2.8.0 (9e0a), committed 2026"),
        ("telemetry", "otel-desktop-viewer", "otel-desktop-viewer version 0.4.1"),
    ],
)
def test_a_recent_program_on_path_is_used(name: str, file: str, says: str, tmp_path: Path) -> None:
    found = program(tmp_path / file, says)
    assert tools.find(name) == found


def test_programs_on_path_can_be_switched_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program(tmp_path / "nomad", "Nomad v1.12.0")
    monkeypatch.setenv("WAYPOST_TOOLS_FROM_PATH", "0")
    assert tools.find("nomad") is None


def test_the_version_of_a_program_is_read_once_until_its_file_changes(tmp_path: Path) -> None:
    nomad = program(tmp_path / "nomad", "Nomad v1.12.0")
    for _ in range(3):
        assert tools.find("nomad") == nomad
    assert (tmp_path / "nomad.asked").read_text() == "x\n"
    program(nomad, "Nomad v1.9.0, an older one")
    assert tools.find("nomad") is None


def test_an_empty_version_line_is_not_cached(tmp_path: Path) -> None:
    nomad = program(tmp_path / "nomad", "Nomad v1.12.0")
    nomad.write_text(nomad.read_text().replace('echo "', '[ -e "$0.quick" ] && echo "'))
    assert tools.find("nomad") is None
    (tmp_path / "nomad.quick").touch()
    assert tools.find("nomad") == nomad


def test_a_damaged_cache_of_versions_is_rebuilt(tmp_path: Path, cache: Path) -> None:
    nomad = program(tmp_path / "nomad", "Nomad v1.12.0")
    tools.find("nomad")
    (cache / "tools" / "versions.json").write_text("{half")
    assert tools.find("nomad") == nomad


def test_the_environment_brings_bao_envoy_postgres_and_buf() -> None:
    for name in ("bao", "envoy", "buf", "just"):
        found = tools.find(name)
        assert found is not None
        assert found.is_file()
    postgres = tools.find("postgres")
    assert postgres is not None
    assert all((postgres / part).is_file() for part in ("initdb", "postgres", "psql", "pg_ctl"))


def test_without_a_c_compiler_telemetry_and_exec_are_left_out_with_a_note(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    no_compiler(monkeypatch)
    asked: list[str] = []

    def build(wanted: list[go_build.GoTool]) -> None:
        for tool in wanted:
            asked.append(tool.name)
            tool.binary(cgo=False).parent.mkdir(parents=True)
            program(tool.binary(cgo=False), f"{tool.name.title()} v1.12\\nbuild\tCGO_ENABLED=0")

    monkeypatch.setattr(go_build, "build", build)
    found = tools.ensure()
    assert asked == ["nomad", "consul"]
    assert found.telemetry is None
    assert not found.exec_driver
    assert [note.partition(":")[0] for note in found.notes] == [
        "telemetry UI left out",
        "Nomad's exec driver left out",
    ]
    assert all("install gcc" in note for note in found.notes)


def test_a_server_built_with_c_is_used_after_the_compiler_is_removed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    full = tools.NOMAD.binary(cgo=True)
    full.parent.mkdir(parents=True)
    program(full, "Nomad v1.11.3")
    no_compiler(monkeypatch)
    assert tools.find("nomad") == full


def test_installed_builds_nothing_and_names_the_missing_tool(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(go_build, "build", lambda _: pytest.fail("built"))
    monkeypatch.setattr(go_build, "tidy", lambda: pytest.fail("tidied"))
    with pytest.raises(StackError, match=r"nomad is missing: it is not built yet"):
        tools.installed()


def test_a_complete_set_is_found_without_building(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program(tmp_path / "nomad", "Nomad v1.12.0")
    program(tmp_path / "consul", "Consul v1.22.3")
    program(tmp_path / "otel-desktop-viewer", "otel-desktop-viewer version 0.4.1")
    monkeypatch.setattr(go_build, "build", lambda _: pytest.fail("nothing is missing"))
    found = tools.ensure()
    assert (found.nomad, found.notes, found.exec_driver) == (tmp_path / "nomad", (), True)
    assert tools.versions()["consul"] == "1.22.3"


@pytest.mark.parametrize(
    ("text", "version"),
    [("Nomad v1.11.3-dev", (1, 11, 3)), ("go version go1.27.3 linux/amd64", (1, 27, 3)), ("none", ())],
)
def test_a_version_is_parsed_from_text(text: str, version: tuple[int, ...]) -> None:
    assert go_toolchain.parse_version(text) == version


@pytest.mark.parametrize("named", ["true", "/nonexistent/cc", "sh -c 'exit 1'"])
def test_a_c_compiler_that_writes_no_program_is_not_used(named: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CC", named)
    go_toolchain.compiler.cache_clear()
    assert go_toolchain.compiler() == go_toolchain.Compiler("", cpp=False)
    go_toolchain.compiler.cache_clear()
