"""The exact problems are themselves checked: against autograd, Bayes, integration, sampling and each other."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import scipy.integrate
import torch
from strategies import ZERO_TERMINAL
from torch import Tensor

import scoresde.sde as family
from scoresde.noise import PerSampleNoise
from scoresde.problems import Empirical, Gaussian, GaussianMixture
from scoresde.sde import EDM, SDE, VE, VP, ChainSDE, Cosine, LinearSDE, RectifiedFlow, ScheduleSDE, SubVP

SDES: dict[str, SDE] = {
    "VP": VP(),
    "SubVP": SubVP(),
    "VE": VE(),
    "EDM": EDM(),
    "Cosine": Cosine(),
    "RectifiedFlow": RectifiedFlow(),
    "LinearSDE": LinearSDE(lambda t: -t, lambda t: 1 + t),
    "ScheduleSDE": ScheduleSDE(lambda t: (-t).exp(), lambda t: 2 * t, T=1.5),
    "ChainSDE": ChainSDE(VP().discretize(30)),
} | {f"{name} to zero terminal SNR": sde for name, sde in ZERO_TERMINAL.items()}
EVENTS = [(3,), (2, 2), (1, 2, 2)]


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def mixture(kind: str, event: tuple[int, ...], dtype: torch.dtype = torch.float64, k: int = 3) -> GaussianMixture:
    """Unequal weights, and covariances given in each of the accepted ways."""
    d, g = math.prod(event), generator(1)
    means = torch.randn(k, *event, generator=g, dtype=torch.float64)
    root = torch.randn(k, d, d, generator=g, dtype=torch.float64)
    covariances: dict[str, Tensor | float] = {
        "full": root @ root.mT / d + 0.1 * torch.eye(d, dtype=torch.float64),
        "diagonal": 0.1 + torch.rand(k, d, generator=g, dtype=torch.float64),
        "scalars": 0.1 + torch.rand(k, generator=g, dtype=torch.float64),
        "number": 0.4,
    }
    return GaussianMixture(torch.tensor([1.0, 2.0, 3.0])[:k], means.to(dtype), covariances[kind])


def times(sde: SDE) -> Tensor:
    """Both ends, and between."""
    return torch.tensor([sde.t_min, 0.1 * sde.T, 0.5 * sde.T, sde.T], dtype=torch.float64)


def points(problem: Any, sde: SDE, t: Tensor, n: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """Samples of p_t, where the score matters."""
    x0 = problem.sample(n, 3).double()
    mean, std = sde.marginal(x0, t)
    return (mean + std * torch.randn(x0.shape, generator=generator(5), dtype=torch.float64)).to(dtype)


def autograd_score(problem: Any, sde: SDE, x: Tensor, t: Tensor) -> Tensor:
    leaf = x.detach().requires_grad_(True)
    return torch.autograd.grad(problem.log_prob(leaf, sde, t).sum(), leaf)[0]


def test_every_sde_is_here() -> None:
    kinds = {k for n in family.__all__ if isinstance(k := getattr(family, n), type) and issubclass(k, SDE)} - {SDE}
    assert kinds == {type(s) for s in SDES.values()}


# ---- what a score is asked ----


@pytest.mark.parametrize("kind", ["full", "diagonal", "number", "empirical"])
@pytest.mark.parametrize("sde", SDES)
def test_scores_answer_every_combination(sde: str, kind: str) -> None:
    """Against x̂_0 = Σ_k r_k E_k[x_0 | x_t] in full, one component after the other, and ε̂ = (x - α x̂_0)/σ."""
    schedule = SDES[sde]
    problem = Empirical(mixture("number", (2, 2)).sample(7, 2)) if kind == "empirical" else mixture(kind, (2, 2))
    score = problem.score(schedule)
    parts = [Gaussian(m, 0.0) for m in problem.data] if isinstance(problem, Empirical) else [
        Gaussian(problem.means[k], problem._covariances()[k]) for k in range(3)
    ]  # fmt: skip
    rows = torch.tensor([0.3, -1.0, 2.0, 0.0], dtype=torch.float64)
    for t in (times(schedule), times(schedule)[3], times(schedule)[1]):
        x = points(problem, schedule, t, 4)
        alpha, sigma = (v.reshape(-1, 1, 1) for v in (schedule.alpha(t), schedule.sigma(t)))
        share = problem.label_log_prob(schedule)(x, t).exp()
        x0 = torch.zeros_like(x)
        for k, part in enumerate(parts):
            cov = part._covariances()[0]
            inside = alpha**2 * cov + sigma**2 * torch.eye(4, dtype=torch.float64)
            gain = alpha * torch.linalg.solve(inside, cov.expand(len(inside), 4, 4)).mT
            moved = (gain @ (x - alpha * part.means[0]).reshape(4, 4, 1)).reshape(x.shape)
            x0 += share[:, k].reshape(4, 1, 1) * (part.means[0] + moved)
        noise = (x - alpha * x0) / sigma
        # x - α x̂_0 cancels down to σ, 1e-3 at the least
        close = {"rtol": 1e-8, "atol": 1e-10}
        torch.testing.assert_close(score.denoise(x, t), x0, **close)
        torch.testing.assert_close(score.noise(x, t), noise, rtol=1e-8, atol=1e-8)
        torch.testing.assert_close(score(x, t), -noise / sigma, rtol=1e-8, atol=1e-8 / float(sigma.min()))
        for a, b in [(0.5, 2.0), (rows, rows.flip(0)), (rows[2], 0.0)]:
            of_a, of_b = (torch.as_tensor(c, dtype=torch.float64).reshape(-1, 1, 1) for c in (a, b))
            torch.testing.assert_close(score.expect(x, t, a, b), of_a * x0 + of_b * noise, rtol=1e-8, atol=1e-8)
            expected = of_a * x - of_b * noise / sigma
            torch.testing.assert_close(score.linear(x, t, a, b), expected, rtol=1e-8, atol=1e-8 / float(sigma.min()))


@pytest.mark.parametrize("sde", [VE(sigma_max=1e6), RectifiedFlow(T=1 - 1e-6), RectifiedFlow(T=1.0)], ids=repr)
@pytest.mark.parametrize("kind", ["full", "number", "empirical"])
def test_float32_predicts_x0_where_nothing_is_left_of_it(sde: SDE, kind: str) -> None:
    """Through the score it would be off by eps σ/α = 0.06, or not to be had."""
    problem = mixture(kind, (3,)) if kind != "empirical" else Empirical(mixture("number", (3,)).sample(7, 2))
    t = torch.tensor(sde.T, dtype=torch.float64)
    x = points(problem, sde, t, 50, torch.float32)
    exact = problem.score(sde).denoise(x.double(), t)
    for time in (t, t.expand(50)):
        got = problem.score(sde).denoise(x, time)
        assert float((got.double() - exact).norm() / exact.norm()) < 1e-5
        assert bool(problem.score(sde)(x, time).isfinite().all())


@pytest.mark.parametrize("sde", [VP(), EDM(), Cosine(T=1.0), RectifiedFlow(T=1.0)], ids=repr)
def test_the_score_of_the_data_themselves(sde: SDE) -> None:
    """Where σ = 0 ε̂ is 0 times the score; also among other times, one of them without signal."""
    problem = mixture("full", (3,))
    score, x = problem.score(sde), problem.sample(4, 3)
    zero = torch.tensor(0.0, dtype=torch.float64)
    expected = autograd_score(problem, sde, x, zero)
    torch.testing.assert_close(score(x, 0.0), expected, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(score.linear(x, 0.0, 0.5, 2.0), 0.5 * x + 2 * expected, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(score.denoise(x, 0.0), x, rtol=1e-12, atol=1e-12)
    assert float(score.noise(x, 0.0).abs().max()) < 1e-100
    mixed = torch.tensor([0.0, 0.5 * sde.T, sde.T, 0.0], dtype=torch.float64)
    for row, t in enumerate(mixed):
        for ask in (score, score.denoise):
            one = ask(x[row : row + 1], t)[0]
            torch.testing.assert_close(ask(x, mixed)[row], one, rtol=1e-12, atol=1e-12)  # roundings


# ---- GaussianMixture ----


@pytest.mark.parametrize("kind", ["full", "diagonal", "scalars", "number"])
@pytest.mark.parametrize("sde", SDES)
def test_score_is_the_gradient_of_log_prob(sde: str, kind: str) -> None:
    schedule = SDES[sde]
    for event in EVENTS:
        problem = mixture(kind, event)
        for t in times(schedule):
            x = points(problem, schedule, t, 5)
            expected = autograd_score(problem, schedule, x, t)
            # rounding of a sum of a few dozen terms, relative to the score's size 1/σ
            torch.testing.assert_close(problem.score(schedule)(x, t), expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("sde", SDES)
def test_per_sample_times_are_the_rows_of_single_times(sde: str) -> None:
    schedule, problem = SDES[sde], mixture("full", (2, 2))
    t = times(schedule)
    x = points(problem, schedule, t, len(t))
    score, density, classify = (
        problem.score(schedule),
        problem.log_prob(x, schedule, t),
        problem.label_log_prob(schedule),
    )
    for i in range(len(t)):
        row = x[i : i + 1]
        # the same arithmetic on one row: only the order of summation may differ
        torch.testing.assert_close(score(x, t)[i : i + 1], score(row, t[i]), rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(density[i : i + 1], problem.log_prob(row, schedule, t[i]), rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(classify(x, t)[i : i + 1], classify(row, t[i]), rtol=1e-12, atol=1e-12)
    with pytest.raises(ValueError, match="entries"):
        score(x, t[:2])


@pytest.mark.parametrize("sde", SDES)
def test_float32_in_float32_out_and_close(sde: str) -> None:
    schedule, problem = SDES[sde], mixture("full", (3,), torch.float32)
    assert problem.sample(2, 0).dtype == torch.float32
    for t in times(schedule):
        x = points(problem, schedule, t, 16, torch.float32)
        got = problem.score(schedule)(x, t.float())
        assert got.dtype == torch.float32
        expected = problem.score(schedule)(x.double(), t.float().double())
        # 2^-24 in x is amplified by 1/variance of x - αμ, here at least 0.1 and with x up to σ: a few hundred roundings
        scale = float(expected.abs().max())
        torch.testing.assert_close(got.double(), expected, rtol=0, atol=1e-4 * scale)
        log_prob = problem.log_prob(x, schedule, t)
        assert log_prob.dtype == torch.float32


@pytest.mark.parametrize("kind", ["full", "diagonal", "scalars", "number"])
def test_density_is_a_weighted_sum_of_torch_distributions(kind: str) -> None:
    problem, sde, t = mixture(kind, (3,)), VP(), torch.tensor(0.2, dtype=torch.float64)
    x = points(problem, sde, t, 7)
    alpha, sigma, eye = sde.alpha(t), sde.sigma(t), torch.eye(3, dtype=torch.float64)
    for a, s in ((alpha, sigma), (torch.ones_like(alpha), torch.zeros_like(sigma))):
        total = torch.zeros(7, dtype=torch.float64)
        for weight, mean, covariance in zip(problem.weights, problem.means, dense(kind, 3), strict=True):
            law = torch.distributions.MultivariateNormal(a * mean, a**2 * covariance + s**2 * eye)
            total = total + weight * law.log_prob(x).exp()
        got = problem.log_prob(x, sde, t) if float(s) else problem.log_prob(x)
        torch.testing.assert_close(got, total.log(), rtol=1e-10, atol=1e-10)  # eigenvectors against Cholesky


def dense(kind: str, d: int) -> Tensor:
    """The covariances that ``mixture`` hands over, written out (K, D, D)."""
    g, k = generator(1), 3
    torch.randn(k, d, generator=g, dtype=torch.float64)
    root = torch.randn(k, d, d, generator=g, dtype=torch.float64)
    eye = torch.eye(d, dtype=torch.float64)
    diagonal = 0.1 + torch.rand(k, d, generator=g, dtype=torch.float64)
    scalars = 0.1 + torch.rand(k, generator=g, dtype=torch.float64)
    return {
        "full": root @ root.mT / d + 0.1 * eye,
        "diagonal": torch.diag_embed(diagonal),
        "scalars": scalars[:, None, None] * eye,
        "number": 0.4 * eye.expand(k, d, d),
    }[kind]


def test_density_integrates_to_one_at_every_t() -> None:
    problem = GaussianMixture(
        torch.tensor([0.2, 0.8]), torch.tensor([[-1.5], [1.0]], dtype=torch.float64), torch.tensor([0.05, 0.4])
    )
    for sde in SDES.values():
        for t in times(sde):
            mean, std = float(sde.alpha(t)), float((sde.sigma(t) ** 2 + sde.alpha(t) ** 2 * 2).sqrt())
            x = torch.linspace(-9 * std - mean, 9 * std + mean, 20001, dtype=torch.float64)[:, None]
            density = problem.log_prob(x, sde, t).exp()
            # the trapezoidal rule on a smooth function that vanishes at both ends is exact to rounding; 9 std cut 1e-18
            assert abs(float(torch.trapezoid(density, x[:, 0])) - 1) < 1e-10


def test_sample_moments_and_labels() -> None:
    """Means within 5 standard errors; 20000 samples, so that a wrong axis or factor is far outside."""
    n = 20_000
    for kind in ("full", "diagonal", "scalars", "number"):
        problem = mixture(kind, (3,))
        x, label = problem.sample_labelled(n, 11)
        assert torch.equal(x, problem.sample(n, 11))
        for k in range(3):
            part, w = x[label == k], float(problem.weights[k])
            assert abs(len(part) / n - w) < 5 * math.sqrt(w * (1 - w) / n)
            covariance = dense(kind, 3)[k]
            error = (part.mean(0) - problem.means[k]).abs() / (covariance.diagonal() / len(part)).sqrt()
            assert float(error.max()) < 5
            got = torch.cov(part.T)
            # the standard error of an entry of a sample covariance: sqrt((c_ij² + c_ii c_jj)/n)
            bound = ((covariance**2 + torch.outer(covariance.diagonal(), covariance.diagonal())) / len(part)).sqrt()
            assert float(((got - covariance).abs() / bound).max()) < 5


def test_samples_do_not_depend_on_the_batch_split() -> None:
    problem = mixture("full", (2, 2))
    whole = problem.sample(10, PerSampleNoise(4))
    parts = [problem.sample(4, PerSampleNoise(4)), problem.sample(6, PerSampleNoise(4, first=4))]
    # only the order of summation in a rotation may differ
    torch.testing.assert_close(whole, torch.cat(parts), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("sde", SDES)
def test_label_log_prob_is_bayes(sde: str) -> None:
    schedule, problem = SDES[sde], mixture("full", (3,))
    covariances = dense("full", 3)
    for t in times(schedule):
        x = points(problem, schedule, t, 6)
        got = problem.label_log_prob(schedule)(x, t)
        parts = [
            GaussianMixture(torch.ones(1), problem.means[k : k + 1], covariances[k : k + 1]).log_prob(x, schedule, t)
            + problem.weights[k].log()
            for k in range(3)
        ]
        expected = torch.stack(parts, 1) - problem.log_prob(x, schedule, t)[:, None]
        # difference of log-densities of size up to log(1/σ)·D: rounding only
        torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(got.exp().sum(1), torch.ones(6, dtype=torch.float64), rtol=1e-12, atol=0)


@pytest.mark.parametrize("kind", ["full", "diagonal", "scalars"])
@pytest.mark.parametrize("sde", ["VP", "VE", "ChainSDE"])
def test_score_of_a_label_is_the_component_alone_and_bayes(sde: str, kind: str) -> None:
    schedule, problem = SDES[sde], mixture(kind, (3,))
    t = torch.tensor(0.3 * schedule.T, dtype=torch.float64)
    x = points(problem, schedule, t, 6)
    label = torch.tensor([0, 1, 2, 0, 1, 2])
    rows = problem.score(schedule, label)(x, t)
    for k in range(3):
        alone = GaussianMixture(torch.ones(1), problem.means[k : k + 1], dense(kind, 3)[k : k + 1])
        expected = alone.score(schedule)(x, t)
        torch.testing.assert_close(problem.score(schedule, k)(x, t), expected, rtol=1e-10, atol=1e-10)  # rounding
        torch.testing.assert_close(rows[label == k], expected[label == k], rtol=1e-10, atol=1e-10)
    # ∇ log p(x|k) = ∇ log p(x) + ∇ log p(k|x)
    leaf = x.clone().requires_grad_(True)
    chosen = problem.label_log_prob(schedule)(leaf, t).gather(1, label[:, None]).sum()
    expected = problem.score(schedule)(x, t) + torch.autograd.grad(chosen, leaf)[0]
    torch.testing.assert_close(rows, expected, rtol=1e-9, atol=1e-9)


def test_weights_need_not_be_normalised_and_order_does_not_matter() -> None:
    a = GaussianMixture(torch.tensor([2.0, 6.0]), torch.tensor([[0.0], [1.0]]).double(), torch.tensor([0.1, 0.2]))
    b = GaussianMixture(torch.tensor([0.75, 0.25]), torch.tensor([[1.0], [0.0]]).double(), torch.tensor([0.2, 0.1]))
    x = torch.linspace(-2, 2, 9, dtype=torch.float64)[:, None]
    torch.testing.assert_close(a.log_prob(x, VP(), 0.3), b.log_prob(x, VP(), 0.3), rtol=1e-12, atol=1e-12)


def test_point_masses_are_allowed_where_there_is_noise() -> None:
    problem = GaussianMixture(torch.ones(2), torch.tensor([[0.0, 0.0], [1.0, 2.0]]).double(), 0.0)
    x = torch.randn(4, 2, dtype=torch.float64, generator=generator(0))
    t = torch.tensor(0.4, dtype=torch.float64)
    expected = autograd_score(problem, VP(), x, t)
    torch.testing.assert_close(problem.score(VP())(x, t), expected, rtol=1e-12, atol=1e-12)
    for call in (lambda: problem.log_prob(x), lambda: problem.score(VP())(x, torch.tensor(0.0))):
        with pytest.raises(ValueError, match="no density here"):
            call()


# ---- Gaussian ----


def gaussian(event: tuple[int, ...]) -> Gaussian:
    d, g = math.prod(event), generator(2)
    root = torch.randn(d, d, generator=g, dtype=torch.float64)
    return Gaussian(torch.randn(*event, generator=g, dtype=torch.float64), root @ root.mT / d)


@pytest.mark.parametrize("sde", SDES)
def test_moments(sde: str) -> None:
    schedule, problem = SDES[sde], gaussian((2, 2))
    covariance = problem.moments(ScheduleSDE(lambda t: torch.ones_like(t), lambda t: t), 0.0)[1]
    for t in times(schedule):
        mean, got = problem.moments(schedule, t)
        a, s = schedule.alpha(t), schedule.sigma(t)
        torch.testing.assert_close(mean, a * problem.means[0], rtol=1e-13, atol=0)
        expected = a**2 * covariance + s**2 * torch.eye(4, dtype=torch.float64)
        # rounding of an eigendecomposition
        torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12 * float(expected.abs().max()))
        # and it is the law of log_prob
        x = points(problem, schedule, t, 3)
        law = torch.distributions.MultivariateNormal(mean.flatten(), (got + got.mT) / 2)
        torch.testing.assert_close(problem.log_prob(x, schedule, t), law.log_prob(x.flatten(1)), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("event", EVENTS)
@pytest.mark.parametrize("sde", SDES)
def test_flow_is_a_flow(sde: str, event: tuple[int, ...]) -> None:
    schedule, problem = SDES[sde], gaussian(event)
    for t, u, s in itertools.permutations(times(schedule), 3):
        x = points(problem, schedule, t, 4)
        there = problem.flow(schedule, x, t, s)
        over = problem.flow(schedule, problem.flow(schedule, x, t, u), u, s)
        # a flow squeezes by up to σ(t_min)/σ(T) and back: rounding relative to the largest state on the way
        scale = float(max(x.abs().max(), over.abs().max(), schedule.sigma(u)))
        torch.testing.assert_close(there, over, rtol=1e-9, atol=1e-12 * scale)
        torch.testing.assert_close(problem.flow(schedule, there, s, t), x, rtol=1e-9, atol=1e-12 * scale)
        torch.testing.assert_close(problem.flow(schedule, x, t, t), x, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("sde", ["VP", "SubVP", "VE", "EDM", "Cosine", "RectifiedFlow", "LinearSDE", "ScheduleSDE"])
def test_flow_satisfies_the_ode(sde: str) -> None:
    """d flow/ds = f x - ½ g² s(x, s), by central differences."""
    schedule, problem = SDES[sde], gaussian((3,))
    t = torch.tensor(0.6 * schedule.T, dtype=torch.float64)
    x = points(problem, schedule, t, 3)
    for part in (0.2, 0.5, 0.9):
        s = torch.tensor(part * schedule.T, dtype=torch.float64)
        step = 1e-4 * s
        slope = (problem.flow(schedule, x, t, s + step) - problem.flow(schedule, x, t, s - step)) / (2 * step)
        at = problem.flow(schedule, x, t, s)
        rate = schedule.f(s) * at - 0.5 * schedule.g(s) ** 2 * problem.score(schedule)(at, s)
        # central differences: (1e-4)² relative times a third derivative of some tens
        torch.testing.assert_close(slope, rate, rtol=1e-5, atol=1e-5 * float(rate.abs().max()))


@pytest.mark.parametrize("sde", ["VP", "VE", "RectifiedFlow", "LinearSDE"])
def test_flow_equals_scipy(sde: str) -> None:
    schedule, problem = SDES[sde], gaussian((2,))
    score, x = problem.score(schedule), points(problem, schedule, torch.tensor(schedule.T), 2)

    def rate(t: float, y: np.ndarray) -> np.ndarray:
        state, time = torch.from_numpy(y).reshape(2, 2), torch.tensor(t, dtype=torch.float64)
        drift = schedule.f(time) * state - 0.5 * schedule.g(time) ** 2 * score(state, time)
        return drift.flatten().numpy()

    end = 0.1 * schedule.T
    out = scipy.integrate.solve_ivp(
        rate, (schedule.T, end), x.flatten().numpy(), method="DOP853", rtol=1e-11, atol=1e-12
    )
    expected = torch.from_numpy(out.y[:, -1]).reshape(2, 2)
    # solve_ivp's tolerance, accumulated over some tens of steps
    torch.testing.assert_close(problem.flow(schedule, x, schedule.T, end), expected, rtol=1e-8, atol=1e-8)


def test_flow_takes_per_sample_times_and_keeps_dtype() -> None:
    problem, sde = gaussian((2, 2)), VP()
    t, s = torch.tensor([0.9, 0.3, 1.0]).double(), torch.tensor([0.1, 0.8, 0.5]).double()
    x = points(problem, sde, t, 3)
    rows = [problem.flow(sde, x[i : i + 1], t[i], s[i]) for i in range(3)]
    torch.testing.assert_close(problem.flow(sde, x, t, s), torch.cat(rows), rtol=1e-12, atol=1e-12)
    assert problem.flow(sde, x.float(), t, s).dtype == torch.float32


def test_gaussian_accepts_each_covariance() -> None:
    mean, x, t = torch.zeros(2, dtype=torch.float64), torch.tensor([[0.3, -1.0]]).double(), torch.tensor(0.5).double()
    full = Gaussian(mean, 0.7 * torch.eye(2, dtype=torch.float64)).score(VP())(x, t)
    for covariance in (0.7, torch.tensor(0.7), torch.full((2,), 0.7)):
        # 0.7 in float32 where the tensor is one
        torch.testing.assert_close(Gaussian(mean, covariance).score(VP())(x, t), full, rtol=1e-6, atol=0)


# ---- Empirical ----


@pytest.mark.parametrize("event", EVENTS)
@pytest.mark.parametrize("sde", SDES)
def test_empirical_is_a_mixture_of_point_masses(sde: str, event: tuple[int, ...]) -> None:
    schedule, g = SDES[sde], generator(7)
    data, weights = torch.randn(9, *event, generator=g, dtype=torch.float64), torch.rand(9, generator=g) + 0.1
    problem, mixture_ = Empirical(data, weights), GaussianMixture(weights, data, 0.0)
    for t in [*times(schedule), times(schedule)]:
        x = points(problem, schedule, t, 4)
        # the mixture's y²/σ² against a distance squared: rounding of sums
        close = {"rtol": 1e-9, "atol": 1e-9}
        torch.testing.assert_close(problem.log_prob(x, schedule, t), mixture_.log_prob(x, schedule, t), **close)
        torch.testing.assert_close(problem.score(schedule)(x, t), mixture_.score(schedule)(x, t), **close)
        got, expected = (p.label_log_prob(schedule)(x, t) for p in (problem, mixture_))
        torch.testing.assert_close(got, expected, **close)
        torch.testing.assert_close(problem.score(schedule)(x, t), autograd_score(problem, schedule, x, t), **close)


def test_empirical_score_is_the_softmax_formula() -> None:
    """(α Σ_i softmax_i(-|x - α x_i|²/(2σ²)) x_i - x)/σ², written out."""
    data = torch.tensor([[0.0, 1.0], [2.0, -1.0], [0.5, 0.5]], dtype=torch.float64)
    x, sde, t = torch.tensor([[0.2, 0.4], [1.0, -1.0]], dtype=torch.float64), VP(), torch.tensor(0.3).double()
    a, s = float(sde.alpha(t)), float(sde.sigma(t))
    weights = (-((x[:, None] - a * data) ** 2).sum(-1) / (2 * s**2)).softmax(1)
    torch.testing.assert_close(
        Empirical(data).score(sde)(x, t), (a * weights @ data - x) / s**2, rtol=1e-12, atol=1e-12
    )


def test_empirical_samples_are_its_data_at_its_frequencies() -> None:
    data, n = torch.arange(3.0)[:, None], 20_000
    weights = torch.tensor([0.2, 0.3, 0.5])
    counts = Empirical(data, weights).sample(n, 3).flatten().long().bincount(minlength=3) / n
    # 5 standard errors of a binomial share
    assert bool(((counts - weights).abs() < 5 * (weights * (1 - weights) / n).sqrt()).all())
    equal = Empirical(data).sample(n, 3).flatten().long().bincount(minlength=3) / n
    assert bool(((equal - 1 / 3).abs() < 5 * math.sqrt(2 / 9 / n)).all())


def test_empirical_at_a_data_point_is_finite_and_differentiable() -> None:
    data = torch.randn(5, 3, dtype=torch.float64, generator=generator(0))
    problem, sde, t = Empirical(data), VE(), torch.tensor(1e-5, dtype=torch.float64)
    x = data.clone().requires_grad_(True)
    score = problem.score(sde)(x, t)
    (gradient,) = torch.autograd.grad(score.sum(), x)
    assert bool(score.isfinite().all()) and bool(gradient.isfinite().all())


# ---- what is refused ----


@pytest.mark.parametrize(
    ("build", "match"),
    [
        (lambda: GaussianMixture(torch.ones(2), torch.zeros(2), 1.0), "means must be"),
        (lambda: GaussianMixture(torch.ones(2), torch.zeros(2, 1), -1.0), "semi-definite"),
        (lambda: GaussianMixture(torch.ones(2), torch.full((2, 1), math.nan), 1.0), "NaN"),
        (lambda: GaussianMixture(torch.ones(3), torch.zeros(2, 1), 1.0), "weights"),
        (lambda: GaussianMixture(torch.tensor([1.0, 0.0]), torch.zeros(2, 1), 1.0), "weights"),
        (lambda: GaussianMixture(torch.tensor([1.0, math.inf]), torch.zeros(2, 1), 1.0), "weights"),
        (lambda: GaussianMixture(torch.ones(2), torch.zeros(2, 3), torch.ones(2, 2)), "covariances must be"),
        (lambda: GaussianMixture(torch.ones(2), torch.zeros(2, 3), torch.ones(3)), "covariances must be"),
        (lambda: GaussianMixture(torch.ones(2), torch.zeros(2, 3), -1.0), "semi-definite"),
        (lambda: GaussianMixture(torch.ones(2), torch.zeros(2, 3), math.nan), "NaN"),
        (
            lambda: GaussianMixture(torch.ones(1), torch.zeros(1, 2), torch.tensor([[[1.0, 2.0], [2.0, 1.0]]])),
            "semi-def",
        ),
        (lambda: GaussianMixture(torch.ones(1), torch.zeros(1, 2), torch.tensor([[[1.0, 0.5], [0.0, 1.0]]])), "symmet"),
        (lambda: Empirical(torch.zeros(0, 2)), "N >= 1"),
        (lambda: Empirical(torch.zeros(3)), "N, "),
        (lambda: Empirical(torch.full((3, 1), math.inf)), "NaN or infinite"),
        (lambda: Empirical(torch.zeros(3, 1), torch.ones(2)), "weights"),
        (lambda: Empirical(torch.zeros(3, 1), -torch.ones(3)), "weights"),
        (lambda: mixture("full", (3,)).log_prob(torch.zeros(2, 3), VP()), "together"),
        (lambda: mixture("full", (3,)).log_prob(torch.zeros(2, 2), VP(), 0.5), r"x must be \(B, 3\)"),
        (lambda: mixture("full", (3,)).log_prob(torch.zeros(2, 3), VP(), 1.5), r"\[0, 1\]"),
        (lambda: mixture("full", (3,)).score(VP())(torch.zeros(2, 3), torch.tensor(math.nan)), r"\[0, 1\]"),
        (lambda: mixture("full", (3,)).score(VP(), 3)(torch.zeros(2, 3), torch.tensor(0.5)), "0 to 2"),
        (lambda: mixture("full", (3,)).score(VP(), -1)(torch.zeros(2, 3), torch.tensor(0.5)), "0 to 2"),
        (
            lambda: mixture("full", (3,)).score(VP(), torch.zeros(3).long())(torch.zeros(2, 3), torch.tensor(0.5)),
            "each",
        ),
        (lambda: Empirical(torch.zeros(3, 1)).log_prob(torch.zeros(2, 2), VP(), 0.5), r"x must be \(B, 1\)"),
        (lambda: Empirical(torch.zeros(3, 1)).log_prob(torch.zeros(2, 1), VP(), 0.0), "no density"),
        (lambda: Empirical(torch.zeros(3, 1)).score(VP())(torch.zeros(2, 1), torch.tensor([0.5, 0.0])), "no density"),
    ],
)
def test_bad_input(build: Callable[[], Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        build()


def test_bad_dtype() -> None:
    with pytest.raises(TypeError, match="means must be a floating tensor"):
        GaussianMixture(torch.ones(2), torch.zeros(2, 1).long(), 1.0)
    with pytest.raises(TypeError, match="label must be whole numbers"):
        mixture("full", (3,)).score(VP(), torch.zeros(2))
    with pytest.raises(TypeError, match="floating"):
        mixture("full", (3,)).score(VP())(torch.zeros(2, 3).long(), torch.tensor(0.5))


def test_empty_batches_and_batches_of_one() -> None:
    for problem in (mixture("full", (2, 2)), gaussian((2, 2)), Empirical(torch.randn(3, 2, 2, generator=generator(0)))):
        assert problem.sample(0, 0).shape == (0, 2, 2)
        for n in (0, 1):
            x, t = torch.zeros(n, 2, 2), torch.tensor(0.5)
            assert problem.score(VP())(x, t).shape == (n, 2, 2)
            assert problem.log_prob(x, VP(), t).shape == (n,)
            assert problem.label_log_prob(VP())(x, t).shape[0] == n
            assert problem.score(VP())(x, t.expand(n)).shape == (n, 2, 2)
    assert gaussian((2,)).flow(VP(), torch.zeros(0, 2), 0.5, 0.2).shape == (0, 2)


def test_a_number_as_covariance_is_not_rounded() -> None:
    sde = VP()
    got = Gaussian(torch.zeros(1, dtype=torch.float64), 0.1).moments(sde, 0.0)[1]
    torch.testing.assert_close(got, torch.tensor([[0.1]], dtype=torch.float64), rtol=1e-15, atol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_an_empirical_score_takes_states_of_half_precision(dtype: torch.dtype) -> None:
    """As exact scores of mixtures do: worked out in float32, and rounded once, to 2 eps of values below 4."""
    problem, x = Empirical(torch.tensor([[1.0, 0.0], [-1.0, 2.0]])), torch.tensor([[0.5, 0.25]])
    found = problem.score(VP()).denoise(x.to(dtype), 0.5)
    assert found.dtype == dtype
    torch.testing.assert_close(
        found.float(), problem.score(VP()).denoise(x, 0.5), rtol=0, atol=8 * torch.finfo(dtype).eps
    )
