"""The positive part of symmetric matrices by polar decomposition, against the eigendecomposition."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from scoresde.inverse.semidefinite import by_eigenvectors, by_polar, positive_part

F64 = torch.float64


def with_values(*values: float) -> Tensor:
    """A symmetric matrix of these eigenvalues, with axes drawn at random."""
    draws = torch.randn(len(values), len(values), generator=torch.Generator().manual_seed(0), dtype=F64)
    axes = torch.linalg.qr(draws).Q
    matrix = (axes * torch.tensor(values, dtype=F64)) @ axes.mT
    return 0.5 * (matrix + matrix.mT)[None]


MATRICES: dict[str, Tensor] = {
    "mixed": with_values(3.0, 1.0, -0.5, -2.0),
    "positive": with_values(3.0, 1.0, 0.5, 1e-8),
    "negative": with_values(-3.0, -1.0),
    "of low rank": with_values(2.0, 0.0, 0.0, -1.0, 0.0),
    "ill-conditioned": with_values(1e6, 1.0, -1e-6, 1e-12, -1e-12),
    "all equal": with_values(2.0, 2.0, 2.0),
    "one number": torch.tensor([[[-0.3]], [[0.7]]], dtype=F64),
    "nothing": torch.zeros(2, 3, 3, dtype=F64),
    "tiny": 1e-150 * with_values(1.0, -1.0),
    "whose square is 0": 1e-200 * with_values(1.0, -1.0, 0.3, -0.1),
    "whose square is infinite": 1e200 * with_values(1.0, -1.0, 0.3, -0.1),
    "many": torch.cat([with_values(*torch.linspace(*ends, 40).tolist()) for ends in ((-1, 1), (-3, 0.5))]),
}


@pytest.mark.parametrize("name", MATRICES)
def test_both_ways_find_the_same_part(name: str) -> None:
    """To roundings of the largest eigenvalue, by which both are stable: m eps, with room for six iterations."""
    matrix = MATRICES[name]
    size = matrix.abs().amax()
    found = by_polar(matrix)
    room = 50 * matrix.shape[-1] * torch.finfo(F64).eps * size
    assert (found - by_eigenvectors(matrix)).abs().amax() <= room
    assert torch.equal(found, found.mT)
    assert (torch.linalg.eigvalsh(matrix - found) >= -room).all()


def test_what_is_taken_away_counts_as_a_constant() -> None:
    matrix = MATRICES["mixed"].clone().requires_grad_()
    (gradient,) = torch.autograd.grad(positive_part(matrix).sum(), matrix)
    assert torch.equal(gradient, torch.ones_like(matrix))
