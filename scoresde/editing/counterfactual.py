"""The same latent under another score: what this picture would be as something else.

    edit = counterfactual(model.bind(label=3), model.bind(label=8), x0, steps=50, iterations=20)
    edit.x, edit.difference, edit.inversion.round_trip

The difference shows what the edit changed; the round trip, what it would have changed by numerical error alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Unpack

from torch import Tensor

from scoresde.checks.later import answering
from scoresde.editing.inputs import check_scores, graph
from scoresde.editing.inversion import Inversion, Way, invert
from scoresde.models.evaluation import in_evaluation_mode
from scoresde.models.score import Score
from scoresde.sde import Time


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


@in_evaluation_mode("source_score", "target_score")
@answering()
def counterfactual(
    source_score: Score,
    target_score: Score,
    x0: Tensor,
    *,
    t: Time | None = None,
    gradients: bool = False,
    **way: Unpack[Way],
) -> Counterfactual:
    r"""Up the ODE of the source, down that of the target: "this 3 as an 8".

    The two probability-flow ODEs meet in the latent (dual diffusion implicit bridges, Su et al. 2022,
    arXiv:2203.08382, algorithm 1). What the source score knows of x_0, its label, is taken off; what is left in the
    latent, such as slant and weight, is decoded under the target. With equal scores it is the round trip.

    Args:
        source_score: the score of what x0 is, e.g. ``model.bind(label=3)``.
        target_score: the score of what it should be, e.g. ``model.bind(label=8)``, or a guided one.
        x0: (B, *event).
        t: the time of the latent, default T; a lower one changes less.
        gradients: keep the graph, in the caller's mode, so that the result can be differentiated.
        way: options of both ways, those of :func:`~scoresde.editing.invert`: steps, grid, method, iterations,
            tolerance, memory, solver.

    Raises:
        TypeError, ValueError: scores of two schedules; see :func:`~scoresde.editing.invert`.
    """
    check_scores(source_score=source_score, target_score=target_score)
    up = invert(source_score, x0, t=t, gradients=gradients, **way)
    with graph(gradients):
        down = up.decoded(target_score)
        return Counterfactual(down.x, down.x - x0, up, up.nfe + down.nfe)
