"""Every peer on every one of its grids: the best of them are what ours is compared with.

    results = best_of(entries(ode()), setting("mixture2d-vp"), 10, screen=128, keep=10)

A library joins by its module, named in :func:`ode` and :func:`sde`.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping

import torch

from contest.results import Result
from contest.run import Setting, errors
from peers import azula, diffusers, edm, kdiffusion
from peers.grids import GRIDS, SHIPPED, TUNED
from peers.peer import Oracle, Peer

Entry = tuple[str, Peer, str]
"""(name, peer, name of a grid)."""


def ode() -> dict[str, Peer]:
    """Every deterministic sampler, by name."""
    return {**kdiffusion.ode(), **diffusers.ode(), **azula.ode(), **edm.ode()}


def sde() -> dict[str, Peer]:
    """Every stochastic sampler, by name."""
    return {**kdiffusion.sde(), **diffusers.sde(), **azula.sde()}


def measure(name: str, peer: Peer, grid: str, at: Setting, nfe: int) -> Result | None:
    """Error of a peer on one of its grids with at most ``nfe`` evaluations; None where it cannot."""
    steps, problem = peer.steps(nfe), at.problem
    if steps < peer.least:
        return None
    oracle = Oracle(problem)
    levels = GRIDS[grid](problem, steps)
    with torch.no_grad():
        y = peer.run(oracle, at.x / problem.sde.alpha(problem.sde.T), levels)
    if oracle.calls > nfe:
        raise AssertionError(f"{name} took {oracle.calls} evaluations of {nfe}")
    rms, trimmed, by_band = errors(y * problem.sde.alpha(problem.sde.t_min), at)
    rule = grid if peer.any_grid else "its own"
    return Result(problem.name, nfe, oracle.calls, name, rule, len(at.x), rms, trimmed, by_band)


def entries(all_peers: Mapping[str, Peer]) -> list[Entry]:
    """Every peer on every grid, once where it makes its own."""
    return [(n, peer, g) for n, peer in all_peers.items() for g in (GRIDS if peer.any_grid else ("exponential",))]


def best_of(field: list[Entry], at: Setting, nfe: int, *, screen: int, keep: int) -> list[Result]:
    """Every entry with ``screen`` samples; then with all samples the best of them.

    Those are the ``keep`` best by either error, on the shipped and on the tuned grids.
    """
    if screen < len(at.x):
        few = at.first(screen)
        first = [(entry, result) for entry in field if (result := measure(*entry, few, nfe)) is not None]
        field = []
        for names, error in itertools.product((SHIPPED, TUNED), ("rms", "trimmed")):
            ran = [(getattr(result, error), i) for i, (entry, result) in enumerate(first) if entry[2] in names]
            field += [first[i][0] for _, i in sorted(ran)[:keep] if first[i][0] not in field]
    return [r for entry in field if (r := measure(*entry, at, nfe)) is not None]
