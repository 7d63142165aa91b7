"""Weights of particles, as logarithms (G, N): G groups that know nothing of each other, N particles in each."""

from __future__ import annotations

import math

from torch import Tensor


def normalised(log_weights: Tensor) -> Tensor:
    """The weights themselves, (G, N) float64, each group's sum 1; a log-weight of -inf is a weight of 0.

    Raises:
        TypeError: not a floating tensor.
        ValueError: not (G, N) with N >= 1; NaN or +inf; or a group all of whose particles weigh nothing.
    """
    if not isinstance(log_weights, Tensor) or not log_weights.is_floating_point():
        got = log_weights.dtype if isinstance(log_weights, Tensor) else type(log_weights).__name__
        raise TypeError(f"log_weights must be a floating tensor (G, N), got {got}.")
    if log_weights.ndim != 2 or not log_weights.shape[1]:
        raise ValueError(
            f"log_weights must be (groups, particles), got {tuple(log_weights.shape)}; one group is log_weights[None]."
        )
    greatest = log_weights.detach().amax(1)  # NaN where any is
    if not bool(greatest.isfinite().all()):
        raise ValueError(_reason(greatest))
    return log_weights.double().softmax(1)


def _reason(greatest: Tensor) -> str:
    def rows(bad: Tensor) -> list[int]:
        return bad.nonzero().flatten()[:5].tolist()

    if bool((bad := greatest.isnan() | (greatest == math.inf)).any()):
        return (
            f"log_weights hold NaN or +inf, first in groups {rows(bad)}: a score, a twist or a potential has answered "
            "such values. Look for an overflow or a division by 0 in it, most often near the last time."
        )
    return (
        f"every particle of groups {rows(greatest == -math.inf)} has weight 0 (log-weights all -inf): none is where "
        "the potential allows. Make it positive everywhere, such as a measurement with noise, or take more particles."
    )


def effective_sample_size(log_weights: Tensor) -> Tensor:
    """1 / Σ_n w_n² of the normalised weights (Kong et al. 1994, doi:10.1080/01621459.1994.10476469), (G, N) -> (G,).

    N for equal weights, 1 where one particle holds all.

    Raises:
        TypeError, ValueError: as :func:`normalised`.
    """
    return 1 / normalised(log_weights).square().sum(1)
