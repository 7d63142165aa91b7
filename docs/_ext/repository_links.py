"""Links of the pages to files beside docs/: they work where the pages are read as files, and here lead to their like.

README.md is the first page, a module or a package its page of the reference, a folder of the docs its index. Other
files are offered as they are; a folder that is not shown is named alone.
"""

from __future__ import annotations

from pathlib import Path

from docutils import nodes
from public_names import ROOT, pages
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.util.typing import ExtensionMetadata


def like(path: Path, sources: Path) -> str | None:
    """The document that stands for a file or folder of the repository."""
    repository = sources.parent
    if path in (repository / "README", repository / "README.md", sources / "README", sources / "README.md"):
        return "index"
    if path.is_relative_to(sources) and (path / "index.md").exists():
        return f"{path.relative_to(sources)}/index"
    if path.is_relative_to(repository / ROOT):
        parts = path.relative_to(repository).with_suffix("").parts
        for end in range(len(parts), 1, -1):
            if (name := ".".join(parts[:end])) in pages():
                return f"reference/{name.removeprefix(f'{ROOT}.')}"
        return f"reference/{ROOT}"
    return None


def translate(app: Sphinx, doctree: nodes.document) -> None:
    """Turns such links round."""
    sources = Path(app.srcdir)
    here = (sources / app.env.docname).parent
    links = [*doctree.findall(addnodes.pending_xref), *doctree.findall(addnodes.download_reference)]
    for link in links:
        if link.get("reftype") != "myst":
            continue
        path = (here / link["reftarget"]).resolve()
        if (document := like(path, sources)) is not None:
            fragment = link.get("reftargetid")
            new = addnodes.pending_xref(
                "", refdoc=app.env.docname, refdomain="doc", refexplicit=True, reftype="myst",
                reftarget=document, reftargetid=fragment if isinstance(fragment, str) else None,
            )  # fmt: skip
            new += nodes.inline("", "", *link.children[0].children, classes=["xref", "myst"])
            link.replace_self(new)
        elif path.is_dir():
            link.replace_self(list(link.children))


def setup(app: Sphinx) -> ExtensionMetadata:
    """Before Sphinx collects the files that pages offer, whose priority is 500."""
    app.connect("doctree-read", translate, priority=400)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
