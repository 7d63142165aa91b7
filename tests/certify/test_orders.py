"""What each solver claims of its order is measured, in CI, and so is what docs/solvers.md says of it.

The measuring is public, :mod:`scoresde.certify`; that it refuses what is wrong is tested in test_certify.
"""

from __future__ import annotations

import itertools
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from scoresde import certify, grids
from scoresde.certify import weak
from scoresde.certify.affine import propagate
from scoresde.certify.cases import GAUSSIAN as DATA
from scoresde.certify.rounding import BARS
from scoresde.certify.table import HEADER, cells
from scoresde.models import as_score
from scoresde.noise import Noise
from scoresde.reverse import Reverse
from scoresde.sde import EDM, SDE, VE, VP, RectifiedFlow, SubVP
from scoresde.solvers import (
    DDIM,
    Ancestral,
    EulerMaruyama,
    Heun,
    Langevin,
    PredictorCorrector,
    ReverseDiffusion,
    Solver,
    catalogue,
)
from scoresde.solvers.catalogue import label

SDES: dict[str, SDE] = {
    "VP": VP(beta_max=10.0, t_min=0.1),
    "SubVP": SubVP(beta_max=8.0, t_min=0.2),
    "VE": VE(0.3, 5.0),
    "EDM": EDM(T=5.0, t_min=0.3),
    "RectifiedFlow": RectifiedFlow(T=0.85, t_min=0.1),
}
PAGE = Path(__file__).parents[2] / "docs" / "solvers.md"
SOLVERS = catalogue.variants()


def law(sde: SDE, t: float | Tensor) -> tuple[Tensor, Tensor]:
    return weak.law(DATA, sde, t)


def printed() -> dict[str, list[str]]:
    """The rows of docs/solvers.md by their first cell."""
    rows = [line.strip("| \n").split(" | ") for line in PAGE.read_text(encoding="utf-8").splitlines() if "|" in line]
    assert rows[0] == list(HEADER)
    return {row[0]: row for row in rows[2:]}


# ---- every solver of the package, in every variant ----


def test_solvers_are_found_in_all_their_variants() -> None:
    assert {DDIM, EulerMaruyama, Heun, ReverseDiffusion, PredictorCorrector} <= {type(s) for s in SOLVERS}
    assert {Ancestral("posterior"), Ancestral("transition")} <= {s for s in SOLVERS if isinstance(s, Ancestral)}
    assert len(set(map(label, SOLVERS))) == len(SOLVERS)


@pytest.mark.parametrize("solver", SOLVERS, ids=label)
def test_what_a_solver_claims_is_so_and_what_the_page_says_of_it(solver: Solver) -> None:
    found = certify.certify(solver)
    assert found.holds, str(found)
    row = printed().get(f"`{label(solver)}`")
    assert row is not None, "not in docs/solvers.md: run python -m scoresde.certify > docs/solvers.md"
    for title, fresh, told in zip(HEADER, cells(found), row, strict=True):
        if title.startswith("Rounding"):
            # rounding depends on how the machine computes an exponential; the bars are held above
            now, page = ([float(part) for part in text.split(", ")] for text in (fresh, told))
            assert len(now) == len(page) == len(BARS) and all(0.05 < a / b < 20 for a, b in zip(now, page, strict=True))
            continue
        measured = re.fullmatch(r"(\S+) \((\S+)\)", fresh)
        if measured is None:
            assert told == fresh, f"{title}: run python -m scoresde.certify > docs/solvers.md"
            continue
        said = re.fullmatch(r"(\S+) \((\S+)\)", told)
        assert said is not None and said[1] == measured[1], f"{title}: the page has {told}, the class {fresh}"
        # how far two slopes within 0.1 of one claim can lie apart (a tolerance's: 0.25)
        assert abs(float(said[2]) - float(measured[2])) <= (0.5 if "tolerance" in title else 0.2)


def test_the_page_lists_nothing_else() -> None:
    assert set(printed()) == {f"`{label(s)}`" for s in SOLVERS}


# At η = 1 multistep methods through three values of ε̂ or more are unstable in so few steps: float64's own law is
# far off there, and what the network's answers are rounded by is amplified with it.
UNSTABLE = {"DEIS(order=3, interpolates='time')", "UniPC(predictor=3, predicts='noise')",
            "UniPC(predictor=4, predicts='noise')"}  # fmt: skip


@pytest.mark.thorough
@pytest.mark.parametrize("solver", SOLVERS, ids=label)
def test_rounding_costs_little_at_every_number_of_steps_and_eta(solver: Solver) -> None:
    single, half = certify.floors(solver, thorough=True)
    assert single.passed, str(single)
    amplified = [cell for cell in half.missed if label(solver) in UNSTABLE and cell.where.endswith("η = 1")]
    assert list(half.missed) == amplified, str(half)


def test_an_sde_solver_claims_a_weak_order_and_takes_eta_one() -> None:
    weak_ones = [s for s in SOLVERS if s.weak_order is not None]
    assert weak_ones
    for solver in weak_ones:
        solver.check(Reverse(as_score(lambda x, t: x, SDES["VP"]), 1.0))


