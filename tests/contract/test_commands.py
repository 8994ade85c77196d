"""Commands: README names every recipe of the Justfile, and no other."""

from __future__ import annotations

import json
import re
import subprocess
from typing import Any

import pytest

from stack.__main__ import COMMANDS
from stack.build import tools

from .repository import ROOT

README = (ROOT / "README.md").read_text()
JUSTFILE = (ROOT / "Justfile").read_text()


@pytest.fixture(scope="module")
def recipes() -> dict[str, Any]:
    """The public recipes, as just itself parses the file."""
    just = str(tools.find("just"))
    command = [just, "--justfile", str(ROOT / "Justfile"), "--dump", "--dump-format", "json"]
    dumped = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return {name: recipe for name, recipe in json.loads(dumped)["recipes"].items() if not recipe["private"]}


def typed(text: str) -> set[str]:
    """The recipes in a text."""
    return set(re.findall(r"\./justw ([a-z-]+)", text))


def test_every_command_of_the_readme_is_a_recipe(recipes: dict[str, Any]) -> None:
    assert typed(README)
    assert typed(README) <= set(recipes)


def test_every_command_of_the_other_documents_is_a_recipe(recipes: dict[str, Any]) -> None:
    for document in (ROOT / "docs").rglob("*.md"):
        assert typed(document.read_text()) <= set(recipes), document


def test_the_readme_names_every_recipe(recipes: dict[str, Any]) -> None:
    assert set(recipes) - typed(README) == set()


def test_every_fenced_line_that_calls_just_calls_a_recipe(recipes: dict[str, Any]) -> None:
    fenced = re.findall(r"^```.*?\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
    called = re.findall(r"^(?:\$ )?(?:\w+=\S+ )*(?:\./justw|just) (\S+)", "\n".join(fenced), re.MULTILINE)
    assert {"deploy", "test"} <= set(called) <= set(recipes)


def test_there_are_few_recipes_each_with_a_line_and_a_group(recipes: dict[str, Any]) -> None:
    assert len(recipes) <= 25
    assert [name for name, recipe in recipes.items() if not recipe["doc"]] == []
    grouped = {name for name, recipe in recipes.items() for attribute in recipe["attributes"] if "group" in attribute}
    assert set(recipes) - grouped == set()


def test_every_command_of_the_stack_has_a_recipe_and_every_recipe_a_command() -> None:
    assert set(re.findall(r"\{\{ ?stack ?\}\} ([\w-]+)", JUSTFILE)) == set(COMMANDS)
