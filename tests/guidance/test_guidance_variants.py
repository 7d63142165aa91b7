"""Variants of guidance: each against its paper's formula on exact scores, and what it asks of the network."""

from __future__ import annotations

import importlib
import json
import math
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from scoresde import grids
from scoresde.guidance import (
    LinearGuidance,
    NonlinearGuidance,
    Part,
    autoguidance,
    cfg_plus_plus,
    classifier,
    classifier_free,
    compose,
    from_scale,
    projected,
    to_scale,
)
from scoresde.guidance.parts import weighted_sum
from scoresde.models import ScoreModel, as_score, modules_of
from scoresde.models.combination import SCORE, X0
from scoresde.problems import GaussianMixture
from scoresde.reverse import Reverse
from scoresde.sampling import sample
from scoresde.sde import EDM, SDE, VE, VP, Cosine, RectifiedFlow, SubVP
from scoresde.solvers import DDIM, Heun

SDES: list[SDE] = [VP(), SubVP(), VE(), EDM(), Cosine(), RectifiedFlow()]
# Sums of a few terms, in two orders.
ROUNDING = {"rtol": 1e-10, "atol": 1e-10}
NONE = 3


def name(value: object) -> str:
    return type(value).__name__


def normals(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def mixture(event: tuple[int, ...] = (2,)) -> GaussianMixture:
    return GaussianMixture(torch.tensor([1.0, 2.0, 3.0]), normals(3, *event, seed=2), torch.tensor([0.1, 0.3, 0.2]))


class Exact(nn.Module):
    """E[x_0 | x] of a mixture, or of one component; label 3 is "no class". Notes the batch of each call."""

    def __init__(self, sde: SDE, event: tuple[int, ...] = (2,)) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.zeros((), dtype=torch.float64))
        self.sde, self.data = sde, mixture(event)
        self.null_conditions = {"label": NONE}
        self.batches: list[int] = []

    def forward(self, x: Tensor, c: Tensor, label: Tensor) -> Tensor:
        self.batches.append(len(x))
        t = self.sde.t_of_log_snr(-2 * c)
        scores = [self.data.score(self.sde, k)(x, t) for k in range(3)] + [self.data.score(self.sde)(x, t)]
        return torch.stack(scores)[label, torch.arange(len(x))] + self.shift


def model(sde: SDE | None = None, event: tuple[int, ...] = (2,)) -> ScoreModel:
    sde = VP() if sde is None else sde
    return ScoreModel(Exact(sde, event), sde, "score")


X, T, Y = normals(4, 2, seed=4), torch.tensor(0.4, dtype=torch.float64), torch.tensor([0, 1, 2, 1])
EACH = torch.tensor([0.05, 0.3, 0.6, 0.9], dtype=torch.float64)


def two(net: ScoreModel, x: Tensor, t: Tensor, label: Any = Y) -> tuple[Tensor, Tensor]:
    """The unconditional and the conditional score, from calls of their own that are not counted."""
    found = net(x, t, {"label": torch.full((len(x),), NONE)}), net(x, t, {"label": label})
    net.net.batches.clear()  # type: ignore[union-attr,operator]
    return found


def batches(net: ScoreModel) -> list[int]:
    return list(net.net.batches)  # type: ignore[arg-type]


def denoised(sde: SDE, x: Tensor, t: Tensor, score: Tensor) -> Tensor:
    alpha, sigma = (v.reshape(-1, *[1] * (x.ndim - 1)) for v in (sde.alpha(t), sde.sigma(t)))
    return (x + sigma**2 * score) / alpha


# ---- a scale that is a function of time ----


def test_a_schedule_is_asked_at_every_evaluation() -> None:
    net = model()
    guided = classifier_free(net, {"label": Y}, lambda t: 1 + 2 * t)
    for t in (T, EACH):
        none, cond = two(net, X, t)
        scale = (1 + 2 * t).reshape(-1, 1)
        torch.testing.assert_close(guided(X, t), none + scale * (cond - none), **ROUNDING)
        assert batches(net) == [8]


def test_a_schedule_costs_one_branch_where_it_is_0_or_1() -> None:
    net = model()
    guided = classifier_free(net, {"label": Y}, lambda t: torch.where(t < 0.2, 1.0, torch.where(t < 0.5, 0.0, 2.5)))
    none, cond = two(net, X, EACH)
    expected = torch.stack([cond[0], none[1], *(none + 2.5 * (cond - none))[2:]])
    torch.testing.assert_close(guided(X, EACH), expected, **ROUNDING)
    assert batches(net) == [1 + 1 + 2 + 2]
    for t, size in ((0.1, 4), (0.3, 4), (0.7, 8)):
        net.net.batches.clear()  # type: ignore[union-attr,operator]
        guided(X, torch.tensor(t, dtype=torch.float64))
        assert batches(net) == [size]


def test_a_constant_schedule_is_the_constant() -> None:
    net = model()
    for t in (T, EACH):
        torch.testing.assert_close(
            classifier_free(net, {"label": Y}, lambda t: 2.0)(X, t),
            classifier_free(net, {"label": Y}, 2.0)(X, t),
            **ROUNDING,
        )


# ---- interval ----


