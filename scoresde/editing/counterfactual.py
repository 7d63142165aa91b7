"""The same latent under another score: what this picture would be as something else."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from scoresde.editing.inputs import check_process, graph
from scoresde.editing.inversion import Inversion, Method, decode, invert
from scoresde.score import Score
from scoresde.sde import SDE, Time
from scoresde.solvers import ProbabilityFlow
from scoresde.solvers.defaults import GridRule


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


def counterfactual(
    sde: SDE,
    source_score: Score,
    target_score: Score,
    x0: Tensor,
    *,
    t: Time | None = None,
    steps: int = 50,
    grid: Tensor | GridRule | None = None,
    method: Method = "ddim",
    iterations: int = 0,
    tolerance: float | None = None,
    memory: int = 0,
    solver: ProbabilityFlow | None = None,
    gradients: bool = False,
) -> Counterfactual:
    r"""Up the ODE of the source, down that of the target: "this 3 as an 8".

    The two probability-flow ODEs meet in the latent (dual diffusion implicit bridges, Su et al. 2022,
    arXiv:2203.08382, algorithm 1). What the source score knows of x_0, its label, is taken off; what is left in the
    latent, such as slant and weight, is decoded under the target. With equal scores it is the round trip.

    Args:
        sde: the SDE of both scores.
        source_score: the score of what x0 is, e.g. ``model.bind(label=3)``.
        target_score: the score of what it should be, e.g. ``model.bind(label=8)``, or a guided one.
        x0: (B, *event).
        t: the time of the latent, default T; a lower one changes less.
        steps, grid, method, iterations, tolerance, memory, solver: of both ways; see :func:`~scoresde.editing.invert`.
        gradients: keep the graph, in the caller's mode, so that the result can be differentiated.

    Raises:
        TypeError, ValueError: see :func:`~scoresde.editing.invert`.
    """
    check_process(sde, source_score=source_score, target_score=target_score)
    way_up = invert(
        sde, source_score, x0, t=t, steps=steps, grid=grid, method=method, iterations=iterations, tolerance=tolerance,
        memory=memory, solver=solver, gradients=gradients,
    )  # fmt: skip
    with graph(gradients):
        x, nfe = decode(way_up, sde, target_score)
        return Counterfactual(x, x - x0, way_up, way_up.nfe + nfe)
