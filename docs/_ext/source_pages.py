"""The pages with the source of a module lead back to where each name is described.

Sphinx takes all names of a module to be described on one page. Where a package shows some of a module's names and
another page the rest, the links back are set right here.
"""

from __future__ import annotations

import re
from typing import Any, cast

from docutils import nodes
from public_names import ROOT, find
from sphinx.application import Sphinx
from sphinx.domains.python import PythonDomain
from sphinx.util.typing import ExtensionMetadata

FOLDER = "_modules/"
BACK = re.compile(rf'href="[^"#]*#({ROOT}\.[\w.]+)"')


def mend(app: Sphinx, page: str, template: str, context: dict[str, Any], doctree: nodes.document | None) -> None:
    """Looks up the links of one page."""
    if not page.startswith(FOLDER) or "body" not in context:
        return
    module = page.removeprefix(FOLDER).replace("/", ".")
    known = cast("PythonDomain", app.env.get_domain("py")).objects

    def right(link: re.Match[str]) -> str:
        if link[1] in known:
            return link[0]
        parts = link[1].split(".")
        for number in range(1, len(parts)):
            if (found := find(app.env, ".".join([module, *parts[-number:]]))) is not None:
                document, anchor, _ = found
                return f'href="{app.builder.get_relative_uri(page, document)}#{anchor}"'
        return link[0]

    context["body"] = BACK.sub(right, context["body"])


def setup(app: Sphinx) -> ExtensionMetadata:
    """Looks at each page before it is written."""
    app.connect("html-page-context", mend)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