@pytest.mark.parametrize("sde", SDES, ids=name)
def test_the_interval_is_in_sigma_over_alpha_open_below_and_closed_above(sde: SDE) -> None:
    net, levels = model(sde), torch.tensor([0.2, 0.3, 0.7, 0.71], dtype=torch.float64)
    t = sde.t_of_log_snr(-2 * levels.log())
    guided = classifier_free(net, {"label": Y}, 3.0, interval=(0.2, 0.7))
    none, cond = two(net, X, t)
    inside = torch.tensor([False, True, True, False])[:, None]
    got = guided(X, t)
    # relative to the scores, which grow as 1/σ²
    torch.testing.assert_close(got, torch.where(inside, none + 3 * (cond - none), cond), rtol=1e-9, atol=1e-9)
    assert batches(net) == [4 + 2]  # only those inside are doubled
    for i, size in enumerate((4, 8, 8, 4)):
        net.net.batches.clear()  # type: ignore[union-attr,operator]
        torch.testing.assert_close(guided(X, t[i])[i], got[i], rtol=1e-9, atol=1e-9)
        assert batches(net) == [size]


def test_an_interval_without_a_sample_inside_costs_one_branch() -> None:
    net = model()
    got = classifier_free(net, {"label": Y}, 3.0, interval=(1e4, math.inf))(X, EACH)
    assert batches(net) == [4] and torch.equal(got, net(X, EACH, {"label": Y}))


def test_steps_inside_the_interval_are_what_a_run_pays_for() -> None:
    net, sde = model(EDM()), EDM()
    grid = grids.karras(sde, 12)
    guided = classifier_free(net, {"label": 1}, 2.0, interval=(0.3, 3.0))
    solution = sample(guided, (5, 2), solver=DDIM(), grid=grid, seed=0, dtype=torch.float64, denoise=False)
    level = sde.sigma(grid[:-1]) / sde.alpha(grid[:-1])
    inside = int(((level > 0.3) & (level <= 3.0)).sum())
    assert 0 < inside < 12 and solution.nfe == 12
    assert sum(batches(net)) == 5 * (12 + inside)


# ---- rescale ----


@pytest.mark.parametrize("sde", SDES, ids=name)
@pytest.mark.parametrize("share", [0.3, 1.0])
@pytest.mark.parametrize("event", [(3,), (1, 2, 3)])
def test_rescale_brings_back_the_deviation_of_the_conditional_prediction(
    sde: SDE, share: float, event: tuple[int, ...]
) -> None:
    net, x = model(sde, event), normals(4, *event, seed=5)
    for t in (sde.t_of_log_snr(0.5), sde.t_of_log_snr(torch.tensor([3.0, 1.0, 0.0, -1.0], dtype=torch.float64))):
        none, cond = two(net, x, t)
        guided = denoised(sde, x, t, none + 4 * (cond - none))
        wanted = denoised(sde, x, t, cond)
        axes = tuple(range(1, x.ndim))
        ratio = wanted.std(axes, keepdim=True) / guided.std(axes, keepdim=True)
        got = denoised(sde, x, t, classifier_free(net, {"label": Y}, 4.0, rescale=share)(x, t))
        torch.testing.assert_close(got, share * guided * ratio + (1 - share) * guided, rtol=1e-8, atol=1e-8)
        if share == 1:
            torch.testing.assert_close(got.std(axes), wanted.std(axes), rtol=1e-8, atol=1e-8)


def test_rescale_leaves_the_conditional_score_alone() -> None:
    net = model()
    for guided in (
        classifier_free(net, {"label": Y}, 1.0, rescale=0.7),
        classifier_free(net, {"label": Y}, 4.0, rescale=0.7, interval=(50.0, 60.0)),
    ):
        assert torch.equal(guided(X, T), net(X, T, {"label": Y}))


def test_rescale_of_a_constant_prediction_is_finite() -> None:
    flat = ScoreModel(lambda x, c, label: 0 * x + label[:, None], VP(), "x0")
    x = X.clone().requires_grad_(True)
    got = classifier_free(flat, {"label": 1}, 2.0, rescale=1.0, null=0)(x, T)
    (gradient,) = torch.autograd.grad(got.sum(), x)
    # x̂_0 is 2 everywhere but for rounding, whose deviation is what the ratio is made of
    assert bool(got.isfinite().all()) and bool(gradient.isfinite().all())


# ---- negative ----


def test_negative_conditions_take_the_place_of_none() -> None:
    net = model()
    cond, other = net(X, T, {"label": Y}), net(X, T, {"label": torch.zeros(4, dtype=torch.long)})
    expected = other + 3 * (cond - other)
    zero = torch.zeros(4, dtype=torch.long)
    for negative in (0, zero[0], zero[:1], zero, {"label": 0}, {"label": zero}):
        guided = classifier_free(net, {"label": Y}, 3.0, negative=negative)
        assert isinstance(guided, LinearGuidance)
        torch.testing.assert_close(guided(X, T), expected, **ROUNDING)
    torch.testing.assert_close(projected(net, {"label": Y}, 3.0, parallel=1.0, negative=0)(X, T), expected, **ROUNDING)


def test_negative_conditions_need_no_null_where_they_say_all() -> None:
    net = ScoreModel(lambda x, c, label: x * label[:, None], VP())
    a, b = net(X, T, {"label": Y}), net(X, T, {"label": torch.full((4,), 5)})
    torch.testing.assert_close(classifier_free(net, {"label": Y}, 2.0, negative=5)(X, T), b + 2 * (a - b), **ROUNDING)


def test_negative_conditions_may_be_others_than_the_positive_ones() -> None:
    def net(x: Tensor, c: Tensor, label: Tensor, size: Tensor) -> Tensor:
        return x * (1 + label[:, None]) + size.nan_to_num(7.0)[:, None]

    net.null_conditions = {"label": 9, "size": math.nan}  # type: ignore[attr-defined]
    wrapped = ScoreModel(net, VP())
    got = classifier_free(wrapped, {"label": Y}, 2.0, negative={"size": 3})(X, T)
    a = wrapped(X, T, {"label": Y, "size": torch.full((4,), math.nan)})
    b = wrapped(X, T, {"label": torch.full((4,), 9), "size": torch.full((4,), 3.0)})
    torch.testing.assert_close(got, b + 2 * (a - b), **ROUNDING)


