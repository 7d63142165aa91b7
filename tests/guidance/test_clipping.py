"""Clipping and dynamic thresholding of x̂_0: the formulas, where they are inactive, and that they stay Scores."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from scoresde import EDM, VP, Reverse, ScoreModel, sample
from scoresde.guidance import NonlinearGuidance, autoguidance, clip, threshold
from scoresde.models import score_of_denoiser
from scoresde.particles import tilted
from scoresde.problems import Gaussian, GaussianMixture
from scoresde.solvers import DDIM, EulerMaruyama

F64 = torch.float64
SDE = VP()
T = torch.tensor(0.4, dtype=F64)
EACH = torch.tensor([0.05, 0.3, 0.6, 0.9], dtype=F64)
# A few roundings of float64, of numbers around 1 whose coefficients (1/σ², α/σ²) reach 400 at t = 0.05
ROUNDING = {"rtol": 1e-12, "atol": 1e-12}


def normals(*shape: int, seed: int = 0, dtype: torch.dtype = F64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def wild(scale: float = 3.0):
    """A denoiser whose x̂_0 leaves [-1, 1] in some elements and stays in it in others."""
    return score_of_denoiser(lambda x, t: scale * x, SDE)


X = normals(4, 3, 5)


@pytest.mark.parametrize("t", [T, EACH], ids=["one time", "a time for each"])
def test_what_lies_in_the_range_is_left_as_it_is(t: Tensor) -> None:
    # E[x_0 | x_t] of the mixture is a convex combination of points near its means: within 5 here
    means = torch.tensor([[-1.0, 0.5], [2.0, -0.5]], dtype=F64)
    exact = GaussianMixture(torch.tensor([0.3, 0.7], dtype=F64), means, 0.1 * torch.eye(2, dtype=F64).expand(2, 2, 2))
    score, x = exact.score(SDE), normals(4, 2)
    for same in (clip(score, 50.0), threshold(score, limit=50.0)):
        torch.testing.assert_close(same.denoise(x, t), score.denoise(x, t), **ROUNDING)
        torch.testing.assert_close(same(x, t), score(x, t), rtol=1e-10, atol=1e-10)  # (α x̂_0 - x)/σ² cancels
        torch.testing.assert_close(same.noise(x, t), score.noise(x, t), rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("t", [T, EACH], ids=["one time", "a time for each"])
@pytest.mark.parametrize(
    ("limit", "low", "high"), [(1.0, -1.0, 1.0), ((0.0, 2.0), 0.0, 2.0), ((0, math.inf), 0.0, 1e9)]
)
def test_clipped_predictions_are_those_of_the_formula(t: Tensor, limit, low: float, high: float) -> None:
    score = clip(wild(), limit)
    x0 = (3 * X).clamp(low, high)
    assert bool((x0 != 3 * X).any()) and bool((x0 == 3 * X).any())
    alpha, sigma = (v.reshape(-1, 1, 1) for v in (SDE.alpha(t), SDE.sigma(t)))
    torch.testing.assert_close(score.denoise(X, t), x0, **ROUNDING)
    torch.testing.assert_close(score(X, t), (alpha * x0 - X) / sigma**2, rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(score.noise(X, t), (X - alpha * x0) / sigma, rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(score.linear(X, t, 0.7, -0.2), 0.7 * X - 0.2 * (alpha * x0 - X) / sigma**2, **ROUNDING)


@pytest.mark.parametrize("quantile", [0.0, 0.37, 0.9, 1.0])
@pytest.mark.parametrize(("limit", "largest"), [(1.0, math.inf), (0.5, 2.0), (1.0, 1.0)])
def test_thresholding_is_imagens_formula(quantile: float, limit: float, largest: float) -> None:
    x0 = (3 * X).flatten(1)
    s = torch.quantile(x0.abs(), quantile, dim=1).clamp(limit, largest)[:, None]
    expected = (x0.clamp(-s, s) * limit / s).reshape(X.shape)
    score = threshold(wild(), quantile, limit=limit, largest=largest)
    torch.testing.assert_close(score.denoise(X, T), expected, **ROUNDING)
    assert score.denoise(X, T).abs().max() <= limit * (1 + 1e-15)


def test_thresholding_with_the_limit_as_largest_is_clipping() -> None:
    torch.testing.assert_close(threshold(wild(), largest=1.0)(X, T), clip(wild())(X, T), **ROUNDING)


@pytest.mark.parametrize("make", [lambda s: clip(s, 0.7), lambda s: threshold(s, 0.8)], ids=["clip", "threshold"])
class TestBoth:
    def test_each_sample_is_bent_on_its_own(self, make) -> None:
        whole = make(wild())(X, EACH)
        for i in range(len(X)):
            torch.testing.assert_close(make(wild())(X[i : i + 1], EACH[i : i + 1]), whole[i : i + 1], rtol=0, atol=0)
        spoilt = X.clone()
        spoilt[2] = math.nan
        assert torch.equal(make(wild())(spoilt, EACH)[[0, 1, 3]], whole[[0, 1, 3]])

    def test_other_shapes_and_an_empty_batch(self, make) -> None:
        for shape in ((4,), (4, 1), (0, 3, 5), (1, 2, 2, 2, 2)):
            x = normals(*shape)
            assert make(wild()).denoise(x, T).shape == shape

    def test_half_precision_is_the_same_to_its_rounding(self, make) -> None:
        x = X.bfloat16()
        found = make(wild()).denoise(x, T)
        assert found.dtype == torch.bfloat16
        # 3 x is rounded to 8 bits, and so is the answer; the quantile moves by as much
        torch.testing.assert_close(found.double(), make(wild()).denoise(x.double(), T), rtol=2**-6, atol=2**-6)

    def test_gradients_are_those_of_differences(self, make) -> None:
        x = normals(2, 3, seed=3).requires_grad_(True)
        assert torch.autograd.gradcheck(lambda x: make(wild())(x, T), (x,))

    def test_samples_of_every_solver_end_in_the_range(self, make) -> None:
        for solver in (DDIM(), EulerMaruyama()):
            found = sample(make(wild()), (3, 4), solver=solver, steps=8, seed=0)
            assert found.x.abs().max() <= 1.0

    def test_it_wraps_guidance_and_models_and_is_no_weighted_sum(self, make) -> None:
        net = nn.Linear(5, 5, dtype=F64)
        model = ScoreModel(lambda x, c: net(x), SDE, "x0")
        guided = make(autoguidance(model, wild(), 2.0))
        expected = make(score_of_denoiser(lambda x, t: 2 * net(x) - 3 * x, SDE))
        torch.testing.assert_close(guided.denoise(X, T), expected.denoise(X, T), **ROUNDING)
        assert isinstance(guided, NonlinearGuidance) and guided.sde is SDE
        assert guided.amplification == autoguidance(model, wild(), 2.0).amplification
        with pytest.raises(TypeError, match="prediction of x_0"):
            tilted(guided, (2, 5), particles=4, seed=0)


def test_nothing_is_lost_where_noise_hides_the_data() -> None:
    """At σ/α = 80 a step of DDIM in float32 keeps x̂_0 to float32: coefficients meet before the tensors."""
    sde, x = EDM(), 80.0 * normals(4, 6, dtype=torch.float32)
    exact = Gaussian(torch.zeros(6, dtype=F64), 0.2 * torch.eye(6, dtype=F64)).score(sde)
    step = DDIM().solve(Reverse(clip(exact, 1.0), eta=0.0), x, torch.tensor([80.0, 1e-3], dtype=F64), denoise=False)
    x0 = exact.denoise(x.double(), 80.0).clamp(-1, 1)
    torch.testing.assert_close(step.x.double(), x0 + 1e-3 * (x.double() - x0) / 80, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda s: clip(s, 0.0), "limit must be positive"),
        (lambda s: clip(s, (1.0, 1.0)), "low < high"),
        (lambda s: clip(s, (-math.inf, math.inf)), "not both infinite"),
        (lambda s: clip(s, (1.0, 2.0, 3.0)), "one number, or two"),
        (lambda s: threshold(s, 1.5), "quantile must be a number from 0 to 1"),
        (lambda s: threshold(s, limit=math.inf), "limit must be"),
        (lambda s: threshold(s, largest=0.5), "largest must be at least limit"),
    ],
)
def test_wrong_limits_are_refused(call, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        call(wild())
