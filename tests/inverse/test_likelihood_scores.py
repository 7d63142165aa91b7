"""DPS, ΠGDM and moment matching: against exact posteriors, their own potentials, stated biases, and refusals."""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from scoresde import grids
from scoresde.guidance import TwistedGuidance, classifier_free
from scoresde.inverse import (
    Blur,
    Downsample,
    FunctionOperator,
    LinearOperator,
    Mask,
    Matrix,
    Measurement,
    PhaseRetrieval,
    dps,
    gaussian_kernel,
    moment_matching,
    pigdm,
)
from scoresde.models import ScoreModel, as_score
from scoresde.problems import Gaussian, GaussianMixture
from scoresde.sampling import sample as draw
from scoresde.sde import EDM, SDE, VE, VP, Cosine, RectifiedFlow

SDES: list[SDE] = [VP(), VE(), EDM(), Cosine(), RectifiedFlow()]
NOISE_STD = 0.3


def normals(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def full(event: tuple[int, ...] = (3, 4)) -> Gaussian:
    d = math.prod(event)
    root = normals(d, d, seed=1)
    return Gaussian(normals(*event, seed=2), root @ root.mT / d + 0.1 * torch.eye(d, dtype=torch.float64))


def mixture() -> GaussianMixture:
    means = normals(3, 3, 4, seed=3)
    covariance = full()._covariances().expand(3, 12, 12) * torch.tensor([0.2, 0.4, 0.6])[:, None, None]
    return GaussianMixture(torch.tensor([1.0, 2.0, 3.0]), means, covariance)


def measured(operator: LinearOperator, noise_std: float = NOISE_STD) -> Measurement:
    return Measurement(normals(*operator.measured, seed=4), operator, noise_std)


OPERATORS = {
    "mask": Mask(normals(3, 4, seed=5) > 0),
    "downsample": Downsample(2, (3, 2, 2)),
    "matrix": Matrix(normals(5, 12, seed=6), (3, 4)),
    "blur": Blur(gaussian_kernel(3, 0.8), (3, 4)),
    "by conjugate gradients": Mask(normals(3, 4, seed=5) > 0) @ Blur(gaussian_kernel(3, 0.8), (3, 4)),
}
M = measured(OPERATORS["matrix"])
TIMES = (0.0, 0.3, 1.0)  # of the way from t_min to T


def at(sde: SDE, part: float) -> Tensor:
    return torch.tensor(sde.t_min + part * (sde.T - sde.t_min), dtype=torch.float64)


def states(data: GaussianMixture, sde: SDE, t: Tensor, n: int = 4) -> Tensor:
    noise = normals(n, *data.event, seed=8)
    return sde.alpha(t) * data.sample(n, 0) + sde.sigma(t) * noise


def relative(got: Tensor, expected: Tensor) -> float:
    return float((got - expected).detach().norm() / expected.detach().norm())


# ---- the exact posterior ----


@pytest.mark.parametrize("part", TIMES)
@pytest.mark.parametrize("sde", SDES, ids=lambda sde: type(sde).__name__)
@pytest.mark.parametrize("name", list(OPERATORS))
def test_moment_matching_is_exact_for_every_gaussian(name: str, sde: SDE, part: float) -> None:
    a = OPERATORS[name]
    data, m, t = full(a.event), measured(a), at(sde, part)
    exact, x = data.posterior(a, m.y, NOISE_STD).score(sde), states(data, sde, t)
    expected = exact(x, t)
    # Tweedie's (x + σ² s)/α loses σ/α of its digits, at most 1e3 here; conjugate gradients stop at 1e-13
    for options in ({}, {"full_gradient": True}, {"covariance": "cg", "tolerance": 1e-13, "iterations": 100}):
        with torch.no_grad():
            got = moment_matching(data.score(sde), m, **options)(x, t)  # type: ignore[arg-type]
        assert relative(got, expected) < 1e-10


@pytest.mark.parametrize("part", TIMES)
@pytest.mark.parametrize("sde", SDES, ids=lambda sde: type(sde).__name__)
@pytest.mark.parametrize("name", list(OPERATORS))
def test_pigdm_is_exact_for_isotropic_gaussians(name: str, sde: SDE, part: float) -> None:
    a = OPERATORS[name]
    data, m, t = Gaussian(normals(*a.event, seed=2), 0.49), measured(a), at(sde, part)
    x = states(data, sde, t)
    expected = data.posterior(a, m.y, NOISE_STD).score(sde)(x, t)
    got = pigdm(data.score(sde), m, sigma_data=0.7)
    assert relative(got(x, t), expected) < 1e-10  # as above
    if part == 0.3:
        assert relative(pigdm(data.score(sde), m, sigma_data=1.4)(x, t), expected) > 1e-5


def test_pigdm_without_noise_is_exact_too() -> None:
    data, a, t = Gaussian(normals(3, 4), 0.49), OPERATORS["mask"], torch.tensor(0.4, dtype=torch.float64)
    m = measured(a, 0.0)
    x, sde = states(data, VP(), t), VP()
    expected = data.posterior(a, m.y, 0.0).score(sde)(x, t)
    assert relative(pigdm(data.score(sde), m, sigma_data=0.7)(x, t), expected) < 1e-10


@pytest.mark.parametrize("t", [0.05, 0.3, 0.9])
def test_bias_of_dps_on_a_line(t: float) -> None:
    """Prior N(m, v), A = a: the gradient is 1 + a² V/σ_y² times the exact one, V = v σ²/(α² v + σ²)."""
    mean, v, a, y = 0.4, 1.7, 1.3, 0.9
    sde, time = VP(), torch.tensor(t, dtype=torch.float64)
    one = torch.ones(1, dtype=torch.float64)
    data, m = Gaussian(mean * one, v), Measurement(y * one, Matrix(a * one[None]), NOISE_STD)
    x = normals(5, 1)
    alpha, variance = float(sde.alpha(time)), float(sde.sigma(time)) ** 2
    x0 = mean + alpha * v / (alpha**2 * v + variance) * (x - alpha * mean)
    exact = alpha * v / (alpha**2 * v + variance) * a * (y - a * x0)
    exact = exact / (a**2 * v * variance / (alpha**2 * v + variance) + NOISE_STD**2)
    difference = data.posterior(m.operator, m.y, NOISE_STD).score(sde)(x, time) - data.score(sde)(x, time)
    torch.testing.assert_close(exact, difference, rtol=1e-12, atol=1e-12)
    factor = 1 + a**2 * v * variance / (alpha**2 * v + variance) / NOISE_STD**2
    got = dps(data.score(sde), m).twist(x, time).gradient
    torch.testing.assert_close(got, factor * exact, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("build", [dps, pigdm, moment_matching])
@pytest.mark.parametrize("data", [full(), mixture()], ids=["Gaussian", "mixture"])
def test_all_become_exact_at_small_times(build: Callable[..., TwistedGuidance], data: GaussianMixture) -> None:
    """The error falls with V ~ σ²/α²: twice the noise level, at least 3.5 times the error, until rounding."""
    sde = EDM()
    exact = data.posterior(M.operator, M.y, NOISE_STD).score(sde)
    errors = []
    for sigma in (0.004, 0.008, 0.016):
        t = torch.tensor(sigma, dtype=torch.float64)
        x = data.sample(6, 1) + sigma * normals(6, 3, 4, seed=9)
        with torch.no_grad():
            got, base = build(data.score(sde), M)(x, t), data.score(sde)(x, t)
        errors.append(relative(got - base, exact(x, t) - base))
    # A V Aᵀ/σ_y² at most, which is what dps leaves out
    assert errors[-1] < (float(torch.linalg.matrix_norm(OPERATORS["matrix"].matrix(), 2)) * 0.016 / NOISE_STD) ** 2
    # either rounding (σ/α² of the score's digits at σ = 0.004: 1e-10), or of second order at least
    assert errors[-1] < 1e-9 or (errors[1] > 3.5 * errors[0] and errors[2] > 3.5 * errors[1])


def test_on_mixtures_moment_matching_departs_least() -> None:
    """Nobody is exact there; what x_0 given x_t has of covariance counts."""
    data, sde, t = mixture(), VP(), torch.tensor(0.25, dtype=torch.float64)
    x = states(data, sde, t, 200)
    exact = data.posterior(M.operator, M.y, NOISE_STD).score(sde)(x, t)
    scores = {
        build.__name__: relative(build(data.score(sde), M)(x, t), exact) for build in (dps, pigdm, moment_matching)
    }
    assert 1e-3 < scores["moment_matching"] < scores["pigdm"] < scores["dps"]


# ---- potentials ----

LINEAR = {
    "dps": lambda s, m: dps(s, m, scale=0.7),
    "dps norm": lambda s, m: dps(s, m, step="norm", scale=0.02),
    "pigdm": lambda s, m: pigdm(s, m, sigma_data=0.8),
    "pigdm by cg": lambda s, m: pigdm(s, Measurement(m.y, by_cg(m), m.noise_std), sigma_data=0.8),
    "moment matching": lambda s, m: moment_matching(s, m),
    "moment matching in full": lambda s, m: moment_matching(s, m, full_gradient=True),
    "moment matching by cg": lambda s, m: moment_matching(s, m, covariance="cg", tolerance=1e-12, iterations=99),
}
each = pytest.mark.parametrize("name", list(LINEAR))
T = torch.tensor(0.3, dtype=torch.float64)


def by_cg(m: Measurement) -> LinearOperator:
    a = m.linear
    assert a is not None
    return FunctionOperator(a.apply, event=a.event, dtype=torch.float64)


@pytest.mark.parametrize("name", ["dps", "dps norm", "pigdm", "pigdm by cg", "moment matching in full"])
def test_gradient_is_that_of_the_potential(name: str) -> None:
    data = mixture()
    guided, x, towards = LINEAR[name](data.score(VP()), M), states(data, VP(), T), normals(4, 3, 4, seed=10)
    step = 1e-5
    with torch.no_grad():
        up, here, down = (guided.twist(x + k * step * towards, T) for k in (1, 0, -1))
    slope = (up.log_psi - down.log_psi) / (2 * step)
    # central differences: step² of the third derivative, and 1e-16 |log ψ| / step
    torch.testing.assert_close((here.gradient * towards).sum((1, 2)), slope, rtol=1e-6, atol=1e-6)


def test_without_its_gradient_the_covariance_is_taken_as_it_stands() -> None:
    data = mixture()
    x = states(data, VP(), T)
    plain, full_ = (moment_matching(data.score(VP()), M, full_gradient=f).twist(x, T) for f in (False, True))
    torch.testing.assert_close(plain.log_psi, full_.log_psi, rtol=1e-12, atol=1e-12)
    assert relative(plain.gradient, full_.gradient) > 1e-2


def test_potential_of_moment_matching_is_normalised() -> None:
    """For a Gaussian prior it is log p(y | x_t) itself: p_t(x) ψ_t(x) = p(y) p_t(x | y), constant included."""
    data, sde = full(), VP()
    x = states(data, sde, T)
    posterior = data.posterior(M.operator, M.y, NOISE_STD)
    a = M.linear
    assert a is not None
    matrix = a.matrix()
    cov = matrix @ data._covariances()[0] @ matrix.mT + NOISE_STD**2 * torch.eye(5, dtype=torch.float64)
    evidence = torch.distributions.MultivariateNormal(a(data.means)[0], cov).log_prob(M.y)
    got = moment_matching(data.score(sde), M).twist(x, T).log_psi
    expected = posterior.log_prob(x, sde, T) + evidence - data.log_prob(x, sde, T)
    torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-9)


@each
def test_in_the_end_counts_the_likelihood(name: str) -> None:
    data = full()
    x0 = data.sample(3, 0)
    guided = LINEAR[name](data.score(VP()), M)
    torch.testing.assert_close(guided.log_potential(x0), M.log_prob(x0))


def test_the_step_by_the_norm_is_the_papers() -> None:
    """g² T/N times the gradient is what algorithm 1 adds after one of its N = 1000 steps, -ζ/|r| ∇|r|²."""
    data, sde = mixture(), VP()
    x = states(data, sde, T).requires_grad_()
    residual = M.residual(data.score(sde).denoise(x, T)).norm(dim=1)
    (slope,) = torch.autograd.grad(residual.square().sum(), x)
    expected = -0.4 / residual[:, None, None] * slope
    got = dps(data.score(sde), M, step="norm", scale=0.4).twist(x.detach(), T).gradient
    torch.testing.assert_close(got * sde.g(T) ** 2 * sde.T / 1000, expected.detach(), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("step", ["likelihood", "norm"])
def test_the_scale_of_dps_multiplies_its_potential(step: Any) -> None:
    data, x = mixture(), states(mixture(), VP(), T)
    one, three = (dps(data.score(VP()), M, step=step, scale=w).twist(x, T) for w in (1.0, 3.0))
    torch.testing.assert_close(three.gradient, 3 * one.gradient, rtol=1e-10, atol=1e-12)  # roundings
    torch.testing.assert_close(three.log_psi, 3 * one.log_psi, rtol=1e-10, atol=1e-12)


def test_a_measurement_that_is_met_pulls_nowhere() -> None:
    """The norm has a kink at 0; there is no NaN."""
    data, sde = full(), VP()
    x = states(data, sde, T)
    m = M.linear
    assert m is not None
    met = Measurement(m(data.score(sde).denoise(x, T)), m, 0.0)
    twist = dps(data.score(sde), met, step="norm").twist(x, T)
    assert not twist.gradient.any() and not twist.log_psi.any()


@pytest.mark.parametrize("step", ["likelihood", "norm"])
def test_phase_retrieval(step: Any) -> None:
    """Gradient against finite differences, and the sign symmetry: an even prior's guided score is odd."""
    data, sde, a = Gaussian(torch.zeros(4, 4).double(), full((4, 4))._covariances()[0]), VP(), PhaseRetrieval((4, 4))
    x, towards = states(data, sde, T, 3), normals(3, 4, 4, seed=11)
    m = Measurement.simulate(data.sample(3, 2), a, 0.5, 0)
    guided = dps(data.score(sde), m, step=step, scale=0.1)
    with torch.no_grad():
        up, down = (guided.twist(x + k * 1e-5 * towards, T).log_psi for k in (1, -1))
        there, mirrored = guided.twist(x, T), guided.twist(-x, T)
    torch.testing.assert_close((there.gradient * towards).sum((1, 2)), (up - down) / 2e-5, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(mirrored.gradient, -there.gradient, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(mirrored.log_psi, there.log_psi, rtol=1e-9, atol=1e-9)


# ---- what goes in and out ----


@each
def test_the_three_parts_make_the_score(name: str) -> None:
    data = mixture()
    guided, x = LINEAR[name](data.score(VP()), M), states(data, VP(), T)
    with torch.no_grad():
        twist, score = guided.twist(x, T), guided(x, T)
    assert not any(part.requires_grad for part in twist) and not score.requires_grad
    torch.testing.assert_close(twist.x0, data.score(VP()).denoise(x, T))
    torch.testing.assert_close(score, data.score(VP())(x, T) + twist.gradient)
    assert twist.log_psi.shape == (4,)


@each
def test_each_sample_has_its_time_and_measurement(name: str) -> None:
    data, t = mixture(), torch.tensor([0.1, 0.4, 0.9], dtype=torch.float64)
    x, y = states(data, VP(), T, 3), normals(3, 5, seed=12)
    together = LINEAR[name](data.score(VP()), Measurement(y, M.operator, NOISE_STD)).twist(x, t)
    for i in range(3):
        alone = LINEAR[name](data.score(VP()), Measurement(y[i], M.operator, NOISE_STD)).twist(x[i : i + 1], t[i])
        torch.testing.assert_close(together.gradient[i : i + 1], alone.gradient, rtol=1e-8, atol=1e-8)
        torch.testing.assert_close(together.log_psi[i : i + 1], alone.log_psi, rtol=1e-8, atol=1e-8)


@each
def test_batches_of_none_and_one_and_single_precision(name: str) -> None:
    data = mixture()
    guided, x = LINEAR[name](data.score(VP()), M), states(data, VP(), T)
    for n in (0, 1):
        assert guided(x[:n], T).shape == (n, 3, 4)
    with warnings.catch_warnings():  # a tolerance of 1e-12 is out of reach
        warnings.simplefilter("ignore", RuntimeWarning)
        low = guided.twist(x.float(), T)
    assert all(part.dtype == torch.float32 for part in low)
    # (x + σ² s)/α and a system of condition number 1e2, each rounded
    assert relative(low.gradient.double(), guided.twist(x, T).gradient) < 1e-3


@each
def test_differentiable_where_grad_is_enabled(name: str) -> None:
    """In x and in parameters of the score; graphs end otherwise."""
    data = mixture()
    weight = torch.tensor(1.1, dtype=torch.float64, requires_grad=True)
    base = data.score(VP())
    x = states(data, VP(), T, 1).requires_grad_()

    def guided(x: Tensor, weight: Tensor) -> Tensor:
        return LINEAR[name](as_score(lambda x, t: weight * base(x, t), VP()), M)(x, T)[:, 0, :2]

    # the systems that cg solves are at 1e-12 and 10 roundings
    assert torch.autograd.gradcheck(guided, (x, weight), fast_mode=True, eps=1e-6, atol=1e-5, rtol=1e-4)
    assert guided(x.detach(), weight).requires_grad


class Net(nn.Module):
    """A smooth network whose Jacobian is not symmetric."""

    def __init__(self) -> None:
        super().__init__()
        self.null_conditions = {"label": 2}
        self.mix = nn.Parameter(normals(12, 12, seed=13) / 6)
        self.weight = nn.Parameter(normals(3, 12, seed=14))

    def forward(self, x: Tensor, c: Tensor, label: Tensor) -> Tensor:
        return torch.tanh(x.flatten(1) @ self.mix.to(x) + self.weight[label].to(x)).reshape(x.shape)


@each
def test_models_bound_and_guided(name: str) -> None:
    model = ScoreModel(Net(), VP())
    label, x = torch.tensor([0, 1, 0, 1]), normals(4, 3, 4)
    bound = LINEAR[name](model.bind(label=label), M)
    alone = LINEAR[name](model.bind(label=label[1:2]), M)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # an asymmetric V may not converge
        if "by cg" not in name:
            torch.testing.assert_close(bound(x, T)[1:2], alone(x[1:2], T), rtol=1e-9, atol=1e-9)
        guided = LINEAR[name](classifier_free(model, {"label": label}, 2.0), M)
        assert guided(x, T).isfinite().all() and guided(x.float(), T).dtype == torch.float32


def test_a_covariance_without_negative_eigenvalues_is_left_alone_and_others_are_mended() -> None:
    """A score whose x̂_0 = -x has V < 0: what is left is σ_y² alone, not a system that is indefinite."""
    sde = VP()
    alpha, variance = sde.alpha(T), sde.sigma(T) ** 2
    guided = moment_matching(as_score(lambda x, t: -(1 + alpha) * x / variance, sde), M)
    x = normals(2, 3, 4)
    residual = M.residual(-x)
    a = M.linear
    assert a is not None
    torch.testing.assert_close(guided.twist(x, T).gradient, -a.adjoint(residual) / NOISE_STD**2, rtol=1e-9, atol=1e-9)


def test_of_an_asymmetric_covariance_the_symmetric_part_counts() -> None:
    """x̂_0 = W x, as a network's may be: V = (σ²/α) (W + Wᵀ)/2, while the gradient goes through Wᵀ itself."""
    sde, x, one = VP(), normals(2, 3, 4), torch.eye(12, dtype=torch.float64)
    alpha, variance = float(sde.alpha(T)), float(sde.sigma(T)) ** 2
    skew = normals(12, 12, seed=15)
    w = 0.5 * one + 0.1 * (skew - skew.mT)

    def score(x: Tensor, t: Tensor) -> Tensor:
        return (alpha * x.flatten(1) @ w.mT - x.flatten(1)).reshape(x.shape) / variance

    a = OPERATORS["matrix"].matrix()
    total = 0.5 * variance / alpha * a @ a.mT + NOISE_STD**2 * torch.eye(5, dtype=torch.float64)
    residual = M.y - x.flatten(1) @ (a @ w).mT
    expected = torch.linalg.solve(total, residual.mT).mT @ a @ w
    got = moment_matching(as_score(score, sde), M).twist(x, T).gradient
    torch.testing.assert_close(got.flatten(1), expected, rtol=1e-9, atol=1e-9)


def test_noise_far_below_single_precision_is_not_lost() -> None:
    data, m = full(), dataclasses.replace(M, noise_std=1e-5)
    x = states(data, VP(), T).float()
    assert moment_matching(data.score(VP()), m)(x, T).isfinite().all()


@pytest.mark.parametrize("chunk", [1, 2, 100])
def test_chunks_agree(chunk: int) -> None:
    calls: list[int] = []

    data = mixture()
    x = states(data, VP(), T)
    score = data.score(VP())

    def noted(x: Tensor, t: Tensor) -> Tensor:
        out = score(x, t)
        out.register_hook(lambda gradient: calls.append(1))
        return out

    got = moment_matching(as_score(noted, VP()), M, chunk=chunk)(x, T)
    torch.testing.assert_close(got, moment_matching(score, M)(x, T), rtol=1e-10, atol=1e-10)
    assert len(calls) == math.ceil(5 / chunk)  # of m = 5 backward passes


def test_options_of_conjugate_gradients_are_kept() -> None:
    data = mixture()
    x = states(data, VP(), T)
    exact = moment_matching(data.score(VP()), M)(x, T)

    def error(**options: Any) -> float:
        return relative(moment_matching(data.score(VP()), M, covariance="cg", **options)(x, T), exact)

    assert error(tolerance=0.3) > 1e-3
    assert error(tolerance=1e-12) < 1e-9 < error(tolerance=1e-2)
    with pytest.warns(RuntimeWarning, match="within 2 iterations.*more iterations"):
        assert error(tolerance=1e-12, iterations=2) > 1e-3


def test_samples_follow_the_posterior() -> None:
    """Through sample(), which runs without gradients."""
    data = full()
    posterior = data.posterior(M.operator, M.y, NOISE_STD)
    guided = moment_matching(data.score(VP()), M, covariance="cg", tolerance=1e-6)
    x = draw(guided, (400, 3, 4), steps=30, dtype=torch.float64).x
    # the posterior's standard deviations are below 1.5: means of 400 within 4.5 standard errors
    assert float((x.mean(0) - posterior.means[0]).abs().max()) < 4.5 * 1.5 / 20
    assert relative(x.flatten(1).mT.cov(), posterior._covariances()[0]) < 0.3  # 12 numbers from 400 samples: 0.17


def test_pigdm_takes_the_scores_own_scale() -> None:
    data, x = mixture(), states(mixture(), VP(), T)
    known = as_score(data.score(VP()).__call__, VP(), sigma_data=0.7)
    assert torch.equal(pigdm(known, M)(x, T), pigdm(known, M, sigma_data=0.7)(x, T))
    assert not torch.equal(pigdm(known, M, sigma_data=1.4)(x, T), pigdm(known, M)(x, T))
    assert torch.equal(pigdm(data.score(VP()), M)(x, T), pigdm(data.score(VP()), M, sigma_data=1.0)(x, T))


# ---- precision and the ends of the schedule ----


@each
@pytest.mark.parametrize("t", [1e-3, 0.2, 0.9])
def test_every_combination_is_that_of_the_score(name: str, t: float) -> None:
    """p x_0 + q ε of the posterior, from x and its score, at either side of σ = α; the prior is asked once."""
    data, sde, time = mixture(), VP(), torch.tensor(t, dtype=torch.float64)
    asked: list[float] = []

    def exact(x: Tensor, t: Tensor) -> Tensor:
        asked.append(float(t))
        return data.score(sde)(x, t)

    guided, x = LINEAR[name](as_score(exact, sde), M), states(data, sde, time)
    alpha, sigma = sde.alpha(time), sde.sigma(time)
    with torch.no_grad():
        score = guided(x, time)
        assert len(asked) == 1
        # from the score: x̂_0 to eps (σ/α)², its own digits; ε̂ to eps
        torch.testing.assert_close(guided.noise(x, time), -sigma * score, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(guided.denoise(x, time), (x + sigma**2 * score) / alpha, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(
            guided.linear(x, time, 0.3, 0.2 * sigma), 0.3 * x + 0.2 * sigma * score, rtol=1e-9, atol=1e-9
        )


HARSH: list[SDE] = [VE(sigma_max=1e6), RectifiedFlow(T=1 - 1e-6)]
NORMAL = Gaussian(torch.zeros(2, dtype=torch.float64), 1.0)
PAIR = GaussianMixture(torch.ones(2), torch.tensor([[-1.0, 0.5], [1.0, -1.0]], dtype=torch.float64), 0.1)


@pytest.mark.parametrize(
    ("build", "steps", "eta"),
    [(dps, 7, 0.0), (dps, 10, 1.0), (dps, 100, 0.0), (pigdm, 25, 1.0), (moment_matching, 25, 1.0)],
)
@pytest.mark.parametrize("data", [NORMAL, PAIR], ids=["normal", "mixture"])
@pytest.mark.parametrize("sde", HARSH, ids=lambda sde: type(sde).__name__)
def test_single_precision_serves(build: Any, sde: SDE, data: GaussianMixture, steps: int, eta: float) -> None:
    """From σ/α = 1e6 down: standard deviations as in double precision, from the same prior draws."""
    m = Measurement(torch.tensor([0.3], dtype=torch.float64), Mask(torch.tensor([True, False])), 1.0)
    guided, start = build(data.score(sde), m), sde.prior_std * normals(200, 2, seed=20)
    wide, narrow = (
        draw(guided, (200, 2), x=start.to(dtype), steps=steps, eta=eta, dtype=dtype).x.double().std(0)
        for dtype in (torch.float64, torch.float32)
    )
    torch.testing.assert_close(narrow, wide, rtol=1e-3, atol=0)


class Rounded(nn.Module):
    """PAIR's exact network under EDM's preconditioning at σ_d = 1, with input and output rounded to bfloat16."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1, dtype=torch.bfloat16))

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        sigma = c.double().exp()
        size = (1 + sigma**2).sqrt()
        state = x.double() * size[:, None]
        x0 = PAIR.score(EDM(T=2e6, t_min=1e-6)).denoise(state, sigma)
        return ((x0 - state / (size**2)[:, None]) * (size / sigma)[:, None]).to(x.dtype)


@pytest.mark.parametrize("steps", [10, 100])
@pytest.mark.parametrize("sde", HARSH, ids=lambda sde: type(sde).__name__)
def test_a_network_in_half_precision_serves(sde: SDE, steps: int) -> None:
    m = Measurement(torch.tensor([0.3], dtype=torch.float64), Mask(torch.tensor([True, False])), 1.0)
    start = sde.prior_std * normals(500, 2, seed=20)
    exact = draw(dps(PAIR.score(sde), m), (500, 2), x=start, steps=steps, dtype=torch.float64).x
    model = ScoreModel(Rounded(), sde, predicts="edm", sigma_data=1.0)
    got = draw(dps(model, m), (500, 2), x=start.float(), steps=steps).x
    assert got.dtype == torch.float32
    torch.testing.assert_close(got.double().std(0), exact.std(0), rtol=2e-2, atol=0)


@each
def test_where_nothing_is_left_of_the_picture_it_says_so(name: str) -> None:
    """α(T) = 0: ∇ log ψ is 0 and its coefficient in x̂_0 infinite. Just below, runs start as ever."""
    sde = RectifiedFlow(T=1.0)
    guided = LINEAR[name](mixture().score(sde), M)
    with pytest.raises(ValueError, match=r"no answer where α\(t\) = 0, as at t = 1 of RectifiedFlow.*t_start=0.999"):
        guided.denoise(X, torch.tensor(1.0, dtype=torch.float64))
    with pytest.raises(ValueError, match="no answer where"):
        draw(guided, (2, 3, 4), steps=3, dtype=torch.float64)
    if "norm" not in name:  # a step of 1000 in 3
        grid = grids.karras(sde, 8, t_start=0.999 * sde.T)
        assert draw(guided, (2, 3, 4), grid=grid, dtype=torch.float64).x.isfinite().all()


# ---- refusals ----


PLAIN = as_score(lambda x, t: -x, VP())


def detached(x: Tensor) -> Tensor:
    return (x > 0).to(x.dtype)


def learned(x: Tensor) -> Tensor:
    """Depends on parameters that require gradients, but on x detached."""
    return nn.functional.linear(x.detach().flatten(1), normals(2, 12).requires_grad_())


X = torch.ones(2, 3, 4, dtype=torch.float64)
CURVED = Measurement(torch.zeros(3, 4), torch.square, 1.0)
CLEAN = dataclasses.replace(M, noise_std=0.0)


@pytest.mark.parametrize(
    ("build", "error", "match"),
    [
        (lambda: dps(3, M), TypeError, "must be a Score.*got int"),  # type: ignore[arg-type]
        (lambda: dps(lambda x, t: -x, M), TypeError, r"write as_score\(score, sde\)"),  # type: ignore[arg-type]
        (lambda: pigdm(lambda x, t: -x, M), TypeError, r"write as_score\(score, sde\)"),  # type: ignore[arg-type]
        (lambda: dps(VP(), M), TypeError, "a score knows its own"),  # type: ignore[arg-type]
        (lambda: dps(PLAIN, M.y), TypeError, "must be a Measurement"),  # type: ignore[arg-type]
        (lambda: pigdm(PLAIN, M.y), TypeError, "must be a Measurement"),  # type: ignore[arg-type]
        (lambda: dps(PLAIN, M, scale=math.nan), ValueError, "finite number"),
        (lambda: dps(PLAIN, M, step="other"), ValueError, "step must be one of"),  # type: ignore[arg-type]
        (lambda: dps(PLAIN, CLEAN), ValueError, "noise_std > 0"),
        (lambda: moment_matching(PLAIN, CLEAN), ValueError, "noise_std > 0"),
        (lambda: pigdm(PLAIN, CLEAN).log_potential(X), ValueError, "noise_std > 0"),
        (lambda: dps(PLAIN, CLEAN, step="norm").log_potential(X), ValueError, "noise_std > 0"),
        (lambda: pigdm(PLAIN, CURVED), TypeError, "FunctionOperator.*take dps"),
        (lambda: moment_matching(PLAIN, CURVED), TypeError, "FunctionOperator.*take dps"),
        (lambda: pigdm(PLAIN, M, sigma_data=0.0), ValueError, "sigma_data must be positive"),
        (lambda: moment_matching(PLAIN, M, covariance="no"), ValueError, "covariance must"),  # type: ignore[arg-type]
        (
            lambda: moment_matching(PLAIN, M, covariance="cg", full_gradient=True),
            ValueError,
            "determinant",
        ),
        (lambda: moment_matching(PLAIN, M, chunk=0), ValueError, "chunk"),
        (lambda: moment_matching(PLAIN, M, iterations=0), ValueError, "iterations"),
        (lambda: moment_matching(PLAIN, M, tolerance=0.0), ValueError, "tolerance"),
        (lambda: dps(PLAIN, M)(X[:, :2], T), ValueError, r"x must be \(B, 3, 4\), the event of"),
        (lambda: dps(PLAIN, M)(X, torch.ones(3) / 2), ValueError, "t has 3 entries"),
        (lambda: dps(PLAIN, M)(X, torch.tensor(7.0)), ValueError, "must lie in"),
        (
            lambda: pigdm(as_score(lambda x, t: -x.detach(), VP()), M)(X, torch.tensor(0.1)),
            ValueError,
            "score must be differentiable",
        ),
        (
            lambda: dps(PLAIN, Measurement(torch.zeros(3, 4), detached, 1.0))(X, T),
            ValueError,
            "differentiable op",
        ),
        (
            lambda: dps(PLAIN, Measurement(torch.zeros(2), learned, 1.0))(X, T),
            ValueError,
            "differentiable op",
        ),
        (
            lambda: pigdm(PLAIN, Measurement(torch.zeros(3, 5), M.operator, 1.0))(X, T),
            ValueError,
            "3 measurements, one for each sample, but x has 2",
        ),
    ],
)
def test_bad_input_is_refused(build: Callable[[], object], error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        build()


def test_it_is_refused_before_the_score_is_asked() -> None:
    def never(x: Tensor, t: Tensor) -> Tensor:
        raise AssertionError

    for build in (dps, pigdm, moment_matching):
        with pytest.raises(ValueError, match="the event of"):
            build(as_score(never, VP()), M)(X[:, :2], T)
