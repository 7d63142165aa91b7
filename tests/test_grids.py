"""Grids: equal steps in what they promise, exact ends, gradients, and checks of a user's own grid."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.integrate import quad
from strategies import DEFAULTS, ZERO_TERMINAL, name, sdes
from torch import Tensor

from scoresde import checks, grids, rules
from scoresde.sde import EDM, SDE, VE, VP, ChainSDE, Cosine, RectifiedFlow
from scoresde.spectrum import Spectrum

Grid = Callable[..., Tensor]
GRIDS: dict[str, Grid] = {
    "uniform": grids.uniform,
    "log_snr": grids.log_snr,
    "karras": grids.karras,
    "spectral": grids.spectral,
}
EPS = torch.finfo(torch.float64).eps


def position(key: str, sde: SDE, t: Tensor, rho: float = 7.0) -> Tensor:
    """The quantity in which the grid's steps are equal."""
    if key == "uniform":
        return t
    if key == "log_snr":
        return 2 * (sde.alpha(t) / sde.sigma(t)).log()
    if key == "spectral":
        return summed(sde.sigma(t) / sde.alpha(t), len(t) - 1)
    return (sde.sigma(t) / sde.alpha(t)) ** (1 / rho)


def summed(ratio: Tensor, steps: int) -> Tensor:
    """The integral of the density of grids.spectral over log σ/α, as its docstring has it, in numpy."""
    many = max(4, steps - 1) / 10
    low, power = min(0.5, 0.095 * many**0.49) ** 2, 0.348 * many**-0.496

    def rate(u: np.ndarray) -> np.ndarray:
        found: np.ndarray = np.maximum((1 + low * np.exp(-2 * u)) ** -2 - (1 + np.exp(-2 * u)) ** -2, 0) ** (power / 2)
        return found

    u = ratio.clamp_min(0.002).log().numpy()
    fine = np.linspace(u.min(), u.max(), 200_001)
    density = rate(fine) + 0.0546 * rate(np.linspace(-8, 8, 100_001)).max()
    total = np.concatenate([[0.0], np.cumsum(density[1:] + density[:-1]) / 2 * (fine[1] - fine[0])])
    return torch.from_numpy(-np.interp(u, fine, total))


SLACK = {"spectral": 1e-3}
"""Of a step: its density is summed over 4000 cells, of which a step of 60 has 66, with straight lines in each."""


@given(sde=sdes(), key=st.sampled_from(sorted(GRIDS)), steps=st.integers(1, 60))
def test_steps_are_equal_and_ends_exact(sde: SDE, key: str, steps: int) -> None:
    grid = GRIDS[key](sde, steps)
    assert grid.shape == (steps + 1,) and grid.dtype == torch.float64
    assert (grid[0].item(), grid[-1].item()) == (sde.T, sde.t_min)  # to the bit
    assert bool((grid.diff() < 0).all())
    where = position(key, sde, grid)
    step = (where[-1] - where[0]) / steps
    # log-SNR is inverted to roundings of numbers up to 20
    slack = 1e-10 * (1 + where.abs().max()) + SLACK.get(key, 0.0) * abs(step)
    assert bool(((where.diff() - step).abs() < slack).all())
    assert torch.equal(checks.grid(grid, sde.t_max), grid)


@given(rho=st.floats(1, 12), steps=st.integers(2, 40))
def test_karras_is_the_papers(rho: float, steps: int) -> None:
    """Eq. 5 of Karras et al. 2022 with N = steps + 1 levels, in numpy."""
    i = np.arange(steps + 1)
    low, high = 0.002 ** (1 / rho), 80 ** (1 / rho)
    expected = (high + i / steps * (low - high)) ** rho
    np.testing.assert_allclose(grids.karras(EDM(), steps, rho=rho), expected, rtol=1e-11)  # powers up to 12: roundings
    if rho == 1:
        np.testing.assert_allclose(expected, grids.uniform(EDM(), steps), rtol=1e-11)


def test_defaults() -> None:
    assert torch.equal(grids.karras(EDM(), 10), grids.karras(EDM(), 10, rho=7.0))
    assert not torch.allclose(grids.karras(EDM(), 10), grids.karras(EDM(), 10, rho=5.0))
    np.testing.assert_allclose(grids.uniform(VP(t_min=0.0), 4), [1, 0.75, 0.5, 0.25, 0], rtol=EPS)


