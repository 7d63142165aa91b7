"""Guidance answers every combination of x, x̂_0 and the score: one quantity, and nothing lost where σ/α is large."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from strategies import ZERO_TERMINAL, bare, name, normal
from torch import Tensor, nn

from scoresde import grids
from scoresde.guidance import autoguidance, cfg_plus_plus, classifier, classifier_free, compose, projected
from scoresde.models import PREDICTIONS, ClassifierModel, Score, ScoreModel, as_score
from scoresde.models.combination import Expectation, Linear
from scoresde.problems import GaussianMixture
from scoresde.reverse import Reverse
from scoresde.sampling import sample
from scoresde.sde import EDM, SDE, VE, VP, Cosine, RectifiedFlow
from scoresde.solvers import DDIM, DPMSolverPP, Heun, Solver, SpectralMultistep

NONE = 2  # the label of no class
SAYS_X0 = ("x0", "v", "velocity", "edm")


class Classes(nn.Module):
    """EDM's network, exactly, of x_0 ~ N(μ_k, s² I), or of both classes at once, in the dtype of its weights.

    With x̃ = x/α, σ̃ = σ/α and u = x̃ / sqrt(1 + σ̃²), its input: F_k = [σ̃ (s² - 1) u + σ̃ sqrt(1 + σ̃²) μ_k] / (s² + σ̃²),
    which has no cancellation at any σ̃, so that what it rounds is its own output alone.
    """

    def __init__(self, dtype: torch.dtype, s: float = 0.6) -> None:
        super().__init__()
        self.means = nn.Parameter(torch.linspace(-1, 1, 6).outer(torch.tensor([1.0, -0.5])).T.to(dtype))
        self.s, self.null_conditions = s, {"label": NONE}

    def forward(self, u: Tensor, c: Tensor, label: Tensor) -> Tensor:
        ratio = c.double()[:, None].exp()
        total, size = self.s**2 + ratio**2, (1 + ratio**2).sqrt()
        means = self.means.double()
        # log N(x̃; μ_k, s² + σ̃²), without what all k share
        joint = (size * u.double() / total) @ means.T - means.square().sum(1) / (2 * total)
        share = torch.where((label == NONE)[:, None], joint.softmax(1), nn.functional.one_hot(label.clamp_max(1), 2))
        return ((ratio * (self.s**2 - 1) * u + ratio * size * (share @ means)) / total).to(u.dtype)


def classes(sde: SDE, dtype: torch.dtype = torch.float64) -> ScoreModel:
    return ScoreModel(Classes(dtype), sde, "edm", sigma_data=1.0)


def smooth(sde: SDE, predicts: str = "v", dtype: torch.dtype = torch.float64) -> ScoreModel:
    """Some conditional network."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.null_conditions = {"label": NONE}
            self.weight = nn.Parameter(normal(3, 2, seed=3).to(dtype))

        def forward(self, x: Tensor, c: Tensor, label: Tensor) -> Tensor:
            return torch.tanh(x + self.weight[label]) * (1 + 0.1 * torch.tanh(c[:, None].to(x)))

    return ScoreModel(Net(), sde, predicts, sigma_data=1.0)


def rising(sde: SDE) -> Callable[[Tensor], Tensor]:
    """A scale that is one function of σ/α under every SDE."""
    return lambda t: 1 + sde.sigma(t) / (sde.alpha(t) + sde.sigma(t))


GUIDED: dict[str, Callable[[ScoreModel], Score]] = {
    "classifier_free": lambda m: classifier_free(m, {"label": 0}, 2.5),
    "negative": lambda m: classifier_free(m, {"label": 0}, 2.5, negative=1),
    "compose": lambda m: compose(m, [(2.0, {"label": 0}), (-0.5, {"label": 1})]),
    "projected": lambda m: projected(m, {"label": 0}, 2.5, parallel=0.3, norm=2.0),
    "autoguidance": lambda m: autoguidance(m.bind(label=0), m.bind(label=NONE), 1.7),
    "schedule": lambda m: classifier_free(m, {"label": 0}, rising(m.sde)),
    "interval": lambda m: classifier_free(m, {"label": 0}, 2.5, interval=(0.3, math.inf)),
    "rescale": lambda m: classifier_free(m, {"label": 0}, 2.5, rescale=0.6),
}
"""By conditions alone, which α = 0 does not forbid."""

