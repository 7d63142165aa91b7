"""The adaptive density of times: the mean stays, the variance falls by the factor of the derivation."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import torch
from scipy import integrate
from torch import Tensor

from scoresde.curve import LossCurve
from scoresde.losses import dsm_loss
from scoresde.models import ScoreModel
from scoresde.sde import EDM, SDE, VP, Cosine
from scoresde.times import AdaptiveTimes, LogNormalSigma, LogSNRTime, Stratified, TimeDensity, UniformTime

F64 = torch.float64
KAPPA = 0.7


def even(n: int) -> Tensor:
    return (torch.arange(n, dtype=F64) + 0.5) / n


def mean_loss(sde: SDE, t: Tensor) -> Tensor:
    """E L for ε̂ = κ x_t and x_0 ~ N(0, 1) on a line: (1 - κσ)² + κ²α², and L = that times the square of a normal."""
    return (1 - KAPPA * sde.sigma(t)) ** 2 + (KAPPA * sde.alpha(t)) ** 2


def adapted(density: TimeDensity, sde: SDE, *, cells: int, floor: float = 0.1) -> AdaptiveTimes:
    """After many losses of which the second moments are known: E L² = 3 (E L)²."""
    found = AdaptiveTimes(density, cells=cells, floor=floor)
    u = even(64 * cells)
    t, weight = found.sample(sde, u)
    return found.refreshed(found.seen(u, math.sqrt(3) * weight * mean_loss(sde, t)))


@pytest.mark.parametrize("sde", [VP(), EDM(t_min=0.01, T=20.0), Cosine()])
@pytest.mark.parametrize("density", [UniformTime(), LogNormalSigma(0.0, 1.0), LogSNRTime()])
@pytest.mark.parametrize("wrap", [lambda d: d, Stratified])
def test_the_expectation_of_every_function_of_time_stays(sde: SDE, density: TimeDensity, wrap: Any) -> None:
    """∫ over uniforms of weight × function: the base's and the adapted density's agree."""
    n = 200_000
    u = even(n) if wrap is not Stratified else torch.full((n,), 0.5, dtype=F64)
    made = adapted(density, sde, cells=16)
    assert made.masses.max() > 2 * made.masses.min() or isinstance(density, LogNormalSigma)
    for function in (lambda t: mean_loss(sde, t), lambda t: torch.cos(3 * t / sde.T)):
        values = []
        for one in (density, made):
            t, weight = wrap(one).sample(sde, u)
            values.append(float((weight * function(t)).mean()))
        # midpoints in 200,000 cells; a jump of the weight at each of 16 edges costs up to 5/n
        assert values[0] == pytest.approx(values[1], rel=1e-3, abs=1e-4)


def test_the_second_moment_falls_to_that_of_cauchy_and_schwarz() -> None:
    """E (wL)² = ((1 - floor)-mixture of) (∫ m)² in place of ∫ m², by quadrature over the base's quantiles."""
    sde, cells, floor = VP(), 256, 1e-6

    def m(v: float) -> float:
        t = UniformTime().sample(sde, torch.tensor([v], dtype=F64)).t
        return math.sqrt(3) * float(mean_loss(sde, t))

    first = integrate.quad(m, 0, 1)[0]
    second = integrate.quad(lambda v: m(v) ** 2, 0, 1)[0]
    made = adapted(UniformTime(), sde, cells=cells, floor=floor)
    t, weight = made.sample(sde, even(200_000))
    found = float((weight**2 * 3 * mean_loss(sde, t) ** 2).mean())
    assert found == pytest.approx(first**2, rel=1e-3)  # cells of 1/256 see a slope: second order in them
    assert first**2 < 0.95 * second  # and there was something to win