@pytest.mark.parametrize("sde", DEFAULTS, ids=name)
@pytest.mark.parametrize("key", GRIDS)
def test_other_ends(sde: SDE, key: str) -> None:
    start, end = 0.8 * sde.T, 0.1 * sde.T
    for wrap in (float, torch.tensor, lambda v: torch.tensor(v, dtype=torch.float64), np.float64):
        grid = GRIDS[key](sde, 6, t_start=wrap(start), t_end=wrap(end))
        assert (grid[0].item(), grid[-1].item()) == (float(wrap(start)), float(wrap(end)))
        where = position(key, sde, grid)
        assert where.diff().tolist() == pytest.approx(
            [float(where[-1] - where[0]) / 6] * 6, rel=SLACK.get(key, 1e-9)
        )  # roundings
        assert grid.dtype == torch.float64


@pytest.mark.filterwarnings("error::UserWarning")  # torch warns where a gradient is cut by float(tensor)
@pytest.mark.parametrize("key", GRIDS)
def test_gradients_reach_ends_and_schedule(key: str) -> None:
    start = torch.tensor(0.9, dtype=torch.float64, requires_grad=True)
    end = torch.tensor(0.05, dtype=torch.float64, requires_grad=True)
    top = torch.tensor(20.0, dtype=torch.float64, requires_grad=True)

    def grid(start: Tensor, end: Tensor, top: Tensor) -> Tensor:
        return GRIDS[key](VP(beta_max=top), 5, t_start=start, t_end=end)  # type: ignore[arg-type]

    assert torch.autograd.gradcheck(grid, (start, end, top))  # gradcheck's own tolerances
    assert checks.grid(grid(start, end, top), 1.0).requires_grad


def test_grids_to_the_very_data() -> None:
    for sde in (VP(), EDM(), Cosine(), RectifiedFlow()):
        grid = grids.karras(sde, 5, t_end=0.0)
        ratio = (sde.sigma(grid) / sde.alpha(grid)) ** (1 / 7)
        assert grid[-1] == 0 and ratio.diff().tolist() == pytest.approx([-ratio[0].item() / 5] * 5, rel=1e-9)
        with pytest.raises(ValueError, match="log-SNR is infinite at t_end = 0"):
            grids.log_snr(sde, 5, t_end=0.0)
    assert grids.log_snr(VE(), 5, t_end=0.0)[-1] == 0  # VE keeps σ_min there


def test_spectral_steps_depend_on_the_range_and_the_spectrum_alone() -> None:
    vp = VP()
    ratio = {n: vp.sigma(grid) / vp.alpha(grid) for n in (5, 21, 22, 60) for grid in (grids.spectral(vp, n),)}
    same = EDM(T=float(ratio[5][0]), t_min=float(ratio[5][-1]))
    for n, levels in ratio.items():
        torch.testing.assert_close(grids.spectral(same, n), levels, rtol=1e-9, atol=0)  # two inversions' roundings
        scaled = EDM(T=3 * same.T, t_min=3 * same.t_min)
        torch.testing.assert_close(
            grids.spectral(scaled, n, spectrum=Spectrum(3.0, 3.0)), 3 * levels, rtol=1e-9, atol=0
        )
        assert not torch.allclose(grids.spectral(scaled, n), 3 * levels)
        # data of many scales: steps further up
        wide = grids.spectral(same, n, spectrum=Spectrum(1.0, 20.0))
        assert bool((wide[1:-1] > levels[1:-1]).all())


def test_spectral_steps_spend_nothing_below_their_floor() -> None:
    """All but the last time are the same whether the end is at σ/α = 0.002, lower, or at the very data."""
    for n in (2, 8, 40):
        expected = grids.spectral(EDM(t_min=0.002), n)
        for end in (1e-4, 0.0):
            grid = grids.spectral(EDM(t_min=end), n)
            assert grid[-1] == end
            torch.testing.assert_close(grid[:-1], expected[:-1], rtol=1e-9, atol=0)  # roundings
    below = grids.spectral(EDM(T=0.001, t_min=1e-6), 5)  # a run that lies there whole still has its steps
    assert bool((below.diff() < 0).all())


