"""docs/fragile.md lists every use of a private API of a library; each use carries the marker `# fragile: <key>`."""

from __future__ import annotations

import ast
import importlib
import re
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

from .repository import ROOT

# The folders of the product, and the folder from which Python imports each.
PRODUCT = {
    "chassis/chassis": "chassis",
    "gateway/gateway": "gateway",
    "nomad/edge": "nomad/edge",
    "protos/src": "protos/src",
    "services/order/order_service": "services/order",
    "services/user/user_service": "services/user",
    "stack/stack": "stack",
}
PROJECTS = ("chassis", "gateway", "protos", "services/order", "services/user", "stack", ".")
DOCUMENT = "docs/fragile.md"
MARKER = re.compile(r"#.*\bfragile: ([a-z0-9-]+)")
# Names of the language that its documentation explains; `__wrapped__`, for one, depends on how a library is written.
LANGUAGE = {
    "__bases__",
    "__cause__",
    "__class__",
    "__context__",
    "__dict__",
    "__doc__",
    "__file__",
    "__module__",
    "__name__",
}
DOCUMENTED = {"os._exit"}


@dataclass(frozen=True)
class Row:
    """One line of the table: a use of a private API."""

    key: str
    library: str
    files: frozenset[str]
    tests: tuple[str, ...]


@cache
def rows() -> dict[str, Row]:
    """The table of the document by its first column."""
    lines = (ROOT / DOCUMENT).read_text().splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("| `")]
    assert len({row[0] for row in cells}) == len(cells), "a key is in the table twice"
    return {
        row[0].strip("`"): Row(row[0].strip("`"), row[1], frozenset(_quoted(row[3])), tuple(_quoted(row[6])))
        for row in cells
    }


def _quoted(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


@cache
def modules() -> dict[str, str]:
    """The text of each product module by its path."""
    return {path: (ROOT / path).read_text() for _, path in _by_folder()}


def _by_folder() -> list[tuple[str, str]]:
    files = [(folder, file) for folder in PRODUCT for file in sorted((ROOT / folder).rglob("*.py"))]
    return [(folder, str(file.relative_to(ROOT))) for folder, file in files]


@cache
def marked() -> dict[str, frozenset[str]]:
    """The files that carry the marker of each key."""
    found: dict[str, set[str]] = {}
    for path, text in modules().items():
        for key in MARKER.findall(text):
            found.setdefault(key, set()).add(path)
    return {key: frozenset(paths) for key, paths in found.items()}


def own_names(trees: dict[str, ast.Module]) -> set[str]:
    """Each private name that the product itself defines."""
    found: set[str] = set()
    for node in (node for tree in trees.values() for node in ast.walk(tree)):
        match node:
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
                found.add(name)
            case ast.Name(id=name, ctx=ast.Store()) | ast.arg(arg=name):
                found.add(name)
            case ast.Attribute(value=ast.Name(id="self" | "cls"), attr=name, ctx=ast.Store()):
                found.add(name)
    return found


def uses(trees: dict[str, ast.Module], packages: set[str]) -> Iterator[tuple[str, ast.stmt | ast.expr, str]]:
    """Each private name of a library that the trees import or read: path, node, text."""
    own = own_names(trees)
    for path, tree in trees.items():
        for node in ast.walk(tree):
            match node:
                case ast.Import():
                    names = [alias.name for alias in node.names]
                case ast.ImportFrom(module=str(module), level=0):
                    names = [f"{module}.{alias.name}" for alias in node.names]
                case ast.Attribute(value=value, attr=name) if name.startswith("_"):
                    inherited = isinstance(value, ast.Name) and value.id in {"self", "cls"}
                    text = ast.unparse(node)
                    if not inherited and name not in own | LANGUAGE and text not in DOCUMENTED:
                        yield path, node, text
                    continue
                case _:
                    continue
            for name in names:
                parts = name.split(".")
                if parts[0] not in packages and any(part.startswith("_") for part in parts):
                    yield path, node, name


def overridden(path: str, tree: ast.Module) -> Iterator[ast.stmt]:
    """Each private method of a class that overrides one of a library."""
    classes = [node for node in tree.body if isinstance(node, ast.ClassDef) and node.bases]
    methods = [
        (cls.name, node)
        for cls in classes
        for node in cls.body
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and re.match("_[^_]", node.name)
    ]
    if not methods:
        return
    folder = next(PRODUCT[folder] for folder in PRODUCT if path.startswith(f"{folder}/"))
    module = importlib.import_module(".".join(Path(path).relative_to(folder).with_suffix("").parts))
    for name, method in methods:
        bases = getattr(module, name).__mro__[1:]
        if any(method.name in vars(base) and not _is_own(base) for base in bases):
            yield method


def _is_own(base: type) -> bool:
    return base.__module__.split(".")[0] in own_packages()


@cache
def own_packages() -> set[str]:
    tops = {Path(path).relative_to(PRODUCT[folder]).parts[0] for folder, path in _by_folder()}
    return {top.removesuffix(".py") for top in tops} | {"shop", "__future__"}


def unmarked(path: str, node: ast.AST, text: str) -> str | None:
    """A message if no line of the node carries a marker."""
    assert isinstance(node, ast.stmt | ast.expr)
    last = node.body[0].lineno - 1 if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) else node.end_lineno
    lines = modules()[path].splitlines()[node.lineno - 1 : last]
    return None if any(MARKER.search(line) for line in lines) else f"{path}:{node.lineno} {text}"