BY_GRADIENT: dict[str, Callable[[ScoreModel], Score]] = {
    "classifier": lambda m: classifier(m.bind(label=NONE), lambda x, t: -x.square(), 1.5, label=1, temperature=2.0),
    "classifier over guidance": lambda m: classifier(GUIDED["rescale"](m), lambda x, t: x.sin().sum(1), 0.7),
    "autoguidance of all": lambda m: autoguidance(BY_GRADIENT["classifier"](m), GUIDED["compose"](m), 1.5),
}
ALL = GUIDED | BY_GRADIENT


# ---- one quantity in three forms ----


@pytest.mark.parametrize("kind", ALL)
@pytest.mark.parametrize("predicts", sorted(PREDICTIONS))
@pytest.mark.parametrize("sde", [VP(), VE(), RectifiedFlow()], ids=name)
def test_any_combination_is_that_of_the_score(sde: SDE, predicts: str, kind: str) -> None:
    guided, x = ALL[kind](smooth(sde, predicts)), normal(4, 2, seed=4)
    each = sde.t_min + (sde.T - sde.t_min) * torch.tensor([0.1, 0.4, 0.7, 0.9], dtype=torch.float64)
    rows = torch.tensor([0.3, -1.0, 2.0, 0.0], dtype=torch.float64)
    for t in (each, each[1], each[2].item()):
        score = guided(x, t)
        alpha, sigma = (v.reshape(-1, 1) for v in (sde.alpha(t), sde.sigma(t)))
        x0, noise = (x + sigma**2 * score) / alpha, -sigma * score
        # sums in another order; ε̂ is (x - α x̂_0)/σ for what is guided in x̂_0, and x̂_0 is up to 50 with VE
        close = {"rtol": 1e-9, "atol": 1e-9 * float(score.detach().abs().max() + x0.detach().abs().max())}
        torch.testing.assert_close(guided.denoise(x, t), x0, **close)
        torch.testing.assert_close(guided.noise(x, t), noise, **close)
        for a, b in [(0.7, -0.4), (1.0, 2.0), (0.0, 1.0), (rows[1], rows[2]), (rows, rows.flip(0)), (rows, 0.5)]:
            of_x, of_b = (torch.as_tensor(c, dtype=torch.float64).reshape(-1, 1) for c in (a, b))
            torch.testing.assert_close(guided.linear(x, t, a, b), of_x * x + of_b * score, **close)
            torch.testing.assert_close(guided.expect(x, t, a, b), of_x * x0 + of_b * noise, **close)


