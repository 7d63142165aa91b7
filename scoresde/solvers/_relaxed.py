"""Few evaluations with one step free: what the default method does where a run starts at the prior."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from scoresde.solvers._frames import Frame, Levels
from scoresde.solvers._multistep import Row, weights
from scoresde.solvers._rows import rows
from scoresde.solvers._variables import Variable

# Fitted together with those of VMultistep and grids.balanced to a family of mixtures: see docs/benchmarks.md.
RELAX = (0.0, -0.56, 2.38, 5.76)
"""r_q: how much less of each term of Newton's form the predictor takes, times n."""

STRESS = (0.0, 0.0, 3.6, 7.7, 5.4)
"""s_q: how much more of it the corrector takes, times n."""


def extended(at: Levels) -> Levels:
    """σ = 0 at the end replaced by 1e-11 of what is before, which v's step reaches as well as any."""
    h = torch.cat([at.h[:-1], at.h[-2:-1].clamp_min(0) + 25])
    return Levels(at.t, at.alpha, torch.cat([at.sigma[:-1], (at.alpha * (-h).exp())[-1:]]), h)


def relaxed_rows(frame: Frame, at: Levels, n: int, variable: Variable) -> list[Row]:
    """The rows of a run whose first step is free: where x is the prior's, v̂ = 0."""
    steps = len(at.h) - 1
    p = len(RELAX)
    t, s = at.at(slice(0, -1)), at.at(slice(1, None))
    unit, evaluates = frame.units(at)
    index = torch.arange(steps)
    behind = (index[:, None] - torch.arange(p)).clamp_min(1)  # nothing is known at the first time
    count = index.clamp_max(p)
    nodes = torch.cat([s.h[:, None], at.h[behind]], 1)
    scale = torch.cat([unit[1:, None], unit[behind]], 1)
    predictor = _by_order(frame, t.h, s, nodes[:, 1:], count, variable, [1 - r / n for r in RELAX]) * scale[:, 1:]
    corrector = _by_order(frame, t.h, s, nodes, count + 1, variable, [1 + v / n for v in STRESS]) * scale
    none = torch.zeros(1, p + 1, dtype=torch.float64)
    change = corrector - torch.cat([none[:, :1].expand(steps, 1), predictor], 1)
    linear = frame.linear(t, s)
    # the second evaluation gives the free step its slope, after the first has given it a value
    two, first = torch.tensor([2]), slice(0, 1)
    ends = torch.stack([at.h[2], at.h[1]])[None]
    slope = weights(frame, t.h[first], s.at(first), ends, two, variable) * scale[1:2, :2]
    value = torch.cat([none[:, :1], corrector[first, :1]], 1)
    late = (1 + STRESS[1] / n) * linear[1] * (slope - value)
    change = torch.cat([change[:1], change[1:2] + torch.nn.functional.pad(late, (0, p - 1)), change[2:]])
    brought = linear[:, None] * torch.cat([none, change])[:-1]
    total = torch.cat([predictor, none[:, :1].expand(steps, 1)], 1) + brought
    columns = rows(linear, *total.unbind(1))
    free = Row(None, columns[0][0], (), 0.0, 0)
    later = enumerate(columns[1:], 1)
    return [free, *(Row(evaluates[i], c, tuple(row[: min(i, p + 1)]), 0.0, p) for i, (c, *row) in later)]


def _by_order(
    frame: Frame, start: Tensor, end: Levels, nodes: Tensor, count: Tensor, variable: Variable, shares: Sequence[float]
) -> Tensor:
    """Weights of Newton's form of the polynomial with a share of each difference; the constant is taken whole."""
    total = before = torch.zeros_like(nodes)
    for q, share in enumerate(shares, 1):
        full = weights(frame, start, end, nodes, count.clamp_max(q), variable)
        total = total + (full - before if q == 1 else max(share, 0.0) * (full - before))
        before = full
    return total