# ---- CFG++ ----


def geometric(sde: SDE, steps: int) -> Tensor:
    return grids.log_snr(sde, steps)


@pytest.mark.parametrize("sde", SDES, ids=name)
@pytest.mark.parametrize("rule", [grids.uniform, grids.karras, geometric], ids=["uniform", "karras", "geometric"])
@pytest.mark.parametrize("strength", [0.0, 0.6, 1.0])
def test_cfg_plus_plus_is_the_papers_step(sde: SDE, rule: Callable[[SDE, int], Tensor], strength: float) -> None:
    net, grid = model(sde), rule(sde, 7)
    schedule = cfg_plus_plus(sde, grid, strength)
    x = normals(4, 2, seed=8) * sde.sigma(grid[0])
    process = Reverse(classifier_free(net, {"label": Y}, schedule), 0.0)
    got = DDIM().solve(process, x, grid, denoise=True)
    size = sde.sigma(grid[0]).item()
    for i, t in enumerate(grid):
        none, cond = two(net, x, t)
        clean = denoised(sde, x, t, none) + strength * (denoised(sde, x, t, cond) - denoised(sde, x, t, none))
        if i + 1 == len(grid):  # the last step, to σ = 0
            x = clean
        else:
            x = sde.alpha(grid[i + 1]) * clean + sde.sigma(grid[i + 1]) * (-sde.sigma(t) * none)
    # both are rounded at each step relative to the largest state, and x̂_0 divides by the least α
    least = min(sde.alpha(t).item() for t in grid)
    torch.testing.assert_close(got.x, x, rtol=1e-8, atol=1e-12 * max(size, 1) / least**2)


def test_cfg_plus_plus_is_a_constant_scale_on_geometric_levels() -> None:
    sde = EDM()
    grid = grids.log_snr(sde, 10)
    scales = cfg_plus_plus(sde, grid, 0.5)(grid)
    ratio = (sde.sigma(grid[1]) / sde.sigma(grid[0])).item()
    # the grid's times are found to about 1e-10
    torch.testing.assert_close(
        scales[:-1], torch.full((10,), 0.5 / (1 - ratio), dtype=torch.float64), rtol=1e-8, atol=0
    )
    assert scales[-1] == 0.5


def test_the_schedule_holds_from_each_time_down_to_the_next() -> None:
    sde, grid = VP(), grids.uniform(VP(), 4)
    schedule = cfg_plus_plus(sde, grid, 0.5)
    at = schedule(grid)
    between = (grid[:-1] + grid[1:]) / 2
    assert torch.equal(schedule(between), at[:-1]) and len(at.unique()) == 5
    assert torch.equal(schedule(grid.float()), at)  # times rounded to float32 are the same times
    assert torch.stack([schedule(t) for t in grid]).equal(at) and schedule(grid[2]).shape == ()
    assert schedule(torch.tensor(1e-9)) == 0.5
    part = cfg_plus_plus(sde, grid[2:], 0.5)
    assert part(torch.tensor(1.0)) == part(grid[2])


def test_cfg_plus_plus_differentiates_through_the_grid() -> None:
    def scales(end: Tensor) -> Tensor:
        grid = torch.stack([torch.tensor(1.0, dtype=torch.float64), 0.5 + 0 * end, end])
        return cfg_plus_plus(VP(), grid, 0.5)(grid)

    assert torch.autograd.gradcheck(scales, torch.tensor(0.1, dtype=torch.float64, requires_grad=True))


# ---- projected ----


@pytest.mark.parametrize("sde", SDES, ids=name)
@pytest.mark.parametrize("parallel", [0.0, 0.4])
@pytest.mark.parametrize("norm", [None, 0.3])
def test_projected_is_the_papers_algorithm(sde: SDE, parallel: float, norm: float | None) -> None:
    event = (1, 2, 2)
    net, x = model(sde, event), normals(4, *event, seed=6)
    for t in (sde.t_of_log_snr(0.5), sde.t_of_log_snr(torch.tensor([3.0, 1.0, 0.0, -1.0], dtype=torch.float64))):
        none, cond = (denoised(sde, x, t, score).flatten(1) for score in two(net, x, t))
        delta = cond - none
        length = delta.norm(dim=1, keepdim=True)
        if norm is not None:
            assert bool((length > norm).any())  # the limit is at work
            delta = delta * (norm / length).clamp_max(1.0)
        unit = cond / cond.norm(dim=1, keepdim=True)
        along = (delta * unit).sum(1, keepdim=True) * unit
        expected = cond + (5.0 - 1) * (delta - along + parallel * along)
        score = projected(net, {"label": Y}, 5.0, parallel=parallel, norm=norm)(x, t)
        torch.testing.assert_close(denoised(sde, x, t, score).flatten(1), expected, rtol=1e-8, atol=1e-8)


def test_projected_with_all_of_the_parallel_part_is_classifier_free() -> None:
    net = model()
    for t in (T, EACH):
        a = projected(net, {"label": Y}, 3.0, parallel=1.0)(X, t)
        torch.testing.assert_close(a, classifier_free(net, {"label": Y}, 3.0)(X, t), **ROUNDING)