def test_the_variance_of_a_real_batch_falls_by_as_much() -> None:
    """Drawn losses of a network on Gaussian data: (E L)² kept, variance of the mean by (∫ m² - (∫ m)²) / B."""
    sde, many = VP(), 400_000
    model = ScoreModel(lambda x, c: KAPPA * x, sde)
    generator = torch.Generator().manual_seed(0)
    made = adapted(UniformTime(), sde, cells=64, floor=0.01)
    terms = []
    for one in (UniformTime(), made):
        t, weight = one.sample(sde, torch.rand(many, generator=generator, dtype=F64))
        x0, eps = (torch.randn(many, 1, generator=generator, dtype=F64) for _ in range(2))
        terms.append(weight * dsm_loss(model, x0, t, eps))
    plain, adaptive = terms
    error = 4 * float((plain.var() / many + adaptive.var() / many).sqrt())
    assert float(plain.mean()) == pytest.approx(float(adaptive.mean()), abs=error)
    v = even(10_000)
    m = math.sqrt(3) * mean_loss(sde, UniformTime().sample(sde, v).t)
    won = float(m.square().mean() - m.mean() ** 2)
    assert float(plain.var() - adaptive.var()) == pytest.approx(won, rel=0.25)  # fourth moments of 400,000 squares


@pytest.mark.parametrize("shape", [(1.0, 4.0, 2.0, 0.5), (0.0, 1.0, 0.0, 0.0)])
def test_masses_are_in_proportion_to_the_root_of_the_mean_square_above_the_floor(shape: tuple[float, ...]) -> None:
    counts = (2.0, 5.0, 1.0, 3.0)
    squares = tuple(s**2 * n for s, n in zip(shape, counts, strict=True))
    made = AdaptiveTimes(cells=4, floor=0.2, squares=squares, counts=counts)
    expected = 0.8 * torch.tensor(shape, dtype=F64) / sum(shape) + 0.05
    torch.testing.assert_close(made.masses, expected, rtol=1e-12, atol=0)
    assert float(made.sample(VP(), even(1000)).weight.max()) <= 1 / 0.2 + 1e-12
    cells = torch.bincount(made._cell(even(100_000), made.masses), minlength=4) / 100_000
    torch.testing.assert_close(cells.double(), expected, rtol=0, atol=2e-5)


def test_until_every_cell_was_seen_the_base_is_drawn() -> None:
    density = AdaptiveTimes(cells=4)
    u = torch.tensor([0.1, 0.3, 0.6])
    density = density.refreshed(density.seen(u, torch.ones(3)))
    assert density.counts == (1.0, 1.0, 1.0, 0.0)
    for part, expected in zip(density.sample(VP(), even(7)), UniformTime().sample(VP(), even(7)), strict=True):
        torch.testing.assert_close(part, expected, rtol=1e-12, atol=0)


def test_what_is_noted_are_the_losses_of_the_base() -> None:
    """The weight of the adaptive density is divided out, that of the base is not; old sums fade."""
    sde = VP()
    made = adapted(LogSNRTime(), sde, cells=4)
    u = even(40)
    t, weight = made.sample(sde, u)
    sums = made.seen(u, weight * mean_loss(sde, t))
    cell = made._cell(u, made.masses)
    base = weight * 4 * made.masses[cell] * mean_loss(sde, t)
    for k in range(4):
        assert float(sums[0, k]) == pytest.approx(float(base[cell == k].square().sum()), rel=1e-12)
        assert float(sums[1, k]) == int((cell == k).sum())
    after = made.refreshed(sums)
    assert after.squares[1] == pytest.approx(0.9 * made.squares[1] + float(sums[0, 1]), rel=1e-12)
    together = made.seen(u[:20], (weight * mean_loss(sde, t))[:20]) + made.seen(
        u[20:], (weight * mean_loss(sde, t))[20:]
    )
    torch.testing.assert_close(together, sums, rtol=1e-12, atol=0)


