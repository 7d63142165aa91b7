"""The same latent under another score: what this picture would be as something else."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from scoresde.editing.inputs import check_process
from scoresde.editing.inversion import Inversion, decode, invert
from scoresde.score import Score
from scoresde.sde import SDE


@dataclass(frozen=True)
class Counterfactual:
    """The edited picture.

    Attributes:
        x: (B, *event) the picture under the target.
        difference: (B, *event) x - x_0, the map of what has changed.
        inversion: the way up under the source, with its round-trip error: what an edit changes beside what was asked.
        nfe: all score evaluations.
    """

    x: Tensor
    difference: Tensor
    inversion: Inversion
    nfe: int


def counterfactual(sde: SDE, source_score: Score, target_score: Score, x0: Tensor, **inversion: Any) -> Counterfactual:
    r"""Up the ODE of the source, down that of the target: "this 3 as an 8".

    The two probability-flow ODEs meet in the latent (dual diffusion implicit bridges, Su et al. 2022,
    arXiv:2203.08382, algorithm 1). What the source score knows of x_0, its label, is taken off; what is left in the
    latent, such as slant and weight, is decoded under the target. With equal scores it is the round trip.

    Args:
        sde: the SDE of both scores.
        source_score: the score of what x0 is, e.g. ``model.bind(label=3)``.
        target_score: the score of what it should be, e.g. ``model.bind(label=8)``, or a guided one.
        x0: (B, *event).
        inversion: those of :func:`~scoresde.editing.invert`: t, steps, grid, method, iterations, ... A lower t
            changes less.

    Raises:
        TypeError, ValueError: see :func:`~scoresde.editing.invert`.
    """
    check_process(sde, source_score=source_score, target_score=target_score)
    way_up = invert(sde, source_score, x0, **inversion)
    x, nfe = decode(way_up, sde, target_score)
    return Counterfactual(x, x - x0, way_up, way_up.nfe + nfe)
