"""What the build leaves: every public name has its place, no link is dead, nothing comes from elsewhere."""

from __future__ import annotations

import importlib
import inspect
import re
import types
from collections.abc import Iterator
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from site_build import build

import scoresde

pytestmark = pytest.mark.site


def public_modules() -> list[types.ModuleType]:
    """The root, and each module that it shows."""
    shown = (getattr(scoresde, name) for name in scoresde.__all__)
    return [scoresde, *filter(inspect.ismodule, shown)]


def exports(module: types.ModuleType) -> list[str]:
    """What a module shows: ``__all__``, or what it defines."""
    return getattr(module, "__all__", None) or [
        name
        for name, value in vars(module).items()
        if not name.startswith("_") and getattr(value, "__module__", "") == module.__name__
    ]


def inventory(site: Path) -> dict[str, str]:
    """Where each name is described, by the file that other sites read to link here."""
    reader = pytest.importorskip("sphinx.util.inventory")
    found = reader.InventoryFile.loads((site / "objects.inv").read_bytes(), uri="").data
    return {name: item.uri for kind, items in found.items() if kind.startswith("py:") for name, item in items.items()}


def test_every_public_name_has_its_place(site: Path) -> None:
    known = inventory(site)
    missing = [
        full
        for module in public_modules()
        for full in [module.__name__, *(f"{module.__name__}.{name}" for name in exports(module))]
        if full not in known
    ]
    assert not missing, f"{len(missing)} public names without a place in the reference: {missing}"


def test_a_place_says_what_the_name_is(site: Path) -> None:
    """The anchor is in the page, and the first words of the docstring follow."""
    known = inventory(site)
    for name in ("scoresde.VP", "scoresde.solvers.DDIM", "scoresde.sample", "scoresde.sde.SDE.marginal"):
        document, _, anchor = known[name].partition("#")
        first = (inspect.getdoc(resolve(name)) or "").replace("`", "").split()[:2]
        after = text_of(site / document).partition(f'id="{anchor.replace("$", name)}"')[2]
        assert after, f"{document} has no place for {name}"
        shown = re.sub(r"\s+", " ", re.sub(r"<[^>]+>", "", after.partition('class="field-list')[0]))
        assert " ".join(first) in shown[:2000], name


def resolve(name: str) -> object:
    """The thing of a dotted name."""
    value: object = importlib.import_module("scoresde")
    for part in name.split(".")[1:]:
        value = getattr(value, part)
    return value


class Page(HTMLParser):
    """The places of a page, and where it leads and what it loads."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.ids: set[str] = set()
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        for key, value in attributes:
            if key in ("id", "name") and value:
                self.ids.add(value)
            elif key == "href" and value is not None:
                (self.loaded if tag == "link" else self.links).append(value)
            elif key in ("src", "poster") and value is not None:
                self.loaded.append(value)


@cache
def read(file: Path) -> Page:
    return Page(file.read_text("utf-8"))


def text_of(file: Path) -> str:
    return file.read_text("utf-8")


def pages(site: Path) -> Iterator[Path]:
    found = sorted(site.rglob("*.html"))
    assert len(found) > 50
    yield from found


def test_no_link_is_dead(site: Path) -> None:
    """Inside the site: the file is there, and so is the place in it."""
    dead = []
    for page in pages(site):
        for link in [*read(page).links, *read(page).loaded]:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = (page.parent / unquote(parts.path)).resolve() if parts.path else page
            target = target / "index.html" if target.is_dir() else target
            if not target.is_file() or not target.is_relative_to(site.resolve()):
                dead.append(f"{page.relative_to(site)} -> {link}: no such file")
            elif parts.fragment and target.suffix == ".html" and unquote(parts.fragment) not in read(target).ids:
                dead.append(f"{page.relative_to(site)} -> {link}: no such place")
    assert not dead, "\n".join(dead[:40])


def test_nothing_is_loaded_from_elsewhere(site: Path) -> None:
    """Neither by a page nor by a style sheet."""
    abroad = [
        f"{page.relative_to(site)}: {link}"
        for page in pages(site)
        for link in read(page).loaded
        if urlsplit(link).netloc
    ]
    for sheet in site.rglob("*.css"):
        text = sheet.read_text("utf-8")
        abroad += [
            f"{sheet.relative_to(site)}: {link}"
            for link in re.findall(r"(?:url\(|@import)\s*['\"]?(//|http[^)'\"]*)", text)
        ]
    assert not abroad, abroad


def test_no_page_shows_an_address_in_memory(site: Path) -> None:
    """It would be another in the next build, and says nothing to anybody."""
    shown = []
    for page in pages(site):
        if "_modules" not in page.parts:
            text = re.sub(r"<[^>]+>", "", text_of(page))
            shown += [f"{page.relative_to(site)}: {found}" for found in re.findall(r".{0,40}\b0x[0-9a-f]{6,}", text)]
    assert not shown, shown


def test_no_markup_is_left(site: Path) -> None:
    """No role, directive or Google section of a docstring is seen as it was typed."""
    left = []
    for page in pages(site):
        if "_modules" in page.parts or page.name in ("search.html", "genindex.html"):
            continue
        body = text_of(page).partition("<article")[2].partition("</article>")[0]
        prose = re.sub(r"<(pre|code)\b.*?</\1>", "", body, flags=re.DOTALL)
        prose = re.sub(r"<dt\b.*?</dt>", "", prose, flags=re.DOTALL)  # where sections of a docstring have their names
        prose = re.sub(r"<[^>]+>", "", prose)
        for pattern in (
            r":(?:class|func|meth|mod|math|term|py:\w+):`",
            r"``\w",
            r"^\s*(?:Args|Raises|Returns|Warns):\s*$",
            r"\{term\}",
        ):
            left += [
                f"{page.relative_to(site)}: {found.group()!r}" for found in re.finditer(pattern, prose, re.MULTILINE)
            ]
    assert not left, "\n".join(left[:40])


def test_the_build_is_reproducible(site: Path, tmp_path: Path) -> None:
    """Again, with another order of sets: the same bytes in each file that is served."""
    other = build(tmp_path, seed="1")
    for file in sorted(other.rglob("*")):
        name = file.relative_to(other)
        if file.is_file() and name.name not in (".buildinfo", "environment.pickle"):
            assert (site / name).is_file(), f"{name} was not built the first time"
            assert (site / name).read_bytes() == file.read_bytes(), f"{name} differs from one build to the next"