def test_every_private_name_of_a_library_is_marked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "nomad/edge"))
    trees = {path: ast.parse(text) for path, text in modules().items()}
    found = [unmarked(path, node, text) for path, node, text in uses(trees, own_packages())]
    found += [
        unmarked(path, node, ast.unparse(node)) for path, tree in trees.items() for node in overridden(path, tree)
    ]
    assert not [use for use in found if use], "mark each with `# fragile: <key>` and add a row to docs/fragile.md"


def test_every_marker_has_a_row_and_every_row_a_marker() -> None:
    assert set(marked()) == set(rows())


def test_every_row_names_the_files_that_carry_its_marker() -> None:
    assert {key: row.files for key, row in rows().items()} == marked()


def test_every_row_names_a_test_that_exists() -> None:
    for row in rows().values():
        assert row.tests, row.key
        assert not [test for test in row.tests if not (ROOT / test).is_file()], row.key


def test_every_library_in_the_table_has_an_upper_bound() -> None:
    libraries = {name for row in rows().values() for name in _quoted(row.library)}
    unbounded, found = [], set()
    for project in PROJECTS:
        table = tomllib.loads((ROOT / project / "pyproject.toml").read_text())
        groups = [table.get("project", {}).get("dependencies", []), *table.get("dependency-groups", {}).values()]
        for dependency in (each for group in groups for each in group if isinstance(each, str)):
            name = re.split(r"[\[<>=!~; ]", dependency)[0]
            if name in libraries:
                found.add(name)
                unbounded += [] if "<" in dependency else [f"{project}: {dependency}"]
    assert not unbounded
    assert found == libraries


@pytest.mark.parametrize(
    "line",
    [
        "from sanic._private import anything",
        "import opentelemetry._logs",
        "from grpc import _channel",
        "found = response._private",
        "once = recorder.insert_events.__wrapped__",
    ],
)
def test_a_private_name_in_any_form_is_found(line: str) -> None:
    assert len(list(uses({"module.py": ast.parse(line)}, own_packages()))) == 1


def test_an_overridden_private_method_is_found() -> None:
    path = "gateway/gateway/http/sanic_internals.py"
    names = [node.name for node in overridden(path, ast.parse(modules()[path])) if isinstance(node, ast.FunctionDef)]
    assert names == ["_get"]
