"""Between two latents: paths that stay inside the prior's law.

    between = interpolate(a, b, torch.linspace(0, 1, 7))            # (7, B, *event), to be decoded or sampled from

Spherical by default, which keeps the norm; "straight" keeps the law of independent latents exactly.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from scoresde import checks
from scoresde.editing.inputs import graph


def interpolate(
    a: Tensor,
    b: Tensor,
    weights: float | Tensor,
    *,
    path: Literal["spherical", "straight"] = "spherical",
    gradients: bool = False,
) -> Tensor:
    r"""Latents between a (weight 0) and b (weight 1), to be decoded or sampled from.

    "spherical" (Shoemake 1985; Song et al. 2021, arXiv:2010.02502, section 5.3 and appendix D.5), with θ the angle
    between the two as vectors::

        [sin((1 - w) θ) a + sin(w θ) b] / sin θ

    keeps the norm: of two of norm r all between have norm r, and equal ones give themselves. Between two draws of
    N(0, s² I) in D dimensions the variance is s² (1 + O(1/D²)) for D > 3, while the norm varies less than a draw's.

    "straight" goes along the line, and is scaled to keep the variance::

        [(1 - w) a + w b] / sqrt((1 - w)² + w²)

    Of two independent draws of N(0, s² I) it is exactly another, for each w; of two that are not independent it is
    not: equal ones grow by sqrt(2) half way.

    Args:
        a: (B, *event), latents such as x_T.
        b: the same shape.
        weights: a number, or (W,) for W of them; outside [0, 1] it extrapolates.
        path: see above.
        gradients: keep the graph, in the caller's mode, so that the result can be differentiated, in a, b and weights.

    Returns:
        (B, *event) for a number, (W, B, *event) for (W,), in the dtype of a.

    Raises:
        ValueError: shapes that differ; for "spherical" a latent that is zero, or two that are opposite, between which
            no arc is the shortest.
    """
    checks.state(a, name="a", values=True)
    checks.state(b, name="b", values=True)
    checks.same_shape(a, b, names="a and b")
    path = checks.one_of(path, ("spherical", "straight"), name="path")
    w = checks.real(weights, name="weights")
    if w.ndim > 1:
        raise ValueError(f"weights must be a number or (W,), got shape {tuple(w.shape)}.")
    checks.finite(w, name="weights")
    with graph(gradients):
        several = w.to(a.device).reshape(-1, 1)  # (W, 1), against samples (B,)
        if path == "straight":
            scale = ((1 - several) ** 2 + several**2).rsqrt()
            left, right = (1 - several) * scale, several * scale
        else:
            left, right = _spherical(a, b, several)
        lead = (len(several), *left.shape[1:], *[1] * (a.ndim - left.ndim + 1))
        out = left.to(a.dtype).reshape(lead) * a + right.to(a.dtype).reshape(lead) * b
        return out if w.ndim else out[0]


def _spherical(a: Tensor, b: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
    """The two factors, (W, B), float64."""
    u, v = (x.reshape(len(x), math.prod(x.shape[1:])).double() for x in (a, b))
    for name, x in (("a", u), ("b", v)):
        if bool((zero := (x.detach() == 0).all(1)).any()):
            raise ValueError(
                f"sample {int(zero.nonzero()[0])} of {name} is zero and points nowhere: "
                'take path="straight", or another latent.'
            )
    u, v = u / u.norm(dim=1, keepdim=True), v / v.norm(dim=1, keepdim=True)
    # the angle by atan2 of half sums keeps its digits near 0 and π, where arccos of the product has none
    sine, cosine = (u - v).norm(dim=1), (u + v).norm(dim=1)
    angle = 2 * torch.atan2(sine, cosine)
    rounding = 8 * torch.finfo(a.dtype).eps
    if bool((opposite := math.pi - angle.detach() < rounding).any()):
        raise ValueError(
            f"sample {int(opposite.nonzero()[0])} of a and b are opposite, so that no arc between them is the "
            'shortest: take path="straight", or another latent.'
        )
    near = angle.detach() < rounding  # where the arc is its chord
    safe = torch.where(near, torch.ones_like(angle), angle)
    left, right = (torch.sin(part * safe) / torch.sin(safe) for part in (1 - w, w))
    return torch.where(near, (1 - w).expand_as(left), left), torch.where(near, w.expand_as(right), right)
