"""The shape of the checkout: small folders and modules, plain names, no house words, no secret, nothing generated."""

from __future__ import annotations

import ast
import re
import subprocess
from collections import Counter
from pathlib import Path

import pytest

from stack.build import tools

from .repository import ROOT, SERVICES, tracked

INSIDE = {"__init__", "__main__", "settings", "domain", "commands", "queries", "rpc"}
NAMELESS = {"utils", "util", "common", "helpers", "helper", "manager", "base", "misc"}
CODE = ("chassis", "gateway", "services", "stack")
MOST_MODULES = 9
# In pieces, so that this file does not match itself.
HOUSE_WORDS = re.compile(
    "|".join(("err" + "and", "refu" + "sal", "kn" + "ob", r"\bne" + r"ws\b", r"\bto" + r"ld\b", r"\bhe" + r"ard\b")),
    re.IGNORECASE,
)
KEY = re.compile("-----BEGIN " + "[A-Z ]*PRIVATE KEY-----")
TOKEN = re.compile(r"\b(hvs\.[\w-]{20,}|AKIA[0-9A-Z]{16}|eyJ[\w-]{20,}\.eyJ[\w-]{20,}\.)")
# A value that is filled in later (`${…}`, `{{…}}`) is none.
PASSWORD = re.compile(r"""\b\w*(password|secret|token)["']?\s*[:=]\s*["'](?![${])[^"'\s]{6,}["']""", re.IGNORECASE)


def modules(folder: str) -> list[Path]:
    return [path for path in tracked() if path.suffix == ".py" and path.as_posix().startswith(f"{folder}/")]


def text(path: Path) -> str:
    return (ROOT / path).read_text(errors="replace")


@pytest.mark.parametrize("service", [name for name in SERVICES if name != "gateway"])
def test_a_service_has_the_modules_that_every_service_has(service: str) -> None:
    assert {path.stem for path in (ROOT / SERVICES[service]).glob("*.py")} >= INSIDE


@pytest.mark.parametrize("folder", CODE)
def test_a_module_is_named_after_what_it_holds(folder: str) -> None:
    assert [path for path in modules(folder) if path.stem in NAMELESS] == []


def test_no_folder_of_modules_holds_more_than_nine() -> None:
    found = Counter(path.parent for path in tracked() if path.suffix == ".py" and path.name != "__init__.py")
    assert {str(folder): count for folder, count in found.items() if count > MOST_MODULES} == {}


@pytest.mark.parametrize("folder", ["chassis", "gateway", "services/order", "services/user", "stack"])
def test_no_module_has_the_plural_of_another_modules_name(folder: str) -> None:
    stems = {path.stem for path in modules(folder)}
    assert {stem for stem in stems if stem + "s" in stems or stem + "es" in stems} == set()


def test_no_text_uses_a_house_word_where_the_field_has_a_term() -> None:
    texts = [path for path in tracked() if path.suffix in {".py", ".md", ".hcl", ".sql"}]
    ours = [path for path in texts if path.name != "CHANGELOG.md" and "migrations" not in path.parts]
    assert {str(path): hit[0] for path in ours if (hit := HOUSE_WORDS.search(text(path)))} == {}


@pytest.mark.parametrize("word", ["an err" + "and", "kn" + "obs", "was to" + "ld", "Refu" + "sal"])
def test_a_house_word_would_be_found(word: str) -> None:
    assert HOUSE_WORDS.search(word)


@pytest.mark.parametrize("folder", [*CODE, "tests"])
def test_a_module_begins_with_its_role(folder: str) -> None:
    assert modules(folder)
    for path in modules(folder):
        assert not text(path).strip() or ast.get_docstring(ast.parse(text(path))), path


@pytest.mark.parametrize("folder", CODE)
def test_a_module_stays_short(folder: str) -> None:
    assert [path for path in modules(folder) if len(text(path).splitlines()) > 300] == []


def test_stubs_are_generated_and_never_committed() -> None:
    assert [path for path in tracked() if "_pb2" in path.name or path.parts[:2] == ("protos", "gen")] == []
    tried = subprocess.run(["git", "check-ignore", "-q", "protos/gen/shop/x_pb2.py"], cwd=ROOT, check=False)
    assert tried.returncode == 0


def test_state_and_environment_are_ignored() -> None:
    for made in (".waypost/dev/secrets/unseal-key", ".venv/bin/python"):
        assert subprocess.run(["git", "check-ignore", "-q", made], cwd=ROOT, check=False).returncode == 0


def test_the_contract_between_services_follows_its_rules() -> None:
    linted = subprocess.run([str(tools.find("buf")), "lint", "protos"], cwd=ROOT, capture_output=True, check=False)
    assert linted.returncode == 0, linted.stdout.decode()


def test_no_file_holds_a_private_key() -> None:
    assert [path for path in tracked() if KEY.search(text(path))] == []


@pytest.mark.parametrize("pattern", [PASSWORD, TOKEN], ids=["password", "token"])
def test_no_file_holds_a_secret(pattern: re.Pattern[str]) -> None:
    # The users of the tests have passwords and broken tokens of their own.
    ours = [path for path in tracked() if path.parts[0] != "tests"]
    assert {str(path): hit[0] for path in ours if (hit := pattern.search(text(path)))} == {}


@pytest.mark.parametrize(
    "line",
    ['password = "hunter2hunter2"', '"password": "hunter2hunter2"', "db_password='hunter2hunter2'", 'TOKEN="abcdef12"'],
)
def test_a_written_out_password_would_be_found(line: str) -> None:
    assert PASSWORD.search(line)


def test_a_password_that_is_filled_in_later_is_no_secret() -> None:
    assert not PASSWORD.search('"password": "${random}"')
