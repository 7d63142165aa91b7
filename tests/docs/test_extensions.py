"""What the site makes of docstrings, names and tables, without building it."""

from __future__ import annotations

import inspect

import pytest

pytest.importorskip("sphinx", reason='the site needs pip install "scoresde[docs]"')

import docstrings
import equation_rows
import linked_names
import public_names
import reference_pages

import scoresde


@pytest.mark.parametrize(
    ("line", "shown"),
    [
        ("x: (B, *event), and |x|² of (G, *event).", r"x: (B, \*event), and \|x\|² of (G, \*event)."),
        ("It is *not* so, **Known bias.** here.", "It is *not* so, **Known bias.** here."),
        ("``a * b`` and :func:`~m.f` stay", "``a * b`` and :func:`~m.f` stay"),
        ("one `Name` is code", "one ``Name`` is code"),
        ("* an item * of a list", r"* an item \* of a list"),
        ("    predictor: p.", r"    predictor: \p."),
        ("**conditions: given by name", r"\*\*conditions: given by name"),
    ],
)
def test_prose_is_read_as_it_is_written(line: str, shown: str) -> None:
    assert docstrings.escaped(line) == shown


def test_blocks_are_marked() -> None:
    text = ["First.", "", "    f(x)", "    g * h", "", "Then (B, *event)::", "", "    a |b|", "", "Args:", "    x: n."]
    prepared = docstrings.prepared(text)
    assert prepared[2:6] == ["::", "", "    f(x)", "    g * h"]
    assert r"Then (B, \*event)::" in prepared and "    a |b|" in prepared
    # a docstring that is one block has lost its indentation to inspect.cleandoc
    assert docstrings.prepared(["Run::", "", "f(*x)", "", "g(y)"]) == ["Run::", "", "    f(*x)", "", "    g(y)"]


def test_code_and_formulas_are_told_apart() -> None:
    assert docstrings.is_code("x = f(y)  # σ̃") and docstrings.is_code("import torch") and docstrings.is_code("a.b")
    assert not docstrings.is_code("f = (log α)'        g² = α² ((σ/α)²)'")
    assert not docstrings.is_code("c = σ / α") and not docstrings.is_code("c = a / b")


@pytest.mark.parametrize(
    ("annotation", "shown"),
    [
        ("(x: ~typing.Annotated[tuple[int, str], <function f at 0x7f>, <object>] = 1)", "(x: tuple[int, str] = 1)"),
        ("Annotated[bool, <object object at 0x1>]", "bool"),
        ("dict[str, Annotated[~m.C, g()]]", "dict[str, ~m.C]"),
        ("~typing.int | None", "int | None"),
    ],
)
def test_types_without_their_checks(annotation: str, shown: str) -> None:
    assert docstrings.plain(annotation) == shown


def test_first_sentences() -> None:
    assert reference_pages.first_sentence("Euler–Maruyama (Song et al. 2021, eq. 4). More.") == (
        "Euler–Maruyama (Song et al. 2021, eq. 4)."
    )
    assert reference_pages.first_sentence("Solvers, on one loop::\n\nf(x)") == "Solvers, on one loop"


def test_cells_of_the_equations() -> None:
    shown = equation_rows.restructured("slope $f = |x|$ of `SDE.f`, *see* [there](#x)")
    assert shown == r"slope \ :math:`f = |x|`\  of \ ``SDE.f``\ , *see* there"


def test_every_equation_of_a_public_name_is_shown_beside_it() -> None:
    rows = equation_rows.rows(equation_rows.PAGE.read_text("utf-8"))
    assert len(rows) > 200
    shown = equation_rows.by_name()
    private = set()
    for row in rows:
        for name in row.names:
            if (place := equation_rows.home(name)) is None:
                private.add(name)
            else:
                assert row in shown[place]
    # engines: named in the table, with no page of their own
    assert all("._" in name or name.startswith(("noise.", "solvers.langevin.")) for name in private), private
    assert "scoresde.sde.SDE.marginal" in shown and "scoresde.solvers.DDIM" in shown


def test_all_that_is_public_is_described_once() -> None:
    entries = public_names.described()
    assert len({entry.path for entry in entries}) == len(entries)
    undescribed = [entry.path for entry in entries if not public_names.documented(entry).strip()]
    assert not undescribed, f"say what these are, in a docstring or a string below: {undescribed}"
    by_value = public_names.by_value()
    for page in public_names.pages():
        for name in public_names.exported(page):
            value = getattr(public_names.module(page), name)
            assert id(value) in by_value or any(e.value is value and e.name == name for e in entries), (page, name)


def test_a_new_package_needs_a_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(public_names, "GROUPS", {"A": ("sde",)})
    with pytest.raises(ValueError, match=r"scoresde\.solvers.*GROUPS"):
        public_names.pages()


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("scoresde.DDIM", "scoresde.solvers.DDIM"),
        ("scoresde.solvers.one_step.DDIM", "scoresde.solvers.DDIM"),
        ("scoresde.DDIM.solve", "scoresde.solvers.Solver.solve"),
        ("scoresde.editing.sdedit.sdedit", "scoresde.editing.sdedit"),
        ("scoresde.losses.ncsn", "scoresde.losses.ncsn"),
        ("scoresde.sde.NO_SIGNAL", "scoresde.sde.base.NO_SIGNAL"),
    ],
)
def test_places(name: str, place: str) -> None:
    assert place in public_names.places(name)
    public_names.follow(name)


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("SDE.marginal", "scoresde.SDE.marginal"),
        ("DDIM()", "scoresde.DDIM"),
        ("UniPC", "scoresde.solvers.UniPC"),
        ("ss.sample(score, shape)", "scoresde.sample"),
        ("energy_distance", "scoresde.metrics.energy_distance"),
        ("grid", None),
        ("noise", None),
        ("steps=20", None),
        ("solver=UniPC(3)", "scoresde.solvers.UniPC"),
    ],
)
def test_names_in_running_text(text: str, place: str | None) -> None:
    assert next(linked_names.candidates(text, linked_names.by_last_part()), None) == place


def test_bases_are_those_that_can_be_looked_up() -> None:
    solver = scoresde.solvers.UniPC
    bases = list(solver.__bases__)
    docstrings.public_bases(None, "", solver, None, bases)  # type: ignore[arg-type]
    assert bases == [scoresde.solvers.Planned]
    assert inspect.isclass(bases[0])
