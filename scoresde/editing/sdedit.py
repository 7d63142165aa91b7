"""SDEdit: noise to a time in between, then regenerate.

    sdedit(score, x0, t=0.5)                                  # or level=2.0, the σ/α there
    sdedit(score, x0, t=0.5, mask=mask, eta=1.0)              # 1 where the edit happens

With a mask, what lies outside follows its own noised states, and ends as x_0 itself.
"""

from __future__ import annotations

import dataclasses
import math

import torch
from torch import Tensor

from scoresde import checks
from scoresde.checks.later import answering
from scoresde.editing.held import Held
from scoresde.editing.inputs import as_mask, blend, check_rule, check_scores, edit_grid, graph, source_of, widened
from scoresde.models.evaluation import in_evaluation_mode
from scoresde.models.score import Score, check_independent
from scoresde.noise import Noise
from scoresde.reverse import Reverse
from scoresde.rules import Rule
from scoresde.sde import SDE, Time
from scoresde.solvers.base import Solver
from scoresde.solvers.defaults import chosen_solver
from scoresde.solvers.solution import Solution


@in_evaluation_mode("score")
@answering()
def sdedit(
    score: Score,
    x0: Tensor,
    *,
    t: Time | None = None,
    level: float | None = None,
    solver: Solver | None = None,
    steps: int = 25,
    grid: Rule | None = None,
    eta: float | None = None,
    seed: int | None = None,
    noise: Noise | torch.Generator | None = None,
    mask: Tensor | None = None,
    denoise: bool = True,
    trajectory: bool = False,
    gradients: bool = False,
) -> Solution:
    r"""SDEdit (Meng et al. 2022, arXiv:2108.01073, algorithm 1): x_t = α x_0 + σ z, z ~ N(0, I), and from there
    back to t_min under another score.

    With the data's own score, pictures that follow p_0 are turned into others that follow p_0, whatever t: near t_min
    the same ones (faithful), at T independent ones. With another score (a label's, a guided one's) t weighs
    faithfulness against the wish.

    With a mask, what lies outside follows α x_0 + σ z of the marginal at each time, with the first z along a
    deterministic solver's path and a new z at each step along a stochastic one's (the paper's appendix), and ends as
    x_0 itself.
    The inside is sampled as if that were x_t itself, which is an approximation to p(inside | outside).

    Args:
        score: the score that the result should follow.
        x0: (B, *event), the pictures; may be drawings, strokes or collages.
        t: the time to which they are noised, in (t_min, T].
        level: in its place, the noise level σ/α there.
        solver: default SpectralMultistep, whose η is 0; the paper runs the reverse SDE, η = 1.
        steps: steps from t down to t_min.
        grid: a function of :mod:`scoresde.grids`; default that of the solver, as in ``sample``.
        eta: the stochasticity of Reverse; default the solver's own.
        seed: default 0; other streams than ``sample``'s, so that a picture made from this seed gets another noise.
        noise: in place of a seed.
        mask: boolean, or floating in [0, 1], broadcasting to x0: 1 where the edit happens, 0 where x0 is kept.
        denoise: end with E[x_0 | x] at t_min, one evaluation more.
        trajectory: keep the state at every time.
        gradients: keep the graph, in the caller's mode, so that the result can be differentiated, in x0, t and
            the score's parameters.

    Raises:
        TypeError, ValueError: neither or both of t and level, or one out of range; a mask that does not fit, or
            with nothing to edit; a solver without steps of the grid where there is a mask; a model that was trained
            with data and noise coupled; see :meth:`Solver.solve`.
    """
    check_scores(score=score)
    check_independent(score, what="sdedit, which mixes x0 with noise of its own,")
    checks.state(x0, name="x0", values=True)
    check_rule(grid, "sdedit")
    denoise, trajectory = checks.flag(denoise, name="denoise"), checks.flag(trajectory, name="trajectory")
    sde = score.sde
    start = _start(sde, t, level)
    with graph(gradients):
        solver = chosen_solver(solver, score, eta, grid)
        times = edit_grid(score, grid, steps, start, solver, tuple(x0.shape[1:]))
        process = Reverse(score, solver.default_eta if eta is None else eta)
        source, wide = source_of(seed, noise), widened(x0)
        inside = None if mask is None else as_mask(mask, wide)
        z = source.stream("sdedit").initial(tuple(wide.shape), dtype=wide.dtype, device=wide.device)

        def noised(time: Tensor, z: Tensor) -> Tensor:
            mean, std = sde.marginal(wide, time)
            return mean + std * z

        x = noised(times[0], z)
        if inside is None:
            run = solver.solve(process, x, times, source, denoise=denoise, trajectory=trajectory)
            end = run.x
        else:
            fresh, outside = solver.draws_noise(process), source.stream("outside")

            def known(done: int, time: Tensor, _: Noise) -> Tensor:
                return noised(time, outside.normal(wide) if fresh else z)

            held = Held(solver, inside, known)
            run = held.solve(process, x, times, source, denoise=denoise, trajectory=trajectory)
            end = blend(inside, run.x, wide)
        states = None if run.trajectory is None else run.trajectory.to(x0.dtype)
        return dataclasses.replace(run, x=end.to(x0.dtype), trajectory=states)


def _start(sde: SDE, t: Time | None, level: float | None) -> Time:
    if (t is None) == (level is None):
        raise ValueError(
            "sdedit needs t, the time to which x0 is noised, or level, the σ/α there; got "
            f"{'neither' if t is None else 'both'}."
        )
    return time_of_level(sde, level, name="level") if t is None else t


def time_of_level(sde: SDE, level: float | None, *, name: str) -> Tensor:
    """The time at which σ/α is the level.

    Raises:
        TypeError, ValueError: no positive number, or one that the SDE does not reach.
    """
    asked = -2 * math.log(checks.positive(level, name=name))
    try:
        time = sde.t_of_log_snr(asked)
    except ValueError as error:
        raise ValueError(
            f"{name} must be a σ/α that {type(sde).__name__} reaches, got {level}, a log-SNR of {asked:.4g}: {error}"
        ) from error
    if not bool(time > sde.t_min):
        least = float(sde.sigma(sde.t_min) / sde.alpha(sde.t_min))
        raise ValueError(
            f"{name} must be a σ/α above {least:.4g}, that of t_min, from where there is nothing left to change; got "
            f"{level}."
        )
    return time