def test_projected_takes_schedules_and_intervals_and_spares_branches() -> None:
    net = model()
    guided = projected(net, {"label": Y}, lambda t: 1 + t, parallel=1.0, interval=(0.3, 2.0))
    same = classifier_free(net, {"label": Y}, lambda t: 1 + t, interval=(0.3, 2.0))
    for t in (T, EACH):
        torch.testing.assert_close(guided(X, t), same(X, t), **ROUNDING)
    for scale, label in ((1.0, Y), (0.0, torch.full((4,), NONE))):
        net.net.batches.clear()  # type: ignore[union-attr,operator]
        got = projected(net, {"label": Y}, scale, parallel=1.0)(X, T)
        assert batches(net) == [4] and torch.equal(got, net(X, T, {"label": label}))


# ---- at scale 0 ----


@pytest.mark.parametrize(
    "build",
    [
        partial(projected, parallel=0.0),
        partial(projected, parallel=0.4, norm=0.3),
        partial(projected, parallel=1.0, norm=0.3),
        partial(projected, parallel=1.0),
        partial(classifier_free, rescale=0.7),
        classifier_free,
    ],
    ids=["projected", "parallel and norm", "norm", "parallel alone", "rescale", "classifier_free"],
)
def test_no_guidance_jumps_at_scale_0(build: Callable[..., Any]) -> None:
    """Each is smooth in its scale, so that its value at 0 is the mean of those at ±h, up to h²."""
    net, h = model(), 1e-4
    for t in (T, EACH):
        low, at, high = (build(net, {"label": Y}, scale)(X, t) for scale in (-h, 0.0, h))
        assert float((high - low).detach().abs().max()) > 1e-5  # the scale is at work
        # h² times a second derivative of order 1
        torch.testing.assert_close(at, (low + high) / 2, rtol=0, atol=1e-6)

        def each(t: Tensor) -> Tensor:
            return torch.tensor([0.0, 1.0, 2.5, 0.0], dtype=torch.float64)

        mixed = build(net, {"label": Y}, each)(X, EACH)
        for i, scale in enumerate(each(EACH).tolist()):
            torch.testing.assert_close(mixed[i], build(net, {"label": Y}, scale)(X, EACH)[i], **ROUNDING)


def test_what_bends_the_difference_needs_both_branches_at_0_and_one_at_1() -> None:
    net, scales = model(), torch.tensor([0.0, 1.0, 1.0, 2.0], dtype=torch.float64)
    for build, size in ((projected, 4 + 2), (partial(classifier_free, rescale=0.5), 4 + 2), (classifier_free, 4 + 1)):
        net.net.batches.clear()  # type: ignore[union-attr,operator]
        build(net, {"label": Y}, lambda t: scales)(X, EACH)  # type: ignore[operator]
        assert batches(net) == [size]
        build(net, {"label": Y}, 0.0)(X, T)  # type: ignore[operator]
        assert batches(net)[1] == (4 if build is classifier_free else 8)


def test_a_parallel_that_learns_gets_its_gradient_at_scale_0() -> None:
    def value(parallel: Tensor) -> Tensor:
        return projected(model(), {"label": Y}, 0.0, parallel=parallel)(X, T).detach()  # type: ignore[arg-type]

    one = torch.tensor(1.0, dtype=torch.float64, requires_grad=True)
    got = projected(model(), {"label": Y}, 0.0, parallel=one)(X, T)  # type: ignore[arg-type]
    (gradient,) = torch.autograd.grad(got.sum(), one)
    # affine in parallel
    slope = (value(torch.tensor(2.0)) - value(torch.tensor(1.0))).sum()
    torch.testing.assert_close(gradient, slope, **ROUNDING)


# ---- autoguidance ----


@pytest.mark.parametrize("scale", [-0.5, 0.4, 2.0])
def test_autoguidance_is_its_formula(scale: float) -> None:
    strong, weak = model().bind(label=Y), model().bind(label=NONE * torch.ones(4).long())
    a, b = strong(X, EACH), weak(X, EACH)
    guided = autoguidance(strong, weak, scale)
    torch.testing.assert_close(guided(X, EACH), b + scale * (a - b), **ROUNDING)


def test_autoguidance_at_0_and_1_evaluates_one_score() -> None:
    def never(x: Tensor, t: Tensor) -> Tensor:
        raise AssertionError("called")

    score, other = model().bind(label=Y), as_score(never, VP())
    assert torch.equal(autoguidance(score, other)(X, T), score(X, T))
    assert torch.equal(autoguidance(other, score, 0.0)(X, T), score(X, T))


# ---- what is a weighted sum, and what is none ----


def linear(net: ScoreModel) -> dict[str, Any]:
    score, log_prob = net.bind(label=Y), mixture().label_log_prob(net.sde)
    free = classifier_free(net, {"label": Y}, 3.0)
    return {
        "classifier_free": free,
        "negative": classifier_free(net, {"label": Y}, 3.0, negative=1),
        "classifier": classifier(score, log_prob, 1.5, label=Y, temperature=2.0),
        "autoguidance": autoguidance(score, mixture().score(VP()), 2.5),
        "compose": compose(net, [(2.0, {"label": Y}), (-0.5, {"label": 1})]),
        "classifier over classifier_free": classifier(free, log_prob, 0.5, label=Y),
        "classifier over classifier": classifier(classifier(score, log_prob, 2.0, label=1), log_prob, 0.5, label=Y),
        "autoguidance of classifier_free": autoguidance(free, classifier_free(net, {"label": 1}, 2.0), 1.5),
        "autoguidance of compose": autoguidance(compose(net, [(2.0, {"label": Y})]), score, 1.5),
    }


def bent(net: ScoreModel) -> dict[str, Any]:
    return {
        "schedule": classifier_free(net, {"label": Y}, lambda t: 1 + t),
        "interval": classifier_free(net, {"label": Y}, 3.0, interval=(0.1, 5.0)),
        "rescale": classifier_free(net, {"label": Y}, 3.0, rescale=0.5),
        "projected": projected(net, {"label": Y}, 3.0, parallel=0.2, norm=2.0),
    }