@pytest.mark.parametrize("key", GRIDS)
@pytest.mark.parametrize("sde", [*ZERO_TERMINAL.values(), Cosine(), RectifiedFlow()], ids=lambda s: repr(s)[:20])
def test_from_where_no_signal_is_left(sde: SDE, key: str) -> None:
    """All but uniform steps are those from σ/α = 1000, whose first time is T; rounding makes no difference to it."""
    for steps in (1, 2, 9, 40):
        grid = GRIDS[key](sde, steps, t_start=1.0)
        assert (grid[0].item(), grid[-1].item()) == (1.0, sde.t_min) and bool((grid.diff() < 0).all())
        if key != "uniform":
            late = sde.t_of_log_snr(-2 * math.log(1000.0))
            expected = GRIDS[key](sde, steps, t_start=late)
            torch.testing.assert_close(grid[1:], expected[1:], rtol=1e-9, atol=0.0)  # two inversions' roundings
    if key == "spectral" and not isinstance(sde, ChainSDE):  # in units of the data, ends alike
        fine = {s: grids.spectral(sde, 9, spectrum=Spectrum(s, s), t_start=1.0, t_end=1e-6) for s in (1.0, 3.0)}
        one, three = ((sde.sigma(g) / sde.alpha(g))[1:-1] for g in fine.values())
        torch.testing.assert_close(three, 3 * one, rtol=1e-9, atol=0.0)
    for end in (0.95, 0.9999):  # also beyond σ/α = 1000
        grid = GRIDS[key](sde, 6, t_start=1.0, t_end=end)
        assert (grid[0].item(), grid[-1].item()) == (1.0, end) and bool((grid.diff() < 0).all())


# -- a density of one's own ----------------------------------------------------------------------------------------


DENSITIES: dict[str, Callable[[Tensor], Tensor]] = {
    "equal": torch.ones_like,
    "high": lambda ratio: ratio**0.5,
    "low": lambda ratio: 1 / (0.05 + ratio**0.7),
    "hill": lambda ratio: 0.05 + 1 / (1 + (ratio / 0.7).log() ** 2),
}


@given(sde=sdes(), key=st.sampled_from(sorted(DENSITIES)), steps=st.integers(1, 60))
def test_between_neighbours_lies_one_integral_of_the_density(sde: SDE, key: str, steps: int) -> None:
    grid = grids.by_density(sde, steps, DENSITIES[key])
    assert grid.shape == (steps + 1,) and (grid[0].item(), grid[-1].item()) == (sde.T, sde.t_min)
    assert bool((grid.diff() < 0).all())

    def density(u: float) -> float:
        return float(DENSITIES[key](torch.tensor([math.exp(u)], dtype=torch.float64)))

    ratio = sde.sigma(grid) / sde.alpha(grid)
    u = ratio.clamp(min=min(0.002, float(ratio[0]) / math.e)).log().tolist()
    shares = [quad(density, low, high)[0] for high, low in itertools.pairwise(u)]
    # summed over 4000 cells of 5e-3, of which a step of 60 has 66: in the cells where it begins and ends the density
    # changes by as much as 1e-2, an eighth of which is not seen
    assert shares == pytest.approx([sum(shares) / steps] * steps, rel=1e-4)


def test_known_rules_are_their_densities() -> None:
    known: list[SDE] = [VP(), EDM(), Cosine()]
    for sde in known:
        torch.testing.assert_close(
            grids.by_density(sde, 30, torch.ones_like), grids.log_snr(sde, 30), rtol=1e-9, atol=0.0
        )  # inversion of the log-SNR: roundings
        # d (σ/α)^(1/7) / d log(σ/α) is its seventh; straight lines over 4000 cells of 3e-3 err by (3e-3/7)²/12
        by_root = grids.by_density(sde, 30, lambda ratio: 5 * ratio ** (1 / 7))
        torch.testing.assert_close(by_root, grids.karras(sde, 30), rtol=1e-6, atol=0.0)
    data = Spectrum(0.5, 40.0)
    for sde in (*known, EDM(t_min=0.0), RectifiedFlow(T=1.0), EDM(t_min=1e-5)):
        for ends in ({}, {"t_start": 0.9 * sde.T, "t_end": 0.01}):
            density = partial(rules.spectral_density, steps=17, spectrum=data)
            found = grids.by_density(sde, 17, density, bottom=0.001, top=1200.0, **ends)
            assert torch.equal(found, grids.spectral(sde, 17, spectrum=data, **ends))


def test_its_range_is_from_bottom_to_top() -> None:
    """Below the bottom leads one step; where there is no signal, from the first time to below the top."""
    for sde in (EDM(t_min=0.0), VP(t_min=0.0), RectifiedFlow(T=1.0, t_min=0.0)):
        grid = grids.by_density(sde, 9, torch.ones_like, bottom=0.05, top=70.0)
        u = (sde.sigma(grid) / sde.alpha(grid)).log()[1:-1]
        high = math.log(70.0) if sde.alpha(grid[0]) == 0 else float((sde.sigma(grid[0]) / sde.alpha(grid[0])).log())
        expected = torch.linspace(high, math.log(0.05), 10, dtype=torch.float64)[1:-1]
        torch.testing.assert_close(u, expected, rtol=1e-8, atol=1e-8)  # inversion of the log-SNR


