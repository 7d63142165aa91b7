"""The documentation: its code runs, its names exist, nothing public is missing, its tables and links are right."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import re
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import scoresde
import scoresde.nn
import scoresde.sde
import scoresde.solvers
from scoresde import editing, fitting, grids, guidance, inverse, likelihood, losses, metrics, noise, particles, times
from scoresde.models import predictions

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.glob("**/*.md")) + [page for page in [ROOT / "README.md"] if page.exists()]
RUN_ELSEWHERE = sorted((DOCS / "course").glob("[0-9]*.md"))
"""Lessons take minutes: docs/course/run.py runs them, and tests/docs/test_course.py looks at what comes of it."""
SKIP = "<!-- not run -->"

Block = tuple[int, str]  # line of its first line of code, code
Row = dict[str, str]


def blocks(text: str) -> list[Block]:
    """The ```python blocks of a page, without those below a line "<!-- not run -->"."""
    lines, found, start, run = text.splitlines(), [], 0, False
    for number, line in enumerate(lines):
        if not start and line.startswith("```"):
            above = next((before for before in reversed(lines[:number]) if before.strip()), "")
            start, run = number + 1, line[3:].strip() == "python" and above.strip() != SKIP
        elif start and line.rstrip() == "```":
            if run:
                found.append((start + 1, "\n".join(lines[start:number]) + "\n"))
            start = 0
    if start:
        raise ValueError(f"the block that starts in line {start} has no end.")
    return found


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


# -- code ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[types.ModuleType]:
    """A module to run a page in: an empty folder, one thread, torch's generators and threads as before afterwards."""
    monkeypatch.chdir(tmp_path)
    module = types.ModuleType("page")
    monkeypatch.setitem(sys.modules, "page", module)  # dataclasses look their module up
    threads, dtype = torch.get_num_threads(), torch.get_default_dtype()
    torch.set_num_threads(1)
    with torch.random.fork_rng(devices=[]):
        yield module
    torch.set_num_threads(threads)
    torch.set_default_dtype(dtype)


@pytest.mark.parametrize("page", [page for page in PAGES if page not in RUN_ELSEWHERE], ids=name_of)
def test_code_runs(page: Path, alone: types.ModuleType) -> None:
    for line, code in blocks(page.read_text(encoding="utf-8")):
        # Empty lines before it: a traceback then shows the line of the page.
        exec(compile("\n" * (line - 1) + code, str(page), "exec"), alone.__dict__)


def test_blocks_are_found() -> None:
    text = f"a\n```python\nx = 1\n```\n\n{SKIP}\n\n```python\nx = 2\n```\n```bash\nls\n```\n"
    text += "```python\nx += 1\n\nx += 1\n```\n"
    found = blocks(text)
    assert [code for _, code in found] == ["x = 1\n", "x += 1\n\nx += 1\n"]
    assert [text.splitlines()[line - 1] for line, _ in found] == ["x = 1", "x += 1"]
    assert blocks("") == []
    with pytest.raises(ValueError, match="no end"):
        blocks("```python\nx = 1\n")


def test_pages_have_code() -> None:
    """Each of these has blocks, so that a change of their format does not silence the test above."""
    assert len(blocks((DOCS / "extending.md").read_text(encoding="utf-8"))) > 10
    assert len(blocks((DOCS / "equations.md").read_text(encoding="utf-8"))) > 0


# -- tables --------------------------------------------------------------------------------------------------------


def tables(text: str) -> list[list[Row]]:
    """The tables of a page, each row by column."""
    found: list[list[Row]] = []
    header: list[str] = []
    for line in text.splitlines():
        if not line.startswith("|"):
            header = []
            continue
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        if not header:
            header = cells
            found.append([])
        elif set("".join(cells)) - set("-: "):
            assert len(cells) == len(header), f"{len(cells)} cells under {len(header)} headings: {line}"
            found[-1].append(dict(zip(header, cells, strict=True)))
    return found


