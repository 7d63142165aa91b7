"""The fixed methods that a fit starts from and must beat.

:func:`candidates` pairs every solver with every grid of :func:`fixed_grids`, and records each pair that takes exactly
the wanted number of evaluations as the table of its coefficients::

    found = candidates(VP(), default_solvers(), count=5)
    found[0].name, found[0].method                          # 'SpectralMultistep(...) on uniform', a LinearMethod

:func:`~scoresde.fitting.fit` calls it, starts from the one that does best on its trajectories, and compares the result
with all of them on trajectories held out. :func:`default_solvers` are those that are tried unless others are given.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from scoresde import rules
from scoresde.fitting.recorded import evaluations, record
from scoresde.sde import SDE
from scoresde.solvers import Multistep, Solver, SpectralMultistep
from scoresde.solvers.fitted import LinearMethod
from scoresde.spectrum import Spectrum


class Candidate(NamedTuple):
    """A solver on a grid, by name and as its coefficients."""

    name: str
    method: LinearMethod


def default_solvers() -> list[Solver]:
    """Those of one evaluation a step that do best in few steps."""
    return [
        SpectralMultistep(),
        Multistep(2, True, "x0"),
        Multistep(3, True, "x0"),
        Multistep(2, True, "v"),
        Multistep(3, True, "v"),
        Multistep(3, True, "v", "angle"),
        Multistep(3, False, "noise", "noise_level"),
    ]


def candidates(sde: SDE, solvers: Sequence[Solver], count: int, spectrum: Spectrum | None = None) -> list[Candidate]:
    """Every solver on every grid, each with the steps of its own that take ``count`` evaluations.

    Raises:
        ValueError: a solver that is not linear in the score; none takes so many evaluations.
    """
    found = []
    for solver in solvers:
        steps = _steps(solver, sde, count)
        for name, grid in fixed_grids(sde, steps, spectrum).items() if steps else ():
            if evaluations(solver, sde, grid) == count:
                found.append(Candidate(f"{solver!r} on {name}", record(solver, sde, grid)))
    if not found:
        raise ValueError(
            f"no number of steps of {', '.join(map(repr, solvers))} takes {count} score evaluations, the steps of the "
            "sampler asked for; ask for another number."
        )
    return found


def _steps(solver: Solver, sde: SDE, count: int) -> int:
    """The most steps of ``solver`` that take ``count`` evaluations, 0 if there are none; one step may be free."""
    for steps in range(count + 1, 0, -1):
        if evaluations(solver, sde, rules.karras(sde, steps)) == count:
            return steps
    return 0


def fixed_grids(sde: SDE, steps: int, spectrum: Spectrum | None = None) -> dict[str, Tensor]:
    """Times by rules, those that exist for this SDE."""
    found: dict[str, Tensor] = {"uniform": rules.uniform(sde, steps)}
    found["spectral"] = rules.spectral(sde, steps, spectrum=spectrum)
    for rho in (3.0, 5.0, 7.0, 10.0):
        found[f"karras(rho={rho:g})"] = rules.karras(sde, steps, rho=rho)
    for scale in (0.3, 1.0):
        found[f"equal steps in σ/({scale:g}α + σ)"] = _share(sde, steps, scale)
    with contextlib.suppress(ValueError):  # σ = 0 at t_min
        found["log_snr"] = rules.log_snr(sde, steps)
    return found


def _share(sde: SDE, steps: int, scale: float) -> Tensor:
    """Equal steps in σ/(c α + σ)."""
    ends = torch.tensor([sde.T, sde.t_min], dtype=torch.float64)
    alpha, sigma = sde.alpha(ends), sde.sigma(ends)
    first, last = (sigma / (scale * alpha + sigma)).unbind()
    share = first + (last - first) * torch.linspace(0, 1, steps + 1, dtype=torch.float64)[1:-1]
    inside = sde.t_of_log_snr(2 * ((1 - share) / (scale * share)).log())
    return torch.cat([ends[:1], inside, ends[1:]])