@pytest.mark.parametrize("kind", linear(model()))
@pytest.mark.parametrize("t", [T, EACH], ids=["one t", "each t"])
def test_parts_are_the_score_and_their_weights_constant_and_one_in_sum(kind: str, t: Tensor) -> None:
    guided = linear(model())[kind]
    parts = guided.parts(X, t, SCORE)
    assert isinstance(guided, LinearGuidance) and all(isinstance(part, Part) for part in parts)
    torch.testing.assert_close(weighted_sum(parts), guided(X, t), **ROUNDING)
    torch.testing.assert_close(weighted_sum(guided.parts(X, t, X0)), guided.denoise(X, t), **ROUNDING)
    assert math.isclose(sum(part.weight for part in parts), 1, rel_tol=1e-12)
    assert [p.weight for p in parts] == [p.weight for p in guided.parts(-X, torch.tensor(0.7), SCORE)]


def test_each_part_is_the_score_of_a_law_that_diffuses() -> None:
    """With an exact classifier and exact scores, nested guidance too is made of the mixture and its components."""
    data, sde, net = mixture(), VP(), model()
    laws = [data.score(sde)(X, T), data.score(sde, Y)(X, T), data.score(sde, 1)(X, T)]
    log_prob = data.label_log_prob(sde)
    free = classifier_free(net, {"label": Y}, 3.0)
    for guided in (
        free,
        classifier(data.score(sde), log_prob, 2.0, label=Y),
        classifier(free, log_prob, 0.5, label=1),
        classifier(classifier(data.score(sde), log_prob, 2.0, label=1), log_prob, 0.5, label=Y),
        autoguidance(free, classifier_free(net, {"label": 1}, 2.0), 1.5),
        compose(net, [(2.0, {"label": Y}), (-0.5, {"label": 1})]),
    ):
        for part in guided.parts(X, T, SCORE):  # type: ignore[attr-defined]
            # the times of the network are found to about 1e-10
            assert min(float((part.value - law).detach().abs().max()) for law in laws) < 1e-8


@pytest.mark.parametrize("kind", bent(model()))
def test_what_has_no_density_says_why_by_its_type(kind: str) -> None:
    net = model()
    guided = bent(net)[kind]
    assert isinstance(guided, NonlinearGuidance) and not isinstance(guided, LinearGuidance)
    word = {"schedule": "function of time", "interval": "interval", "rescale": "rescales", "projected": "projects"}
    assert word[kind] in guided.reason
    nested = (
        autoguidance(guided, net.bind(label=Y), 2.0),
        classifier(guided, mixture().label_log_prob(VP()), 2.0, label=Y),
    )
    for outer in nested:
        assert outer(X, T).shape == X.shape  # as a score it is as good as any
        with pytest.raises(TypeError, match=word[kind]):
            outer.parts(X, T, SCORE)  # type: ignore[attr-defined]


# ---- everything, for all of them ----


def every(net: ScoreModel) -> dict[str, Any]:
    return linear(net) | bent(net)


