"""The first time that a page uses a word of the glossary, the word leads there and shows what it means."""

from __future__ import annotations

import re

from docutils import nodes
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.util.nodes import make_refnode
from sphinx.util.typing import ExtensionMetadata

PAGE = "glossary"
PROSE = (nodes.paragraph,)
NOT_THERE = (nodes.title, nodes.reference, addnodes.pending_xref, nodes.literal, nodes.math, nodes.image, nodes.raw)
TOO_COMMON = {"score", "grid", "velocity", "tolerance", "prediction", "noise", "order", "event", "step"}
"""Words that every page uses, in every meaning."""


def terms(environment: BuildEnvironment) -> dict[str, tuple[str, str]]:
    """Anchor and definition of each word that is worth a link: not the symbols, which stand in formulas."""
    found = {}
    if PAGE not in environment.found_docs:
        return {}
    for item in environment.get_doctree(PAGE).findall(nodes.definition_list_item):
        meaning = next(iter(item.findall(nodes.definition)), None)
        for term in item.findall(nodes.term):
            word = term.astext().strip()
            if meaning is not None and len(word) > 2 and word.isascii() and word.lower() not in TOO_COMMON:
                found[word] = (term["ids"][0], meaning.astext().split("\n\n")[0].replace("\n", " "))
    return found


def link(app: Sphinx, doctree: nodes.document, document: str) -> None:
    """Links the first use of each word."""
    if document == PAGE or document.startswith("reference/") or not (known := terms(app.env)):
        return
    left = dict(known)
    words = "|".join(map(re.escape, sorted(known, key=len, reverse=True)))
    pattern = re.compile(rf"(?<![\w-])({words})(?![\w-])")
    for paragraph in list(doctree.findall(nodes.paragraph)):
        for text in list(paragraph.findall(nodes.Text)):
            above = text.parent
            while above is not paragraph and not isinstance(above, NOT_THERE):
                above = above.parent
            if above is not paragraph:
                continue
            parts: list[nodes.Node] = []
            end = 0
            for match in pattern.finditer(text):
                if match[1] in left:
                    anchor, meaning = left.pop(match[1])
                    reference = make_refnode(app.builder, document, PAGE, anchor, nodes.Text(match[1]), meaning)
                    reference["classes"].append("term")
                    parts += [nodes.Text(text[end : match.start()]), reference]
                    end = match.end()
            if parts:
                text.parent.replace(text, [*parts, nodes.Text(text[end:])])


def setup(app: Sphinx) -> ExtensionMetadata:
    """Links once the glossary has been read."""
    app.connect("doctree-resolved", link)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
