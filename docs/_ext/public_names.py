"""What the library shows, by page of the reference, and the one place where each name is described.

Every public name has one page, that of the package a user imports it from. Code and docstrings also call it by the
module that defines it (``scoresde.solvers.one_step.DDIM``), by the root (``scoresde.DDIM``) or by a class that inherits
it (``DDIM.solve``): all of these lead to the same place, and the inventory lists those of the root and the packages.
"""

from __future__ import annotations

import ast
import functools
import importlib
import inspect
import itertools
import types
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, cast

from docutils import nodes
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.domains.python import ObjectEntry, PythonDomain
from sphinx.environment import BuildEnvironment
from sphinx.util.nodes import make_refnode
from sphinx.util.typing import ExtensionMetadata

import scoresde

ROOT = "scoresde"
GROUPS: Mapping[str, tuple[str, ...]] = {
    "The process and its score": ("sde", "models", "reverse", "spectrum"),
    "Sampling": ("sampling", "solvers", "grids", "noise", "fitting"),
    "Steering": ("guidance", "inverse", "particles", "editing"),
    "Training": ("nn", "losses", "times", "curve", "data", "train"),
    "Measuring": ("likelihood", "problems", "metrics", "certify"),
    "To and from others": ("interop", "hub", "cli"),
    "For those who extend it": ("models.conditions", "models.predictions", "nn.presets", "rules", "checks", "files"),
}
"""The pages, in the order of the reference. A new public package is refused until it has its place here."""


@dataclass(frozen=True)
class Described:
    """A public name with its place."""

    name: str
    page: str
    value: Any
    home: str
    """The module that defines it."""

    @property
    def path(self) -> str:
        """Under which it is described: the page's name for classes and functions, the defining module's for data.

        The comment that describes a constant stands in the module that defines it.
        """
        return f"{self.page if self.is_code else self.home}.{self.name}"

    @property
    def is_code(self) -> bool:
        """Whether it is a class or a function, which carry their docstrings with them."""
        return inspect.isclass(self.value) or inspect.isroutine(self.value)


def module(page: str) -> types.ModuleType:
    """The module of a page of the reference."""
    return importlib.import_module(page)


def pages() -> list[str]:
    """All pages but the root's, by full name.

    Raises:
        ValueError: a public package has no place in ``GROUPS``.
    """
    found = [f"{ROOT}.{name}" for names in GROUPS.values() for name in names]
    shown = {f"{ROOT}.{name}" for name in scoresde.__all__ if inspect.ismodule(getattr(scoresde, name))}
    if missing := shown.difference(found):
        raise ValueError(f"give {', '.join(sorted(missing))} a place in GROUPS of docs/_ext/public_names.py.")
    return found


def submodules(page: str) -> list[str]:
    """The public modules of a package, in the order in which it imports them; none of a module."""
    package = module(page)
    if not hasattr(package, "__path__"):
        return []
    paged = set(pages())
    tree = ast.parse(inspect.getsource(package))
    imported = [node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module]
    return [
        name
        for name in dict.fromkeys(imported)
        if name.startswith(f"{page}.") and name not in paged and not name.split(".")[-1].startswith("_")
    ]


@functools.cache
def assigned(name: str) -> dict[str, str]:
    """The constants and types of a module that a string below describes, in their order, with this string."""
    body = ast.parse(inspect.getsource(module(name))).body
    found = {}
    for node, after in itertools.pairwise(body):
        told = after.value.value if isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant) else None
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        for target in targets:
            if isinstance(told, str) and isinstance(target, ast.Name) and not target.id.startswith("_"):
                found[target.id] = told
    return found


def documented(entry: Described) -> str:
    """The docstring of a public name; of data, the string below them in the source."""
    return inspect.getdoc(entry.value) or "" if entry.is_code else assigned(entry.home).get(entry.name, "")


def exported(page: str) -> list[str]:
    """The public names of a module: ``__all__``, or what it defines and describes."""
    of = module(page)
    if listed := getattr(of, "__all__", None):
        return [name for name in dict.fromkeys(listed) if not inspect.ismodule(getattr(of, name))]
    own = [name for name, v in vars(of).items() if not name.startswith("_") and getattr(v, "__module__", "") == page]
    return own + [name for name in assigned(page) if name not in own]


def home_of(page: str, name: str, value: Any) -> str:
    """The module that defines a public name; of data, the one that assigns it and says what it is."""
    if inspect.isclass(value) or inspect.isroutine(value):
        return value.__module__
    imports = ast.walk(ast.parse(inspect.getsource(module(page))))
    sources = [
        node.module
        for node in imports
        if isinstance(node, ast.ImportFrom)
        and node.module
        and any((a.name == "*" or (a.asname or a.name) == name) for a in node.names)
    ]
    candidates = [s for s in sources if s.startswith(ROOT) and hasattr(module(s), name)]
    return next((found for s in candidates for found in [home_of(s, name, value)]), page)


