"""log p(x), bits per dimension, encoding: against closed forms, with the one approximation (the prior) taken out."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from strategies import rescaled_ddpm
from torch import Tensor, nn

from scoresde.likelihood import bits_per_dim, decode, encode, log_prob
from scoresde.models import Combination, DerivedScore, Score, ScoreModel, as_score
from scoresde.noise import IndependentNoise, PerSampleNoise
from scoresde.problems import Gaussian, GaussianMixture
from scoresde.reverse import Reverse
from scoresde.sampling import sample
from scoresde.sde import EDM, SDE, VE, VP, Chain, ChainSDE, Cosine, LinearSDE, RectifiedFlow, ScheduleSDE, SubVP
from scoresde.solvers import IncompleteWarning, ProbabilityFlow, Progress
from scoresde.solvers.ode_backend import smoothed

SDES: list[SDE] = [VP(), SubVP(), VE(0.05, 20.0), EDM(t_min=0.05), Cosine(), RectifiedFlow(t_min=0.05)]
SDES.append(LinearSDE(lambda t: -1 - t, lambda t: 1 + t, t_min=0.05))
TIGHT = ProbabilityFlow(rtol=1e-7, atol=1e-7)
# TIGHT, accumulated over some tens of steps and amplified by a divergence that integrates to log(σ_T/σ_0) per axis.
CLOSE = {"rtol": 3e-5, "atol": 3e-5}


def named(value: Any) -> str | None:
    return type(value).__name__ if isinstance(value, SDE) else None


def normals(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def gaussian(event: tuple[int, ...]) -> Gaussian:
    d = math.prod(event)
    root = normals(d, d, seed=1)
    return Gaussian(normals(*event, seed=2), root @ root.mT / d + 0.2 * torch.eye(d, dtype=torch.float64))


def mixture(event: tuple[int, ...] = (2,)) -> GaussianMixture:
    d = math.prod(event)
    root = normals(2, d, d, seed=1)
    covariances = root @ root.mT / d + 0.2 * torch.eye(d, dtype=torch.float64)
    return GaussianMixture(torch.tensor([0.3, 0.7]), normals(2, *event, seed=2), covariances)


def points(problem: GaussianMixture, sde: SDE, n: int) -> Tensor:
    """Samples at t_min."""
    x0 = problem.sample(n, 3)
    mean, std = sde.marginal(x0, sde.t_min)
    return mean + std * normals(*x0.shape, seed=4)


def prior_error(problem: GaussianMixture, sde: SDE, end: Tensor) -> Tensor:
    """log π(x_T) - log p_T(x_T): what taking the prior for p_T adds, exactly."""
    return sde.prior_log_prob(end) - problem.log_prob(end, sde, sde.T)


# ---- the density ----


@pytest.mark.parametrize("event", [(3,), (2, 2), (1, 2, 1)])
@pytest.mark.parametrize("sde", SDES, ids=named)
@torch.no_grad()
def test_gaussian_density(sde: SDE, event: tuple[int, ...]) -> None:
    problem = gaussian(event)
    x = points(problem, sde, 3)
    got = log_prob(problem.score(sde), x, "exact", solver=TIGHT)
    end = problem.flow(sde, x, sde.t_min, sde.T)
    torch.testing.assert_close(got, problem.log_prob(x, sde, sde.t_min) + prior_error(problem, sde, end), **CLOSE)


@pytest.mark.parametrize("sde", SDES, ids=named)
@torch.no_grad()
def test_mixture_density(sde: SDE) -> None:
    problem = mixture()
    x, score = points(problem, sde, 3), problem.score(sde)
    got = log_prob(score, x, "exact", solver=TIGHT)
    error = prior_error(problem, sde, encode(score, x, solver=TIGHT))
    torch.testing.assert_close(got, problem.log_prob(x, sde, sde.t_min) + error, **CLOSE)


@pytest.mark.parametrize(
    "sde",
    [
        RectifiedFlow(T=1.0, t_min=0.05),
        Cosine(T=1.0, t_min=0.05),
        ScheduleSDE(lambda t: torch.cos(0.5 * math.pi * t), lambda t: torch.sin(0.5 * math.pi * t), t_min=0.05),
        ChainSDE(Chain(torch.tensor([0.05, 1.0]), torch.tensor([0.9, 0.0]), torch.tensor([0.1, 0.8]))),
    ],
    ids=named,
)
@torch.no_grad()
def test_with_zero_terminal_snr_the_density_has_no_approximation(sde: SDE) -> None:
    """p_T is the prior; the ODE runs up to T itself, where f and g diverge and E[α' x_0 + σ' ε | x_t] does not."""
    problem = gaussian((2, 2))
    x, score = points(problem, sde, 3), problem.score(sde)
    got = log_prob(score, x, "exact", solver=TIGHT)
    torch.testing.assert_close(got, problem.log_prob(x, sde, sde.t_min), **CLOSE)
    code = encode(score, x, solver=TIGHT)
    torch.testing.assert_close(code, problem.flow(sde, x, sde.t_min, sde.T), **CLOSE)
    torch.testing.assert_close(decode(score, code, solver=TIGHT), x, rtol=1e-4, atol=1e-4)
    estimates = log_prob(score, x, noise=0, probes=3, solver=TIGHT)
    assert bool(estimates.isfinite().all())


CHAINS: dict[str, ChainSDE] = {
    "DDPM": ChainSDE(VP().discretize(300)),
    "SMLD": ChainSDE(VE(0.05, 20.0).discretize(40)),
    "zero terminal SNR": ChainSDE(rescaled_ddpm(200)),
    "uneven": ChainSDE(Chain(torch.tensor([0.1, 0.5, 0.6, 4.0]), torch.tensor([1.0, 0.3, 0.9, 1.1]), torch.ones(4))),
}


class Counting(DerivedScore):
    """A score that counts its evaluations."""

    def __init__(self, score: Score) -> None:
        self.score, self.count = score, 0

    def evaluate(self, x: Tensor, t: Tensor, wanted: Combination) -> Tensor:
        self.count += 1
        return self.score.evaluate(x, t, wanted)


@pytest.mark.parametrize("sde", CHAINS.values(), ids=list(CHAINS))
@torch.no_grad()
def test_a_chain_costs_what_a_smooth_schedule_costs(sde: ChainSDE) -> None:
    """An adaptive method meets no kink of the levels; density, codes and states between them are those of the chain."""
    problem, smooth = gaussian((2,)), sde.smooth()
    x = points(problem, sde, 6)
    end = problem.flow(sde, x, sde.t_min, sde.T)
    score, straight = Counting(problem.score(sde)), Counting(problem.score(smooth))
    value = log_prob(score, x, "exact", solver=TIGHT)
    exact = problem.log_prob(x, sde, sde.t_min) + prior_error(problem, sde, end)
    torch.testing.assert_close(value, exact, **CLOSE)
    log_prob(straight, points(problem, smooth, 6), "exact", solver=TIGHT)
    # other points: a step or two; through the kinks it was 3 to 20 times as many
    assert score.count <= 1.1 * straight.count + 6
    torch.testing.assert_close(encode(score, x, solver=TIGHT), end, **CLOSE)
    torch.testing.assert_close(decode(score, end, solver=TIGHT), x, rtol=1e-4, atol=1e-4)
    grid = torch.linspace(sde.T, sde.t_min, 5, dtype=torch.float64)
    solution = sample(score, tuple(x.shape), x=end, grid=grid, solver=TIGHT, trajectory=True, denoise=False)
    assert solution.trajectory is not None and solution.reached is not None
    for t, state in zip(grid, solution.trajectory, strict=True):
        # interpolated by a quartic between steps, whose error is not controlled: ten times CLOSE
        torch.testing.assert_close(state, problem.flow(sde, x, sde.t_min, t), rtol=3e-4, atol=3e-4)
    torch.testing.assert_close(solution.reached, grid[-1:].expand(6), rtol=1e-12, atol=0.0)
    seen: list[Progress] = []
    encode(score, x, solver=TIGHT, callback=seen.append)
    for one in seen:  # told in the chain's own time and scale
        torch.testing.assert_close(one.x, problem.flow(sde, x, sde.t_min, one.t), **CLOSE)
    with pytest.warns(IncompleteWarning, match="max_steps = 1"):
        few = sample(score, tuple(x.shape), x=end, solver=ProbabilityFlow(max_steps=1), denoise=False)
    assert few.reached is not None and bool((few.reached > sde.t_min).all() and (few.reached <= sde.T).all())
    process = Reverse(score, eta=0.0)
    given = ProbabilityFlow("rk4", options={"step_size": 0.01})  # steps in the chain's own time
    assert smoothed(given, process, grid).process is process and smoothed(TIGHT, process, grid).process is not process


@torch.no_grad()
def test_with_zero_terminal_snr_a_model_has_a_density_and_a_bare_score_has_not() -> None:
    sde, data = RectifiedFlow(T=1.0, t_min=0.05), mixture()
    x = points(data, sde, 3)
    model = ScoreModel(ExactNetwork(), sde, "x0", sigma_data=1.0).bind(label=torch.tensor(2))
    torch.testing.assert_close(
        log_prob(model, x, "exact", solver=TIGHT), data.log_prob(x, sde, sde.t_min), rtol=1e-4, atol=1e-4
    )
    exact = data.score(sde)
    with pytest.raises(ValueError, match="says nothing of x_0 where α"):
        log_prob(as_score(lambda x, t: exact(x, t), sde), x, "exact")


@pytest.mark.parametrize("sde", [VP(t_min=0.0), RectifiedFlow(t_min=0.0), EDM(t_min=0.0), Cosine(t_min=0.0)], ids=named)
@torch.no_grad()
def test_down_to_the_data_themselves(sde: SDE) -> None:
    """Where σ = 0 the slope of the ODE is f x - ½ g² s, whatever ε̂ may be."""
    problem = gaussian((3,))
    x, score = problem.sample(3, 3), problem.score(sde)
    error = prior_error(problem, sde, problem.flow(sde, x, 0.0, sde.T))
    torch.testing.assert_close(log_prob(score, x, "exact", solver=TIGHT), problem.log_prob(x) + error, **CLOSE)


@torch.no_grad()
def test_the_prior_is_the_only_approximation_and_is_small() -> None:
    problem = mixture()
    x = points(problem, VP(), 8)
    got = log_prob(problem.score(VP()), x, "exact", solver=TIGHT)
    # α_T = 0.0066 shifts p_T by that times the mean, and x_T is a few: 0.0066 · 3 · 3
    torch.testing.assert_close(got, problem.log_prob(x, VP(), VP().t_min), rtol=0, atol=0.06)


@torch.no_grad()
def test_hutchinson_is_exact_where_the_jacobian_is_diagonal() -> None:
    """v_i² = 1: Rademacher vectors see the diagonal without error, so one probe will do."""
    problem = Gaussian(normals(3, seed=2), torch.tensor([0.2, 0.5, 1.5]))
    x, score = points(problem, VP(), 4), problem.score(VP())
    exact = log_prob(score, x, "exact", solver=TIGHT)
    for seed in (0, 1):
        torch.testing.assert_close(log_prob(score, x, noise=seed, solver=TIGHT), exact, **CLOSE)


@torch.no_grad()
def test_hutchinson_is_unbiased_and_probes_are_averaged() -> None:
    problem = gaussian((4,))
    x, score = points(problem, VP(), 1), problem.score(VP())
    exact = log_prob(score, x, "exact", solver=TIGHT)
    # One row for each probe: 400 independent estimates of the same number in one solve.
    many = log_prob(score, x.expand(400, 4).contiguous(), noise=IndependentNoise(0))
    assert float(many.std()) > 0.1  # full covariance: the estimate does vary
    assert abs(float(many.mean() - exact)) < 5 * float(many.std()) / math.sqrt(400)
    # A Gaussian's divergence does not depend on the path, so two probes give the mean of their two estimates.
    draws = PerSampleNoise(5)
    one = [log_prob(score, x, noise=draws, solver=TIGHT) for _ in range(2)]
    both = log_prob(score, x, noise=PerSampleNoise(5), probes=2, solver=TIGHT)
    torch.testing.assert_close(both, (one[0] + one[1]) / 2, **CLOSE)
    assert float((one[0] - one[1]).abs()) > 1e-3


@torch.no_grad()
def test_hutchinson_after_sampling_with_the_same_seed_is_unbiased() -> None:
    """Probes that repeat the signs of x_T would not be: far from the middle of a mixture the Jacobian depends on x."""
    means = torch.tensor([[1.5, 1.5], [-1.5, -1.5]], dtype=torch.float64)
    problem, sde, n = GaussianMixture(torch.ones(2), means, 0.1), VP(t_min=0.01), 2000
    score = problem.score(sde)
    x = sample(score, (n, 2), steps=8, denoise=False, dtype=torch.float64).x
    solver = ProbabilityFlow(rtol=1e-4, atol=1e-4)
    error = log_prob(score, x, solver=solver) - log_prob(score, x, "exact", solver=solver)
    # four standard errors; both solves have the same error of the order of the tolerance, far below it
    assert abs(float(error.mean())) < 4 * float(error.std()) / math.sqrt(n)
    assert float(error.std()) > 0.1


def test_noise_is_a_seed_and_does_not_touch_global_randomness() -> None:
    problem, state = mixture((3,)), torch.get_rng_state()
    x, score = points(problem, VP(), 12), problem.score(VP())  # 2^24 choices of signs
    a, b, c = (log_prob(score, x, noise=n) for n in (1, PerSampleNoise(1), 2))
    assert torch.equal(a, b) and not torch.allclose(a, c)
    assert torch.equal(log_prob(score, x), log_prob(score, x, noise=0))
    assert torch.equal(state, torch.get_rng_state())


@torch.no_grad()
def test_samples_of_a_batch_do_not_mix() -> None:
    problem = mixture((3,))
    x, score = points(problem, VP(), 3), problem.score(VP())
    rows = torch.cat([log_prob(score, x[i : i + 1], "exact", solver=TIGHT) for i in range(3)])
    # adaptive steps are shared within a batch: the tolerance
    torch.testing.assert_close(log_prob(score, x, "exact", solver=TIGHT), rows, **CLOSE)


@torch.no_grad()
def test_other_methods_and_their_options() -> None:
    problem = gaussian((2,))
    sde = VP(t_min=0.05)
    x, score = points(problem, sde, 3), problem.score(sde)
    expected = log_prob(score, x, "exact", solver=TIGHT)
    fixed = ProbabilityFlow("rk4", options={"step_size": 0.02})
    # fourth order with 48 steps
    torch.testing.assert_close(log_prob(score, x, "exact", solver=fixed), expected, rtol=1e-4, atol=1e-4)
    coarse = log_prob(score, x, "exact", solver=ProbabilityFlow("rk4", options={"step_size": 0.5}))
    assert not torch.allclose(coarse, expected, rtol=1e-4, atol=1e-4)


# ---- bits per dimension ----


def test_bits_per_dim_is_its_formula() -> None:
    problem = mixture((2, 2))
    x, score, width = points(problem, VP(), 3), problem.score(VP()), 2 / 255
    got = bits_per_dim(score, x, width, dequantize=False, divergence="exact")
    nats = log_prob(score, x, "exact")
    # rounding
    torch.testing.assert_close(got, -(nats / 4 + math.log(width)) / math.log(2), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("factor", [0.5, 127.5])
@torch.no_grad()
def test_bits_per_dim_do_not_depend_on_the_units(factor: float) -> None:
    """Data, noise levels and bins scaled together: the same code length. In [-1, 1] or in 0..255."""
    problem = mixture()
    scaled = GaussianMixture(problem.weights, factor * problem.means, factor**2 * covariances(problem))
    a, b = VE(0.05, 20.0), VE(0.05 * factor, 20.0 * factor)
    x = points(problem, a, 3)
    one = bits_per_dim(problem.score(a), x, 0.1, noise=3, solver=TIGHT)
    two = bits_per_dim(scaled.score(b), factor * x, 0.1 * factor, noise=3, solver=TIGHT)
    torch.testing.assert_close(two, one, **CLOSE)
    assert not torch.allclose(one, bits_per_dim(problem.score(a), x, 0.2, noise=3, solver=TIGHT), **CLOSE)


def covariances(problem: GaussianMixture) -> Tensor:
    root = normals(2, 2, 2, seed=1)
    return root @ root.mT / 2 + 0.2 * torch.eye(2, dtype=torch.float64)


def test_dequantisation_is_uniform_over_the_bin() -> None:
    seen: list[Tensor] = []

    def score(x: Tensor, t: Tensor) -> Tensor:
        seen.append(x.detach())
        return -x

    x, width, n = torch.full((2000, 1), 0.3, dtype=torch.float64), 0.25, 2000
    bits_per_dim(as_score(score, VP()), x, width, solver=ProbabilityFlow(rtol=0.1, atol=0.1))
    u = ((seen[0] - x) / width + 0.5).flatten().sort().values
    assert float(u[0]) >= 0 and float(u[-1]) <= 1
    level = (torch.arange(n) + 0.5) / n
    # Kolmogorov-Smirnov: sqrt(n) D exceeds 2.3 once in 20000
    assert float((u - level).abs().max()) * math.sqrt(n) < 2.3
    seen.clear()
    bits_per_dim(as_score(score, VP()), x, width, dequantize=False, solver=ProbabilityFlow(rtol=0.1, atol=0.1))
    assert torch.equal(seen[0], x)


@torch.no_grad()
def test_bits_bound_the_code_length_of_the_bins_from_above() -> None:
    """Against -log2 of the bin's exact probability, for one value with 4000 draws of u."""
    problem, sde = Gaussian(torch.zeros(1, dtype=torch.float64), 1.0), VE(1e-4, 1000.0)
    score, x, width = problem.score(sde), torch.full((4000, 1), 1.2, dtype=torch.float64), 1.0
    bits = bits_per_dim(score, x, width, noise=IndependentNoise(0))
    law = torch.distributions.Normal(0.0, 1.0)
    exact = -math.log2(float(law.cdf(torch.tensor(1.7)) - law.cdf(torch.tensor(0.7))))
    # E[-log2 p(x + u)] = (½(1.2² + 1/12) + ½ log 2π)/log 2, by hand
    mean = (0.5 * (1.44 + 1 / 12) + 0.5 * math.log(2 * math.pi)) / math.log(2)
    error = 5 * float(bits.std()) / math.sqrt(4000)
    assert abs(float(bits.mean()) - mean) < error + 1e-3  # 1e-3: dopri5 at 1e-5 over log(1e7)
    assert mean > exact  # Jensen


