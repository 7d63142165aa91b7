"""Classifier two-sample test and power: known accuracies, levels, other libraries."""

from __future__ import annotations

import math

import pytest
import scipy.stats
import torch
from torch import Tensor

from scoresde.metrics import (
    TwoSampleTest,
    classifier_two_sample_test,
    detectable_shift,
    energy_distance,
    mmd_test,
    power_of_test,
)
from scoresde.metrics.classifier_test import rank_p_value


def normals(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def phi(z: float) -> float:
    return 0.5 * math.erfc(-z / math.sqrt(2))


def means(rows: Tensor, label: Tensor, new: Tensor) -> Tensor:
    """The linear classifier of two means: fast, and the best there is for a shift of white Gaussians."""
    low, high = rows[label == 0].mean(0), rows[label == 1].mean(0)
    return (new - (low + high) / 2) @ (high - low)


@pytest.mark.parametrize("shift", [1.0, 2.0])
def test_the_accuracy_of_shifted_gaussians_is_known(shift: float) -> None:
    n = 600
    x, y = normals(n, 3), normals(n, 3, seed=1) + torch.tensor([0.6 * shift, 0.8 * shift, 0]).double()
    best = phi(shift / 2)
    for classifier in (None, means):
        found = classifier_two_sample_test(x, y, folds=3, classifier=classifier)
        # of 1200 held-out samples; a fitted classifier loses a little: d/(8n) of it at most for means, allowed for
        # the network 2 %
        assert found.accuracy == pytest.approx(best, abs=4 * math.sqrt(best * (1 - best) / (2 * n)) + 0.02)
        assert found.p_value < 1e-6
        assert found.error == pytest.approx(math.sqrt(best * (1 - best) / (2 * n)), rel=0.1)


def test_the_network_learns_what_no_line_tells() -> None:
    """A Gaussian inside a ring: the linear classifier is at a half, the network is not."""
    x = 0.5 * normals(400, 2)
    y = 2 * torch.nn.functional.normalize(normals(400, 2, seed=1), dim=1) + 0.2 * normals(400, 2, seed=2)
    assert classifier_two_sample_test(x, y, classifier=means).accuracy < 0.65
    found = classifier_two_sample_test(x, y)
    assert found.accuracy > 0.97
    assert found == classifier_two_sample_test(x, y) != classifier_two_sample_test(x, y, 1)
    state = torch.get_rng_state()
    classifier_two_sample_test(x[:20], y[:30], folds=2)
    assert torch.equal(state, torch.get_rng_state())


def test_its_level_holds_where_a_binomial_test_fails() -> None:
    """Equal laws: p <= 0.05 in at most 5 % of runs; the binomial test of the pooled accuracy rejects in more."""
    runs, n = 400, 40
    found = [
        classifier_two_sample_test(normals(n, 4, seed=2 * i), normals(n, 4, seed=2 * i + 1), i, classifier=means)
        for i in range(runs)
    ]
    spread = 3 * math.sqrt(0.05 * 0.95 / runs)
    assert sum(one.p_value <= 0.05 for one in found) / runs < 0.05 + spread
    binomial = sum(one.accuracy - 0.5 > 1.645 * math.sqrt(0.25 / (2 * n)) for one in found) / runs
    assert binomial > 0.05 + spread
    assert abs(sum(one.accuracy for one in found) / runs - 0.5) < 0.02


@pytest.mark.parametrize(("folds", "factor"), [(5, 5 / 3), (4, 4 / 2), (2, 2)])
def test_p_values_of_folds_are_joined_by_rugers_rule(folds: int, factor: float) -> None:
    """Sets that all folds tell apart alike: K/k times the p-value of one, k = ⌈K/2⌉."""
    x, y = normals(8 * folds, 1) - 100, normals(8 * folds, 1, seed=1) + 100
    one = rank_p_value(torch.arange(8.0), torch.arange(8.0) + 10)
    found = classifier_two_sample_test(x, y, folds=folds, classifier=means)
    assert found.p_value == pytest.approx(factor * one, rel=1e-9) and found.accuracy == 1.0 and found.error == 0.0


def test_ranks_are_scipys_mann_whitney() -> None:
    for low, high in ((normals(12), normals(9, seed=1) + 0.5), (normals(20).round(), normals(15, seed=1).round())):
        expected = scipy.stats.mannwhitneyu(
            high.numpy(), low.numpy(), alternative="greater", method="asymptotic"
        ).pvalue
        assert rank_p_value(low, high) == pytest.approx(float(expected), rel=1e-9)
    assert rank_p_value(torch.zeros(4), torch.zeros(5)) == 1.0


def test_bad_classifiers_are_refused() -> None:
    x, y = normals(20, 2), normals(20, 2, seed=1)
    for bad, match in (
        (lambda a, b, c: c, r"log-odds \(8,\)"), (lambda a, b, c: c[:, 0] * math.nan, "finite"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=match):
            classifier_two_sample_test(x, y, classifier=bad)
    with pytest.raises(ValueError, match="y must hold at least 20 samples for folds=5"):
        classifier_two_sample_test(x, y[:19])


# ---- power ----


@pytest.mark.parametrize("dim", [1, 8, 64, 1000])
@pytest.mark.parametrize(("level", "power"), [(0.05, 0.8), (0.05, 0.3), (0.01, 0.95)])
def test_detectable_shifts_have_the_power_they_say(dim: int, level: float, power: float) -> None:
    """|x̄ - ȳ|²/r is χ² with d degrees of freedom, noncentral by δ²/r: its power at the shift, by scipy."""
    r = 1 / 300 + 1 / 500
    shift = detectable_shift(300, 500, dim=dim, level=level, power=power)
    found = scipy.stats.ncx2.sf(scipy.stats.chi2.isf(level, dim), dim, shift**2 / r)
    # of the cube root's normal approximation, which is worst at the edge of a line's distribution
    assert found == pytest.approx(power, abs=0.03 if dim == 1 else 0.01)


def test_the_tests_find_about_what_they_should() -> None:
    """Energy distance and Gaussian MMD of the median lose little against the test of means they are measured by."""
    n, dim = 60, 4
    shift = torch.zeros(dim).double()
    shift[0] = detectable_shift(n, n, dim=dim)
    x, y = normals(4000, dim), normals(4000, dim, seed=1) + shift
    found = power_of_test(lambda a, b: mmd_test(a, b, permutations=39), x, y, size=n, repeats=100)
    assert 0.6 < found.value < 0.95  # 0.8 up to 4 standard errors of 0.04
    null = power_of_test(lambda a, b: mmd_test(a, b, permutations=39), x[:2000], x[2000:], size=n, repeats=100)
    assert null.value < 0.05 + 4 * math.sqrt(0.05 * 0.95 / 100)
    assert found.error == pytest.approx(math.sqrt(found.value * (1 - found.value) / 100))


def test_power_draws_afresh_and_refuses() -> None:
    seen: list[float] = []

    def test(a: Tensor, b: Tensor) -> TwoSampleTest:
        assert len(a) == len(b) == 5 and len(a.unique(dim=0)) == 5
        seen.append(energy_distance(a, b))
        return TwoSampleTest(0.0, 0.05 if len(seen) % 2 else 0.051)

    assert power_of_test(test, normals(9, 2), normals(8, 2, seed=1), size=5, repeats=10).value == 0.5
    assert len(set(seen)) == 10
    with pytest.raises(ValueError, match="size=9"):
        power_of_test(test, normals(9, 2), normals(8, 2), size=9)
    with pytest.raises(TypeError, match="TwoSampleTest"):
        power_of_test(lambda a, b: 0.3, normals(9, 2), normals(8, 2), size=5)  # type: ignore[arg-type, return-value]
    with pytest.raises(ValueError, match="power must be above level"):
        detectable_shift(10, 10, power=0.01)