class Plain(nn.Module):
    """A network for every dtype, whose label 3 is none."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(normals(4, 2, seed=3))
        self.null_conditions = {"label": NONE}

    def forward(self, x: Tensor, c: Tensor, label: Tensor) -> Tensor:
        return torch.tanh(x + self.weight.to(x)[label]) * (1 + 0.1 * c[:, None].to(x))


def plain(kind: str, net: ScoreModel) -> Any:
    free = classifier_free(net, {"label": 1}, 3.0)
    return {
        "classifier_free": free,
        "classifier": classifier(free, lambda x, t: x * 2, 1.5, label=1, temperature=lambda t: 1 + t),
        "autoguidance": autoguidance(free, net.bind(label=torch.tensor(1)), 2.5),
        "compose": compose(net, [(2.0, {"label": 0}), (-0.5, {"label": 1})]),
        "schedule": classifier_free(net, {"label": 1}, lambda t: 1 + t),
        "interval": classifier_free(net, {"label": 1}, 3.0, interval=(0.1, 2.0)),
        "rescale": classifier_free(net, {"label": 1}, 3.0, rescale=0.5),
        "projected": projected(net, {"label": 1}, 3.0, parallel=0.2, norm=2.0),
    }[kind]


KINDS = ("classifier_free", "classifier", "autoguidance", "compose", "schedule", "interval", "rescale", "projected")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("batch", [0, 1, 4])
def test_any_dtype_any_batch_one_time_or_each(kind: str, dtype: torch.dtype, batch: int) -> None:
    guided, x = plain(kind, ScoreModel(Plain(), VP())), X[:batch].to(dtype)
    exact = plain(kind, ScoreModel(Plain(), VP()))
    for t in (T, EACH[:batch], EACH[:batch].float()):
        got = guided(x, t)
        assert got.dtype == dtype and got.shape == x.shape
        # the same numbers in float64: half precision carries 8 bits, through a score of size 1/σ and scale 3
        room = {torch.bfloat16: 0.1, torch.float32: 1e-4, torch.float64: 1e-6}[dtype]
        torch.testing.assert_close(got.double(), exact(x.double(), t), rtol=room, atol=room)


@pytest.mark.parametrize("kind", KINDS)
def test_samples_do_not_depend_on_each_other(kind: str) -> None:
    guided = plain(kind, ScoreModel(Plain(), VP()))
    together = guided(X, EACH)
    alone = torch.cat([guided(X[i : i + 1], EACH[i]) for i in range(4)])
    torch.testing.assert_close(together, alone, **ROUNDING)


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_reach_x_and_the_network(kind: str) -> None:
    net = ScoreModel(Plain(), VP())
    guided, weight = plain(kind, net), net.net.weight

    def value(x: Tensor, weight: Tensor) -> Tensor:
        return guided(x, EACH)

    # central differences at gradcheck's own tolerances
    assert torch.autograd.gradcheck(value, (X.clone().requires_grad_(True), weight), atol=1e-5)


def test_gradients_reach_what_a_schedule_holds() -> None:
    net = model()

    def value(slope: Tensor) -> Tensor:
        built = [build(net, {"label": Y}, lambda t: 1 + slope * t) for build in (classifier_free, projected)]
        return torch.cat([guided(X, t) for t in (T, EACH) for guided in built])

    assert torch.autograd.gradcheck(value, torch.tensor(0.8, dtype=torch.float64, requires_grad=True))
    # also at scale 1 exactly, where values alone would not need the second branch
    assert torch.autograd.gradcheck(value, torch.tensor(0.0, dtype=torch.float64, requires_grad=True))


@pytest.mark.parametrize("kind", KINDS)
def test_the_networks_behind_it_are_found(kind: str) -> None:
    net = ScoreModel(Plain(), VP())
    assert net.net in modules_of(plain(kind, net))


def test_autoguidance_shows_both_networks() -> None:
    strong, weak = ScoreModel(Plain(), VP()), ScoreModel(Plain(), VP())
    found = modules_of(autoguidance(strong.bind(label=1), weak.bind(label=1), 2.0))
    assert strong.net in found and weak.net in found


@pytest.mark.parametrize("kind", bent(model()))
def test_samples_end_at_the_label(kind: str) -> None:
    """Under any of them the label's component is reached: the mean moves past half way from the others' to its own."""
    sde = VP()
    data = GaussianMixture(torch.tensor([0.5, 0.5]), torch.tensor([[-1.0, 0.5], [1.0, -0.5]]).double(), 0.05)
    scores = [data.score(sde, 0), data.score(sde, 1), data.score(sde)]

    def net(x: Tensor, c: Tensor, label: Tensor) -> Tensor:
        t = sde.t_of_log_snr(-2 * c)
        return torch.stack([score(x, t) for score in scores])[label, torch.arange(len(x))]

    net.null_conditions = {"label": 2}  # type: ignore[attr-defined]
    wrapped = ScoreModel(net, sde, "score")
    guided = {
        "schedule": classifier_free(wrapped, {"label": 1}, lambda t: 1 + t),
        "interval": classifier_free(wrapped, {"label": 1}, 3.0, interval=(0.1, 5.0)),
        "rescale": classifier_free(wrapped, {"label": 1}, 3.0, rescale=0.5),
        "projected": projected(wrapped, {"label": 1}, 3.0, parallel=0.2, norm=2.0),
    }[kind]
    x = sample(guided, (64, 2), solver=Heun(), steps=10, seed=0, dtype=torch.float64).x
    assert float(x[:, 0].mean()) > 0.5


# ---- conventions ----


def written(convention: str, value: float, none: Tensor, cond: Tensor) -> Tensor:
    """Each paper's own combination; with the exact classifier, cond - none is -σ times its gradient."""
    return {
        "ho-salimans": (1 + value) * cond - value * none,
        "imagen": value * cond + (1 - value) * none,
        "glide": none + value * (cond - none),
        "diffusers": none + value * (cond - none) if value > 1 else cond,
        "diffusers-original": cond + value * (cond - none),
        "dhariwal": none + value * (cond - none),
        "dhariwal-conditional": cond + value * (cond - none),
        "edm2-autoguidance": value * cond + (1 - value) * none,
        "apg": cond + (value - 1) * (cond - none),
    }[convention]


CONVENTIONS = ("ho-salimans", "imagen", "glide", "diffusers", "diffusers-original", "dhariwal", "dhariwal-conditional",
               "edm2-autoguidance", "apg")  # fmt: skip


@pytest.mark.parametrize("convention", CONVENTIONS)
@pytest.mark.parametrize("value", [0.0, 0.5, 1.0, 7.5])
def test_a_converted_scale_gives_what_is_written_there(convention: str, value: float) -> None:
    net = model()
    none, cond = two(net, X, T)
    scale = to_scale(value, convention)
    got = classifier_free(net, {"label": Y}, scale)(X, T)
    torch.testing.assert_close(got, written(convention, value, none, cond), **ROUNDING)
    if convention != "diffusers" or value >= 1:
        assert from_scale(scale, convention) == value


def test_conventions_that_do_not_exist_or_cannot_say_it() -> None:
    for convert in (to_scale, from_scale):
        with pytest.raises(ValueError, match=r"one of ho-salimans, imagen.*got 'mine'"):
            convert(2.0, "mine")
        for bad in (math.nan, math.inf, True, "2"):
            with pytest.raises(ValueError, match="finite number"):
                convert(bad, "imagen")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="diffusers-original"):
        from_scale(0.5, "diffusers")


# ---- scales of other libraries ----


def scales() -> Iterator[tuple[str, Any]]:
    yield "int", 2
    yield "float32 ()", torch.tensor(2.0)
    yield "int64 ()", torch.tensor(2)
    yield "requires grad", torch.tensor(2.0, requires_grad=True)


def by_scale(scale: Any) -> list[Any]:
    net, data = model(), mixture()
    return [
        classifier_free(net, {"label": Y}, scale),
        classifier_free(net, {"label": Y}, scale, rescale=0.5),
        projected(net, {"label": Y}, scale),
        classifier(data.score(VP()), data.label_log_prob(VP()), scale, label=Y),
        autoguidance(net.bind(label=Y), data.score(VP()), scale),
        compose(net, [(scale, {"label": Y})]),
        classifier_free(net, {"label": Y}, cfg_plus_plus(VP(), grids.uniform(VP(), 4), scale)),
    ]