@functools.cache
def described() -> tuple[Described, ...]:
    """Every public name of the library, once, in the order of the pages."""
    found: dict[str, Described] = {}
    taken: set[tuple[int, str]] = set()
    for page in pages():
        for name in exported(page):
            value = getattr(module(page), name)
            if (id(value), name) not in taken:
                taken.add((id(value), name))
                entry = Described(name, page, value, home_of(page, name, value))
                found[f"{page}.{name}"] = entry
    return tuple(found.values())


@functools.cache
def by_value() -> dict[int, Described]:
    """The same by the identity of what they stand for; classes and functions alone, of which each is one."""
    found: dict[int, Described] = {}
    for entry in described():
        if entry.is_code:
            found.setdefault(id(entry.value), entry)
    return found


def follow(name: str) -> Any:
    """What a dotted name stands for: modules, then attributes.

    Raises:
        AttributeError: there is no such thing.
    """
    parts = name.split(".")
    value: Any = importlib.import_module(parts[0])
    for number, part in enumerate(parts[1:], 2):
        if isinstance(value, types.ModuleType) and (number < len(parts) or not hasattr(value, part)):
            try:  # before an attribute: a package may show a function by the name of the module that defines it
                value = importlib.import_module(".".join(parts[:number]))
                continue
            except ModuleNotFoundError as error:
                if number == len(parts):
                    raise AttributeError(name) from error
        value = inspect.getattr_static(value, part) if inspect.isclass(value) else getattr(value, part)
    return value


def exists(name: str) -> bool:
    """Whether there is such a thing."""
    try:
        follow(name)
    except (AttributeError, ImportError):
        return False
    return True


def places(name: str) -> Iterator[str]:
    """Under which names of the reference a dotted name may be described, likeliest first."""
    yield name
    owner, _, last = name.rpartition(".")
    try:
        value = follow(name)
        above = follow(owner) if owner else None
    except (AttributeError, ImportError):
        return
    if (entry := by_value().get(id(value))) is not None:
        yield entry.path
    for each in described():
        if not each.is_code and each.name == last and each.value is value:
            yield each.path
    if inspect.isclass(above):
        for base in above.__mro__:
            if last in vars(base) and (entry := by_value().get(id(base))) is not None:
                yield f"{entry.path}.{last}"
        if (entry := by_value().get(id(above))) is not None:
            yield entry.path  # a member without a description of its own


def find(environment: BuildEnvironment, name: str) -> tuple[str, str, str] | None:
    """Document, anchor and full name of the place where ``name`` is described."""
    domain = cast("PythonDomain", environment.get_domain("py"))
    for place in places(name):
        if (entry := domain.objects.get(place)) is not None:
            return entry.docname, entry.node_id, place
    return None


def resolve(
    app: Sphinx, environment: BuildEnvironment, node: pending_xref, content: nodes.TextElement
) -> nodes.Element | None:
    """A reference that Sphinx did not find: by any name of the thing, seen from where the docstring stands."""
    if node.get("refdomain") != "py":
        return None
    target = node["reftarget"]
    contexts = [node.get("py:module"), node.get("py:class")]
    scopes = ["", *(f"{scope}." for scope in [contexts[0], ".".join(filter(None, contexts))] if scope)]
    for scope in reversed(scopes):
        name = f"{scope}{target}"
        if name.startswith(f"{ROOT}.") and (found := find(environment, name)) is not None:
            document, anchor, title = found
            return make_refnode(app.builder, node["refdoc"], document, anchor, content, title)
        if name.startswith(f"{ROOT}.") and exists(name):
            return content  # an engine behind a public name: named, with no place to lead to
    return None


def add_aliases(app: Sphinx, environment: BuildEnvironment) -> list[str]:
    """Lists the names of the root and those that a package takes from another's page: they can be linked to as well."""
    domain = cast("PythonDomain", environment.get_domain("py"))
    for page in [ROOT, *pages()]:
        for name in exported(page):
            full = f"{page}.{name}"
            if full not in domain.objects and (found := find(environment, full)) is not None:
                document, anchor, place = found
                domain.objects[full] = ObjectEntry(document, anchor, domain.objects[place].objtype, aliased=True)
    return []


def setup(app: Sphinx) -> ExtensionMetadata:
    """Resolves references by every name of a thing, and lists its aliases."""
    app.connect("env-updated", add_aliases)
    app.connect("missing-reference", resolve)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