def test_stratified_notes_the_cells_of_its_own_uniforms() -> None:
    u = torch.full((8,), 0.5, dtype=F64)
    inner = AdaptiveTimes(cells=4)
    outer = Stratified(inner)
    assert outer.adapts and outer.every == 20 and not Stratified().adapts and Stratified().every is None
    terms = torch.arange(8.0)
    torch.testing.assert_close(outer.seen(u, terms), inner.seen((torch.arange(8) + 0.5) / 8, terms))
    assert outer.refreshed(outer.seen(u, terms)).density == inner.refreshed(outer.seen(u, terms))
    assert outer.with_learned(((1.0,) * 4, (2.0,) * 4)).learned() == ((1.0,) * 4, (2.0,) * 4)


def curve_of(sde: SDE, **changes: Any) -> LossCurve:
    """Of the network above, exactly: L is its mean times the square of a normal, of deviation sqrt(2)."""
    t = UniformTime().sample(sde, even(200)).t
    c = -0.5 * sde.log_snr(t)
    mean = mean_loss(sde, t)
    order = c.argsort()
    error = math.sqrt(2 / 100) * mean
    return LossCurve(
        tuple(c[order].tolist()), tuple(mean[order].tolist()), tuple(error[order].tolist()), (100,) * 200, **changes
    )


def test_a_measured_curve_gives_the_density_that_its_losses_would() -> None:
    sde = VP()
    made = AdaptiveTimes.from_curve(curve_of(sde), sde, cells=16, floor=0.1)
    expected = adapted(UniformTime(), sde, cells=16)
    torch.testing.assert_close(made.masses, expected.masses, rtol=2e-3, atol=0)  # linear between 200 levels
    assert not made.adapts and AdaptiveTimes.from_curve(curve_of(sde), sde, every=5).adapts
    assert made.counts == (100.0,) * 16
    zero = dataclasses.replace(curve_of(sde), loss=(0.0,) * 200, standard_error=(0.0,) * 200)
    with pytest.raises(ValueError, match="above 0"):
        AdaptiveTimes.from_curve(zero, sde)
    for made in (AdaptiveTimes.from_curve(curve_of(sde), Cosine(T=1.0)),):  # whose last level is infinite
        assert bool(made.sample(Cosine(T=1.0), even(9)).weight.isfinite().all())


def test_a_curve_s_errors_tell_the_spread_of_its_losses() -> None:
    """Losses of mean 1 and deviation 3 = 0.3 sqrt(100) above the middle: masses as 1 to sqrt(1 + 9)."""
    sde = VP()
    ends = (-0.5 * sde.log_snr(torch.tensor([sde.t_min, 0.4999, 0.5001, sde.T], dtype=torch.float64))).tolist()
    curve = LossCurve(tuple(ends), (1.0,) * 4, (0.0, 0.0, 0.3, 0.3), (100,) * 4, 1.0)
    masses = AdaptiveTimes.from_curve(curve, sde, cells=4, floor=0.2).masses
    expected = 0.2 / 4 + 0.8 * torch.tensor([1.0, 1.0, math.sqrt(10), math.sqrt(10)]).double() / (2 + 2 * math.sqrt(10))
    torch.testing.assert_close(masses, expected, rtol=0.01, atol=0)  # half of 16 points of a cell at the step


@pytest.mark.parametrize(
    "bad",
    [
        {"density": UniformTime},
        {"cells": 0},
        {"floor": 0.0},
        {"floor": 1.5},
        {"every": 0},
        {"memory": 1.0},
        {"squares": (1.0,), "counts": (1.0,)},
        {"squares": (1.0,) * 32},
        {"squares": (-1.0,) * 32, "counts": (1.0,) * 32},
    ],
)
def test_what_makes_no_sense_is_refused(bad: dict[str, Any]) -> None:
    with pytest.raises((TypeError, ValueError)):
        AdaptiveTimes(**bad)


def test_losses_of_another_shape_are_refused() -> None:
    density = AdaptiveTimes(cells=4)
    with pytest.raises(ValueError, match="terms"):
        density.seen(even(3), torch.ones(4))
    with pytest.raises(ValueError, match="sums"):
        density.refreshed(torch.ones(2, 5))
