"""The rows of docs/equations.md beside the docstrings of the names in their "Where" column, with their sources."""

from __future__ import annotations

import functools
import inspect
import re
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from docstrings import escaped
from public_names import ROOT, by_value, described, follow
from sphinx.application import Sphinx
from sphinx.util.typing import ExtensionMetadata

PAGE = Path(__file__).parents[1] / "equations.md"
TOKEN = re.compile(r"\$(?P<math>[^$]+)\$|`(?P<code>[^`]+)`|\[(?P<text>[^\]]*)\]\([^)]*\)")
WHERE, SOURCE = "Where", "Source"


@dataclass(frozen=True)
class Row:
    """A row of a table, with the section that it stands in."""

    section: str
    cells: dict[str, str]

    @property
    def anchor(self) -> str:
        """GitHub's anchor of the section, which is the site's as well."""
        return re.sub(r"[^\w\- ]", "", self.section.lower()).replace(" ", "-")

    @property
    def names(self) -> list[str]:
        """The names in its "Where" column."""
        return re.findall(r"`([^`]+)`", self.cells.get(WHERE, ""))


def rows(text: str) -> list[Row]:
    """All rows of a page."""
    found: list[Row] = []
    section = ""
    header: list[str] = []
    for line in text.splitlines():
        if line.startswith("#"):
            section = line.lstrip("#").strip()
        if not line.startswith("|"):
            header = []
            continue
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        if not header:
            header = cells
        elif set("".join(cells)) - set("-: "):
            found.append(Row(section, dict(zip(header, cells, strict=True))))
    return found


def home(name: str) -> str | None:
    """Under which name of the reference a name of the table is described; None for engines, which have no page."""
    try:
        value = follow(f"{ROOT}.{name}")
    except (AttributeError, ImportError):
        return None
    if (entry := by_value().get(id(value))) is not None:
        # one function may have several names, each for a row of its own
        same = [each.path for each in described() if each.value is value and each.name == name.rpartition(".")[2]]
        return (same or [entry.path])[0]
    owner, _, last = name.rpartition(".")
    if not owner or (entry := by_value().get(id(follow(f"{ROOT}.{owner}")))) is None:
        return None
    told = inspect.isclass(entry.value) and bool(getattr(vars(entry.value).get(last), "__doc__", None))
    return f"{entry.path}.{last}" if told else entry.path


@functools.cache
def by_name() -> dict[str, tuple[Row, ...]]:
    """The rows of each name of the reference."""
    found: defaultdict[str, list[Row]] = defaultdict(list)
    for row in rows(PAGE.read_text("utf-8")):
        for name in dict.fromkeys(filter(None, map(home, row.names))):
            found[name].append(row)
    return {name: tuple(those) for name, those in found.items()}


def restructured(markdown: str) -> str:
    """A cell as reStructuredText."""
    parts, end = [], 0
    for match in TOKEN.finditer(markdown):
        parts.append(escaped(markdown[end : match.start()]))
        if match["math"]:
            parts.append(f"\\ :math:`{match['math']}`\\ ")
        else:
            parts.append(f"\\ ``{match['code']}``\\ " if match["code"] else escaped(match["text"]))
        end = match.end()
    parts.append(escaped(markdown[end:]))
    return "".join(parts)


def shown(row: Row) -> list[str]:
    """A row as an item of a list: what it is, its formulas, and where they come from."""
    (_, label), *columns = ((key, cell) for key, cell in row.cells.items() if key not in (WHERE, SOURCE))
    lines = [f"- {restructured(label)}", ""]
    for key, cell in columns:
        if cell.strip("–— "):
            lines += [f"  {restructured(cell if key in ('Formula', '') else f'{key}: {cell}')}", ""]
    source = row.cells.get(SOURCE, "").strip("–— ")
    link = f"`{row.section} <../equations.html#{row.anchor}>`__"
    return [*lines, f"  {restructured(source)} · {link}" if source else f"  {link}", ""]


def add(app: Sphinx, what: str, name: str, value: Any, options: Any, lines: list[str]) -> None:
    """At the end of a docstring, after napoleon has read its sections."""
    if those := by_name().get(name):
        lines.extend(["", ".. rst-class:: equation-rows", ""])
        for row in those:
            lines.extend(shown(row))


def note_change(app: Sphinx, environment: Any, names: list[str]) -> None:
    """A change of the table is one of every page that shows its rows."""
    if "equations" in names:
        names.extend(name for name in environment.found_docs if name.startswith("reference/") and name not in names)


def setup(app: Sphinx) -> ExtensionMetadata:
    """Adds the rows; the pages are read again where the table has changed."""
    app.connect("autodoc-process-docstring", add, priority=700)
    app.connect("env-before-read-docs", note_change)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