# ---- encode and decode ----


@pytest.mark.parametrize("sde", SDES, ids=named)
@torch.no_grad()
def test_encoding_is_the_flow_and_decoding_its_inverse(sde: SDE) -> None:
    problem = gaussian((2, 2))
    x, score = points(problem, sde, 3), problem.score(sde)
    code = encode(score, x, solver=TIGHT)
    torch.testing.assert_close(code, problem.flow(sde, x, sde.t_min, sde.T), **CLOSE)
    torch.testing.assert_close(decode(score, code, solver=TIGHT), x, rtol=1e-4, atol=1e-4)  # back down: σ_T/σ_0 times


def test_codes_of_data_are_standard_normal() -> None:
    problem, n = mixture(), 2000
    sde = VP()
    code = encode(problem.score(sde), points(problem, sde, n))
    # 5 standard errors, and 0.0066·3 for the mean that p_T keeps
    assert float(code.mean(0).abs().max()) < 5 / math.sqrt(n) + 0.02
    identity = torch.eye(2, dtype=torch.float64)
    assert float((torch.cov(code.T) - identity).abs().max()) < 5 * math.sqrt(2 / n) + 0.02


# ---- models and conditions ----


class ExactNetwork:
    """E[x_0 | x] of a mixture from x/sqrt(α² + σ²) and log(σ/α); label 2 = no condition."""

    def __init__(self) -> None:
        data = mixture()
        self.scores = [data.score(EDM(T=1e9), k) for k in (0, 1, None)]

    def __call__(self, x: Tensor, c: Tensor, label: Tensor) -> Tensor:
        sigma = c.exp()
        raw = x * (1 + sigma[:, None] ** 2).sqrt()
        chosen = nn.functional.one_hot(label.expand(len(x)), 3).T[:, :, None]
        scores = torch.stack([score(raw, sigma) for score in self.scores])
        return raw + sigma[:, None] ** 2 * (chosen * scores).sum(0)


