"""Coverage and calibration of posterior samples: exact expectations, by enumerating who is the truth."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from scoresde.metrics import calibration_error, coverage, rank

LEVELS = [0.01, 0.25, 0.5, 0.8, 0.9, 0.99]
# S + 1 values of which one is the truth; with ties of every size, down to a single value (a part measured exactly)
VALUES = [[0.3, -1.2], [2.0, -1.0, 0.5], [1.0, 1.0, 3.0, 2.0], [0.0, 0.0, 0.0, 1.0, 1.0], [4.0] * 4]


def enumerated(values: list[float]) -> tuple[Tensor, Tensor]:
    """Every choice of the truth: samples (S + 1, S), truth (S + 1,)."""
    rest = [values[:i] + values[i + 1 :] for i in range(len(values))]
    return torch.tensor(rest, dtype=torch.float64), torch.tensor(values, dtype=torch.float64)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("values", VALUES, ids=str)
def test_coverage_of_exchangeable_samples_is_the_level(values: list[float], level: float) -> None:
    """The mean over all choices of the truth is the expectation given the values as a set; exact but for rounding."""
    assert coverage(*enumerated(values), level) == pytest.approx(level, abs=1e-14)


@pytest.mark.parametrize("values", VALUES, ids=str)
def test_all_choices_of_the_truth_are_calibrated(values: list[float]) -> None:
    assert calibration_error(*enumerated(values)) == pytest.approx(0, abs=1e-15)  # F(u) = u exactly


@pytest.mark.parametrize("event", [(), (2,), (2, 1, 3)])
def test_ranks_by_counting(event: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(0)
    samples = torch.randint(0, 4, (3, 5, *event), generator=generator).double()
    truth = torch.randint(0, 4, (3, *event), generator=generator).double()
    below, equal = rank(samples, truth)
    assert below.shape == equal.shape == truth.shape and bool((equal > 0).any())
    for place in itertools.product(*map(range, truth.shape)):
        column = [samples[place[0], j][place[1:]] for j in range(5)]
        assert below[place] == sum(bool(v < truth[place]) for v in column)
        assert equal[place] == sum(bool(v == truth[place]) for v in column)


def test_coverage_is_that_of_intervals_between_order_statistics() -> None:
    """S = 19 samples 1 ... 19: ranks 5 ... 14 of 0 ... 19 are the middle half, the truths from 5 to 15."""
    samples = torch.arange(1.0, 20.0)[None]
    inside = [coverage(samples, torch.tensor([v]), 0.5) for v in (4.5, 5.5, 14.5, 15.5)]
    assert inside == pytest.approx([0, 1, 1, 0], abs=1e-12)
    # rank 5 covers [0.25, 0.3]; the central 45 % begin in its middle
    assert coverage(samples, torch.tensor([5.5]), 0.45) == pytest.approx(0.5, abs=1e-12)


def test_the_calibration_error_is_the_integral() -> None:
    """Against the integral of |F - u| on a fine grid, F from the definition; the trapezoid's error is below h."""
    generator = torch.Generator().manual_seed(1)
    samples = torch.randint(0, 9, (40, 6), generator=generator).double()
    truth = torch.randint(0, 9, (40,), generator=generator).double() ** 0.9
    below, equal = rank(samples, truth)
    u = torch.linspace(0, 1, 20_001, dtype=torch.float64)
    share = ((u[:, None] * 7 - below) / (equal + 1)).clamp(0, 1).mean(1)
    assert calibration_error(samples, truth) == pytest.approx(float(torch.trapezoid((share - u).abs(), u)), abs=1e-6)


def test_a_calibration_error_that_changes_sign_between_knots() -> None:
    """All truths between two samples: F - u is 0, -1/3, 1/3, 0 at thirds: triangles of 1/18, 1/36, 1/36, 1/18."""
    samples = torch.tensor([[-1.0, 1.0]]).expand(5, 2)
    assert calibration_error(samples, torch.zeros(5)) == pytest.approx(1 / 6, abs=1e-12)