@pytest.mark.parametrize("scale", [pytest.param(scale, id=name) for name, scale in scales()])
def test_a_scale_is_any_real_number_and_its_gradient_stays_outside(scale: Any) -> None:
    for got, expected in zip(by_scale(scale), by_scale(2.0), strict=True):
        value = got(X, T)
        assert torch.equal(value, expected(X, T))
        if isinstance(scale, Tensor) and scale.requires_grad and value.requires_grad:
            assert torch.autograd.grad(value.sum(), scale, allow_unused=True)[0] is None
    assert type(to_scale(scale, "imagen")) is type(from_scale(scale, "imagen")) is float


def test_numbers_of_numpy_are_scales() -> None:
    numpy = pytest.importorskip("numpy")
    for kind in (numpy.float32, numpy.float64, numpy.int64):
        for got, expected in zip(by_scale(kind(2)), by_scale(2.0), strict=True):
            assert torch.equal(got(X, T), expected(X, T))
    with pytest.raises(ValueError, match="finite number"):
        autoguidance(mixture().score(VP()), mixture().score(VP()), numpy.bool_(True))


@pytest.mark.parametrize(
    "scale",
    [torch.ones(1), torch.ones(4), [2.0], True, torch.tensor(True), 1j, torch.tensor(1j), None, "2", 10**400, math.nan,
     torch.tensor(math.inf)],
    ids=["(1,)", "(B,)", "list", "bool", "bool ()", "complex", "complex ()", "None", "str", "huge", "nan", "inf"],
)  # fmt: skip
def test_no_scale(scale: Any) -> None:
    builds = [by_scale, lambda s: to_scale(s, "imagen"), lambda s: from_scale(s, "imagen")]
    builds += [lambda s: compose(model(), [(s, {"label": 1})]), lambda s: projected(model(), {"label": 1}, s)]
    for build in builds:
        with pytest.raises(ValueError, match="must be a finite number, got"):
            build(scale)


# ---- conditions that are called like options ----


