"""Documents are short and complete, and every path and link in them exists."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from .repository import ROOT, tracked

DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
DECISIONS = sorted((ROOT / "docs" / "adr").glob("*.md"))
HEADINGS = ["Context", "Decision", "Consequences", "Alternatives"]
LINES_OF_A_PAGE = 60
LINK = re.compile(r"(?<!!)\[[^\]]+\]\(([^)\s]+)\)")
NAMED = re.compile(r"`((?:[\w.-]+/)+[\w.*-]*)`")


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def anchors(document: Path) -> set[str]:
    """The headings of a document as a browser addresses them."""
    headings = re.findall(r"^#+ (.+)$", document.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


def broken(document: Path, link: str) -> bool:
    target, _, anchor = link.partition("#")
    file = (document.parent / target).resolve() if target else document
    return not file.exists() or bool(anchor and anchor not in anchors(file))


def test_the_readme_fits_in_150_lines() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150


@pytest.mark.parametrize("document", DOCUMENTS, ids=name)
def test_every_link_inside_the_checkout_leads_somewhere(document: Path) -> None:
    links = [link for link in LINK.findall(document.read_text()) if "://" not in link]
    assert [link for link in links if broken(document, link)] == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=name)
def test_every_path_in_a_document_exists(document: Path) -> None:
    ours = {path.parts[0] for path in tracked()}
    named = [path for path in NAMED.findall(document.read_text()) if path.split("/")[0] in ours]
    assert [path for path in named if not list(ROOT.glob(path.rstrip("/")))] == []


def test_the_folders_of_the_readme_has_exactly_the_existing_folders() -> None:
    folders = {path.parts[0] for path in tracked() if len(path.parts) > 1 and not path.parts[0].startswith(".")}
    section = (ROOT / "README.md").read_text().partition("## Folders")[2].partition("\n## ")[0]
    assert set(re.findall(r"^\s*\|? ?`?(\w+)/", section, re.MULTILINE)) == folders


@pytest.mark.parametrize("heading", ["Write path", "Read path", "Saga", "Unavailable parts"])
def test_every_failure_links_to_a_test(heading: str) -> None:
    section = (ROOT / "docs" / "failures.md").read_text().partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| .+$", section, re.MULTILINE)[1:]
    assert rows
    assert [row for row in rows if not any(link.startswith("../tests/") for link in LINK.findall(row))] == []


def test_decisions_are_numbered_without_a_gap_and_all_listed_in_the_architecture() -> None:
    numbers = [int(path.name[:4]) for path in DECISIONS]
    assert numbers == list(range(1, len(numbers) + 1))
    listed = LINK.findall((ROOT / "docs" / "architecture.md").read_text())
    assert {f"adr/{path.name}" for path in DECISIONS} <= set(listed)


@pytest.mark.parametrize("decision", DECISIONS, ids=name)
def test_a_decision_has_a_date_and_the_four_headings_and_fits_on_a_page(decision: Path) -> None:
    text = decision.read_text()
    assert re.search(rf"\A# {decision.name[:4]} .+\n\nDate: \d{{4}}-\d\d-\d\d\n", text)
    assert re.findall(r"^## (.+)$", text, re.MULTILINE) == HEADINGS
    assert len(text.splitlines()) <= LINES_OF_A_PAGE
    assert all(len(part.strip()) > 80 for part in re.split(r"^## .+$", text, flags=re.MULTILINE)[1:])
