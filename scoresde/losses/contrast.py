r"""The symmetric contrastive loss of pairs, such as pictures and captions, a loss for each pair::

    same = (tokens[:, None] == tokens[None]).all(2)     # (B, B): equal captions are not each other's negatives
    loss = contrastive_loss(logits, same)               # (B,), of logits (B, B): pictures in rows, captions in columns

:func:`information_bound` says how many nats of mutual information a loss stands for.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from scoresde import checks


def contrastive_loss(logits: Tensor, same: Tensor | None = None) -> Tensor:
    r"""InfoNCE in both directions, in nats, (B,)::

        ℓ_i = ½ KL(τ_i ‖ softmax_j s_ij) + ½ KL(τ_i ‖ softmax_j s_ji),      τ_i uniform on the j that are the same as i

    s_ij is what picture i and caption j score (Radford et al. 2021, arXiv:2103.00020, figure 3). Where no two pairs are
    the same it is their cross-entropy to the diagonal. Where some are, a picture is as much that of one of the equal
    captions as of the other: the target is uniform on them, and what no logits could avoid, log |{j : j same as i}|, is
    not counted, so that the least loss is 0, and the gradient of all pairs together the same as without.

    Its minimiser over functions of a picture and a caption is s(x, y) = log p(x, y) / (p(x) p(y)), up to a constant
    (van den Oord et al. 2018, arXiv:1807.03748, eq. 5).

    Args:
        logits: (B, B), floating; pair i is row i and column i.
        same: (B, B) bool, symmetric, an equivalence with its diagonal true; None where no two pairs are the same.

    Raises:
        TypeError, ValueError: not floating (B, B), no bool of that shape, a pair that is not the same as itself.
    """
    checks.state(logits, name="logits")
    if logits.ndim != 2 or logits.shape[0] != logits.shape[1]:
        raise ValueError(
            f"logits must be (B, B), each picture with each caption of the batch, got {checks.got(logits)}."
        )
    exact = logits.to(torch.promote_types(logits.dtype, torch.float32))
    if same is None:
        return -0.5 * (F.log_softmax(exact, 1).diagonal() + F.log_softmax(exact, 0).diagonal())
    mates = _checked(same, logits).to(exact.dtype)
    count = mates.sum(1)
    target = mates / count[:, None]
    # row i of the second is the softmax over pictures of caption i
    rows, columns = F.log_softmax(exact, 1), F.log_softmax(exact, 0).T
    return -0.5 * (target * (rows + columns)).sum(1) - count.log()


def information_bound(loss: Tensor, same: Tensor | None = None) -> Tensor:
    r"""Nats of mutual information between the two halves of a pair that a batch's losses (B,) vouch for, ()::

        I ≥ mean_i (log B - log |{j : j same as i}| - ℓ_i)

    in expectation over batches of independent pairs; never more than log B (van den Oord et al. 2018,
    arXiv:1807.03748, section 2.3; the average of its two directions).

    Args:
        loss: of :func:`contrastive_loss`, (B,).
        same: as there.

    Raises:
        TypeError, ValueError: losses that are not floating (B,), and as there.
    """
    checks.state(loss, name="loss")
    if loss.ndim != 1 or not len(loss):
        raise ValueError(f"loss must hold one number for each pair of a batch, (B,), got {checks.got(loss)}.")
    exact = loss.to(torch.promote_types(loss.dtype, torch.float32))
    count = torch.ones_like(exact)
    if same is not None:
        count = _checked(same, exact[:, None].expand(-1, len(exact))).sum(1).to(exact.dtype)
    return math.log(len(exact)) - (count.log() + exact).mean()


def _checked(same: object, logits: Tensor) -> Tensor:
    """``same``, if it is bool, of the shape of the logits and true on its diagonal."""
    if not isinstance(same, Tensor) or same.dtype != torch.bool or same.layout is not torch.strided:
        layout = f", {same.layout}" if isinstance(same, Tensor) else ""
        raise TypeError(
            f"same must be a dense bool tensor {tuple(logits.shape)}, got {checks.got(same)}{layout}; compare captions "
            "by (tokens[:, None] == tokens[None]).all(2)."
        )
    if same.shape != logits.shape:
        raise ValueError(
            f"same must say it of each two pairs of the batch, {tuple(logits.shape)}, got {checks.got(same)}."
        )
    if same.device != logits.device:
        raise ValueError(f"same is on {same.device} and the logits on {logits.device}; pass same.to(logits.device).")
    if checks.readable(same) and not bool(same.diagonal().all() & (same == same.T).all()):
        raise ValueError(
            f"same must be symmetric, with each pair the same as itself: true on its diagonal; got {checks.got(same)}."
        )
    return same
