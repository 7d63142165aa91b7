"""Samplers by name, ours and those of other libraries, each from the same noise and with so many evaluations at most::

    at = Start(score, x, seed=0)                               # x_T ~ prior, (n, *event)
    x, nfe = sampler("heun")(at, 20)                           # ours: any of `scoresde sample --solver`, or default
    x, nfe = sampler("k-diffusion dpmpp_2m karras")(at, 20)    # theirs, on the same network; "" where it is missing

Those of others are run as in ``examples/benchmarks``: the library's own step, on noise levels of one of its own rules
between the ends of the schedule, from the same noise; what the network computes is the same for all.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import scoresde as ss
from scoresde.cli.choices import SOLVERS

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
"""Where the samplers of other libraries are: scripts there import one another by their plain names."""
LIBRARIES = {"k-diffusion": "k_diffusion", "diffusers": "diffusers", "azula": "azula", "EDM": None}
"""Modules of the libraries by the first word of a sampler's name; EDM's is written here from the paper."""


@dataclass(frozen=True)
class Start:
    """Where samplers start.

    Attributes:
        score: of some samples, or of any number.
        x: x_T, (n, *event).
        seed: of the noise of stochastic samplers.
    """

    score: ss.Score
    x: Tensor
    seed: int

    @property
    def ratios(self) -> tuple[float, float]:
        """σ/α at T and at t_min."""
        sde = self.score.sde
        first, last = ((-0.5 * sde.log_snr(t)).exp().item() for t in (sde.T, sde.t_min))
        return first, last

    def denoise(self, y: Tensor, ratio: float | Tensor) -> Tensor:
        """E[x0 | x_t = α y] at the time at which σ/α is ``ratio``; y (n, D) float64."""
        sde = self.score.sde
        t = sde.t_of_log_snr(-2 * torch.as_tensor(ratio, dtype=torch.float64).log()).clamp(sde.t_min, sde.T)
        x = (sde.alpha(t) * y).reshape(self.x.shape).float()
        return self.score.denoise(x, t).flatten(1).double()


Sampler = Callable[[Start, int], tuple[Tensor, int]]
"""(where to start, evaluations at most) -> samples and evaluations taken."""


def sampler(name: str) -> Sampler:
    """The sampler of that name.

    Raises:
        ModuleNotFoundError: its library is not installed.
        ValueError: there is none of that name.
    """
    library = name.split(" ", 1)[0]
    if library in LIBRARIES:
        return _theirs(name)
    if name != "default" and name not in SOLVERS:
        raise ValueError(
            f"there is no sampler {name!r}: ours are default, {', '.join(SOLVERS)}; those of others begin with "
            f"{', '.join(LIBRARIES)}, and end with the name of a grid."
        )
    solver = None if name == "default" else SOLVERS[name]()

    def run(at: Start, nfe: int) -> tuple[Tensor, int]:
        steps = most_steps(lambda n: _counted(solver, at.score.sde, n), nfe, name)
        solution = ss.sample(at.score, tuple(at.x.shape), solver=solver, steps=steps, x=at.x, seed=at.seed)
        return solution.x, solution.nfe

    return run


def missing(names: Sequence[str]) -> dict[str, str]:
    """The samplers among these whose library is not installed, with the name of what is missing."""
    modules = {name: LIBRARIES.get(name.split(" ", 1)[0]) for name in names}
    return {name: module for name, module in modules.items() if module is not None and find_spec(module) is None}


def _counted(solver: ss.Solver | None, sde: ss.SDE, steps: int) -> int:
    """Evaluations of so many steps, counted on one number with the score of a normal law."""
    score = ss.as_score(lambda x, t: -x / (sde.alpha(t) ** 2 + sde.sigma(t) ** 2), sde)
    return ss.sample(score, (1, 1), solver=solver, steps=steps, seed=0).nfe


def most_steps(used: Callable[[int], int], nfe: int, name: str) -> int:
    """The largest number of steps with ``used(steps) <= nfe``.

    Raises:
        ValueError: one step takes more.
    """
    steps = nfe
    while steps and (taken := used(steps)) > nfe:
        steps = min(steps - 1, steps * nfe // taken)
    if not steps:
        raise ValueError(f"{name} takes more than {nfe} evaluations for one step.")
    while steps < nfe and used(steps + 1) <= nfe:  # a method may have a step that is free
        steps += 1
    return steps


# -- those of other libraries ------------------------------------------------------------------------------------------


@cache
def _tournament() -> tuple[Any, Any, Any]:
    """Peers by name, grids by name, and what counts their evaluations."""
    if str(BENCHMARKS) not in sys.path:
        sys.path.append(str(BENCHMARKS))
    from peers import tournament
    from peers.grids import GRIDS
    from peers.peer import Oracle

    return {**tournament.ode(), **tournament.sde()}, GRIDS, Oracle


def _theirs(name: str) -> Sampler:
    absent = missing([name])
    if absent:
        raise ModuleNotFoundError(f"{name} needs the package {absent[name]}, which is not installed.")
    peers, grids, oracle_of = _tournament()
    sampler_name, _, grid = name.rpartition(" ")
    if sampler_name not in peers or grid not in grids:
        near = [known for known in peers if known.split(" ")[0] == name.split(" ")[0]]
        raise ValueError(
            f"there is no sampler {name!r}: write one of {', '.join(near)}, and then one of the "
            f"grids {', '.join(grids)}."
        )
    peer = peers[sampler_name]

    def run(at: Start, nfe: int) -> tuple[Tensor, int]:
        steps, sde = peer.steps(nfe - 1), at.score.sde
        if steps < peer.least:
            raise ValueError(f"{name} takes more than {nfe} evaluations.")
        oracle = oracle_of(at)
        levels = grids[grid](at, steps)
        with torch.random.fork_rng(devices=[at.x.device] if at.x.is_cuda else []):
            torch.manual_seed(at.seed)  # most of them draw from the global generator
            y = peer.run(oracle, (at.x.double() / sde.alpha(sde.T)).flatten(1), levels.to(at.x.device))
        # They end at t_min, as ours before its last evaluation, which takes what noise is left: so do we for them.
        t = torch.as_tensor(sde.t_min, dtype=torch.float64)
        x = (sde.alpha(t) * y).reshape(at.x.shape)
        return at.score.denoise(x.float(), t), oracle.calls + 1

    return run
