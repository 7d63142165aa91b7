"""The pages of the reference, written before each build into ``docs/reference/``: one for each public package.

A page shows the package's docstring with its example, a table of its names, and then each name under the module that
defines it.
"""

from __future__ import annotations

import inspect
import itertools
import re
from collections.abc import Iterable
from pathlib import Path

from docstrings import prepared
from public_names import GROUPS, ROOT, Described, described, documented, exported, module, pages, submodules
from sphinx.application import Sphinx
from sphinx.util.typing import ExtensionMetadata

WELCOME = """\
Every public name of the library, from its docstring: what it computes, shapes and units, what it raises, the paper it
comes from. Each package has one page; :doc:`/equations` lists the formulas by subject, with the same names beside them.

The names that most programs need are also at the root::

    import scoresde as ss
"""


def title(text: str, under: str) -> str:
    """A heading."""
    return f"{text}\n{under * len(text)}\n"


def first_sentence(text: str) -> str:
    """What a docstring begins with, on one line."""
    lines = prepared(inspect.cleandoc(text).splitlines() or [""])
    paragraph = " ".join(itertools.takewhile(str.strip, lines))
    return re.split(r"(?<=[\w)\]`²]\.)\s+(?=[A-Z`:])|::?\s*$", paragraph, maxsplit=1)[0]


def summary(entries: Iterable[Described]) -> str:
    """A table of names, each with the first sentence of its docstring."""
    rows = [f"   * - :py:obj:`~{entry.path}`\n     - {first_sentence(documented(entry))}\n" for entry in entries]
    return ".. list-table::\n   :widths: 30 70\n   :class: overview\n\n" + "".join(rows) + "\n"


def description(entry: Described) -> str:
    """The directive that shows one name in full."""
    if inspect.isclass(entry.value):
        kind = "autoexception" if issubclass(entry.value, BaseException) else "autoclass"
        options = "   :members:\n   :show-inheritance:\n"
        return f".. {kind}:: {entry.path}\n{options}\n"
    if entry.is_code:
        return f".. autofunction:: {entry.path}\n\n"
    shown = "" if isinstance(entry.value, str | float | int) else "   :no-value:\n"
    return f".. autodata:: {entry.path}\n{shown}\n"


def page(name: str) -> str:
    """One page, reStructuredText."""
    entries = [entry for entry in described() if entry.page == name]
    sections = [f"{title(name, '=')}\n.. automodule:: {name}\n"]
    if entries:
        sections.append(summary(entries))
    by_home: dict[str, list[Described]] = {}
    for entry in entries:
        by_home.setdefault(entry.home, []).append(entry)
    order = [name, *submodules(name)]
    for home in sorted(by_home, key=lambda home: order.index(home) if home in order else len(order)):
        if home != name and home in order:
            short = home.removeprefix(f"{name}.")
            # a function that has the name of its module is what the name leads to
            taken = "   :no-index:\n" if any(entry.path == home for entry in entries) else ""
            sections.append(f"{title(short, '-')}\n.. automodule:: {home}\n{taken}")
        elif len(by_home) > 1:
            sections.append(title("Names", "-"))
        sections.append(f".. currentmodule:: {name}\n")
        sections.extend(map(description, by_home[home]))
    return "\n".join(sections)


def root_page() -> str:
    """The page of what ``import scoresde as ss`` brings."""
    names = [name for name in exported(ROOT) if not name.startswith("_")]
    places = []
    for name in names:
        value = getattr(module(ROOT), name)
        places += [entry for entry in described() if entry.is_code and entry.value is value]
    return f"{title(ROOT, '=')}\n.. automodule:: {ROOT}\n\n{summary(places)}"


def index() -> str:
    """The contents of the reference."""
    parts = [title("Reference", "="), WELCOME, ".. toctree::\n   :hidden:\n\n   scoresde\n"]
    for group, members in GROUPS.items():
        parts.append(title(group, "-"))
        rows = []
        for member in members:
            first = first_sentence(module(f"{ROOT}.{member}").__doc__ or "")
            rows.append(f"   * - :doc:`{member}`\n     - {first}\n")
        parts.append(".. list-table::\n   :widths: 25 75\n   :class: overview\n\n" + "".join(rows))
        tree = "".join(f"   {member}\n" for member in members)
        parts.append(f".. toctree::\n   :hidden:\n   :caption: {group}\n\n{tree}")
    return "\n".join(parts)


def write(app: Sphinx) -> None:
    """Writes the pages that are new or have changed, and removes those of packages that are gone."""
    folder = Path(app.srcdir, "reference")
    folder.mkdir(exist_ok=True)
    texts = {"index": index(), ROOT: root_page()}
    texts |= {name.removeprefix(f"{ROOT}."): page(name) for name in pages()}
    for name, text in texts.items():
        file = folder / f"{name}.rst"
        if not file.exists() or file.read_text("utf-8") != text:
            file.write_text(text, "utf-8")
    for file in folder.glob("*.rst"):
        if file.stem not in texts:
            file.unlink()


def setup(app: Sphinx) -> ExtensionMetadata:
    """Writes the pages before they are read."""
    app.connect("builder-inited", write)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
