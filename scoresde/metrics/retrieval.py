"""Retrieval: whether what is asked for is among the first that a similarity finds::

similarity = model.image(x) @ model.caption(tokens).T              # (N, M), pictures and captions
recall_at(similarity, labels[:, None] == of_caption[None], k=5)    # share of pictures whose caption is among 5
recall_at(similarity.T, ..., k=1)                                  # and of captions whose picture comes first
"""

from __future__ import annotations

import torch
from torch import Tensor

from scoresde import checks


def recall_at(similarity: Tensor, right: Tensor, k: int = 1) -> float:
    r"""Share of queries with at least one right answer among their k most similar, R@k.

    Answers that are equally similar come in random order, of which the expectation is taken: with g answers above the
    best right one, and r right ones among the e that are as similar as that one, a query counts as

        1 - C(e - r, m) / C(e, m),      m = min(k - g, e), 0 where m <= 0

    so that a similarity that knows nothing scores what chance does.

    Args:
        similarity: (N, M), of N queries with M answers.
        right: (N, M) bool, which answers are right; at least one for each query.
        k: how many are looked at.

    Raises:
        TypeError, ValueError: not floating (N, M), not finite, no bool of that shape, a query without a right answer.
    """
    checks.state(similarity, name="similarity", values=True)
    if similarity.ndim != 2 or not similarity.numel():
        raise ValueError(f"similarity must be (N, M), of queries with answers, got {checks.got(similarity)}.")
    if not isinstance(right, Tensor) or right.dtype != torch.bool:
        raise TypeError(f"right must be a bool tensor {tuple(similarity.shape)}, got {checks.got(right)}.")
    if right.shape != similarity.shape:
        raise ValueError(f"right must be {tuple(similarity.shape)}, as the similarity is, got {checks.got(right)}.")
    right = right.to(similarity.device)
    if not bool(right.any(1).all()):
        without = (~right.any(1)).nonzero().flatten()[:5].tolist()
        raise ValueError(
            f"right must hold an answer for each query at least, got {checks.got(right)} without any in rows {without}."
        )
    k = checks.count(k, name="k")
    exact = similarity.double() if checks.has_float64(similarity.device) else similarity.float()
    best = exact.masked_fill(~right, -torch.inf).amax(1, keepdim=True)
    level = exact == best
    # in float32 the logarithms below, of thousands of ties, would be wrong by more than the chance of a single answer
    above, tied, good = (some.sum(1).cpu() for some in (exact > best, level, level & right))
    looked = (k - above).clamp(min=0).minimum(tied)
    missed = (_log_choose(tied - good, looked) - _log_choose(tied, looked)).exp()
    # with fewer wrong ones than are looked at, one is right for sure
    missed = torch.where(tied - good < looked, torch.zeros_like(missed), missed)
    return float((1 - missed).mean())


def _log_choose(n: Tensor, k: Tensor) -> Tensor:
    """log C(n, k) of whole numbers on the CPU, float64; of no meaning where n < k."""
    n, k = n.double(), k.double()
    return torch.lgamma(n + 1) - torch.lgamma(k + 1) - torch.lgamma((n - k).clamp(min=0) + 1)