EQUATIONS = (DOCS / "equations.md").read_text(encoding="utf-8")
ROWS = [row for table in tables(EQUATIONS) for row in table]
WHERE = sorted({name for row in ROWS for name in re.findall(r"`([^`]+)`", row.get("Where", ""))})


def resolve(name: str) -> Any:
    """What a dotted name below ``scoresde`` stands for: submodules, then attributes."""
    value: Any = scoresde
    for part in name.split("."):
        if not hasattr(value, part) and isinstance(value, types.ModuleType):
            importlib.import_module(f"{value.__name__}.{part}")
        value = getattr(value, part)
    return value


@pytest.mark.parametrize("name", WHERE)
def test_named_function_exists(name: str) -> None:
    resolve(name)


def test_every_formula_has_a_place() -> None:
    for row in ROWS:
        assert "Where" not in row or re.search(r"`[^`]+`", row["Where"]), f"no function named in: {row}"
        assert "Source" not in row or row["Source"], f"no source in: {row}"


def public(module: types.ModuleType, base: type = object) -> dict[str, Any]:
    """The public classes and functions defined in ``module``."""
    return {
        name: value
        for name, value in vars(module).items()
        if not name.startswith("_")
        and getattr(value, "__module__", "").startswith(module.__name__)
        and (base is object or (isinstance(value, type) and issubclass(value, base)))
    }


BASES = ("Solver", "Planned", "OneStep", "Wrapping")
"""Classes that other solvers derive from."""


def without(members: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in members.items() if name not in names}


def test_nothing_public_is_missing() -> None:
    said = {id(resolve(name)) for name in WHERE}

    def check(what: str, members: dict[str, Any]) -> None:
        missing = [name for name, value in members.items() if id(value) not in said]
        assert members, f"found no {what}"
        assert not missing, f"docs/equations.md has no row for the {what}: {', '.join(missing)}"

    def functions(module: types.ModuleType) -> dict[str, Any]:
        return {name: value for name, value in public(module).items() if isinstance(value, types.FunctionType)}

    check("SDEs", without(public(scoresde.sde, scoresde.SDE), "SDE"))
    check("solvers", without(public(scoresde.solvers, scoresde.Solver), *BASES))
    check("fits", functions(fitting))
    check("weightings", without(functions(losses), "dsm_loss"))
    check("predictions", {k: v for k, v in functions(predictions).items() if k.startswith("predicts_")})
    check("time densities", without(public(times), "TimeDensity", "Times"))
    check("guidances", functions(guidance))
    check("corrections by particles", functions(particles))
    check("inverse problems", functions(inverse))
    check("operators", without(public(inverse, inverse.LinearOperator), "LinearOperator"))
    check("solvers of inverse problems", without(public(inverse, scoresde.Solver), "MeasuredSolver"))
    check("edits", functions(editing))
    check("likelihood functions", functions(likelihood))
    check("grids", {name: getattr(grids, name) for name in grids.__all__ if name.islower()})
    check("metrics", functions(metrics))
    check("noises", without(public(noise, noise.Noise), "Noise"))


OPTIONS = [(losses.WEIGHTINGS, "losses."), (predictions.PREDICTIONS, "models.predictions.predicts_")]


@pytest.mark.parametrize(("mapping", "prefix"), OPTIONS, ids=["weightings", "predictions"])
def test_names_of_options(mapping: dict[str, Any], prefix: str) -> None:
    """Each name that stands for a weighting or prediction has a row that says which function it is."""
    said = {
        row["Name"].strip('`"'): row["Where"] for row in ROWS if f"`{prefix}" in row.get("Where", "") and "Name" in row
    }
    assert set(said) == set(mapping)
    for name in mapping:
        assert f"`{prefix}{name}`" in said[name]


