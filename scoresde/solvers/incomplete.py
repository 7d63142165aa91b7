"""What is said of a run that did not come to its end for every sample.

    with warnings.catch_warnings():
        warnings.simplefilter("error", IncompleteWarning)      # where part of a batch is of no use
        solution = sample(score, shape, solver=AdaptiveODE())

:class:`IncompleteWarning` names the samples; the solution itself says which in ``finite`` and ``reached``.
"""

from __future__ import annotations

import torch
from torch import Tensor

from scoresde.solvers.advice import advise


class IncompleteWarning(RuntimeWarning):
    """Some samples of a solution did not reach its last time, or are not finite; the others are as they should be."""


def gave_up(solver: object, left: Tensor, t: Tensor, why: str) -> None:
    """The one warning of a run in which the samples ``left`` (B,) did not reach the end; t (B,) is where they are."""
    advise(
        f"{type(solver).__name__}: {int(left.sum())} of {len(left)} samples did not reach the last time (the furthest "
        f"behind is at t = {t[left].max().item():.6g}): {why}. The solution is partial: see its `complete` and "
        "`reached`. Loosen rtol and atol, raise max_steps, or take a solver that steps on a grid, such as Heun() or "
        "DDIM().",
        IncompleteWarning,
    )


def shrank(count: int | None = None) -> str:
    """Why a run gives up whose steps have become too short to move on."""
    whose = "the step size" if count is None else f"the step size of {count} of them"
    return f"{whose} shrank to nothing, as where the score jumps or its rounding exceeds the tolerance"


def finite_rows(x: Tensor) -> Tensor:
    """(B,) bool: whether all numbers of a sample are finite."""
    if not x.numel():
        return torch.ones(x.shape[0], dtype=torch.bool, device=x.device)
    return x.detach().isfinite().reshape(x.shape[0], -1).all(1)


def without(x: Tensor, finite: Tensor, ending: str, advice: str) -> Tensor:
    """x with NaN throughout the samples that are not ``finite`` (B,), after a warning that names them.

    Args:
        x: (B, *event).
        finite: (B,) bool.
        ending: what happened, "Heun ended with NaN ...".
        advice: what to do.

    Raises:
        FloatingPointError: no sample is finite.
    """
    bad = (~finite).nonzero().flatten().tolist()
    if len(bad) == len(finite):
        raise FloatingPointError(f"{ending}. {advice}")
    shown = ", ".join(map(str, bad[:20])) + (", ..." if len(bad) > 20 else "")
    advise(
        f"{ending} in {len(bad)} of {len(finite)} samples: [{shown}]. They are NaN in the answer; the others are what "
        f"they would be without them. {advice}",
        IncompleteWarning,
    )
    return torch.where(each(finite, x), x, torch.nan)


def require_finite(x: Tensor, what: str) -> Tensor:
    """x, where part of it would be of no use.

    Raises:
        FloatingPointError: a sample is not finite.
    """
    if not bool(finite_rows(x).all()):
        raise FloatingPointError(f"{what} ended with NaN or infinite values in some samples: look at the score.")
    return x


def each(chosen: Tensor, x: Tensor) -> Tensor:
    """One value for each sample (B,), ready to meet x (B, *event)."""
    return chosen.reshape(-1, *[1] * (x.ndim - 1))
