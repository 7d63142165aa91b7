"""A sample that turns NaN is named, and the others are what they would be without it: a law for every solver."""

from __future__ import annotations

import dataclasses
import math
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from scoresde import grids
from scoresde.editing import invert
from scoresde.guidance import classifier
from scoresde.likelihood import bits_per_dim, decode, encode, log_prob
from scoresde.models import Score, ScoreModel, as_score
from scoresde.noise import BrownianNoise
from scoresde.problems import GaussianMixture
from scoresde.reverse import Reverse
from scoresde.sampling import sample
from scoresde.sde import VP
from scoresde.solvers import (
    DDIM,
    AdaptiveODE,
    AdaptiveSDE,
    AdjustedLangevin,
    EulerMaruyama,
    Heun,
    IncompleteWarning,
    Langevin,
    PredictorCorrector,
    ProbabilityFlow,
    Solution,
    Solver,
    TorchSDE,
    catalogue,
)

SDE_ = VP()
MIXTURE = GaussianMixture(
    torch.ones(3), torch.tensor([[1.0, 0.0], [-0.5, 0.9], [-0.5, -0.9]], dtype=torch.float64), 0.02
)
EXACT = MIXTURE.score(SDE_)
REST = [0, 1, 3]


def faulty(value: float = math.nan, below: float = 0.4, row: int = 2, above: float = -1.0) -> Score:
    """The exact score, but for one sample at times in (above, below)."""

    def score(x: Tensor, t: Tensor) -> Tensor:
        if len(x) <= row:
            return EXACT(x, t)
        each = t.expand(len(x))
        bad = (torch.arange(len(x)) == row) & (each < below) & (each > above)
        return torch.where(bad[:, None], value, EXACT(x, t))

    return as_score(score, SDE_)


SOUND = as_score(lambda x, t: EXACT(x, t), SDE_)


def solvers() -> dict[str, Solver]:
    more: list[Solver] = [
        Heun(churn=2.0),
        AdaptiveODE(compact=False, method="dopri5"),
        PredictorCorrector(EulerMaruyama(), AdjustedLangevin(steps=2)),
        PredictorCorrector(DDIM(), Langevin(steps=2)),
        PredictorCorrector(AdaptiveODE()),
        PredictorCorrector(ProbabilityFlow("rk4")),
        TorchSDE("reversible_heun"),
        TorchSDE("midpoint"),
        *(ProbabilityFlow(method) for method in ("rk4", "midpoint", "dopri8", "bosh3", "implicit_adams")),
    ]
    return {repr(solver): solver for solver in [*catalogue.variants(), *more]}


FIRST = {type(solver): name for name, solver in reversed(solvers().items())}.values()


def judges_for_all(solver: Solver) -> bool:
    """Whether one decision serves the whole batch: torchdiffeq's step size, or its number of corrections."""
    return isinstance(solver, ProbabilityFlow) and solver.method in ("dopri5", "dopri8", "bosh3", "implicit_adams")


def close(solver: Solver) -> float:
    # The steps of a shared step size are others without one of the samples, each in error by 1e-5: some tens of them,
    # and the flow parts samples near the border of two modes by a factor of some more. All other solvers: exactly 0.
    return 1e-3 if judges_for_all(solver) else 0.0


def grid(solver: Solver) -> Any:
    return grids.uniform if getattr(solver, "method", "") == "implicit_adams" else None


def run(score: Score, solver: Solver, **options: Any) -> Solution:
    return sample(
        score, (4, 2), solver=solver, steps=8, grid=grid(solver), dtype=torch.float64, **options
    )  # fmt: skip


@pytest.mark.parametrize("name", solvers())
def test_the_others_go_on_as_without_it(name: str) -> None:
    solver = solvers()[name]
    sound = run(SOUND, solver)
    assert sound.complete and sound.finite is not None and bool(sound.finite.all())
    # later on and from the start; infinities for one solver of each class
    for score in (faulty(), faulty(below=2.0), faulty(math.inf))[: 3 if name in FIRST else 1]:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            solution = run(score, solver)
        said = [str(w.message) for w in caught if issubclass(w.category, IncompleteWarning)]
        assert len(said) == 1 and "1 of 4 samples: [2]" in said[0] and type(solver).__name__ in said[0]
        assert solution.finite is not None and solution.finite.tolist() == [True, True, False, True]
        assert not solution.complete and solution.denoised == sound.denoised
        assert bool(solution.x[2].isnan().all())
        torch.testing.assert_close(solution.x[REST], sound.x[REST], rtol=0, atol=close(solver))


