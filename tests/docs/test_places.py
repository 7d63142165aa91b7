"""Each page of docs/ has its place in the navigation of the site, and each chapter of the brief order is there."""

from __future__ import annotations

import fnmatch
import re
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[2] / "docs"
TREES = {
    re.search(r":caption: (.+)", tree)[1]: [line for line in tree.splitlines() if line and not line.startswith(":")]  # type: ignore[index]
    for tree in re.findall(r"```\{toctree\}\n(.*?)```", (DOCS / "index.md").read_text("utf-8"), re.DOTALL)
}
PAGES = sorted(path.stem for path in DOCS.glob("*.md") if path.stem not in ("README", "index"))


def test_chapters_come_in_the_order_of_arrival() -> None:
    assert list(TREES) == ["Tutorials", "How to", "Reference", "Explanation"]


@pytest.mark.parametrize("page", PAGES)
def test_every_page_has_one_place(page: str) -> None:
    places = [chapter for chapter, entries in TREES.items() for entry in entries if fnmatch.fnmatch(page, entry)]
    assert len(places) == 1, f"docs/{page}.md stands in {places or 'no'} toctree of docs/index.md"


@pytest.mark.parametrize("chapter", ["course", "howto"])
def test_numbered_pages_are_found(chapter: str) -> None:
    """By the pattern of their index; a page with another name would have no place."""
    strays = [path.name for path in (DOCS / chapter).glob("*.md") if not re.match(r"\d\d-|index\.md$", path.name)]
    assert not strays
    assert "[0-9]*" in (DOCS / chapter / "index.md").read_text("utf-8")


def test_formulas_are_set_by_what_lies_here() -> None:
    """The version that the note names, its licence, and every font that its style asks for."""
    folder = DOCS / "_static" / "katex"
    version = re.search(r"KaTeX ([\d.]+\d)", (folder / "README.txt").read_text("utf-8"))
    assert version is not None and f'"{version[1]}"' in (folder / "katex.min.js").read_text("utf-8")
    assert "MIT" in (folder / "LICENSE").read_text("utf-8")
    fonts = re.findall(r"url\(([^)]+)\)", (folder / "katex.min.css").read_text("utf-8"))
    assert fonts and all((folder / font).is_file() for font in fonts)
    assert {path.name for path in (folder / "fonts").iterdir()} == {Path(font).name for font in fonts}
