"""The pages name what is there: links lead somewhere, and the table of equations to code."""

import re
from pathlib import Path
from pkgutil import resolve_name

import pytest

ROOT = Path(__file__).parents[1]
PAGES = sorted([ROOT / "README.md", ROOT / "CHANGELOG.md", *(ROOT / "docs").rglob("*.md")])


def anchors(page: Path) -> set[str]:
    """What can stand behind ``#`` in a link to a page."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    words = [re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading).lower() for heading in headings]
    return {re.sub(r"[^\w\- ]", "", heading).replace(" ", "-") for heading in words}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    dead = []
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        if "://" in link:
            continue
        if not target.exists() or (anchor and anchor not in anchors(target)):
            dead.append(link)
    assert not dead


def test_the_table_of_equations_names_code_that_is_there() -> None:
    lines = (ROOT / "docs" / "method.md").read_text().splitlines()
    columns = [line.split("|") for line in lines if line.count("|") == 5]
    named = {name for row in columns for name in re.findall(r"`([a-z_]+\.[A-Za-z_]+)`", row[3])}
    assert len(named) > 10
    for name in named:
        resolve_name(f"cartl_cli.core.method.{name.replace('.', ':', 1)}")
