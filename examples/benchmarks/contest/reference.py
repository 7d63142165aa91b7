"""Where the probability-flow ODE of a problem ends: an eighth-order method, of which two runs must agree.

found = reference(problem, x)
found.ends, found.agreement, found.steps
end_points(problem, x, cache=folder)      # the ends alone, kept in a folder
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from scipy.integrate import DOP853
from torch import Tensor

if TYPE_CHECKING:
    from contest.problems import Problem

GROUP = 120  # samples that are integrated together, and again if one of them needs more steps


@dataclass(frozen=True)
class Accuracy:
    """How well the end points are to be known, and at what price.

    Attributes:
        tolerance: the most by which any coordinate of x/α may differ between a run and one with half its steps. The
            method is of order eight, so that the finer run errs by a hundredth of that.
        first: steps of the first run; they are doubled until two runs agree.
        most: steps beyond which it is given up.
    """

    tolerance: float
    first: int
    most: int


EXACT = Accuracy(1e-9, 40, 1280)
"""Of smooth scores in float64."""
DOUBLE = Accuracy(1e-7, 12, 1536)
"""Of networks in float64."""
SINGLE = Accuracy(1e-4, 6, 192)
"""Of networks in float32, whose rounding ends the agreement at about 1e-6."""


@dataclass(frozen=True)
class Reference:
    """End points.

    Attributes:
        ends: x at t_min, (n, D).
        agreement: the largest difference of a coordinate of x/α between the last two runs.
        steps: of the last run, the most of any group.
    """

    ends: Tensor
    agreement: float
    steps: int


def eighth_order(problem: Problem, y: Tensor, steps: int) -> Tensor:
    """y = x/α (n, D) carried from T to t_min in equal steps of log r, r = σ/α: 12 evaluations each.

    The flow is dy/d log r = y - E[x_0 | y]; the method is that of Dormand and Prince in Hairer, Nørsett and Wanner,
    Solving Ordinary Differential Equations I (1993), appendix, without its control of steps.
    """
    first, last = (float(np.log(r)) for r in problem.ratios)
    h = (last - first) / steps
    for i in range(steps):
        slopes: list[Tensor] = []
        for row, node in zip(DOP853.A, DOP853.C, strict=True):
            inside = y.clone()
            for weight, slope in zip(row, slopes, strict=False):
                if weight:
                    inside.add_(slope, alpha=h * float(weight))
            slopes.append(inside - problem.denoise(inside, float(np.exp(first + (i + node) * h))))
        for weight, slope in zip(DOP853.B, slopes, strict=True):
            y = torch.add(y, slope, alpha=h * float(weight))
    return y


def reference(problem: Problem, x: Tensor) -> Reference:
    """Where the flow carries x (n, D), by steps doubled until two runs agree to ``problem.accuracy``, group by group.

    Raises:
        RuntimeError: they do not within the steps that are allowed.
    """
    want = problem.accuracy
    size = max(1, GROUP // problem.period) * problem.period  # what a sample is may depend on its place
    y = x / problem.sde.alpha(problem.sde.T)
    ends, worst, most = [], 0.0, 0
    with torch.no_grad():
        for part in torch.split(y, size):
            steps, fine, apart = want.first, eighth_order(problem, part, want.first), np.inf
            while not apart <= want.tolerance:  # NaN has not agreed
                if steps >= want.most:
                    raise RuntimeError(
                        f"the reference of {problem.name} is not known: runs of {steps // 2} and {steps} steps differ "
                        f"by {apart:.1e}, which was to be at most {want.tolerance:g}."
                    )
                steps, coarse = 2 * steps, fine
                fine = eighth_order(problem, part, steps)
                apart = float((fine - coarse).abs().max())
            ends.append(fine)
            worst, most = max(worst, apart), max(most, steps)
    return Reference(torch.cat(ends) * problem.sde.alpha(problem.sde.t_min), worst, most)


def end_points(problem: Problem, x: Tensor, *, cache: Path | None = None) -> Tensor:
    """Where the probability-flow ODE carries x (n, D) from T to t_min, as :func:`reference` says.

    ``cache`` is a folder of earlier answers; each tells its agreement and steps beside the ends.
    """
    file = None
    if cache is not None:
        content = x.numpy().tobytes() + problem.fingerprint() + f"{problem.sde} {problem.accuracy}".encode()
        file = cache / f"{Path(problem.name).name}-{hashlib.sha256(content).hexdigest()[:16]}.pt"
        if file.exists():
            stored: Tensor = torch.load(file, weights_only=True)["ends"]
            return stored
    found = reference(problem, x)
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        torch.save({"ends": found.ends, "agreement": found.agreement, "steps": found.steps}, file)
    return found.ends