@torch.no_grad()
def test_a_bound_model_is_a_score_like_any_other() -> None:
    sde, data = VP(), mixture()
    model = ScoreModel(ExactNetwork(), sde, "x0", sigma_data=1.0)
    x = points(data, sde, 3)
    label = torch.tensor([0, 1, 0])
    bound = model.bind(label=label)
    calls: list[Callable[[Score], Tensor]] = [
        lambda score: log_prob(score, x),
        lambda score: bits_per_dim(score, x, 0.1),
        lambda score: encode(score, x),
        lambda score: decode(score, x),
    ]
    for call in calls:
        assert torch.equal(call(bound), call(as_score(bound, sde)))
        # of its values alone: rounding, which moves adaptive steps
        torch.testing.assert_close(call(as_score(lambda x, t: bound(x, t), sde)), call(bound), rtol=1e-6, atol=1e-6)
    # and a condition's density is its component's
    for k in (0, 1):
        got = log_prob(model.bind(label=torch.tensor(k)), x, "exact", solver=TIGHT)
        part = Gaussian(data.means[k], covariances(data)[k])
        error = prior_error(part, sde, part.flow(sde, x, sde.t_min, sde.T))
        torch.testing.assert_close(got, part.log_prob(x, sde, sde.t_min) + error, **CLOSE)