class Named(nn.Module):
    """A network with a condition of any name besides its label."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name, self.null_conditions = name, {"label": NONE, name: math.nan}

    def forward(self, x: Tensor, c: Tensor, **cond: Tensor) -> Tensor:
        found = x * (1 + cond["label"][:, None])
        return found + cond[self.name].nan_to_num(7.0)[:, None] if self.name in cond else found


OPTIONS = ["null", "negative", "interval", "rescale", "parallel", "norm", "scale", "model", "conditions", "t"]


@pytest.mark.parametrize(
    "build",
    [classifier_free, partial(projected, parallel=1.0), "compose"],
    ids=["classifier_free", "projected", "compose"],
)
@pytest.mark.parametrize("option", OPTIONS)
def test_a_condition_may_be_called_like_an_option(build: Any, option: str) -> None:
    """Conditions are a mapping, so that no name is reserved."""
    net, value = ScoreModel(Named(option), VP()), torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64)
    given = {"label": Y, option: value}
    guided = compose(net, [(2.0, given)]) if build == "compose" else build(net, given, 2.0)
    none = net(X, T, {"label": torch.full((4,), NONE), option: torch.full((4,), math.nan)})
    there = net(X, T, given)
    torch.testing.assert_close(guided(X, T), none + 2 * (there - none), **ROUNDING)
    assert not torch.allclose(there, net(X, T, {"label": Y, option: 0 * value}))
    if build != "compose":  # and the options are the options
        other = build(net, given, 2.0, negative={"label": 1, option: 0.5}, interval=(0.0, math.inf))
        weak = net(X, T, {"label": torch.ones(4).long(), option: torch.full((4,), 0.5)})
        torch.testing.assert_close(other(X, T), weak + 2 * (there - weak), **ROUNDING)


# ---- refusals, before the network runs ----


class Never(nn.Module):
    """Refuses to be called."""

    def __init__(self, **nulls: Any) -> None:
        super().__init__()
        self.null_conditions = nulls or {"label": NONE}

    def forward(self, x: Tensor, c: Tensor, label: Tensor | None = None, **conditions: Tensor) -> Tensor:
        raise AssertionError("the network ran")


def refusals() -> Iterator[tuple[str, Callable[[], Any], type[Exception], str]]:
    net, wide = ScoreModel(Never(), VP()), ScoreModel(Never(label=3, size=math.nan), VP())
    bare = ScoreModel(lambda x, c, label: x, VP())
    grid = grids.uniform(VP(), 4)
    for at, bad in enumerate(((1.0, 0.5), (0.5, 0.5), (-1.0, 2.0), (0.1,), 3.0, (0.1, math.nan), (math.inf, math.inf))):
        build: Callable[[], Any] = partial(classifier_free, net, {"label": 1}, 2.0, interval=bad)
        yield f"interval {at}", build, ValueError, "low < high"
    for share in (-0.1, 1.5, math.nan):
        build = partial(classifier_free, net, {"label": 1}, 2.0, rescale=share)
        yield f"rescale {share}", build, ValueError, "from 0 to 1"
    for share in (True, "1"):
        build = partial(classifier_free, net, {"label": 1}, 2.0, rescale=share)
        yield f"rescale {share}", build, TypeError, "rescale must be a real number"
    yield (
        "null and negative",
        lambda: classifier_free(net, {"label": 1}, 2.0, null=3, negative=1),
        ValueError,
        "not both",
    )
    yield (
        "negative value",
        lambda: classifier_free(wide, {"label": 1, "size": 2.0}, 2.0, negative=1),
        ValueError,
        "mapping",
    )
    yield "empty negative", lambda: classifier_free(net, {"label": 1}, 2.0, negative={}), ValueError, "no condition"
    yield "unknown negative", lambda: classifier_free(net, {"label": 1}, 2.0, negative={"text": 1}), ValueError, "text"
    yield "unknown name", lambda: classifier_free(net, {"text": 1}, 2.0, null={"text": 1}), ValueError, "takes label"
    yield "unknown argument", lambda: classifier_free(bare, {"text": 1}, 2.0, null=1), ValueError, "takes label"
    yield "float label", lambda: classifier_free(net, {"label": torch.ones(4)}, 2.0), ValueError, "whole numbers.*long"
    yield "int size", lambda: classifier_free(wide, {"size": torch.ones(4).long()}, 2.0), ValueError, "NaN.*float"
    yield "bool", lambda: classifier_free(net, {"label": torch.ones(4).bool()}, 2.0), ValueError, "real numbers"
    yield "words", lambda: classifier_free(net, {"label": "three"}, 2.0), ValueError, "Encode words"
    yield "rows", lambda: classifier_free(net, {"label": Y[:3]}, 2.0)(X, T), ValueError, "3 rows but x has 4"
    yield "rows negative", lambda: classifier_free(net, {"label": Y}, 2.0, negative=Y[:3])(X, T), ValueError, "3 rows"
    pair = torch.ones(4, 2)
    yield (
        "shapes",
        lambda: classifier_free(wide, {"size": 1.0}, 2.0, negative={"size": pair})(X, T),
        ValueError,
        "one shape",
    )
    yield (
        "null shape",
        lambda: classifier_free(net, {"label": Y}, 2.0, null=torch.zeros(2).long())(X, T),
        ValueError,
        "fit",
    )
    yield "no model", lambda: projected(net.bind(label=1), {"label": 1}, 2.0), TypeError, "ScoreModel"  # type: ignore[arg-type]
    yield "no condition", lambda: projected(net, {}, 2.0), ValueError, "needs a condition"
    yield "no mapping", lambda: projected(net, 2.0), TypeError, "mapping by name"  # type: ignore[arg-type]
    yield "no null", lambda: projected(bare, {"label": 1}, 2.0), ValueError, "null condition"
    yield "projected scale", lambda: projected(net, {"label": 1}, math.nan), ValueError, "finite"
    yield "parallel", lambda: projected(net, {"label": 1}, 2.0, parallel=math.inf), ValueError, "parallel"
    yield "norm", lambda: projected(net, {"label": 1}, 2.0, norm=0.0), ValueError, "norm must be positive"
    yield "projected interval", lambda: projected(net, {"label": 1}, 2.0, interval=(2.0, 1.0)), ValueError, "low < high"
    yield "schedule nan", lambda: classifier_free(net, {"label": 1}, lambda t: t * math.nan)(X, T), ValueError, "finite"
    for shape in ((3,), (4, 1)):
        guided = classifier_free(net, {"label": 1}, lambda t, shape=shape: torch.ones(shape))  # type: ignore[misc]
        yield f"schedule {shape}", partial(guided, X, EACH), ValueError, "one for each"
    yield "schedule type", lambda: classifier_free(net, {"label": 1}, lambda t: "2")(X, T), TypeError, "number"  # type: ignore[arg-type,return-value]
    yield "autoguidance", lambda: autoguidance(net.bind(label=1), None, 2.0), TypeError, "weak must be"  # type: ignore[arg-type]
    yield "autoguidance scale", lambda: autoguidance(net, net, math.inf), ValueError, "finite"
    yield "plus plus rule", lambda: cfg_plus_plus(VP(), grids.karras, 0.5), TypeError, "call it first"
    yield "plus plus sde", lambda: cfg_plus_plus(grid, VP(), 0.5), TypeError, "cfg_plus_plus"  # type: ignore[arg-type]
    yield "plus plus grid", lambda: cfg_plus_plus(VP(), grid.flip(0), 0.5), ValueError, "decreasing"
    yield "plus plus strength", lambda: cfg_plus_plus(VP(), grid, math.nan), ValueError, "finite"


@pytest.mark.parametrize(("build", "error", "match"), [pytest.param(*rest, id=name) for name, *rest in refusals()])
def test_refusals(build: Callable[[], Any], error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        build()


def test_rescale_needs_events_with_a_deviation() -> None:
    net = ScoreModel(lambda x, c, label: x, VP())
    with pytest.raises(ValueError, match="too few"):
        classifier_free(net, {"label": 1}, 2.0, rescale=0.5, null=0)(X[:, :1], T)


# ---- the benchmark of what it costs ----


def test_the_cost_benchmark_counts_what_the_networks_see(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    benchmark = importlib.import_module("guidance")
    config = benchmark.Config(net="digits", batch=2, steps=4, inside=0.5, repeats=1, out=tmp_path / "costs.json")
    benchmark.main(config)
    found = {c["name"]: c for c in json.loads(config.out.read_text("utf-8"))}
    rows = {name: c["rows"] for name, c in found.items()}
    assert rows["unguided"] == 1 and rows["classifier_free"] == 2 and rows["classifier_free, 50% of the steps"] == 1.5
    assert rows["compose of 2"] == 3 and rows["autoguidance, networks of one size"] == 2
    assert found["classifier_free, 50% of the steps"]["bar"] == pytest.approx(1.5 * 1.025)
    assert found["unguided"]["ratio"] == 1 and all(c["milliseconds"] > 0 for c in found.values())