def test_ddim_with_its_own_eta_has_the_law_of_that_eta() -> None:
    """DDIM(eta=0.5) on a process of another η: the law at the end is right at order 1 all the same."""
    slope = certify.weak_order(DDIM(eta=0.5), SDES["VP"], 0.0, marginal=True)
    assert slope.settled and abs(slope.order - 1) < 0.1  # the bar of a claim


# ---- Langevin corrector: the bias is predicted ----


@pytest.mark.parametrize("snr", [0.1, 0.3])
@pytest.mark.parametrize("sde", ["VP", "SubVP", "VE", "RectifiedFlow"])
def test_corrector_keeps_the_mean_and_follows_the_variance_recursion(sde: str, snr: float) -> None:
    """v <- (1 - τ/c)² v + 2τ, whose fixed point is c / (1 - τ/(2c)), within r²/(1 - r²) of c."""

    @dataclass(frozen=True)
    class Only(Solver):
        corrector: Langevin

        def step(self, process: Reverse, x: Tensor, t: Tensor, s: Tensor, noise: Noise, state: Any) -> Any:
            return self.corrector.correct(process, x, t, noise), None

    schedule = SDES[sde]
    t = 0.5 * schedule.T
    process = Reverse(DATA.score(schedule))
    grid = torch.tensor([t, 0.9 * t], dtype=torch.float64)
    mean, c = law(schedule, t)
    size = 2 * (snr * schedule.sigma(t)) ** 2  # τ
    for steps in (1, 3):
        got_mean, got = propagate(Only(Langevin(snr, steps)), process, grid, mean, c)
        expected = c
        for _ in range(steps):
            expected = (1 - size / c) ** 2 * expected + 2 * size
        torch.testing.assert_close(got_mean, mean, rtol=1e-12, atol=1e-12)  # rounding of a few operations
        torch.testing.assert_close(got, expected, rtol=1e-12, atol=0)
    fixed = c / (1 - size / (2 * c))
    _, again = propagate(Only(Langevin(snr, 5)), process, grid, mean, fixed)
    torch.testing.assert_close(again, fixed, rtol=1e-12, atol=0)
    assert bool((fixed / c - 1 <= snr**2 / (1 - snr**2) * (1 + 1e-12)).all())


def test_predictor_corrector_leaves_exact_marginals_but_for_the_corrector_bias() -> None:
    """With the exact flow as predictor, the variance over a whole run obeys the recursion to rounding."""

    @dataclass(frozen=True)
    class Exact(Solver):
        def step(self, process: Reverse, x: Tensor, t: Tensor, s: Tensor, noise: Noise, state: Any) -> Any:
            return DATA.flow(process.sde, x, t, s), None

    sde, snr = SDES["VP"], 0.2
    grid = grids.log_snr(sde, 12)
    mean, variance = law(sde, sde.T)
    got_mean, got = propagate(
        PredictorCorrector(Exact(), Langevin(snr)), Reverse(DATA.score(sde), 0.0), grid, mean, variance
    )
    for t, s in itertools.pairwise(grid):
        c = law(sde, s)[1]
        size = 2 * (snr * sde.sigma(s)) ** 2
        variance = (1 - size / c) ** 2 * (variance * c / law(sde, t)[1]) + 2 * size
    end_mean, c = law(sde, grid[-1])
    torch.testing.assert_close(got_mean, end_mean, rtol=1e-10, atol=1e-12)  # rounding of 24 affine maps
    torch.testing.assert_close(got, variance, rtol=1e-10, atol=0)
    # Never more than the stationary bias, which the docstring bounds by r²/(1 - r²).
    assert bool(((got / c - 1) <= snr**2 / (1 - snr**2)).all()) and bool((got >= c).all())


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_predictor_corrector_converges_to_the_corrector_bias(eta: float) -> None:
    """With small steps the predictor's error goes and the corrector's stationary variance stays."""
    sde, snr = SDES["VP"], 0.2
    mean, variance = law(sde, sde.T)
    solver = PredictorCorrector(ReverseDiffusion(), Langevin(snr, steps=20))
    _, got = propagate(solver, Reverse(DATA.score(sde), eta), grids.log_snr(sde, 16), mean, variance)
    c = law(sde, sde.t_min)[1]
    # 20 steps forget all but (1 - τ/c)^40 of what the predictor left wrong: at c = 2.0 that is the slowest mode.
    size = 2 * (snr * sde.sigma(sde.t_min)) ** 2
    left = float(((1 - size / c) ** 40).max())
    torch.testing.assert_close(got, c / (1 - size / (2 * c)), rtol=left * 0.1 + 1e-12, atol=0)


# ---- churn ----


@pytest.mark.parametrize("sde", ["EDM", "VP"])
def test_churned_heun_converges_to_the_law(sde: str) -> None:
    """Adding noise and removing it again leaves p_t alone: the error in law still falls with the square of the step.

    γ = churn/steps, so halving the steps halves the churn of each; the total noise stays.
    """
    slope = certify.weak_order(Heun(churn=2.0), SDES[sde], 0.0, grids.log_snr, marginal=True)
    assert slope.settled and abs(slope.order - 2) < 0.1  # the bar of a claim
    # churn_noise ≠ 1 adds noise of the wrong size, which no number of steps mends
    assert (
        certify.weak_order(Heun(churn=2.0, churn_noise=1.1), SDES[sde], 0.0, grids.log_snr, marginal=True).order < 0.5
    )