# ---- gradients ----


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(3, 6, dtype=torch.float64), nn.Linear(6, 2, dtype=torch.float64)
        with torch.no_grad():
            for i, p in enumerate(self.parameters()):
                p.copy_(0.3 * normals(*p.shape, seed=i))

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        return self.second(torch.tanh(self.first(torch.cat([x, c[:, None].to(x)], 1))))


@pytest.mark.parametrize("function", ["log_prob", "hutchinson", "encode", "decode"])
def test_gradients_direct_and_by_the_adjoint(function: str) -> None:
    def gradients(adjoint: bool) -> Tensor:
        model = ScoreModel(Net(), VP(t_min=0.1), "v")
        x = normals(2, 2, seed=7).requires_grad_(True)
        solver = ProbabilityFlow(rtol=1e-6, atol=1e-6, adjoint=adjoint)
        value = {
            "log_prob": lambda: log_prob(model, x, "exact", solver=solver),
            "hutchinson": lambda: log_prob(model, x, solver=solver),
            "encode": lambda: encode(model, x, solver=solver),
            "decode": lambda: decode(model, x, solver=solver),
        }[function]()
        grads = torch.autograd.grad((value * normals(*value.shape, seed=8)).sum(), [x, *model.parameters()])
        return torch.cat([g.flatten() for g in grads])

    direct, adjoint = gradients(False), gradients(True)
    # tolerance of both solves, over some tens of steps
    assert float((direct - adjoint).norm() / direct.norm()) < 1e-3
    assert float(direct[4:].norm()) > 0


