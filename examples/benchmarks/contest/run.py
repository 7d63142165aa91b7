"""One fair run: the same noise and exact score for everybody, evaluations counted, the error to the exact end point.

    at = setting("mixture2d-edm", samples=1000)
    evaluate(ss.Heun(), grids.karras, at, nfe=20).rms

``evaluate(solver, grid, problem, nfe)`` is the whole benchmark of one of our solvers.
"""

from __future__ import annotations

import ast
import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

import scoresde as ss
from contest.problems import NAMES, Problem, problem
from contest.reference import end_points
from contest.results import CACHE, Outcome, Result, read, write
from scoresde import grids

TRIM = 0.05
GridRule = Callable[[ss.SDE, int], Tensor]


@dataclass(frozen=True)
class Setting:
    """A problem with its starting noise and the exact end points, (n, D) float64."""

    problem: Problem
    x: Tensor
    exact: Tensor

    def first(self, n: int) -> Setting:
        """The first n samples."""
        return Setting(self.problem, self.x[:n], self.exact[:n])


@functools.cache
def setting(name: str, samples: int = 1000, *, seed: int = 1, cache: Path | None = CACHE) -> Setting:
    """Noise and exact end points; the latter are kept in the folder ``cache``."""
    what = problem(name)
    x = what.start(samples, seed)
    return Setting(what, x, end_points(what, x, cache=cache))


def distance(x: Tensor, exact: Tensor) -> tuple[float, float]:
    """Root-mean-square distance of x (n, D) to ``exact`` over sqrt(D), of all samples and without the worst 5 %."""
    squared = (x - exact).square().mean(1).nan_to_num(torch.inf)
    kept = squared.sort().values[: len(squared) - int(TRIM * len(squared))]
    return float(squared.mean().sqrt()), float(kept.mean().sqrt())


BANDS = (1.0, 0.01)
"""What parts the bands of the spectrum: variances along a direction, in mean variances of a coordinate."""


def bands(x: Tensor, at: Setting) -> list[float | None] | None:
    """Root-mean-square distance of x (n, D) to the exact end points along the directions of each band, of one of them.

    With λ the variance of the data along a direction and λ̄ that of a coordinate on average: λ >= λ̄, which is what all
    is made of; 0.01 λ̄ <= λ < λ̄; and λ < 0.01 λ̄, the finest detail. The squares, weighted by the shares of the
    directions, add up to that of :func:`distance`. None for a band without directions, and where no λ is known.
    """
    known = at.problem.directions
    if known is None:
        return None
    variances, axes = known
    apart = x - at.exact
    squared = (apart if axes is None else apart @ axes).square().mean(0).nan_to_num(torch.inf)
    place = sum((variances < edge * variances.mean()).long() for edge in BANDS)
    chosen = (squared[place == band] for band in range(len(BANDS) + 1))
    return [float(some.mean().sqrt()) if len(some) else None for some in chosen]


def errors(x: Tensor, at: Setting) -> tuple[float, float, list[float | None] | None]:
    """Of the whole, without the worst 5 % of the samples, and in the bands of the spectrum."""
    return (*distance(x, at.exact), bands(x, at))


def evaluate(solver: ss.Solver | None, grid: GridRule | None, where: Setting | str, nfe: int) -> Result:
    """Error of a solver of ours with at most ``nfe`` evaluations.

    Args:
        solver: a solver; None for the default of ``scoresde.sample``.
        grid: a function of ``scoresde.grids`` (sde, steps) -> times; None for the default of ``scoresde.sample``.
        where: a setting, or the name of a problem.
        nfe: evaluations allowed; the most steps within it are taken.

    Raises:
        ValueError: not even one step fits.
    """
    at = setting(where) if isinstance(where, str) else where
    end = solve(solver, grid, at, most_steps(solver, grid, at, nfe))
    rms, trimmed, by_band = errors(end.x, at)
    return Result(at.problem.name, nfe, end.nfe, *named(solver, grid), len(at.x), rms, trimmed, by_band)


def solve(solver: ss.Solver | None, grid: GridRule | None, at: Setting, steps: int) -> ss.Solution:
    """The probability-flow ODE from the setting's noise, in ``steps`` steps."""
    return ss.sample(
        at.problem.score, tuple(at.x.shape), solver=solver, steps=steps, grid=grid, x=at.x, eta=0.0, denoise=False
    )


