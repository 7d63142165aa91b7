"""One fair run: the same noise and exact score for everybody, evaluations counted, the error to the exact end point.

``evaluate(solver, grid, problem, nfe)`` is the whole benchmark of one of our solvers; the functions below it do the
same for peers, and keep what was measured in JSON files.
"""

from __future__ import annotations

import ast
import functools
import itertools
import json
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import problems
import torch
from peer_grids import GRIDS, SHIPPED, TUNED
from peers import Oracle, Peer
from problems import Problem
from torch import Tensor

import scoresde as ss
from scoresde import grids

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

CACHE = Path("runs/benchmarks")
TRIM = 0.05
Row = TypeVar("Row")
GridRule = Callable[[ss.SDE, int], Tensor]
Entry = tuple[str, Peer, str]


@dataclass(frozen=True)
class Setting:
    """A problem with its starting noise and the exact end points, (n, D) float64."""

    problem: Problem
    x: Tensor
    exact: Tensor

    def first(self, n: int) -> Setting:
        """The first n samples."""
        return Setting(self.problem, self.x[:n], self.exact[:n])


@dataclass(frozen=True)
class Result:
    """What one sampler came to.

    Attributes:
        problem: its name.
        budget: evaluations allowed.
        nfe: evaluations used.
        solver: library, method and options.
        grid: rule of its noise levels.
        samples: how many.
        rms: root of the mean squared distance to the exact end point, over sqrt(D): the error of a coordinate.
        trimmed: the same without the worst 5 % of the samples.
    """

    problem: str
    budget: int
    nfe: int
    solver: str
    grid: str
    samples: int
    rms: float
    trimmed: float


@functools.cache
def setting(name: str, samples: int = 1000, *, seed: int = 1, cache: Path | None = CACHE) -> Setting:
    """Noise and exact end points; the latter are kept in the folder ``cache``."""
    problem = problems.problem(name)
    x = problem.start(samples, seed)
    return Setting(problem, x, problems.end_points(problem, x, cache=cache))


def distance(x: Tensor, exact: Tensor) -> tuple[float, float]:
    """Root-mean-square distance of x (n, D) to ``exact`` over sqrt(D), of all samples and without the worst 5 %."""
    squared = (x - exact).square().mean(1).nan_to_num(torch.inf)
    kept = squared.sort().values[: len(squared) - int(TRIM * len(squared))]
    return float(squared.mean().sqrt()), float(kept.mean().sqrt())


# -- ours --------------------------------------------------------------------------------------------------------------


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
    rms, trimmed = distance(end.x, at.exact)
    names = ("default" if solver is None else repr(solver), "default" if grid is None else title(grid))
    return Result(at.problem.name, nfe, end.nfe, f"scoresde {names[0]}", names[1], len(at.x), rms, trimmed)


def solve(solver: ss.Solver | None, grid: GridRule | None, at: Setting, steps: int) -> ss.Solution:
    """The probability-flow ODE from the setting's noise, in ``steps`` steps."""
    return ss.sample(
        at.problem.sde, at.problem.score, tuple(at.x.shape), solver=solver, steps=steps, grid=grid, x=at.x, eta=0.0,
        denoise=False,
    )  # fmt: skip


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


def title(grid: GridRule) -> str:
    """The name of a rule, with the options that a partial has bound."""
    if isinstance(grid, functools.partial):
        return f"{grid.func.__name__}({', '.join(f'{k}={v!r}' for k, v in grid.keywords.items())})"
    return getattr(grid, "__name__", repr(grid))


def parsed(text: str) -> tuple[ss.Solver | None, GridRule | None]:
    """ "Heun()@karras(rho=5)" as a solver and a rule; "default" is that of ``scoresde.sample`` in either place.

    Raises:
        ValueError: no such solver or rule, or options that are not literals.
    """
    solver, _, grid = text.partition("@")
    name, options = _call(solver)
    made = None if name == "default" else _named(ss.solvers, name)(**options)
    if not (made is None or isinstance(made, ss.Solver)):
        raise ValueError(f"scoresde.solvers.{name} is not a solver.")
    name, options = _call(grid or "default")
    if name == "default":
        return made, None
    rule: GridRule = _named(grids, name)
    return made, functools.partial(rule, **options) if options else rule


def _call(text: str) -> tuple[str, dict[str, object]]:
    node = ast.parse(text.strip(), mode="eval").body
    if isinstance(node, ast.Name):
        return node.id, {}
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and not node.args:
        return node.func.id, {k.arg: ast.literal_eval(k.value) for k in node.keywords if k.arg}
    raise ValueError(f"give a solver and a grid as Name(option=value)@grid(option=value), got {text!r}.")


def _named(module: object, name: str) -> Callable[..., Any]:
    if not hasattr(module, name):
        raise ValueError(f"{getattr(module, '__name__', module)} has no {name!r}.")
    found: Callable[..., Any] = getattr(module, name)
    return found


# -- peers -------------------------------------------------------------------------------------------------------------


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
    rms, trimmed = distance(y * problem.sde.alpha(problem.sde.t_min), at.exact)
    rule = grid if peer.any_grid else "its own"
    return Result(problem.name, nfe, oracle.calls, name, rule, len(at.x), rms, trimmed)


def entries(all_peers: dict[str, Peer]) -> list[Entry]:
    """Every peer on every grid, once where it makes its own."""
    return [(n, peer, g) for n, peer in all_peers.items() for g in (GRIDS if peer.any_grid else ("exponential",))]


def tournament(field: list[Entry], at: Setting, nfe: int, *, screen: int, keep: int) -> list[Result]:
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


def best(results: Iterable[Result], error: str = "rms") -> Result:
    """The least error."""
    return min(results, key=lambda r: float(getattr(r, error)))


# -- files -------------------------------------------------------------------------------------------------------------


def write(path: Path, results: Iterable[DataclassInstance]) -> None:
    """One JSON object a line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(asdict(r)) + "\n" for r in results), "utf-8")


def read(path: Path, kind: type[Row]) -> list[Row]:
    """What ``write`` wrote, as objects of the class ``kind``; nothing where there is no file."""
    if not path.exists():
        return []
    return [kind(**json.loads(line)) for line in path.read_text("utf-8").splitlines()]
