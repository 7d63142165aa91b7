"""Our docstrings as reStructuredText: Google's sections, roles, and prose with formulas in Unicode.

In prose a star or a bar is what it looks like, ``(B, *event)`` and ``|x|``, unless it encloses words: ``*so*``; one
backtick marks code as two do. An indented block is shown as it stands: as code where it is Python, and otherwise as a
formula. Where the first line announces a block and nothing else follows, the block has lost its indentation to Python.
"""

from __future__ import annotations

import ast
import re
import textwrap
from typing import Any, get_type_hints

from docutils import nodes
from public_names import ROOT, by_value, follow
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.util.typing import ExtensionMetadata, stringify_annotation

LITERAL = re.compile(r"``.+?``|:[\w:]+:`[^`]*`|`[^`]*`__?|\\.|^ *\* ")
SINGLE = re.compile(r"(?<![`:\w])`([^`<>]+)`(?![`_\w])")
ENUMERATOR = re.compile(r"^(\s*(?:\w+: )?)([A-Za-z]\.)(?=\s|$)")  # "predictor: p." is no list
EMPHASIS = re.compile(r"(?<![\w*(])(\*\*?)(?=[^\s*])([^*]*[^\s*])\1(?![\w*])")
COMMAND = re.compile(r"(?:\$ |python3? |pip |scoresde |accelerate |torchrun )")


ANNOTATED = re.compile(r"~?(?:typing\.)?Annotated\[")
BUILT_IN = re.compile(r"~typing\.(?=(?:int|float|bool|str|tuple|list|dict)\b)")  # a slip of Sphinx's
ADDRESS = re.compile(r"\bat 0x|Annotated|[<>]")
SHORT = re.compile(r"~[\w.]*\.")  # before the last part of a dotted name
PLAIN = ("attribute", "property", "data")


def escaped(line: str) -> str:
    """A line of prose in which stars and bars stand for themselves."""
    line = ENUMERATOR.sub(r"\1\\\2", SINGLE.sub(r"``\1``", line))
    kept = [match.span() for pattern in (LITERAL, EMPHASIS) for match in pattern.finditer(line)]
    return "".join(
        f"\\{sign}" if sign in "*|" and not any(a <= i < b for a, b in kept) else sign for i, sign in enumerate(line)
    )


def depth(line: str) -> int:
    """How far a line is indented."""
    return len(line) - len(line.lstrip())


def prepared(lines: list[str]) -> list[str]:
    """A docstring with its blocks marked and its prose escaped."""
    first, *rest = lines
    if first.endswith("::") and not any(line.startswith(" ") for line in "\n".join(rest).strip("\n").splitlines()[:1]):
        return [escaped(first), *(f"    {line}" if line else "" for line in rest)]
    found: list[str] = []
    literal: int | None = None  # the depth of the paragraph above the block we are in
    for number, line in enumerate(lines):
        if not line.strip():
            found.append("")
            continue
        if literal is not None and depth(line) > literal:
            found.append(line)
            continue
        literal = None
        before = next((above for above in reversed(lines[:number]) if above.strip()), "")
        blank = number > 0 and not lines[number - 1].strip()
        if blank and depth(line) >= 4 and depth(before) == 0 and not before.rstrip().endswith("::"):
            found.extend(["::", ""])
            literal = 0
            found.append(line)
            continue
        found.append(escaped(line))
        if line.rstrip().endswith("::"):
            literal = depth(line)
    return found


def prepare(app: Sphinx, what: str, name: str, value: Any, options: Any, lines: list[str]) -> None:
    """Before Google's sections are read."""
    if name.startswith(ROOT) and lines:
        lines[:] = prepared(lines)
        if what in PLAIN:
            app.env.temp_data["scoresde docstring"] = list(lines)


def restore(app: Sphinx, what: str, name: str, value: Any, options: Any, lines: list[str]) -> None:
    """Of a property or a constant Google's rules would take the words before a colon for its type."""
    if what in PLAIN and (kept := app.env.temp_data.pop("scoresde docstring", None)) is not None:
        lines[:] = kept


def plain(annotation: str) -> str:
    """A type without what is annotated to it: a check, whose address would be another in every build."""
    while (match := ANNOTATED.search(annotation)) is not None:
        level, end, first = 1, match.end(), 0
        while level and end < len(annotation):
            level += (annotation[end] in "[(") - (annotation[end] in "])")
            if annotation[end] == "," and level == 1 and not first:
                first = end
            end += 1
        annotation = annotation[: match.start()] + annotation[match.end() : first or end - 1] + annotation[end:]
    return BUILT_IN.sub("", annotation)


def plain_signature(
    app: Sphinx, what: str, name: str, value: Any, options: Any, arguments: str | None, returned: str | None
) -> tuple[str | None, str | None]:
    """Applies it to functions and classes."""
    return arguments and plain(arguments), returned and plain(returned)


def plain_type(app: Sphinx, domain: str, kind: str, content: nodes.Element) -> None:
    """The same for attributes: Sphinx writes all of an annotation, and asks nobody; here the type alone, as text."""
    if kind != "attribute" or content.parent is None:
        return
    for signature in content.parent.findall(addnodes.desc_signature):
        for annotation in signature.findall(addnodes.desc_annotation):
            if annotation.astext().startswith(":") and ADDRESS.search(annotation.astext()):
                owner, _, name = signature["fullname"].rpartition(".")
                hint = get_type_hints(follow(f"{signature['module']}.{owner}"))[name]
                annotation.children = []
                annotation += nodes.Text(f": {SHORT.sub('', stringify_annotation(hint, 'smart'))}")


def is_code(text: str) -> bool:
    """Whether a block is Python: it is read as such, and its names are written in plain letters."""
    try:
        tree = ast.parse(textwrap.dedent(text))
    except SyntaxError:
        return False
    names = [node.id for node in ast.walk(tree) if isinstance(node, ast.Name)]
    return any(
        isinstance(node, ast.Call | ast.Import | ast.ImportFrom | ast.Attribute) for node in ast.walk(tree)
    ) and (all(name.isascii() for name in names))


def mark_blocks(app: Sphinx, doctree: nodes.document) -> None:
    """Tells code, commands and formulas apart in the pages of the reference."""
    if not app.env.docname.startswith("reference/"):
        return
    for block in list(doctree.findall(nodes.literal_block)):
        text = block.astext()
        if is_code(text):
            block["language"] = "python"
        elif COMMAND.match(text.strip()):
            block["language"] = "bash"
        else:
            block["language"] = "text"
            block["classes"].append("equation")


def public_bases(app: Sphinx, name: str, value: Any, options: Any, bases: list[Any]) -> None:
    """The nearest classes that a reader can look up stand for those behind a leading underscore."""
    known = by_value()
    found: list[type] = []

    def add(base: Any) -> None:
        if getattr(base, "__module__", "").split(".")[0] != ROOT or id(base) in known:
            found.append(base)
        else:
            for above in getattr(base, "__bases__", ()):
                add(above)

    for base in bases:
        add(base)
    bases[:] = [base for base in dict.fromkeys(found) if base is not object] or [object]


def setup(app: Sphinx) -> ExtensionMetadata:
    """Reads docstrings before napoleon does, whose priority is 500."""
    app.connect("autodoc-process-docstring", prepare, priority=400)
    app.connect("autodoc-process-docstring", restore, priority=600)
    app.connect("autodoc-process-signature", plain_signature)
    app.connect("object-description-transform", plain_type)
    app.connect("autodoc-process-bases", public_bases)
    app.connect("doctree-read", mark_blocks)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
