"""Formulas: LaTeX in the page, set by the copy of KaTeX in ``_static/katex``. No network, no LaTeX, no Node.

Pages without a formula load neither the program nor its fonts.
"""

from __future__ import annotations

from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.typing import ExtensionMetadata
from sphinx.writers.html5 import HTML5Translator

STYLE, PROGRAM, START = "katex/katex.min.css", "katex/katex.min.js", "formulas.js"


def inline(self: HTML5Translator, node: nodes.math) -> None:
    """A formula in a line of text."""
    self.body.append(self.starttag(node, "span", "", CLASS="formula"))
    self.body.append(f"{self.encode(node.astext())}</span>")
    raise nodes.SkipNode


def block(self: HTML5Translator, node: nodes.math_block) -> None:
    """A formula on lines of its own; several in one block, apart by empty lines, stand below each other."""
    for part in filter(None, (part.strip() for part in node.astext().split("\n\n"))):
        self.body.append(self.starttag(node, "div", "", CLASS="formula displayed"))
        self.body.append(f"{self.encode(part)}</div>\n")
    raise nodes.SkipNode


def install(app: Sphinx, page: str, template: str, context: dict[str, Any], doctree: nodes.document | None) -> None:
    """Adds the program to a page that has formulas."""
    if doctree is not None and any(doctree.findall(lambda node: isinstance(node, nodes.math | nodes.math_block))):
        app.add_css_file(STYLE)
        app.add_js_file(PROGRAM, loading_method="defer")
        app.add_js_file(START, loading_method="defer")


def setup(app: Sphinx) -> ExtensionMetadata:
    """Registers the renderer ``katex``."""
    app.add_html_math_renderer("katex", inline_renderers=(inline, None), block_renderers=(block, None))
    app.connect("html-page-context", install)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
