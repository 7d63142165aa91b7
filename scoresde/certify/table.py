"""The table of the package's solvers: what each claims, what was measured, what a step costs, where it comes from.

:func:`page` writes docs/solvers.md from certificates, :func:`cells` one row of it, and :func:`source` finds the paper
that the docstring of a solver cites::

    page([certify(solver) for solver in catalogue.variants()])          # Markdown
    source(DDIM)                                                        # '[Song et al. 2021](https://arxiv.org/...)'

``python -m scoresde.certify > docs/solvers.md`` does the first. The text above the table, which explains its columns,
is here too.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable

from scoresde import checks
from scoresde.certify.certificate import Certificate, CertificateRow
from scoresde.certify.rounding import Floor
from scoresde.solvers import Solver
from scoresde.solvers.catalogue import label

HEADER = (
    "Solver",
    "ODE order",
    "Weak order",
    "Strong order",
    "Error per tolerance",
    "Rounding, float32 and bfloat16",
    "Evaluations a step",
    "States kept",
    "Noise a step",
    "Source",
)

_INTRODUCTION = """\
# Solvers: what they claim, and what was measured

This page is written by `python -m scoresde.certify > docs/solvers.md`; `tests/certify/test_orders.py` measures
everything again and fails where the package no longer does what is printed here.

The columns:

- **ODE order**: of the error at the end for η = 0, claimed and (in brackets) measured, as the slope of the error over
  halved steps, extrapolated, with the solver's own start-up. Under three SDEs and on two grids; on Gaussian data, whose
  flow is known in closed form, and on a mixture, for which the ODE is not linear.
- **Weak order**: the same in law, for η = 1 and ½: mean and variance of the end given the start,
  propagated exactly through the steps.
- **Strong order**: the same on one Brownian path, exactly: the distance between the ends of runs with n and 2n steps,
  whose limit must be that of Euler–Maruyama.
- **Error per tolerance**: for methods that choose their steps, the slope of log error against log tolerance. 1 is
  proportion.
- **Rounding, float32 and bfloat16**: the largest relative difference of a standard deviation from the same run in
  float64, with a state in float32 and an exact network rounded to each dtype; at 7 and 25 steps on
  the grid and with the η that go with the solver, under every SDE, `VE(sigma_max=1e6)` and `RectifiedFlow(T=1 - 1e-6)`,
  on a normal law and on a mixture. It may be 1e-3 in float32 and 2e-2 in bfloat16.
  `python -m scoresde.certify --thorough` measures at 7, 10, 25 and 100 steps, with η = 0 and 1.
- **Evaluations a step**: counted. "+ n once" are those of a start-up.
- **States kept**: tensors of the size of x that a step hands to the next, x included; counted. "own loop" for methods
  that step on their own.
- **Noise a step**: draws, at η = 1 where that is taken: "path" are increments of the noise's path, "normal" others.

Of all the cases the one farthest from the claim is printed, for weak and strong orders the lowest; a claim holds within
0.1, a tolerance within 0.25. A dash means that nothing is claimed. Each row is one class with one choice of its
options; the other options keep their defaults.

A solver of your own is certified by one call: `print(scoresde.certify.certify(MySolver()))` shows claims and
measurements, `scoresde.certify.certify(MySolver()).require()` is a test that fails where a claim does not hold.

"""


def source(kind: type[Solver]) -> str:
    """The first paper that the docstring of a class cites, one on arXiv if there is one."""
    text = " ".join((inspect.getdoc(kind) or "").split())
    author = r"([A-Z][\w'’-]+(?: et al\.| & [A-Z][\w'’-]+|, [A-Z][\w'’-]+ & [A-Z][\w'’-]+)? \d{4})"
    if found := re.search(author + r"[ ,(]+arXiv:(\d{4}\.\d{4,5})", text):
        return f"[{found[1]}](https://arxiv.org/abs/{found[2]})"
    found = re.search(author, text)
    return found[1] if found else "—"


def cells(certificate: Certificate) -> tuple[str, ...]:
    """The row of one solver."""
    rows = {row.name: row for row in certificate.rows}
    names = ("ODE order", "weak order", "strong order", "error per tolerance")
    orders = [_claim(rows.get(name)) for name in names]
    solver, counted = certificate.solver, certificate.costs
    adaptive = "error per tolerance" in rows
    if counted is None:
        costs = ["—", "—", "—"]
    else:
        once = f" + {counted.once:g} once" if counted.once else ""
        evaluations = "its own choice" if adaptive else f"{counted.evaluations:g}{once}"
        kept = "own loop" if counted.states is None else str(counted.states)
        draws = [(counted.increments, "path"), (counted.normals, "normal")]
        costs = [evaluations, kept, " + ".join(f"{n:g} {kind}" for n, kind in draws if n) or "—"]
    rounding = ", ".join(map(_floor, certificate.floors)) or "—"
    return (f"`{label(solver)}`", *orders, rounding, *costs, source(type(solver)))


def _claim(row: CertificateRow | None) -> str:
    if row is None or row.claimed is None:
        return "—"
    measured = "not measured" if row.measured is None else f"{row.measured:.2f}"
    return f"{row.claimed:g} ({measured})" + ("" if row.passed else " **fails**")


def _floor(floor: Floor) -> str:
    return "—" if floor.passed is None else f"{floor.error:.0e}{'' if floor.passed else ' **fails**'}"


def page(certificates: Iterable[Certificate]) -> str:
    """The whole page, Markdown."""
    several = isinstance(certificates, Iterable) and getattr(certificates, "ndim", 1) > 0  # an array () has no entries
    certificates = list(certificates) if several else certificates
    if not isinstance(certificates, list) or not all(isinstance(one, Certificate) for one in certificates):
        raise TypeError(
            f"certificates must be several Certificates, as certify answers; got {checks.got(certificates)}."
        )
    lines = [HEADER, tuple("---" for _ in HEADER), *map(cells, certificates)]
    return _INTRODUCTION + "".join(f"| {' | '.join(line)} |\n" for line in lines)