def test_extremes_of_the_calibration_error() -> None:
    """All truths on one side: F is 1 from the first cell on, so ½ but for that cell; on both sides: ¼."""
    samples, s = torch.zeros(2, 99), 99
    one = calibration_error(samples, torch.tensor([-1.0, -2.0]))
    assert one == pytest.approx(0.5 - 0.5 / (s + 1), abs=1e-12)  # ∫ rises to 1 - 1/(S+1) and falls: a triangle's area
    both = calibration_error(samples, torch.tensor([-1.0, 1.0]))
    assert both == pytest.approx(0.25 - 0.5 / (s + 1), abs=1e-12)


def test_too_narrow_and_too_wide_samples_are_seen() -> None:
    """N(0, 1) truths, N(0, w²) samples: the central half, |x| < 0.674 w, holds 2 Φ(0.674 w) - 1 of the truths."""
    generator = torch.Generator().manual_seed(2)
    truth = torch.randn(20_000, generator=generator, dtype=torch.float64)
    base = torch.randn(20_000, 199, generator=generator, dtype=torch.float64)
    for width in (0.5, 1.0, 2.0):
        expected = math.erf(0.6744897501960817 * width / math.sqrt(2))
        # four deviations of 20,000 coin flips, and about 1/S for the quantiles of 199 samples
        assert coverage(width * base, truth, 0.5) == pytest.approx(expected, abs=0.014 + 0.005 * (width != 1))
    exact, narrow = calibration_error(base, truth), calibration_error(0.5 * base, truth)
    # 0.313/sqrt(N) is its mean; its square has a law with light tails, of which 3 means are never reached in practice
    assert exact < 3 * 0.313 / math.sqrt(20_000) < narrow


def test_the_stated_size_of_an_exact_samplers_error() -> None:
    """sqrt(π/(32 N)) for N independent coordinates: the mean of 4000 repeats of N = 50, itself known to about 1 %."""
    generator = torch.Generator().manual_seed(3)
    samples = torch.rand(4000, 50, 60, generator=generator, dtype=torch.float64)
    truth = torch.rand(4000, 50, generator=generator, dtype=torch.float64)
    each = [calibration_error(a, b) for a, b in zip(samples, truth, strict=True)]
    # E|F - u| of 50 draws is within 1/(4N) of the normal's, the cells of 1/61 smooth a little: 3 % in all
    assert sum(each) / len(each) == pytest.approx(math.sqrt(math.pi / (32 * 50)), rel=0.03)


@pytest.mark.parametrize("level", [0.0, 1.0, -0.5, 90.0, math.nan])
def test_levels_outside_the_range_are_refused(level: float) -> None:
    with pytest.raises(ValueError, match="level must lie in"):
        coverage(torch.zeros(1, 2), torch.zeros(1), level)


@pytest.mark.parametrize(
    ("samples", "truth", "error", "words"),
    [
        (torch.zeros(3, 5, 2), torch.zeros(3, 5), ValueError, "S samples of each case"),
        (torch.zeros(3), torch.zeros(3), ValueError, "S samples of each case"),
        (torch.zeros(3, 0, 2), torch.zeros(3, 2), ValueError, "no ranks; got"),
        (torch.zeros(0, 4), torch.zeros(0), ValueError, "no ranks; got"),
        (torch.zeros(3, 5).long(), torch.zeros(3), TypeError, "floating"),
        (torch.zeros(3, 5), torch.full((3,), math.nan), ValueError, "truth must be finite, but holds 3"),
    ],
)
def test_bad_sets_are_refused(samples: Tensor, truth: Tensor, error: type[Exception], words: str) -> None:
    for measure in (rank, calibration_error, lambda a, b: coverage(a, b, 0.5)):
        with pytest.raises(error, match=words):
            measure(samples, truth)
