"""What a picture would be if it were as those that a model has seen, and where it is not: lesions, faults, intruders.

    found = anomaly_map(healthy.bind(label=y), x0, levels=(0.3, 0.5), samples=8)      # the model has seen healthy ones
    found.map, found.x, found.difference
    found = anomaly_map(healthy.bind(label=y), x0, levels=[0.5], steps=0)             # without counterfactuals

The picture is noised, so that small things drown in it, and made anew by a model that knows nothing but healthy ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from scoresde import checks
from scoresde.checks.later import answering
from scoresde.editing.inputs import check_rule, check_scores, edit_grid, graph, source_of, widened
from scoresde.editing.sdedit import time_of_level
from scoresde.models.evaluation import in_evaluation_mode
from scoresde.models.score import Score, check_independent
from scoresde.noise import Noise
from scoresde.reverse import Reverse
from scoresde.rules import Rule
from scoresde.sde.base import root
from scoresde.solvers.base import Solver
from scoresde.solvers.defaults import chosen_solver

_MOST = 1_000_000


@dataclass(frozen=True)
class Anomaly:
    """Where pictures are unlike those that a model has seen.

    Attributes:
        map: (B, 1, ...) with one channel, or (B, D) for vectors: the mean over levels, samples and channels of
            |x_0 - x|, x the pictures made anew.
        x: (B, *event) their mean.
        difference: (B, *event) x_0 less that mean: the map with its sign, and channel by channel.
        spread: (B, *event) their standard deviation, over levels and samples.
        nfe: score evaluations.
    """

    map: Tensor
    x: Tensor
    difference: Tensor
    spread: Tensor
    nfe: int


@in_evaluation_mode("score")
@answering()
def anomaly_map(
    score: Score,
    x0: Tensor,
    *,
    levels: Sequence[float] = (0.3, 0.5, 0.7),
    samples: int = 8,
    steps: int = 8,
    solver: Solver | None = None,
    grid: Rule | None = None,
    eta: float | None = None,
    seed: int | None = None,
    noise: Noise | torch.Generator | None = None,
    gradients: bool = False,
) -> Anomaly:
    r"""The difference from healthy counterfactuals: each picture noised to some levels, and made anew from there.

    x_t = α x_0 + σ z at σ/α = level, several z, and from there back under a score of healthy pictures alone (Wyatt et
    al. 2022; Wolleb et al. 2022, arXiv:2203.04306, guided, and by inversion, for which there is ``counterfactual``).
    What is not in its law is not made again where the noise has hidden it; what is kept is what outlives the noise, so
    that a low level keeps lesions and a high one loses healthy detail. ``map`` is::

        mean over levels, z and channels of |x_0 - x|

    the error of the mean and the spread of the samples together. The spread is not divided by: it is large where a
    sample has to choose between what it was given and what it knows, which is at lesions most of all. Where another
    model's is known to be of detail alone, ``difference.abs() / spread`` is at hand.

    With ``steps`` 0 it is E[x_0 | x_t] in place of a sample, one evaluation each: the error of a plain denoiser
    (Kascenas et al. 2022), of which counterfactuals are the many-step form.

    Args:
        score: of healthy pictures; conditioned on, or guided towards, what the picture is known to be of.
        x0: (B, *event); the first axis of an event of two or more axes is that of channels.
        levels: σ/α, each that of a time in (t_min, T].
        samples: draws of z at each level.
        steps: of the way back from each level; 0 for none.
        solver, grid, eta: of the way back, as in :func:`~scoresde.editing.sdedit`.
        seed: default 0. noise: in its place.
        gradients: keep the graph, in the caller's mode, so that the result can be differentiated.

    Raises:
        TypeError, ValueError: bad input; no level, or one that the SDE does not reach; a model that was trained with
            data and noise coupled; see :meth:`Solver.solve`.
    """
    check_scores(score=score)
    check_independent(score, what="anomaly_map, which mixes x0 with noise of its own,")
    checks.state(x0, name="x0", values=True)
    check_rule(grid, "anomaly_map")
    samples = checks.count(samples, name="samples", most=_MOST)
    steps = checks.count(steps, name="steps", least=0)
    times = [time_of_level(score.sde, level, name="levels") for level in checks.numbers(levels, name="levels")]
    if not times:
        raise ValueError("levels must hold at least one σ/α; got none.")
    with graph(gradients):
        solver = chosen_solver(solver, score, eta, grid)
        event = tuple(x0.shape[1:])
        # without steps the grid is not gone along, but says the time
        grids = [edit_grid(score, grid, max(steps, 1), t, solver, event) for t in times]
        process = Reverse(score, solver.default_eta if eta is None else eta)
        source, wide = source_of(seed, noise), widened(x0)
        draws = source.stream("anomaly")
        mean, square, far = (torch.zeros_like(wide) for _ in range(3))
        done = nfe = 0
        for path in grids:
            center, std = score.sde.marginal(wide, path[0])
            for _ in range(samples):
                x = center + std * draws.normal(wide)
                if steps:
                    run = solver.solve(process, x, path, source, denoise=True)
                    x, nfe = run.x, nfe + run.nfe
                else:
                    x, nfe = score.denoise(x, path[0]), nfe + 1
                done += 1
                step = x - mean
                mean = mean + step / done
                square = square + step * (x - mean)
                far = far + (wide - x).abs()
        whole = far.mean(1, keepdim=True) if x0.ndim > 2 else far
        return Anomaly(
            map=(whole / done).to(x0.dtype),
            x=mean.to(x0.dtype),
            difference=(wide - mean).to(x0.dtype),
            spread=root(square / done).to(x0.dtype),
            nfe=nfe,
        )
