"""DiffEdit: where two conditions disagree is where the edit happens.

    edit = diffedit(model.bind(label=3), model.bind(label=8), x0, t=0.5)
    mask = diffedit_mask(model.bind(label=3), model.bind(label=8), x0, t=0.5, threshold=None)

Outside the mask the result is x_0 to the last bit.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Unpack

import torch
from torch import Tensor

from scoresde import checks
from scoresde.checks.later import answering
from scoresde.editing.held import Held
from scoresde.editing.inputs import as_mask, check_rule, check_scores, edit_time, graph, source_of, widened
from scoresde.editing.inversion import Inversion, Way, invert
from scoresde.models.evaluation import in_evaluation_mode
from scoresde.models.score import Score, check_independent
from scoresde.noise import Noise
from scoresde.reverse import Reverse
from scoresde.sde import Time
from scoresde.solvers.base import Solver
from scoresde.solvers.runge_kutta import Heun
from scoresde.warning import warn_user

_MOST_DRAWS = 1_000_000
_DRAWS = 10  # of the noise, for a mask; the paper's number


@in_evaluation_mode("source_score", "target_score")
@answering()
def diffedit_mask(
    source_score: Score,
    target_score: Score,
    x0: Tensor,
    *,
    t: Time,
    samples: int = _DRAWS,
    threshold: float | None = 0.5,
    clip: float = 3.0,
    seed: int | None = None,
    noise: Noise | torch.Generator | None = None,
    gradients: bool = False,
) -> Tensor:
    r"""Where an edit from the source to the target would happen (Couairon et al. 2022, arXiv:2210.11427, section 3.2)::

        d = mean over samples z and channels of |ε̂_target(x_t, t) - ε̂_source(x_t, t)|,    x_t = α x_0 + σ z

    d is clipped at ``clip`` times its mean over the sample, so that a few extreme entries do not rule the scale,
    divided by its largest value, and compared with the threshold.

    Args:
        source_score: what x0 is, or unconditional.
        target_score: what it should be.
        x0: (B, *event); the first axis of an event of two or more axes is that of channels.
        t: the time at which the two are compared; the paper takes half the way.
        samples: draws of z; two evaluations each.
        threshold: in (0, 1), of the largest value; None answers the map itself, in [0, 1].
        clip: in units of the sample's mean, above 1; infinity does not clip.
        seed: default 0. noise: in its place.
        gradients: keep the graph, in the caller's mode, so that the map of threshold None can be differentiated.

    Returns:
        (B, 1, ...) with one channel, or (B, D) for vectors: boolean, or floating for threshold None. Where the two
        scores agree everywhere it is empty.

    Raises:
        TypeError, ValueError: bad input, or a model that was trained with data and noise coupled.
    """
    check_scores(source_score=source_score, target_score=target_score)
    for one in (source_score, target_score):
        check_independent(one, what="DiffEdit's mask, which mixes x0 with noise of its own,")
    checks.state(x0, name="x0", values=True)
    time = edit_time(source_score.sde, t)
    samples = checks.count(samples, name="samples", most=_MOST_DRAWS)
    if threshold is not None and not 0 < (threshold := checks.number(threshold, name="threshold")) < 1:
        raise ValueError(f"threshold must lie inside (0, 1), or be None for the map itself; got {threshold:g}.")
    clip = checks.number(clip, name="clip")
    if not clip > 1:
        raise ValueError(f"clip must be above 1, in units of the mean; got {clip:g}.")
    with graph(gradients):
        draws = source_of(seed, noise).stream("diffedit")
        wide = widened(x0)
        mean, std = source_score.sde.marginal(wide, time)
        total = torch.zeros_like(wide)
        for _ in range(samples):
            x = mean + std * draws.normal(wide)
            total = total + (target_score(x, time) - source_score(x, time)).abs()
        # all in units of its largest value: neither σ, by which scores differ from ε̂, nor the number of samples is left
        far = total.mean(1, keepdim=True) if x0.ndim > 2 else total
        flat = far.reshape(len(far), math.prod(far.shape[1:]))
        if math.isfinite(clip):
            flat = torch.minimum(flat, clip * flat.mean(1, keepdim=True))
        if flat.shape[1]:
            top = flat.amax(1, keepdim=True)
            flat = flat / torch.where(top > 0, top, torch.ones_like(top))
        scaled = flat.reshape(far.shape).to(x0.dtype)
        return scaled if threshold is None else scaled > threshold


@dataclass(frozen=True)
class DiffEdit:
    """The edited picture.

    Attributes:
        x: (B, *event); outside the mask x_0 itself.
        mask: 1 where the edit happened, broadcasting to x.
        inversion: the way up, whose states were put back outside the mask.
        nfe: all score evaluations, those of the mask included.
    """

    x: Tensor
    mask: Tensor
    inversion: Inversion
    nfe: int


@in_evaluation_mode("source_score", "target_score")
@answering()
def diffedit(
    source_score: Score,
    target_score: Score,
    x0: Tensor,
    *,
    t: Time,
    mask: Tensor | None = None,
    seed: int | None = None,
    noise: Noise | torch.Generator | None = None,
    gradients: bool = False,
    **way: Unpack[Way],
) -> DiffEdit:
    r"""DiffEdit (Couairon et al. 2022, arXiv:2210.11427, sections 3.2 and 3.3): mask, inversion, masked decoding.

    x_0 is carried up to t under the source. On the way down under the target, what lies outside the mask is put back
    at each time to the state of the way up, so that there the result is x_0 to the last bit.

    Args:
        source_score: what x0 is, or unconditional.
        target_score: what it should be.
        x0: (B, *event).
        t: the time of the latent, and of the mask: the paper's encoding ratio.
        mask: boolean or floating in [0, 1], broadcasting to x0, 1 where the edit happens. Default
            :func:`diffedit_mask` at t with its own defaults; call it for others.
        seed: of the default mask. noise: in its place.
        gradients: keep the graph, in the caller's mode, so that the result can be differentiated. The default mask is
            a threshold, through which there is none.
        way: options of the way up, those of :func:`~scoresde.editing.invert`: steps, grid (a function, no times),
            method, iterations, tolerance, memory, solver. With method="ode" the way down is Heun's on the grid.

    Raises:
        TypeError, ValueError: bad input; a mask that does not fit or has nothing to edit, or a seed beside one.

    Warns:
        UserWarning: the default mask of a sample is empty: it comes back unchanged.
    """
    check_scores(source_score=source_score, target_score=target_score)
    checks.state(x0, name="x0", values=True)
    time = edit_time(source_score.sde, t)
    check_rule(way.get("grid"), "diffedit")
    if mask is not None and (seed is not None or noise is not None):
        raise ValueError("a given mask draws nothing: leave seed and noise out, or the mask.")
    source = source_of(seed, noise)
    with graph(gradients):
        inside = None if mask is None else as_mask(mask, widened(x0))
        # first the way up, which looks at all of its options before any evaluation
        up = invert(source_score, x0, t=time, trajectory=True, gradients=gradients, **way)
        nfe = up.nfe
        if mask is None or inside is None:
            mask = diffedit_mask(source_score, target_score, x0, t=time, samples=_DRAWS, noise=source)
            inside = mask.to(widened(x0).dtype)
            nfe += 2 * _DRAWS
            _warn_of_empty(mask)
        states = up.trajectory
        assert states is not None
        solver: Solver = up.solver if up.solver.steps_on_grid else Heun()
        held = Held(solver, inside, lambda done, s, noise: states[done])
        down = held.solve(Reverse(target_score, eta=0.0), up.x, up.grid)
        return DiffEdit(down.x, mask if gradients else mask.detach(), up, nfe + down.nfe)


def _warn_of_empty(mask: Tensor) -> None:
    empty = int((~mask.flatten(1).any(1) if mask.ndim > 1 else ~mask).sum())
    if empty:
        warn_user(
            f"the mask of {empty} of {len(mask)} samples is empty, so that they come back unchanged: at t the source's "
            "and the target's scores agree about them everywhere. Are the two conditions the same? Give a mask, or "
            "another t."
        )
