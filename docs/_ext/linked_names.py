"""Names of the library in running text, ``SDE.marginal`` or ``DDIM()``, lead to their place in the reference."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator

from docutils import nodes
from public_names import ROOT, described, find
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.util.nodes import make_refnode
from sphinx.util.typing import ExtensionMetadata

import scoresde

NAME = re.compile(r"(?:\w+=)?(?:ss\.)?([A-Za-z_]\w*(?:\.\w+)*)(\(.*\))?", re.DOTALL)
NOT_THERE = (nodes.title, nodes.reference, addnodes.pending_xref, addnodes.desc_signature)
GENERAL = (f"{ROOT}.checks", f"{ROOT}.files", f"{ROOT}.rules")
"""Their functions have the names of everyday words: ``grid``, ``path``, ``state``."""


def by_last_part() -> dict[str, str]:
    """Public classes and functions by their bare name, where one alone has it and it is no everyday word."""
    found: defaultdict[str, set[str]] = defaultdict(set)
    for entry in described():
        if entry.is_code and entry.page not in GENERAL:
            found[entry.name].add(entry.path)
    return {name: paths.pop() for name, paths in found.items() if len(paths) == 1}


def candidates(text: str, known: dict[str, str]) -> Iterator[str]:
    """What the code may mean, likeliest first; nothing for what is no name."""
    if (match := NAME.fullmatch(text)) is None:
        return
    name, called = match.groups()
    first, _, rest = name.partition(".")
    special = called or rest or not name.islower() or (len(name) > 6 and "_" in name)
    if name.startswith(f"{ROOT}."):
        yield name
    elif rest or (name in scoresde.__all__ and not hasattr(getattr(scoresde, name), "__path__") and special):
        yield f"{ROOT}.{name}"
    if first in known and special:
        yield f"{known[first]}.{rest}" if rest else known[first]


def link(app: Sphinx, doctree: nodes.document, document: str) -> None:
    """Makes links of the names on a page."""
    environment: BuildEnvironment = app.env
    known = by_last_part()
    for literal in list(doctree.findall(nodes.literal)):
        above = literal.parent
        while above is not None and not isinstance(above, NOT_THERE):
            above = above.parent
        if above is not None:
            continue
        for name in candidates(literal.astext(), known):
            if (found := find(environment, name)) is not None:
                target, anchor, full = found
                reference = make_refnode(app.builder, document, target, anchor, literal.deepcopy(), full)
                reference["classes"].append("name")
                literal.replace_self(reference)
                break


def setup(app: Sphinx) -> ExtensionMetadata:
    """Links once all names are known."""
    app.connect("doctree-resolved", link)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
