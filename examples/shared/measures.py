"""Figures of pictures that answer a question: how far from the truth, and whether their spread admits it.

    psnr(answers.mean(0), truth)
    spread_over_error(answers, truth)

Pictures are in [-1, 1]. The second is 1 for draws from the true posterior.
"""

from __future__ import annotations

import torch
from torch import Tensor


def psnr(x: Tensor, truth: Tensor) -> float:
    """Peak signal-to-noise ratio in dB of pictures in [-1, 1], from the mean square over all of them."""
    return float(10 * torch.log10(4 / (x.clamp(-1, 1) - truth).square().mean().clamp(min=1e-12)))


def spread_over_error(answers: Tensor, truth: Tensor) -> float:
    """Deviation of K draws (K, N, ...), over the error of their mean that it must bring; 1 for a true posterior.

    The truth is one more draw from that, so that E |mean - truth|² = (1 + 1/K) E var.
    """
    variance = answers.var(0).mean() * (1 + 1 / len(answers))
    return float((variance / (answers.mean(0) - truth).square().mean()).sqrt())


def rms_distance(x: Tensor, y: Tensor) -> Tensor:
    """Root mean square of x - y over each event, (N,), for (N, *event)."""
    return (x - y).square().flatten(1).mean(1).sqrt()


def iou(mask: Tensor, truth: Tensor) -> Tensor:
    """Intersection over union of masks (N, ...) with values 0 and 1, (N,); 1 where both are empty."""
    both, either = ((mask.bool() & truth.bool()).flatten(1).sum(1), (mask.bool() | truth.bool()).flatten(1).sum(1))
    return torch.where(either == 0, 1.0, both / either.clamp(min=1))


def correlation(a: Tensor, b: Tensor) -> float:
    """Pearson's, of (N,) each; 0 where one is constant."""
    a, b = a - a.mean(), b - b.mean()
    product = float(a.norm() * b.norm())
    return float(a @ b) / product if product > 0 else 0.0


def upsized(low: Tensor, factor: int) -> Tensor:
    """Each pixel of pictures (..., H, W) as a square of factor x factor."""
    return low.repeat_interleave(factor, -2).repeat_interleave(factor, -1)
