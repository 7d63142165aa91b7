"""Overlap, ranking and reliability of masks: by hand, by brute force, by scikit-learn, and where they are known."""

from __future__ import annotations

import math

import pytest
import torch
from sklearn.metrics import brier_score_loss, f1_score, roc_auc_score
from torch import Tensor

from scoresde.metrics import dice, reliability, roc_auc


def draws(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_dice_by_hand() -> None:
    mask = torch.tensor([[1, 1, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0], [1, 1, 1, 1]])
    truth = torch.tensor([[1, 0, 1, 0], [0, 1, 0, 0], [0, 0, 0, 0], [1, 1, 1, 1]])
    assert dice(mask, truth).tolist() == [0.5, 0.0, 1.0, 1.0]  # 2·1/(2 + 2), none in common, both empty, equal
    assert dice(mask.bool(), truth.float()).tolist() == [0.5, 0.0, 1.0, 1.0]


def test_dice_is_the_f1_score_of_pixels() -> None:
    mask, truth = draws(5, 1, 6, 6) > 0.4, draws(5, 1, 6, 6, seed=1) > 0.6
    wanted = [f1_score(t.flatten().numpy(), m.flatten().numpy()) for m, t in zip(mask, truth, strict=True)]
    assert dice(mask, truth).tolist() == pytest.approx(wanted, abs=1e-14)


@pytest.mark.parametrize("levels", [None, 5, 1])
def test_area_under_the_curve(levels: int | None) -> None:
    """Against scikit-learn's trapezoids and all pairs by hand, with ties of every size."""
    truth = draws(4, 30) > 0.8
    scores = draws(4, 30, seed=1) + 0.3 * truth
    scores = scores if levels is None else (scores * levels).floor().clamp_max(levels - 1)
    found = roc_auc(scores, truth)
    assert found == pytest.approx(roc_auc_score(truth.flatten().numpy(), scores.flatten().numpy()), abs=1e-13)
    up, down = scores[truth][:, None], scores[~truth][None]
    assert found == pytest.approx(float((up > down).double().mean() + 0.5 * (up == down).double().mean()), abs=1e-13)
    assert roc_auc(-scores, truth) == pytest.approx(1 - found, abs=1e-13)
    assert roc_auc(scores.float().exp(), truth) == pytest.approx(found, abs=1e-3)  # ties by rounding aside
    assert roc_auc(truth.double(), truth) == 1.0


def test_reliability_by_hand() -> None:
    p = torch.tensor([[0.0, 0.2, 0.5, 0.5, 0.9, 1.0]], dtype=torch.float64)
    truth = torch.tensor([[0, 1, 0, 1, 1, 1]])
    found = reliability(p, truth, bins=2)  # [0, ½] and (½, 1]
    assert found.count.tolist() == [4, 2]
    assert found.forecast.tolist() == pytest.approx([0.3, 0.95]) and found.frequency.tolist() == [0.5, 1.0]
    assert found.ece == pytest.approx((4 * 0.2 + 2 * 0.05) / 6)
    assert found.brier == pytest.approx((0 + 0.64 + 0.25 + 0.25 + 0.01 + 0) / 6)
    assert found.brier == pytest.approx(brier_score_loss(truth[0].numpy(), p[0].numpy()))
    assert found.ece_floor == pytest.approx((math.sqrt(0.16 + 0.25 + 0.25) + math.sqrt(0.09)) / 6)
    empty = reliability(p, truth, bins=10)
    assert bool(empty.forecast[2].isnan()) and bool(empty.frequency[2].isnan()) and int(empty.count.sum()) == 6


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("bins", [3, 10, 49])
def test_each_share_of_draws_has_a_bin_of_its_own(dtype: torch.dtype, bins: int) -> None:
    """k/K in K bins ends bin k, however the dtype rounds it; 0 is in the first."""
    p = torch.arange(bins + 1).to(dtype) / bins
    found = reliability(p[None], torch.zeros(1, bins + 1), bins=bins)
    assert found.count.tolist() == [2] + [1] * (bins - 1)


def test_probabilities_that_hold_are_reliable_and_others_are_not() -> None:
    """Where the posterior is known, the error is at most its floor, by Jensen, up to the spread of the sum of bins."""
    p = draws(200, 100)
    truth = draws(200, 100, seed=1) < p
    found = reliability(p, truth)
    # the sum of ten terms |N(0, v_m)|, each of standard deviation 0.6 of its root: about a fifth of their sum
    assert 0.4 * found.ece_floor < found.ece < 1.4 * found.ece_floor
    assert found.brier == pytest.approx(1 / 6, abs=5 * 0.17 / math.sqrt(20000))  # ∫ p (1 - p) dp
    sure = reliability(torch.where(p > 0.5, 1 - (1 - p) ** 2, p**2), truth)
    # ∫ |p - p²| over both halves: 2 (1/8 - 1/24)
    assert sure.ece == pytest.approx(1 / 6, abs=0.02)


def test_shares_of_few_draws_are_reliable_only_after_shrinking() -> None:
    """Of K draws from the law with which the truth was drawn, k say E[p | k], (k + 1)/(K + 2) for uniform p."""
    p, k = draws(200_000, 1), 4
    hits = (draws(200_000, k, seed=1) < p).sum(1, keepdim=True).double()
    truth = draws(200_000, 1, seed=2) < p
    shares, shrunk = reliability(hits / k, truth), reliability((hits + 1) / (k + 2), truth)
    assert shrunk.ece < 1.5 * shrunk.ece_floor
    # |k/K - (k + 1)/(K + 2)| = |K - 2k| / (K (K + 2)), k uniform on 0 ... 4: (4 + 2 + 0 + 2 + 4)/(24 · 5)
    assert shares.ece == pytest.approx(0.1, abs=0.005)


def test_what_they_refuse() -> None:
    mask, p = torch.ones(2, 3, dtype=torch.bool), torch.full((2, 3), 0.5)
    for call, error, match in (
        (lambda: dice(mask, mask[:, :2]), ValueError, "one shape"),
        (lambda: dice(255 * mask, mask), ValueError, "> 127"),
        (lambda: roc_auc(p, mask), ValueError, "positives and negatives"),
        (lambda: roc_auc(p, torch.eye(3)[:2, :2]), ValueError, "shape"),
        (lambda: reliability(2 * p + 0.5, mask), ValueError, r"\[0, 1\]"),
        (lambda: reliability(p, mask, bins=0), ValueError, "bins"),
    ):
        with pytest.raises(error, match=match):
            call()