@pytest.mark.parametrize("kind", ALL)
def test_times_are_not_rounded(kind: str) -> None:
    """A number is a float64 time, a float32 tensor the time that it holds; coefficients are float64 for both."""
    sde = RectifiedFlow(T=1 - 1e-6)
    guided, x = ALL[kind](smooth(sde)), normal(4, 2)
    t = 0.9999  # float32 makes α of it 1.0002e-4
    exact = guided.denoise(x, torch.tensor(t, dtype=torch.float64))
    assert torch.equal(guided.denoise(x, t), exact)
    rounded = torch.tensor(t)
    assert torch.equal(guided.denoise(x, rounded), guided.denoise(x, rounded.double()))
    assert not torch.allclose(guided.denoise(x, rounded), exact, rtol=1e-9, atol=0)
    each = torch.full((4,), t)
    # per sample, coefficients meet x as vectors and not as numbers: rounding
    torch.testing.assert_close(guided.denoise(x, each), guided.denoise(x, each.double()), rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize("kind", ALL)
def test_combinations_cost_no_more_than_the_score(kind: str) -> None:
    rows: list[int] = []
    model = smooth(VP())
    model.net.register_forward_hook(lambda net, given, out: rows.append(len(out)))  # type: ignore[union-attr,arg-type]
    guided, x, each = ALL[kind](model), normal(4, 2), torch.tensor([0.1, 0.4, 0.7, 0.9], dtype=torch.float64)
    for t in (0.5, each):
        guided(x, t)
        cost = list(rows)
        for ask in (guided.denoise, guided.noise, lambda x, t: guided.linear(x, t, 0.3, 2.0)):
            rows.clear()
            ask(x, t)
            assert rows == cost
        rows.clear()


@pytest.mark.parametrize("combination", [Linear(torch.arange(4.0).double(), 1.0), Expectation(0.5, torch.ones(4))])
def test_coefficients_are_reindexed_with_the_samples(combination: Any) -> None:
    taken = combination.for_samples(lambda c: c[torch.tensor([2, 0])])
    for before, after in zip(combination, taken, strict=True):
        assert before == after if isinstance(before, float) else torch.equal(after, before[torch.tensor([2, 0])])


# ---- precision ----


@pytest.mark.parametrize("kind", GUIDED)
@pytest.mark.parametrize("predicts", SAYS_X0)
@pytest.mark.parametrize("sde", [VE(sigma_max=1e6), RectifiedFlow(T=1 - 1e-6), EDM(T=1e6)], ids=name)
def test_float32_says_x0_where_sigma_over_alpha_is_a_million(sde: SDE, predicts: str, kind: str) -> None:
    x = (normal(8, 2) * sde.sigma(sde.T)).float()
    t = sde.t_of_log_snr(-2 * math.log(0.9e6))
    got, exact = (
        GUIDED[kind](smooth(sde, predicts, dtype)).denoise(x.to(dtype), time)
        for dtype, time in ((torch.float32, t), (torch.float64, t))
    )
    # a network's own rounding of 6e-8 times a scale of 2.5; through the score it would be eps σ/α = 0.06
    assert float((got.double() - exact).norm() / exact.norm()) < 1e-5
    each = GUIDED[kind](smooth(sde, predicts, torch.float32)).denoise(x, t.expand(8))
    assert float((each.double() - exact).norm() / exact.norm()) < 1e-5


RUNS = ("classifier_free", "compose", "projected", "autoguidance", "rescale")


SOLVERS: list[tuple[Solver, int]] = [
    (SpectralMultistep(), 7),
    (SpectralMultistep(), 25),
    (DDIM(), 25),
    (DPMSolverPP(), 10),
    (DPMSolverPP(order=3), 25),
    (Heun(), 10),
]


@pytest.mark.parametrize("kind", RUNS)
@pytest.mark.parametrize(("solver", "steps"), SOLVERS, ids=lambda v: name(v) if isinstance(v, Solver) else str(v))
@pytest.mark.parametrize("sde", [VE(sigma_max=1e6), RectifiedFlow(T=1 - 1e-6)], ids=name)
def test_a_guided_run_ends_with_the_deviation_of_float64(sde: SDE, solver: Solver, steps: int, kind: str) -> None:
    x = normal(500, 6) * sde.sigma(sde.T)
    exact = sample(GUIDED[kind](classes(sde)), (500, 6), solver=solver, steps=steps, x=x).x
    for dtype, room in ((torch.float32, 1e-3), (torch.bfloat16, 2e-2)):
        got = sample(GUIDED[kind](classes(sde, dtype)), (500, 6), solver=solver, steps=steps, x=x.float()).x
        assert got.dtype == torch.float32
        assert abs(got.std().item() / exact.std().item() - 1) < room
        assert float((got.mean(0) - exact.mean(0)).abs().max()) < room * exact.std().item()


# ---- zero terminal SNR ----


@pytest.mark.parametrize("kind", GUIDED)
@pytest.mark.parametrize("sde", ZERO_TERMINAL.values(), ids=ZERO_TERMINAL)
def test_guidance_by_conditions_starts_where_no_signal_is_left(sde: SDE, kind: str) -> None:
    guided = GUIDED[kind](classes(sde))
    x, near = normal(500, 6) * sde.prior_std, sde.t_of_log_snr(-2 * math.log(1e5))
    for t in (torch.tensor(sde.T), torch.full((500,), sde.T)):
        # x̂_0 of a time just before it, but for α/σ = 1e-5
        torch.testing.assert_close(guided.denoise(x, t), guided.denoise(x, near), rtol=1e-3, atol=1e-3)
        assert bool(guided(x, t).isfinite().all())
    got = sample(guided, (500, 6), steps=20, x=x).x
    before = sample(GUIDED[kind](classes(Cosine())), (500, 6), steps=20, x=x / sde.prior_std).x
    assert got.mean().item() == pytest.approx(before.mean().item(), abs=0.02)  # other grids, errors of 20 steps each
    assert got.std().item() == pytest.approx(before.std().item(), abs=0.02)


@pytest.mark.parametrize("sde", ZERO_TERMINAL.values(), ids=ZERO_TERMINAL)
def test_cfg_plus_plus_starts_where_no_signal_is_left(sde: SDE) -> None:
    """ω = λ σ̃_t/(σ̃_t - σ̃_s) is λ there, and the first step the paper's: α_s x̂_0^λ + σ_s ε̂(∅), ε̂ = x/σ."""
    model, grid, x = classes(sde), grids.karras(sde, 5), normal(8, 6) * sde.prior_std
    schedule = cfg_plus_plus(sde, grid, 0.6)
    assert schedule(grid[0]).item() == pytest.approx(0.6, rel=1e-12)
    got = DDIM().solve(Reverse(classifier_free(model, {"label": 0}, schedule), 0.0), x, grid[:2]).x
    none, given = (model.bind(label=label).denoise(x, grid[0]) for label in (NONE, 0))
    expected = sde.alpha(grid[1]) * (none + 0.6 * (given - none)) + sde.sigma(grid[1]) * x / sde.prior_std
    torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("kind", BY_GRADIENT)
@pytest.mark.parametrize("sde", ZERO_TERMINAL.values(), ids=ZERO_TERMINAL)
def test_a_classifier_is_refused_where_no_signal_is_left(sde: SDE, kind: str) -> None:
    """∇ log p(y | x_T) is 0 there, and its coefficient σ²/α in x̂_0 infinite."""
    guided, x = BY_GRADIENT[kind](smooth(sde)), normal(4, 2)
    words = (
        r"a classifier .* says nothing of x_0 where α\(t\) = 0.*Start below that time.*guide it by its own conditions"
    )
    for ask in (
        lambda: guided.denoise(x, sde.T),
        lambda: guided.denoise(x, torch.tensor([0.3, sde.T, 0.3, 0.3])),
        lambda: sample(guided, (4, 2), steps=5),
    ):
        with pytest.raises(ValueError, match=words):
            ask()
    assert bool(guided.denoise(x, 0.999).isfinite().all())
    assert bool(
        sample(classifier(smooth(sde).bind(label=1), lambda x, t: x[:, 0], 0.0), (4, 2), steps=5).x.isfinite().all()
    )


# ---- parts of other schedules ----


def test_parts_that_disagree_in_schedule_are_refused() -> None:
    score, x = smooth(VP()).bind(label=1), normal(2, 2)
    data = GaussianMixture(torch.ones(2), torch.tensor([[-1.0, 0.0], [1.0, 0.0]]).double(), 0.1)
    for other in (RectifiedFlow(), VP(beta_max=10.0), EDM()):
        for build in (
            lambda other=other: autoguidance(score, smooth(other).bind(label=1), 2.0),
            lambda other=other: autoguidance(data.score(other), score, 0.0),
            lambda other=other: classifier(score, ClassifierModel(lambda x, c: x, other), 2.0, label=1),
            lambda other=other: classifier(score, data.label_log_prob(other), 2.0, label=1),
        ):
            with pytest.raises(ValueError, match=r"means nothing under another schedule.*model\.under"):
                build()
    # the same schedule by another name, another end or a model carried over
    for same in (bare(VP()), VP(T=0.9, t_min=1e-4)):
        weak = as_score(lambda x, t: -x, same)
        assert autoguidance(score, weak, 2.0)(x, 0.5).shape == x.shape
        assert classifier(score, data.label_log_prob(same), 2.0, label=1)(x, 0.5).shape == x.shape
    moved = smooth(RectifiedFlow()).under(VP())
    assert autoguidance(score, moved.bind(label=1), 2.0)(x, 0.5).shape == x.shape


def test_scores_and_sdes_in_each_others_place_are_named() -> None:
    score = smooth(VP()).bind(label=1)
    for bad, words in (
        (lambda x, t: x, r"as_score\("),
        (VP(), "got the SDE VP: a score knows its own"),
        (None, "got NoneType"),
    ):
        for build in (lambda bad=bad: classifier(bad, lambda x, t: x), lambda bad=bad: autoguidance(bad, score)):
            with pytest.raises(TypeError, match=words):
                build()
        with pytest.raises(TypeError, match=f"weak must be a Score.*{words}"):
            autoguidance(score, bad)  # type: ignore[arg-type]


def test_a_derivative_by_time_sees_the_schedule_of_the_scale() -> None:
    """In forward mode as in reverse: a scale that is a function of t is not taken for a number."""
    model = ScoreModel(lambda x, c, label: x * (c[:, None] + label[:, None]).sin(), VP(), "v", sigma_data=1.0)
    score = classifier_free(model, {"label": torch.ones(3)}, lambda t: 1 + t**2, null={"label": torch.zeros(3)})
    x, t, step = normal(3, 2), torch.tensor(0.4, dtype=torch.float64), 1e-6
    expected = (score(x, t + step) - score(x, t - step)) / (2 * step)
    for found in (torch.func.jvp(lambda t: score(x, t), (t,), (torch.ones_like(t),))[1],
                  torch.func.jacrev(lambda t: score(x, t))(t)):  # fmt: skip
        torch.testing.assert_close(found, expected, rtol=1e-7, atol=1e-7)  # central differences