@pytest.mark.filterwarnings("error::UserWarning")
def test_gradients_reach_a_density() -> None:
    start, power = (torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in (0.9, 0.3))

    def grid(start: Tensor, power: Tensor) -> Tensor:
        return grids.by_density(VP(), 5, lambda ratio: ratio**power, t_start=start)

    assert torch.autograd.gradcheck(grid, (start, power))  # gradcheck's own tolerances


def test_bad_densities() -> None:
    bad: list[tuple[Any, type[Exception], str]] = [
        (lambda ratio: -ratio, ValueError, "positive and finite for each of the 4001"),
        (lambda ratio: ratio * 0, ValueError, "positive and finite"),
        (lambda ratio: ratio.log().sqrt(), ValueError, "positive and finite"),
        (lambda ratio: 1 / (ratio - ratio), ValueError, "positive and finite"),
        (lambda ratio: ratio[1:], ValueError, "positive and finite"),
        (lambda ratio: 1.0, ValueError, "positive and finite"),
        (lambda ratio: None, TypeError, "a density must be a real number or a tensor"),
        (lambda ratio: ratio > 1, TypeError, "a density must be a real number"),
    ]
    for density, error, message in bad:
        with pytest.raises(error, match=message):
            grids.by_density(VP(), 5, density)
    assert grids.by_density(VP(), 5, lambda ratio: ratio.float()).dtype == torch.float64
    for end in ("bottom", "top"):
        with pytest.raises(ValueError, match=f"{end} must be positive"):
            grids.by_density(VP(), 5, torch.ones_like, **{end: 0.0})
    with pytest.raises(ValueError, match="steps must be a whole number"):
        grids.by_density(VP(), 0, torch.ones_like)
    with pytest.raises(ValueError, match="t_end < t_start is needed"):
        grids.by_density(VP(), 5, torch.ones_like, t_start=0.1, t_end=0.2)


# -- bad input -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", GRIDS)
def test_bad_requests(key: str) -> None:
    make = GRIDS[key]
    for steps in (0, -1, 2.0, True, None, "ten"):
        with pytest.raises((TypeError, ValueError), match="steps must be a whole number"):
            make(VP(), steps)
    bad: list[tuple[dict[str, Any], type[Exception], str]] = [
        ({"t_start": 1.2}, ValueError, "t_start must lie in"),
        ({"t_end": -0.1}, ValueError, "t_end must lie in"),
        ({"t_end": math.nan}, ValueError, "t_end must lie in"),
        ({"t_start": 0.1, "t_end": 0.2}, ValueError, "t_end < t_start is needed"),
        ({"t_start": 0.1, "t_end": 0.1}, ValueError, "t_end < t_start is needed"),
        ({"t_start": torch.tensor([0.5, 0.6])}, ValueError, "single times"),
        ({"t_start": "late"}, TypeError, "t_start must be a real number"),
    ]
    for options, error, message in bad:
        with pytest.raises(error, match=message):
            make(VP(), 5, **options)
    for rho in (0.0, -1.0, math.nan):
        with pytest.raises(ValueError, match="rho must be positive"):
            grids.karras(VP(), 5, rho=rho)


def test_a_grid_of_ones_own() -> None:
    for times in ([1.0, 0.3, 0.1], np.array([1.0, 0.3, 0.1]), torch.tensor([1.0, 0.3, 0.1], dtype=torch.float64)):
        assert checks.grid(times, 1.0).tolist() == [1.0, 0.3, 0.1]  # type: ignore[arg-type] # a list is not rounded
    assert checks.grid(torch.tensor([0.3, 0.1]), 0.3)[0].item() == 0.3  # float32(0.3) > 0.3
    bad: list[tuple[Any, type[Exception], str]] = [
        (torch.tensor([0.1, 0.5, 1.0]), ValueError, r"entry 0 is 0\.1 and entry 1 is 0\.5\. Flip"),
        (torch.tensor([1.0, 0.5, 0.5]), ValueError, "entry 1 is 0.5 and entry 2 is 0.5"),
        (torch.tensor([1.0]), ValueError, r"at least two times in one axis, \(steps \+ 1,\); got a tensor \(1,\)"),
        (torch.ones(2, 2), ValueError, "at least two times"),
        (torch.tensor([1.5, 0.5]), ValueError, "grid must lie in"),
        (torch.tensor([1.0, math.nan]), ValueError, "grid must lie in"),
        (torch.tensor([1.0, -0.5]), ValueError, "grid must lie in"),
        (None, TypeError, "grid must be times or a function of scoresde.grids"),
        (torch.tensor([True, False]), TypeError, "real"),
    ]
    for times, error, message in bad:
        with pytest.raises(error, match=message):
            checks.grid(times, 1.0)
