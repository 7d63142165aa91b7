"""Metropolis-adjusted Langevin: detailed balance, its exact stationary law, the bias without a density, acceptance."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
from strategies import normal
from torch import Tensor

from scoresde import grids
from scoresde.models import as_score
from scoresde.noise import IndependentNoise, Noise, PerSampleNoise
from scoresde.problems import Gaussian, GaussianMixture
from scoresde.reverse import Reverse
from scoresde.sde import VE, VP
from scoresde.solvers import DDIM, AdjustedLangevin, AnnealedLangevin, Langevin, PredictorCorrector
from scoresde.solvers.metropolis import _lobatto

F64 = torch.float64


def tensor(*values: Any) -> Tensor:
    return torch.tensor(values, dtype=F64)


SDE = VE()
TIME = tensor(0.55)[0]  # σ = 1.08: the modes below overlap enough to be visited, and steps are large beside them
MIXTURE = GaussianMixture(tensor(0.4, 0.6), tensor([-1.0], [1.0]), tensor(0.3, 0.2))
PLANE = GaussianMixture(tensor(0.4, 0.6), tensor([-1.0, 0.5], [1.0, 0.0]), tensor(0.3, 0.2))


class Listed(Noise):
    """Normals known beforehand."""

    def __init__(self, draws: Iterable[Tensor]) -> None:
        self.draws = list(draws)

    def normal(self, x: Tensor) -> Tensor:
        draw = self.draws.pop(0)
        assert draw.shape == x.shape
        return draw

    def initial(self, shape: tuple[int, ...], *, dtype: torch.dtype, device: torch.device) -> Tensor:
        raise AssertionError("nothing is drawn from the prior")


def exact(problem: GaussianMixture, **options: Any) -> AdjustedLangevin:
    return AdjustedLangevin(lambda x, t: problem.log_prob(x, SDE, t), **options)


def on(problem: GaussianMixture) -> Reverse:
    return Reverse(problem.score(SDE))


def log_ratio(method: AdjustedLangevin, process: Reverse, x: Tensor, y: Tensor) -> Tensor:
    """What the method finds for the proposal y from x."""
    size = method.step_size(process, TIME)
    z = (y - x - size * process.score(x, TIME)) / (2 * size).sqrt()
    return method.transition(process, x, TIME, Listed([z, torch.zeros(len(x), dtype=F64)])).log_ratio


# ---- the rule ----


@pytest.mark.parametrize("snr", [0.16, 0.9])
def test_acceptance_is_the_ratio_of_metropolis_and_hastings(snr: float) -> None:
    method, process, x, y = exact(PLANE, snr=snr), on(PLANE), normal(5, 2), normal(5, 2, seed=1)
    size = float(method.step_size(process, TIME))
    assert size == pytest.approx(2 * (snr * SDE.sigma(TIME).item()) ** 2)

    def proposal(a: Tensor, b: Tensor) -> Tensor:
        return torch.distributions.Normal(a + size * process.score(a, TIME), math.sqrt(2 * size)).log_prob(b).sum(1)

    p = PLANE.log_prob
    expected = p(y, SDE, TIME) + proposal(y, x) - p(x, SDE, TIME) - proposal(x, y)
    torch.testing.assert_close(log_ratio(method, process, x, y), expected, rtol=1e-10, atol=1e-10)  # rounding
    # p(x) q(x, y) min(1, r) is symmetric: detailed balance
    flow = p(x, SDE, TIME) + proposal(x, y) + log_ratio(method, process, x, y).clamp_max(0)
    back = p(y, SDE, TIME) + proposal(y, x) + log_ratio(method, process, y, x).clamp_max(0)
    torch.testing.assert_close(flow, back, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("nodes", [0, 1, 3])
def test_the_ratio_from_scores_changes_its_sign_with_the_direction(nodes: int) -> None:
    method, process, x, y = AdjustedLangevin(nodes=nodes, snr=0.7), on(PLANE), normal(5, 2), normal(5, 2, seed=1)
    forth, back = log_ratio(method, process, x, y), log_ratio(method, process, y, x)
    torch.testing.assert_close(forth, -back, rtol=1e-11, atol=1e-12)  # symmetric nodes; rounding


def test_a_move_goes_to_its_proposal_when_a_uniform_number_lies_below_the_ratio() -> None:
    method, process, x = exact(PLANE, snr=0.9), on(PLANE), normal(400, 2)
    z, drawn = normal(400, 2, seed=1), normal(400, seed=2)
    move = method.transition(process, x, TIME, Listed([z, drawn]))
    size = method.step_size(process, TIME)
    proposal = x + size * process.score(x, TIME) + (2 * size).sqrt() * z
    below = torch.special.ndtr(drawn) < move.log_ratio.exp()
    assert torch.equal(move.accepted, below) and 50 < int(below.sum()) < 380
    expected = torch.where(below[:, None], proposal, x)
    assert torch.equal(move.x, expected)
    # what is handed on belongs to where the sample is now
    torch.testing.assert_close(move.score, process.score(expected, TIME), rtol=1e-12, atol=1e-12)
    assert move.log_prob is not None
    torch.testing.assert_close(move.log_prob, PLANE.log_prob(expected, SDE, TIME), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("nodes", [None, 0, 2])
def test_a_correction_written_out(nodes: int | None) -> None:
    """Two moves by given normals: y = x + 2 (r σ)² s + 2 r σ z, log ratio by a formula of Gauss and Lobatto."""
    process, snr, x = on(PLANE), 0.7, normal(6, 2)
    draws = [normal(6, 2, seed=1), normal(6, seed=2), normal(6, 2, seed=3), normal(6, seed=4)]
    got = AdjustedLangevin(snr=snr, nodes=nodes, steps=2).correct(process, x, TIME, Listed(draws))
    sigma = float(SDE.sigma(TIME))
    # places and weights on [0, 1]: the trapezoidal rule, Simpson's, and 0, (1 ± 1/√5)/2, 1
    inner = math.sqrt(1 / 5) / 2
    rule = {
        0: [(0.0, 1 / 2), (1.0, 1 / 2)],
        1: [(0.0, 1 / 6), (0.5, 4 / 6), (1.0, 1 / 6)],
        2: [(0.0, 1 / 12), (0.5 - inner, 5 / 12), (0.5 + inner, 5 / 12), (1.0, 1 / 12)],
    }[1 if nodes is None else nodes]
    taken = []
    for z, drawn in ((draws[0], draws[1]), (draws[2], draws[3])):
        size = 2 * (snr * sigma) ** 2
        here = process.score(x, TIME)
        y = x + size * here + 2 * snr * sigma * z
        ahead, d = process.score(y, TIME), y - x
        line = sum(w * (process.score(x + u * d, TIME) * d).sum(1) for u, w in rule)
        ratio = line - 0.5 * (d * (here + ahead)).sum(1) + 0.25 * size * (here.square() - ahead.square()).sum(1)
        accepted = torch.special.ndtr(drawn) < ratio.exp()
        taken += accepted.tolist()
        x = torch.where(accepted[:, None], y, x)
    torch.testing.assert_close(got, x, rtol=1e-10, atol=1e-10)
    assert set(taken) == {True, False}


@pytest.mark.parametrize("given", [None, 0.003])
def test_annealed_steps_written_out(given: float | None) -> None:
    """Two steps at each time, x + a/2 s + sqrt(a) z with a = ε σ²/σ_end², by given normals; x times α_s/α_t between."""
    sde, grid = VP(), tensor(0.8, 0.5)
    process, x = Reverse(PLANE.score(sde)), normal(6, 2)
    draws = [normal(6, 2, seed=i) for i in range(1, 5)]
    found = AnnealedLangevin(given, steps=2).solve(process, x, grid, Listed(draws)).x
    last = sde.sigma(grid[1]) ** 2
    for i, t in enumerate(grid):
        x = x * (sde.alpha(t) / sde.alpha(grid[0]) if i else 1.0)
        a = (0.5 * last if given is None else given) * sde.sigma(t) ** 2 / last
        for z in draws[2 * i : 2 * i + 2]:
            x = x + 0.5 * a * process.score(x, t) + a.sqrt() * z
    torch.testing.assert_close(found, x, rtol=1e-12, atol=1e-12)  # rounding


@pytest.mark.parametrize("inner", range(9))
def test_quadrature_is_exact_to_its_degree(inner: int) -> None:
    nodes, weights, end = _lobatto(inner)
    errors = [
        sum(w * u**k for u, w in zip(nodes, weights, strict=True)) + end * (0**k + 1) - 1 / (k + 1)
        for k in range(2 * inner + 3)
    ]
    assert max(abs(e) for e in errors[:-1]) < 1e-14  # rounding
    assert abs(errors[-1]) > 1e-12  # the next degree is missed


# ---- the stationary law, without Monte Carlo ----

POINTS = torch.linspace(-5.5, 5.5, 240, dtype=F64)


def chain(ratio: Callable[[Tensor, Tensor], Tensor], process: Reverse, size: float) -> Tensor:
    """Transition matrix of the proposal on a lattice, accepted with min(1, e^ratio)."""
    n = len(POINTS)
    x, y = POINTS.repeat_interleave(n)[:, None], POINTS.repeat(n)[:, None]
    z = (y - x - size * process.score(x, TIME)) / math.sqrt(2 * size)
    density = torch.exp(-0.5 * z[:, 0] ** 2) / math.sqrt(4 * math.pi * size) * (POINTS[1] - POINTS[0])
    return (density * ratio(x, y).clamp_max(0).exp()).reshape(n, n)


def stationary(moves: Tensor) -> Tensor:
    """The law kept by a chain that stays where it is with the probability that is left."""
    moves = moves - torch.diag(moves.diagonal())
    generator = (moves - torch.diag(moves.sum(1))).mT
    generator[-1] = 1.0
    return torch.linalg.solve(generator, torch.cat([torch.zeros(len(POINTS) - 1, dtype=F64), tensor(1.0)]))


def second_moment_error(method: AdjustedLangevin, problem: GaussianMixture = MIXTURE) -> float:
    process = on(problem)
    moves = chain(lambda x, y: log_ratio(method, process, x, y), process, float(method.step_size(process, TIME)))
    law = problem.log_prob(POINTS[:, None], SDE, TIME).softmax(0)
    return float(((stationary(moves) - law) * POINTS**2).sum())


def unadjusted_error(snr: float, problem: GaussianMixture = MIXTURE) -> float:
    process = on(problem)
    moves = chain(lambda x, y: torch.zeros(len(x), dtype=F64), process, 2 * (snr * float(SDE.sigma(TIME))) ** 2)
    law = problem.log_prob(POINTS[:, None], SDE, TIME).softmax(0)
    return float(((stationary(moves / moves.sum(1, keepdim=True)) - law) * POINTS**2).sum())


@pytest.mark.parametrize("snr", [0.3, 1.2])
def test_with_a_density_the_law_is_kept_at_every_step_size(snr: float) -> None:
    assert abs(second_moment_error(exact(MIXTURE, snr=snr))) < 1e-11  # rounding of a linear system
    assert abs(unadjusted_error(snr)) > 0.05


@pytest.mark.parametrize("nodes", [0, 1, 2])
def test_from_the_score_alone_the_bias_has_its_order(nodes: int) -> None:
    errors = [second_moment_error(AdjustedLangevin(snr=snr, nodes=nodes)) for snr in (0.4, 0.4 / math.sqrt(2))]
    # τ halves; the next order is 1/8 of the error here
    assert math.log2(errors[0] / errors[1]) == pytest.approx(nodes + 1, abs=0.15), errors
    assert abs(errors[0]) < 0.6 * abs(unadjusted_error(0.4)) / 30**nodes


def test_on_a_gaussian_the_score_alone_is_exact() -> None:
    gaussian = Gaussian(tensor(0.4), tensor(0.5))
    assert abs(second_moment_error(AdjustedLangevin(snr=0.9, nodes=0), gaussian)) < 1e-11  # rounding
    assert abs(unadjusted_error(0.9, gaussian)) > 0.5
    x, y = normal(6, 1), normal(6, 1, seed=1)
    for nodes in (0, 1, 4):
        torch.testing.assert_close(
            log_ratio(AdjustedLangevin(nodes=nodes), on(gaussian), x, y),
            log_ratio(exact(gaussian), on(gaussian), x, y),
            rtol=1e-10, atol=1e-10,
        )  # fmt: skip


# ---- many chains ----


@pytest.mark.parametrize("method", [exact(PLANE, snr=0.9, steps=8), AdjustedLangevin(snr=0.9, steps=8, nodes=3)],
                         ids=["density", "score"])  # fmt: skip
def test_chains_keep_the_second_moments_which_unadjusted_ones_lose(method: AdjustedLangevin) -> None:
    n, process = 40_000, on(PLANE)
    start = PLANE.sample(n, 1) + SDE.sigma(TIME) * normal(n, 2, seed=2)
    noise = IndependentNoise(3)
    second = (
        sum(w * (m**2 + c) for w, m, c in zip(PLANE.weights, PLANE.means, tensor(0.3, 0.2), strict=True))
        + SDE.sigma(TIME) ** 2
    )
    got = (method.correct(process, start, TIME, noise) ** 2).mean(0)
    off = (Langevin(0.9, 8).correct(process, start, TIME, noise) ** 2).mean(0)
    # x² of these mixtures has a standard deviation below 2.6; five standard errors
    assert bool(((start**2).var(0).sqrt() < 2.6 * second.max()).all())
    error = 5 * (start**2).std(0) / math.sqrt(n)
    assert bool(((got - second).abs() < error).all()), (got, second)
    assert bool(((off - second).abs() > 8 * error).all()), (off, second)


def test_predicted_acceptance_on_a_gaussian() -> None:
    """2 Φ(-½ sqrt(d τ³ / (2 c³))), the limit for large d (Roberts & Rosenthal 1998)."""
    d, n = 400, 3000
    gaussian = Gaussian(torch.zeros(d, dtype=F64), 0.1)
    c = 0.1 + float(SDE.sigma(TIME)) ** 2
    x = normal(n, d) * math.sqrt(c)
    for snr in (0.25, 0.35):
        method = AdjustedLangevin(snr=snr, nodes=0)
        move = method.transition(on(gaussian), x, TIME, IndependentNoise(2))
        size = float(method.step_size(on(gaussian), TIME))
        predicted = 2 * torch.special.ndtr(tensor(-0.5 * math.sqrt(d * size**3 / (2 * c**3)))).item()
        assert 0.3 < predicted < 0.95
        # four standard errors of the mean, and the next term of the limit, O(d^{-1/3} τ) of it
        assert move.accepted.double().mean().item() == pytest.approx(predicted, abs=4 * 0.5 / math.sqrt(n) + 0.02)


# ---- behaviour ----


def test_samples_do_not_depend_on_their_batch() -> None:
    method, process, x = AdjustedLangevin(snr=0.9, steps=4), on(PLANE), normal(6, 2)
    whole = method.correct(process, x, TIME, PerSampleNoise(5))
    parts = [method.correct(process, x[i : i + 3], TIME, PerSampleNoise(5, first=i)) for i in (0, 3)]
    torch.testing.assert_close(whole, torch.cat(parts), rtol=1e-12, atol=1e-12)  # rounding of batched products


@pytest.mark.parametrize(
    ("method", "each"),
    [(AdjustedLangevin(nodes=0, steps=3), 1), (AdjustedLangevin(steps=3), 2), (AdjustedLangevin(nodes=4, steps=3), 5),
     (exact(PLANE, steps=3), 1)],
    ids=["ends", "default", "four", "density"],
)  # fmt: skip
def test_evaluations_are_counted_and_none_is_repeated(method: AdjustedLangevin, each: int) -> None:
    solver = PredictorCorrector(DDIM(), method)
    solution = solver.solve(Reverse(PLANE.score(SDE)), normal(4, 2), grids.karras(SDE, 5, t_end=0.2), 0)
    assert solution.nfe == 5 * (1 + 1 + 3 * each)


def test_the_corrector_mends_a_predictor() -> None:
    """Large steps of DDIM are off in law; enough corrections at each time bring the law back."""
    n, sde = 20_000, VP()
    grid = grids.log_snr(sde, 4, t_end=0.3)
    process = Reverse(PLANE.score(sde), 0.0)
    ends = []
    for steps in (None, 12):
        corrector = AdjustedLangevin(lambda x, t: PLANE.log_prob(x, sde, t), snr=0.8, steps=steps or 1)
        solver = DDIM() if steps is None else PredictorCorrector(DDIM(), corrector)
        ends.append(solver.solve(process, normal(n, 2, seed=1), grid, IndependentNoise(1)).x)
    alpha, sigma = sde.alpha(grid[-1]), sde.sigma(grid[-1])
    second = (
        sum(w * (alpha**2 * (m**2 + c)) for w, m, c in zip(PLANE.weights, PLANE.means, tensor(0.3, 0.2), strict=True))
        + sigma**2
    )
    off, mended = ((x**2).mean(0) - second for x in ends)
    error = 5 * (ends[1] ** 2).std(0) / math.sqrt(n)  # five standard errors
    assert bool((mended.abs() < error).all()) and bool((off.abs() > 2 * error).any()), (off, mended, error)


@pytest.mark.parametrize("shape", [(3,), (3, 2), (2, 1, 4, 4), (0, 2)])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_any_event_shape_and_dtype(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    x = normal(*shape).to(dtype)
    for method in (
        AdjustedLangevin(snr=0.7, steps=2),
        AdjustedLangevin(lambda x, t: -(x.flatten(1) ** 2).sum(1) if x.ndim > 1 else -(x**2)),
    ):
        out = method.correct(Reverse(as_score(lambda x, t: -x, VP())), x, TIME, PerSampleNoise(0))
        assert out.shape == x.shape and out.dtype == dtype
    if x.numel():
        move = AdjustedLangevin().transition(Reverse(as_score(lambda x, t: -x, VP())), x, TIME, PerSampleNoise(0))
        assert move.accepted.shape == x.shape[:1] and move.log_ratio.dtype == torch.float32


def test_nothing_moves_without_noise_and_nowhere_else_is_gone_to_without_a_density() -> None:
    def never(x: Tensor, t: Tensor) -> Tensor:
        raise AssertionError("asked at σ = 0")

    x = normal(3, 2)
    assert AdjustedLangevin().correct(Reverse(as_score(never, VP())), x, tensor(0.0)[0], PerSampleNoise(0)) is x
    # a score that is NaN beyond a wall: proposals there are refused
    walled = Reverse(as_score(lambda x, t: torch.where(x.abs() < 1.2, -x, math.nan * x), SDE))
    out = AdjustedLangevin(snr=0.7, steps=20).correct(
        walled, 0.5 * normal(200, 1).clamp(-2, 2), TIME, PerSampleNoise(0)
    )
    assert float(out.abs().max()) < 1.2 and float(out.std()) > 0.4


@pytest.mark.parametrize(
    ("build", "error", "match"),
    [
        (lambda: AdjustedLangevin(snr=0.0), ValueError, "snr"),
        (lambda: AdjustedLangevin(snr=math.inf), ValueError, "snr"),
        (lambda: AdjustedLangevin(steps=0), ValueError, "steps"),
        (lambda: AdjustedLangevin(nodes=-1), ValueError, "nodes"),
        (lambda: AdjustedLangevin(nodes=9), ValueError, "at most 8"),
        (lambda: AdjustedLangevin(lambda x, t: x, nodes=2), ValueError, "drop one"),
        (lambda: AdjustedLangevin(3.0), TypeError, "log_prob must be a function"),  # type: ignore[arg-type]
        (lambda: AdjustedLangevin(lambda x, t: x).correct(on(PLANE), normal(3, 2), TIME, PerSampleNoise(0)),
         ValueError, r"\(3,\); it returned \(3, 2\)"),
    ],
)  # fmt: skip
def test_bad_options(build: Callable[[], Any], error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        build()


def test_it_is_frozen_and_has_equal_copies() -> None:
    assert AdjustedLangevin(snr=0.2) == AdjustedLangevin(snr=0.2)
    with pytest.raises(dataclasses.FrozenInstanceError):
        AdjustedLangevin().snr = 0.3  # type: ignore[misc]
