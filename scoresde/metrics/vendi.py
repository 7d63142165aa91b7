r"""Vendi score: how many samples that are all unlike each other a set amounts to.

    vendi_score(features(samples))                          # from 1, all alike, to n, all unlike
    vendi_score(samples, GaussianKernel(1.0))
    vendi_of_similarity(torch.eye(5))                       # 5

It looks at one set alone: compare it with that of as many real samples. It says nothing of quality, noise scores high.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from scoresde import checks
from scoresde.metrics.kernels import Kernel
from scoresde.metrics.sets import check_sizes, rows_of


def vendi_score(x: Tensor, kernel: Kernel | None = None) -> float:
    r"""exp(-Σ λ_i log λ_i), λ the eigenvalues of K/n, K_ij the similarities of n samples, with ones on the diagonal.

    Friedman & Dieng 2023 (arXiv:2210.02410, definition 3.1). With cosines, from the (d, d) matrix of second moments
    where that is smaller; any other kernel takes the eigenvalues of (n, n): some seconds for 2000 samples.

    Args:
        x: (n, *event), features most often.
        kernel: cosines of the samples unless told; others are divided by sqrt(k(x, x) k(y, y)).

    Raises:
        TypeError, ValueError: no kernel, no samples, not finite, or k(x, x) not positive for a sample.
    """
    if kernel is not None:
        checks.instance(kernel, Kernel, name="kernel", hint="GaussianKernel(bandwidth) is one.")
    rows = rows_of(x, name="x")
    check_sizes(rows, least=1, names=("x",), what="a Vendi score")
    if kernel is None:
        lengths = rows.norm(dim=1)
        if not bool((lengths > 0).all()):
            raise ValueError("x must hold samples that are not 0 for cosines; pass kernel=GaussianKernel(bandwidth).")
        unit = F.normalize(rows, dim=1)
        return _of(unit.T @ unit if rows.shape[1] < len(rows) else unit @ unit.T, len(rows))
    k = kernel.matrix(rows, rows)
    itself = k.diagonal()
    if not bool((itself > 0).all()):
        raise ValueError(f"kernel must be positive of a sample with itself, got {float(itself.min()):g} from {kernel}.")
    return _of(k / (itself[:, None] * itself).sqrt(), len(rows))


def vendi_of_similarity(similarity: Tensor) -> float:
    """The same of a matrix of similarities (n, n): symmetric, positive semidefinite, with ones on the diagonal.

    Raises:
        TypeError, ValueError: it is none.
    """
    checks.state(similarity, name="similarity", values=True)
    if similarity.ndim != 2 or similarity.shape[0] != similarity.shape[1] or not len(similarity):
        raise ValueError(f"similarity must be (n, n), got {checks.got(similarity)}.")
    k = checks.brought(similarity, torch.float64)
    if not torch.allclose(k, k.T, rtol=0, atol=1e-6) or not bool(((k.diagonal() - 1).abs() < 1e-6).all()):
        raise ValueError(
            f"similarity must be symmetric with ones on the diagonal, got {checks.got(similarity)} with a diagonal "
            f"from {float(k.diagonal().min()):g} to {float(k.diagonal().max()):g}."
        )
    least = float(torch.linalg.eigvalsh(k)[0])
    if least < -1e-6 * len(k):
        raise ValueError(f"similarity must be positive semidefinite, got an eigenvalue of {least:g}.")
    return _of(k, len(k))


def _of(matrix: Tensor, n: int) -> float:
    """Of a matrix with the nonzero eigenvalues of K."""
    shares = (torch.linalg.eigvalsh(matrix) / n).clamp_min(0)
    return float(torch.special.entr(shares).sum().exp())
