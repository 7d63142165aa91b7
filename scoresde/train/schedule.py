"""The learning rate and the decay of the average, as closed formulas of the step."""

from __future__ import annotations

import math
from typing import Literal

Decay = Literal["constant", "cosine"]


def learning_rate(step: int, *, lr: float, steps: int, warmup: int = 0, decay: Decay = "constant") -> float:
    """The learning rate of one optimizer step.

    With k = ``step`` counted from 0 and w = ``warmup``::

        k < w       lr (k + 1) / w
        constant    lr
        cosine      lr (1 + cos(π (k - w) / (steps - w))) / 2       (Loshchilov & Hutter 2017, arXiv:1608.03983)
    """
    if step < warmup:
        return lr * (step + 1) / warmup
    if decay == "constant":
        return lr
    return lr * 0.5 * (1 + math.cos(math.pi * (step - warmup) / (steps - warmup)))


def average_decay(update: int, decay: float) -> float:
    """The decay of update k (counted from 0) of a moving average with warm-up: min(decay, (1 + k) / (10 + k)).

    Early on the average looks back over about a tenth of the updates there have been, so that the initial weights
    are forgotten: after n updates below ``decay`` their share is n! 9! / (n + 9)!.
    """
    return min(decay, (1 + update) / (10 + update))