def test_the_gradient_of_log_prob_is_the_score() -> None:
    sde, problem = VP(t_min=0.05), mixture()
    score, x = problem.score(sde), points(problem, sde, 2).requires_grad_(True)
    value = log_prob(score, x, "exact", solver=TIGHT) - prior_error(problem, sde, encode(score, x, solver=TIGHT))
    (gradient,) = torch.autograd.grad(value.sum(), x)
    torch.testing.assert_close(gradient, problem.score(sde)(x.detach(), torch.tensor(0.05)), rtol=1e-3, atol=1e-3)


def test_no_graph_is_kept_without_gradients() -> None:
    problem = mixture()
    x, score = points(problem, VP(), 2), problem.score(VP())
    with torch.no_grad():
        quiet = log_prob(score, x, "exact")
    assert not quiet.requires_grad and not x.requires_grad
    torch.testing.assert_close(quiet, log_prob(score, x, "exact").detach(), rtol=1e-12, atol=1e-12)  # rounding


# ---- shapes, dtypes, refusals ----


def test_events_without_axes_empty_batches_and_batches_of_one() -> None:
    score = as_score(lambda x, t: -x, VP())
    for divergence in ("exact", "hutchinson"):
        assert log_prob(score, torch.zeros(3), divergence).shape == (3,)  # type: ignore[arg-type]
        for n in (0, 1):
            x = torch.zeros(n, 2, 2)
            assert log_prob(score, x, divergence).shape == (n,)  # type: ignore[arg-type]
    assert bits_per_dim(score, torch.zeros(0, 2), 0.1).shape == (0,)
    assert encode(score, torch.zeros(0, 2)).shape == decode(score, torch.zeros(0, 2)).shape == (0, 2)
    # N(0, I) is stationary under VP: its log-density to float32
    expected = torch.full((1,), -2 * math.log(2 * math.pi))
    torch.testing.assert_close(log_prob(score, torch.zeros(1, 2, 2), "exact"), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_half_precision(dtype: torch.dtype) -> None:
    """States keep their dtype; a log-density of hundreds of nats does not fit half precision and comes in float32."""
    score = as_score(lambda x, t: -x, VP())
    x = torch.randn(2, 64, generator=torch.Generator().manual_seed(0)).to(dtype)
    expected = torch.distributions.Normal(0.0, 1.0).log_prob(x.float()).sum(1)
    for divergence in ("exact", "hutchinson"):
        got = log_prob(score, x, divergence)  # type: ignore[arg-type]
        assert got.dtype == torch.float32
        # each evaluation rounds 64 terms to 2^-8 (bfloat16), times the integral of β/2 = 5
        torch.testing.assert_close(got, expected, rtol=0, atol=2.0 if dtype != torch.float32 else 0.05)
    assert encode(score, x).dtype == decode(score, x).dtype == dtype
    assert bool(bits_per_dim(score, x, 0.1).isfinite().all())


SCORE, X = as_score(lambda x, t: -x, VP()), torch.zeros(2, 2)


@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        (lambda: log_prob(lambda x, t: -x, X), TypeError, r"must be a Score.*as_score\(score, sde\)"),  # type: ignore[arg-type]
        (lambda: encode(lambda x, t: -x, X), TypeError, "must be a Score"),  # type: ignore[arg-type]
        (lambda: decode(Reverse(SCORE), X), TypeError, "must be a Score"),  # type: ignore[arg-type]
        (lambda: log_prob(VP(), X), TypeError, "got the SDE VP: a score knows its own"),  # type: ignore[arg-type]
        (lambda: log_prob(SCORE, X, label=1), TypeError, "label"),  # type: ignore[call-arg]
        (lambda: encode(SCORE, X, label=1), TypeError, "label"),  # type: ignore[call-arg]
        (lambda: log_prob(SCORE, X, "trace"), ValueError, "divergence"),  # type: ignore[arg-type]
        (lambda: log_prob(SCORE, X, probes=0), ValueError, "probes"),
        (lambda: log_prob(SCORE, X, probes=1.5), TypeError, "probes"),  # type: ignore[arg-type]
        (lambda: log_prob(SCORE, X, noise="a"), TypeError, "noise"),  # type: ignore[arg-type]
        (lambda: log_prob(SCORE, X.long()), TypeError, "floating"),
        (lambda: log_prob(SCORE, X * math.nan), ValueError, "NaN"),
        (lambda: log_prob(SCORE, torch.tensor(0.0)), ValueError, "batch axis"),
        (lambda: log_prob(SCORE, X, solver=ProbabilityFlow("rk5")), ValueError, "method must be"),
        (lambda: log_prob(SCORE, X, solver=ProbabilityFlow("rk4")), ValueError, "step_size"),
        (lambda: encode(SCORE, X, solver=ProbabilityFlow("euler")), ValueError, "step_size"),
        (lambda: decode(SCORE, X, solver=ProbabilityFlow("euler")), ValueError, "step_size"),
        (lambda: encode(SCORE, X.long()), TypeError, "floating"),
        (lambda: encode(SCORE, X / 0), ValueError, "NaN"),
        (lambda: decode(SCORE, X.long()), TypeError, "floating"),
        (lambda: decode(SCORE, X / 0), ValueError, "NaN"),
        (lambda: bits_per_dim(SCORE, X, 0.0), ValueError, "bin_width"),
        (lambda: bits_per_dim(SCORE, X, -0.1), ValueError, "bin_width"),
        (lambda: bits_per_dim(SCORE, X.long(), 0.1), TypeError, "floating"),
        (lambda: bits_per_dim(SCORE, X, 0.1, stepsize=3), TypeError, "stepsize"),
    ],
)
def test_bad_input(call: Callable[[], Any], error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        call()


@pytest.mark.parametrize(
    ("score", "error", "match"),
    [
        (lambda x, t: -x.detach(), ValueError, "does not depend on x"),
        (lambda x, t: torch.ones_like(x), ValueError, "does not depend on x"),
        (lambda x, t: x[:, :1], ValueError, "shaped like x"),
        (lambda x, t: x * math.nan, FloatingPointError, "NaN"),
    ],
)
def test_bad_scores(score: Any, error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        log_prob(as_score(score, VP()), X)
    fixed = ProbabilityFlow("euler", options={"step_size": 0.1})
    if error is FloatingPointError:
        for function in (log_prob, encode, decode):
            with pytest.raises(FloatingPointError):
                function(as_score(score, VP()), X, solver=fixed)
