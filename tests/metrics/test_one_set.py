"""Figures of a set beside its training data, and alone: authenticity, Vendi scores."""

from __future__ import annotations

import math

import pytest
import scipy.special
import torch
from torch import Tensor

from scoresde.metrics import (
    CosineKernel,
    GaussianKernel,
    PolynomialKernel,
    authenticity,
    expected_authenticity,
    vendi_of_similarity,
    vendi_score,
)


def normals(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


# ---- authenticity ----


def test_authenticity_is_the_papers_rule() -> None:
    x, train = 0.8 * normals(25, 2), normals(15, 2, seed=1)
    held = 0
    for one in x:
        far = [float((one - t).norm()) for t in train]
        i = far.index(min(far))
        held += far[i] > min(float((train[i] - t).norm()) for j, t in enumerate(train) if j != i)
    for chunk in (4096, 4):
        assert authenticity(x, train, chunk=chunk) == pytest.approx(held / 25, abs=1e-12)
    assert authenticity(train, train) == 0.0
    assert authenticity(train + 1e-6, train) == 0.0  # copies with a little noise
    assert authenticity(train + 100, train) == 1.0
    with pytest.raises(ValueError, match="train must hold at least 2"):
        authenticity(x, train[:1])


@pytest.mark.parametrize("dim", [1, 2, 3])
def test_new_draws_score_what_is_expected(dim: int) -> None:
    n, runs = 400, 12
    found = torch.tensor([
        authenticity(normals(n, dim, seed=2 * i), normals(n, dim, seed=2 * i + 1)) for i in range(runs)
    ])  # fmt: skip
    # binomial spread, larger where draws share a neighbour: twice the deviation covers it; edges cost O(n^-1/dim)
    spread = 4 * 2 * math.sqrt(0.25 / (n * runs))
    assert abs(float(found.mean()) - expected_authenticity(dim)) < spread


def test_the_expectation_is_that_of_overlapping_balls() -> None:
    for dim in (1, 2, 3, 10, 64, 1000):
        overlap = scipy.special.betainc((dim + 1) / 2, 0.5, 0.75)  # of caps above 1/2
        assert expected_authenticity(dim) == pytest.approx(1 - 1 / (2 - overlap), rel=1e-9)
    assert expected_authenticity(1) == pytest.approx(1 / 3, rel=1e-9)


# ---- Vendi ----


def test_known_similarities() -> None:
    assert vendi_of_similarity(torch.eye(7)) == pytest.approx(7)
    assert vendi_of_similarity(torch.ones(5, 5)) == pytest.approx(1)
    blocks = torch.block_diag(torch.ones(2, 2), torch.ones(2, 2), torch.ones(4, 4)).double()
    assert vendi_of_similarity(blocks) == pytest.approx(2**1.5)  # entropy of 1/4, 1/4, 1/2
    half = torch.tensor([[1.0, 0.5], [0.5, 1.0]]).double()
    assert vendi_of_similarity(half) == pytest.approx(math.exp(-0.75 * math.log(0.75) - 0.25 * math.log(0.25)))


@pytest.mark.parametrize(("n", "d"), [(20, 3), (4, 9)])
def test_scores_of_samples_are_those_of_their_similarities(n: int, d: int) -> None:
    """Cosines by second moments or by all pairs; a kernel that is not 1 on the diagonal is normalised."""
    x = normals(n, d)
    cosine = vendi_of_similarity(CosineKernel().matrix(x, x))
    assert vendi_score(x) == pytest.approx(cosine, rel=1e-9)
    assert vendi_score(x, CosineKernel()) == pytest.approx(cosine, rel=1e-9)
    assert vendi_score(x, PolynomialKernel(1, offset=0.0)) == pytest.approx(cosine, rel=1e-9)
    assert vendi_score(x, GaussianKernel(1e-3)) == pytest.approx(n, rel=1e-6)  # all unlike
    assert vendi_score(x, GaussianKernel(1e6)) == pytest.approx(1, abs=1e-6)
    assert vendi_score(x.repeat(3, 1), GaussianKernel(1.0)) == pytest.approx(vendi_score(x, GaussianKernel(1.0)))


def test_white_samples_fill_their_dimensions() -> None:
    """Directions uniform on a sphere have second moments I/d: the score tends to d, from below by about d²/2n."""
    assert vendi_score(normals(4000, 6)) == pytest.approx(6, rel=0.01)


def test_what_is_no_similarity_is_refused() -> None:
    for bad, match in (
        (torch.ones(2, 3), "must be"), (2 * torch.eye(3), "ones on the diagonal"),
        (torch.tensor([[1.0, 0.5], [0.2, 1.0]]), "symmetric"), (torch.tensor([[1.0, 2.0], [2.0, 1.0]]), "semidefinite"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=match):
            vendi_of_similarity(bad)
    with pytest.raises(ValueError, match="not 0 for cosines"):
        vendi_score(torch.zeros(3, 2))