def most_steps(solver: ss.Solver | None, grid: GridRule | None, at: Setting, nfe: int) -> int:
    """The most steps whose evaluations, counted on one sample, stay within ``nfe``."""
    one = at.first(1)

    def used(steps: int) -> int:
        try:
            return solve(solver, grid, one, steps).nfe
        except FloatingPointError:
            return steps  # it diverged; what the whole run takes is counted then

    return most(used, nfe, repr(solver))


def most(used: Callable[[int], int], nfe: int, name: str) -> int:
    """The largest number of steps with ``used(steps) <= nfe``, where ``used`` grows with the steps.

    Raises:
        ValueError: one step takes more.
    """
    steps = nfe
    while steps and (taken := used(steps)) > nfe:
        steps = min(steps - 1, steps * nfe // taken)
    if not steps:
        raise ValueError(f"{name} takes more than {nfe} evaluations for one step.")
    while steps <= nfe and used(steps + 1) <= nfe:  # a method may have a step that is free
        steps += 1
    return steps


def named(solver: ss.Solver | None, grid: GridRule | None) -> tuple[str, str]:
    """How results name a solver of ours, and a rule with the options that a partial has bound."""
    rule = getattr(grid, "__name__", "default" if grid is None else repr(grid))
    if isinstance(grid, functools.partial):
        rule = f"{grid.func.__name__}({', '.join(f'{k}={v!r}' for k, v in grid.keywords.items())})"
    return f"scoresde {'default' if solver is None else repr(solver)}", rule


@dataclass
class ContestFlags:
    """What contests of solvers take."""

    ours: tuple[str, ...] = ("default",)
    """Solvers of scoresde with their grids, "Heun()@karras(rho=5)"; "default" is what scoresde.sample takes."""
    problems: tuple[str, ...] = NAMES
    """Which problems: names as in contest.problems; a contest of end points takes guided and rough ones, and the folder
    of a trained network, too, see contest.learned."""
    nfe: tuple[int, ...] = (10, 20, 50, 100)
    """Score evaluations allowed."""
    out: Path = CACHE / "ours.jsonl"
    """File for our results; what it holds of other problems stays."""


Config = TypeVar("Config", bound=ContestFlags)
Row = TypeVar("Row", bound=Outcome)


def compete(
    config: Config,
    peers: Callable[[Config], list[Row]],
    ours: Callable[[ss.Solver | None, GridRule | None, str, int], Row],
    table: Callable[[str, list[Row], list[Row]], str],
) -> None:
    """Measure peers and ours, keep our results, and print a table for each problem.

    Args:
        config: who competes on what.
        peers: all results of the peers.
        ours: one of ours, of a solver and a grid on a problem with so many evaluations.
        table: Markdown for a problem, from all results of peers and ours.

    Raises:
        ValueError: a name of ours that is not known, before any work.
    """
    torch.set_num_threads(1)
    entered = [parsed(text) for text in config.ours]
    theirs = peers(config)
    own = [ours(*entry, name, nfe) for entry in entered for name in config.problems for nfe in config.nfe]
    others = [r for r in read(config.out, type(own[0])) if r.problem not in config.problems] if own else []
    write(config.out, [*others, *own])
    for name in config.problems:
        print(table(name, theirs, own), end="\n\n")


def parsed(text: str) -> tuple[ss.Solver | None, GridRule | None]:
    """ "Heun()@karras(rho=5)" as a solver and a rule; "default" is that of ``scoresde.sample`` in either place.

    Raises:
        ValueError: no such solver or rule, or options that are not literals.
    """
    solver, _, grid = text.partition("@")
    name, options = _call(solver)
    made = None if name == "default" else _found(ss.solvers, name)(**options)
    if not (made is None or isinstance(made, ss.Solver)):
        raise ValueError(f"scoresde.solvers.{name} is not a solver.")
    name, options = _call(grid or "default")
    if name == "default":
        return made, None
    rule: GridRule = _found(grids, name)
    return made, functools.partial(rule, **options) if options else rule


def _call(text: str) -> tuple[str, dict[str, object]]:
    node = ast.parse(text.strip(), mode="eval").body
    if isinstance(node, ast.Name):
        return node.id, {}
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and not node.args:
        return node.func.id, {k.arg: ast.literal_eval(k.value) for k in node.keywords if k.arg}
    raise ValueError(f"give a solver and a grid as Name(option=value)@grid(option=value), got {text!r}.")


def _found(module: object, name: str) -> Callable[..., Any]:
    if not hasattr(module, name):
        raise ValueError(f"{getattr(module, '__name__', module)} has no {name!r}.")
    found: Callable[..., Any] = getattr(module, name)
    return found