@pytest.mark.parametrize("solver", [AdaptiveODE(), AdaptiveODE(method="dopri5"), AdaptiveSDE()], ids=repr)
def test_compact_runs_and_trajectories_too(solver: Any) -> None:
    compact = dataclasses.replace(solver, compact=True)

    def score(x: Tensor, t: Tensor) -> Tensor:
        """Faulty where it is asked about the third sample, wherever that stands in the batch by then."""
        return torch.where((x[:, :1] > 1e3) & (t[:, None] < 0.4), torch.nan, EXACT(x, t))

    # the third sample starts far out and stays so: what is unusual about it is its place, not its row
    start = torch.randn(4, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    start[2] = 1e7
    process = Reverse(as_score(score, SDE_), solver.default_eta)
    ends = grids.karras(SDE_, 6)
    made = [dataclasses.replace(s, rtol=1e-3, atol=1e-3) for s in (solver, compact)]
    with pytest.warns(IncompleteWarning, match=r"\[2\]"):
        a, b = (s.solve(process, start, ends, 0, trajectory=True) for s in made)
    assert a.reached is not None and float(a.reached[2]) == pytest.approx(0.4, abs=1e-6)
    assert a.trajectory is not None and b.trajectory is not None
    assert bool(a.trajectory[:-1].isfinite().all())  # where it was before
    torch.testing.assert_close(a.trajectory[:, REST], b.trajectory[:, REST], rtol=0, atol=1e-9)  # rounding
    torch.testing.assert_close(a.x, b.x, rtol=0, atol=1e-9, equal_nan=True)


@pytest.mark.parametrize("solver", [AdaptiveSDE(), EulerMaruyama(), TorchSDE()], ids=repr)
def test_on_a_given_path_whose_steps_cannot_be_shorter(solver: Solver) -> None:
    """The path refuses steps shorter than it resolves, and would refuse them for the whole batch."""
    sound = run(SOUND, solver, noise=BrownianNoise(3, T=1.0))
    with pytest.warns(IncompleteWarning, match=r"\[2\]"):
        solution = run(faulty(), solver, noise=BrownianNoise(3, T=1.0))
    assert solution.finite is not None and solution.finite.tolist() == [True, True, False, True]
    assert torch.equal(solution.x[REST], sound.x[REST])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("solver", [Heun(), AdaptiveODE(), ProbabilityFlow(), TorchSDE()], ids=repr)
def test_of_every_dtype(solver: Solver, dtype: torch.dtype) -> None:
    with pytest.warns(IncompleteWarning, match=r"\[2\]"):
        x = sample(faulty(), (4, 2), solver=solver, steps=8, dtype=dtype).x
    assert x.dtype == dtype and x.isfinite().all(1).tolist() == [True, True, False, True]


@pytest.mark.parametrize("name", FIRST)
def test_where_all_are_bad_it_is_an_error(name: str) -> None:
    solver = solvers()[name]
    for value in (math.nan, math.inf):
        broken = as_score(lambda x, t, value=value: x * 0 + value, SDE_)  # type: ignore[misc]
        with pytest.raises(FloatingPointError, match="NaN or infinite"):
            run(broken, solver)
    # a batch of one is all of it
    with pytest.raises(FloatingPointError, match="NaN or infinite"):
        sample(faulty(row=0), (1, 2), solver=solver, steps=8, grid=grid(solver), dtype=torch.float64)


def test_a_long_list_is_cut() -> None:
    def score(x: Tensor, t: Tensor) -> Tensor:
        return torch.where((torch.arange(len(x)) % 2 == 0)[:, None], torch.nan, EXACT(x, t))

    with pytest.warns(IncompleteWarning, match=r"50 of 100 samples: \[0, 2, 4, .*, 38, \.\.\.\]"):
        sample(as_score(score, SDE_), (100, 2), steps=4)


@pytest.mark.parametrize("solver", [Heun(), AdaptiveODE(), ProbabilityFlow(), TorchSDE()], ids=repr)
def test_an_empty_batch_is_complete(solver: Solver) -> None:
    solution = sample(SOUND, (0, 2), solver=solver, steps=4)
    assert solution.complete and solution.finite is not None and solution.finite.shape == (0,)


@pytest.mark.parametrize("solver", [Heun(), AdaptiveODE(), ProbabilityFlow(), ProbabilityFlow("rk4")], ids=repr)
def test_gradients_of_the_others_are_theirs(solver: Solver) -> None:
    """In the start: each sample's gradient is its own, and that of the lost one is 0 or NaN, but nobody else's."""
    start = torch.randn(4, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    ends = grids.karras(SDE_, 8)
    found = []
    for score in (SOUND, faulty()):
        x = start.clone().requires_grad_(True)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", IncompleteWarning)
            end = solver.solve(Reverse(score, 0.0), x, ends).x
        found.append(torch.autograd.grad(end[REST].sum(), x)[0][REST])
    torch.testing.assert_close(found[1], found[0], rtol=0, atol=0.05 if judges_for_all(solver) else 1e-12)


def test_guided_scores_keep_samples_apart() -> None:
    """Guidance differentiates a sum over the batch."""

    def judge(x: Tensor, t: Tensor) -> Tensor:
        return -x.square().sum(1) * torch.tensor([1.0, 1.0, math.nan, 1.0])

    sound = sample(classifier(EXACT, lambda x, t: -x.square().sum(1), 0.3), (4, 2), steps=6)
    with pytest.warns(IncompleteWarning, match=r"\[2\]"):
        solution = sample(classifier(EXACT, judge, 0.3), (4, 2), steps=6)
    assert torch.equal(solution.x[REST], sound.x[REST])


# ---- likelihoods and codes ----

FIXED = ProbabilityFlow("rk4", options={"step_size": 0.05})
LOOSE = ProbabilityFlow(rtol=1e-4, atol=1e-4)
POINTS = MIXTURE.sample(4, 0).double()
FUNCTIONS: dict[str, Any] = {
    "log_prob": lambda score: log_prob(score, POINTS, solver=LOOSE),
    "log_prob exact": lambda score: log_prob(score, POINTS, "exact", solver=LOOSE),
    "log_prob fixed": lambda score: log_prob(
        score, POINTS, solver=FIXED
    ),
    "bits_per_dim": lambda score: bits_per_dim(score, POINTS, 0.1, solver=FIXED),
    "encode": lambda score: encode(score, POINTS, solver=LOOSE),
    "decode": lambda score: decode(score, POINTS, solver=LOOSE),
    "invert": lambda score: invert(score, POINTS, steps=20).x,
    "invert iterated": lambda score: invert(score, POINTS, steps=20, iterations=4, memory=2).x,
    "invert ode": lambda score: invert(score, POINTS, method="ode", solver=LOOSE).x,
}  # fmt: skip


@pytest.mark.parametrize("name", FUNCTIONS)
def test_likelihoods_and_codes_of_the_others(name: str) -> None:
    function = FUNCTIONS[name]
    sound = function(SOUND)
    for score in (faulty(math.inf, above=0.3), faulty(below=2.0))[: 2 if name in ("log_prob", "invert") else 1]:
        with pytest.warns(IncompleteWarning, match=r"1 of 4 samples: \[2\]"):
            got = function(score)
        assert bool(got[2].isnan().all())
        # exactly, where steps are fixed; else 1e-4 a step, over tens of steps of a flow that parts modes
        atol = 0.0 if name in ("log_prob fixed", "bits_per_dim", "invert", "invert iterated") else 1e-2
        torch.testing.assert_close(got[REST], sound[REST], rtol=0, atol=atol)
    with pytest.raises(FloatingPointError, match="NaN or infinite"):
        function(as_score(lambda x, t: x * math.nan, SDE_))


def test_a_step_too_long_into_nan_is_taken_back() -> None:
    """NaN far from where samples belong, met by a first step that is too long, loses nobody."""

    def fragile(x: Tensor, t: Tensor) -> Tensor:
        expected = 2 * SDE_.alpha(t) + 4 * SDE_.sigma(t)
        return torch.where(x.abs() > expected, torch.nan, EXACT(x, t))

    x = MIXTURE.sample(4, 1).double() * SDE_.alpha(SDE_.T) + 0.5
    ends = torch.tensor([SDE_.T, SDE_.t_min], dtype=torch.float64)
    met = ProbabilityFlow(options={"first_step": 0.99}).solve(Reverse(as_score(fragile, SDE_), 0.0), x, ends)
    assert met.complete
    plain = ProbabilityFlow().solve(Reverse(SOUND, 0.0), x, ends)
    torch.testing.assert_close(met.x, plain.x, rtol=0, atol=1e-3)  # two runs of 1e-5 a step


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 2)

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        return self.layer(x)


def test_a_start_that_is_not_finite_is_refused_and_named() -> None:
    x = torch.zeros(4, 2)
    x[2, 1] = math.nan
    model = ScoreModel(Net(), SDE_, "v")
    calls: list[Any] = [
        lambda: sample(model, (4, 2), x=x), lambda: log_prob(model, x), lambda: encode(model, x),
        lambda: decode(model, x), lambda: bits_per_dim(model, x, 0.1), lambda: invert(model, x),
    ]  # fmt: skip
    for call in calls:
        with pytest.raises(ValueError, match=r"1 values that are NaN or infinite, first in samples \[2\]"):
            call()
