"""Tables that can be read: a cell with a sentence is never squeezed into a column of single words.

The browser shares the width of a wide table by its longest words; a cell marked here has a least width, and the table
scrolls in its own frame where that is more than the page has.
"""

from __future__ import annotations

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.typing import ExtensionMetadata

LONG, VERY_LONG = 24, 90
"""Characters from which a cell has a least width, and a larger one."""


def mark(app: Sphinx, doctree: nodes.document) -> None:
    """Marks the cells with much text."""
    for cell in doctree.findall(nodes.entry):
        length = len(cell.astext())
        if length >= LONG and " " in cell.astext():
            cell["classes"].append("very-long" if length >= VERY_LONG else "long")


def setup(app: Sphinx) -> ExtensionMetadata:
    """Looks at every page."""
    app.connect("doctree-read", mark)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