def test_orders_of_solvers() -> None:
    """The orders printed are those that the classes declare; one that depends on an option is said in words."""
    rows = [row for row in ROWS if "Strong" in row]
    assert len(rows) == len(without(public(scoresde.solvers, scoresde.Solver), *BASES))
    for row in rows:
        solver = resolve(row["Where"].strip("`"))
        options = {field.name for field in dataclasses.fields(solver)}
        for key, name in (("Order", "order"), ("Weak", "weak_order"), ("Strong", "strong_order")):
            claim, cell = inspect.getattr_static(solver, name), row[key]
            if name in options or isinstance(claim, property):
                assert len(cell) > 1, f"{solver.__name__}.{name} depends on an option, which {cell!r} does not say"
            else:
                assert claim == (None if cell == "–" else float(cell)), f"{solver.__name__}.{name}"


# -- sources and links ---------------------------------------------------------------------------------------------


def test_every_paper_cited_in_code_is_listed() -> None:
    """A formula whose docstring names a paper has it in the references."""
    pattern = re.compile(r"(?:arXiv:|doi:)[\w./-]*\w")
    cited = {
        paper: name_of(file)
        for file in sorted((ROOT / "scoresde").glob("**/*.py"))
        for paper in pattern.findall(file.read_text(encoding="utf-8"))
    }
    listed = set(pattern.findall(EQUATIONS.partition("## References")[2]))
    assert cited
    missing = {paper: file for paper, file in cited.items() if paper not in listed}
    assert not missing, f"add to the references of docs/equations.md: {missing}"


def test_sources_are_listed() -> None:
    """Each "Author year" in a source column is in the list of references."""
    references = EQUATIONS.partition("## References")[2]
    listed = set(re.findall(r"^- (.+? \d{4}[a-c]?)\. ", references, re.MULTILINE))
    assert len(listed) == len(re.findall(r"^- ", references, re.MULTILINE))
    author = r"(?:Del )?[A-Z][\w-]+(?: & [A-Z][\w-]+| et al\.)? \d{4}[a-c]?"
    cited = set(re.findall(author, EQUATIONS.partition("## References")[0]))
    assert cited, "no citations found"
    assert cited <= listed, f"not in the references: {sorted(cited - listed)}"
    assert listed <= cited | {"Tancik et al. 2020"}, f"listed but not cited: {sorted(listed - cited)}"


def anchor(heading: str) -> str:
    """GitHub's anchor of a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)\s]+)\)", re.sub(r"```.*?```|`[^`\n]*`", "", text, flags=re.DOTALL)):
        if re.match(r"\w+:", target):
            continue  # the web
        path, _, fragment = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), f"{page.name} links to {target}, which does not exist"
        if fragment:
            headings = re.findall(r"^#+ (.+)$", file.read_text(encoding="utf-8"), re.MULTILINE)
            assert fragment in map(anchor, headings), f"{page.name} links to {target}, no such heading"


def test_index_lists_every_page() -> None:
    index = (DOCS / "README.md").read_text(encoding="utf-8")
    for page in DOCS.glob("*.md"):
        assert page.name == "README.md" or f"]({page.name})" in index, f"docs/README.md does not list {page.name}"


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_math_survives_markdown(page: Path) -> None:
    """Formulas are closed, and free of what Markdown would eat: a backslash before punctuation, bars in tables."""
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    for paragraph in re.split(r"\n\s*\n|\n(?=\|)", re.sub(r"`[^`\n]*`", "", text)):
        formulas = paragraph.split("$$" if paragraph.startswith("$$") else "$")
        assert len(formulas) % 2, f"a formula is not closed in: {paragraph}"
        for formula in formulas[1::2]:
            assert not re.search(r"\\[^a-zA-Z]", formula), f"Markdown drops the backslash in ${formula}$"
            assert formula.count("{") == formula.count("}"), f"unbalanced braces: ${formula}$"
            left, right = (len(re.findall(rf"\\{side}(?![a-z])", formula)) for side in ("left", "right"))
            assert left == right, f"unbalanced \\left and \\right: ${formula}$"
