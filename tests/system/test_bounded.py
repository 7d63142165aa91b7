"""Every loop ends: those of the source are listed with what bounds them, and iterative methods meet nasty scores."""

from __future__ import annotations

import ast
import functools
import io
import math
import warnings
from collections.abc import Callable
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import scoresde
from scoresde.editing import invert
from scoresde.editing.fixed_point import fixed_point
from scoresde.inverse.conjugate_gradients import conjugate_gradients
from scoresde.likelihood import bits_per_dim, decode, encode, log_prob
from scoresde.models import Score, ScoreModel, as_score
from scoresde.problems import Gaussian
from scoresde.reverse import Reverse
from scoresde.sampling import sample
from scoresde.sde import VP
from scoresde.solvers import (
    AdaptiveODE,
    AdaptiveSDE,
    AdjustedLangevin,
    EulerMaruyama,
    IncompleteWarning,
    PredictorCorrector,
    ProbabilityFlow,
    Progress,
    Solver,
    TorchSDE,
)

# Every loop without a count, by module and function, and why it ends. Nothing else in the package loops like that.
BOUNDS = {
    "checks.tensors.readable": "unwraps one transform at a time",
    "sde.custom._settle": "panels double up to 4096",
    "noise.path.w": "octaves up to that of the place",
    "noise.shapes.library": "the width halves",
    "problems.tilted_sample": "raises where fewer than 1e-5 of 10^7 proposals are accepted",
    "solvers._adaptive_run.ending": "max_steps",
    "solvers._adaptive_run._interpolate": "passes one inner time of the grid each time",
    "solvers._watched._before_step": "passes one inner time of the grid each time",
    "solvers._checkpointing.left_part": "grows as a binomial coefficient up to the number of steps",
    "solvers._checkpointing.reverse": "the stretch gets shorter",
    "solvers._closures.derived": "each node of the graph once",
    "inverse.semidefinite._weights": "at most 8 terms",
    "models.captured.__call__": "one graph fewer each time",
    "checks.tensors.hidden": "unwraps one transform at a time",
    "train.held_out.evaluate": "passes at least one row each time",
    "train.held_out._noise": "passes at least one draw each time",
    "train.signals.end": "one listener further each time",
    "train.ahead._read": "ends with the batches, or when it is closed",
    "likelihood.__call__": "rows of the Jacobian: each is taken, or the chunk falls to 1 once",
    "fitting.trajectories.reference": "steps double up to 1024",
    "fitting.gauss_newton.descend": "iterations and seconds",
    "fitting.adaptation._descend": "evaluations, and a damping that grows tenfold up to 1e6",
    "certify.slopes.follow_errors": "steps double up to the most",
    "train.draws.indices": "takes at least one sample of an epoch each time",
    "train.folder.__init__": "the first name that is free",
    "train.sums._complete": "each bucket once a step",
    "train.sums._finish": "each bucket once a step",
    "train.folder.sha256": "to the end of the file",
    "train.record._drop": "to the start of the file, block by block",
    "train.bounded.check_arguments": "each value of a file of bounded size once",
    "train.copying._made_already": "each object once",
    "train.owner._take_lock": "again only where another process removed the file meanwhile",
    "train.trial._leaves": "each node of the graph once",
    "train.callbacks._tell": "to the innermost frame of the error",
    "data.folders._search": "each folder once",
    "data.parquet._rows": "batches of the file",
    "warning.warn_user": "to the outermost frame",
    "files.writing.append_line": "to the end of the line: a write takes a byte at least, or raises",
    "models.modules._found": "each object once, and 50,000 that are no modules",
    "interop.driven.evaluations": "each step of the grid ends, or asks once more than before",
    "interop.driven.go_on": "each part of the course once",
}


def loops() -> set[str]:
    """``while``, ``itertools.count`` and ``iter(function, sentinel)``: where they stand."""
    found: set[str] = set()
    root = Path(scoresde.__file__).parent
    for path in sorted(root.rglob("*.py")):
        module = ".".join(path.relative_to(root).with_suffix("").parts)

        def walk(node: ast.AST, function: str, module: str = module) -> None:
            for child in ast.iter_child_nodes(node):
                inside = child.name if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef)) else function
                counted = isinstance(child, (ast.For, ast.comprehension)) and ast.unparse(child.iter).startswith((
                    "itertools.count(", "itertools.cycle(", "iter(lambda",
                ))  # fmt: skip
                if isinstance(child, ast.While) or counted:
                    found.add(f"{module}.{inside}")
                walk(child, inside)

        walk(ast.parse(path.read_text("utf-8")), "")
    return found


def test_every_loop_without_a_count_says_why_it_ends() -> None:
    here = loops()
    assert here <= set(BOUNDS), f"say in BOUNDS why these end: {sorted(here - set(BOUNDS))}"
    assert len(here) > 15  # they are found


# ---- nasty scores ----

Function = Callable[[Tensor, Tensor], Tensor]


def nasty(kind: str) -> Function:
    generator, calls = torch.Generator().manual_seed(0), 0

    def score(x: Tensor, t: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        if kind == "random":
            return x * torch.randn(x.shape, generator=generator, dtype=x.dtype)
        if kind == "oscillating":
            return 100 * torch.sin(1e6 * x)
        if kind == "stiff":
            return -1e6 * x
        if kind == "NaN after a while":
            return x * math.nan if calls > 30 else -x
        return x * 1e300  # beyond float32, in one step

    return score


NASTY = ["random", "oscillating", "stiff", "NaN after a while", "infinite"]
STEPS = 20
PER_STEP = {"dopri5": 6, "dopri8": 13, "bosh3": 3, "fehlberg2": 2, "adaptive_heun": 1}
START = torch.tensor([[0.3, -0.7], [1.1, 0.2]])


class Asked(Exception):
    """More evaluations than the bound."""


def counted(kind: str, most: int) -> tuple[Score, Callable[[], int]]:
    inner, calls = nasty(kind), 0

    def score(x: Tensor, t: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        if calls > most:
            raise Asked(f"evaluation {calls} of {most}")
        return inner(x, t)

    return as_score(score, VP()), lambda: calls


def run(act: Callable[[], Any]) -> Any:
    """What came of it: a result, or one of the two errors that such a run may end in; never Asked, and no other."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", IncompleteWarning)
        try:
            return act()
        except (RuntimeError, FloatingPointError) as error:
            assert any(word in str(error) for word in ("NaN", "max_steps")), error
            return None


def own_steps() -> dict[str, tuple[Solver, int]]:
    """Solvers that choose their steps, and how many evaluations STEPS of them are at most, with those of the ends."""
    found: dict[str, tuple[Solver, int]] = {
        name: (ProbabilityFlow(name, max_steps=STEPS), 2 + n * STEPS) for name, n in PER_STEP.items()
    }
    found["scipy_solver"] = ProbabilityFlow("scipy_solver", max_steps=STEPS), STEPS
    found["AdaptiveODE adams"] = AdaptiveODE(max_steps=STEPS), 2 + STEPS
    found["AdaptiveODE dopri5"] = AdaptiveODE(method="dopri5", max_steps=STEPS), 2 + 6 * STEPS
    found["AdaptiveSDE"] = AdaptiveSDE(max_steps=STEPS), 2 + STEPS
    return found


@pytest.mark.parametrize("kind", NASTY)
@pytest.mark.parametrize("name", own_steps())
def test_solvers_that_choose_their_steps_end_within_their_limit(name: str, kind: str) -> None:
    solver, most = own_steps()[name]
    score, calls = counted(kind, most)
    process = Reverse(score, solver.default_eta)
    solution = run(lambda: solver.solve(process, START, torch.tensor([1.0, 1e-3]), 0))
    assert calls() <= most
    if solution is not None and not solution.complete:  # says how far each sample came, and no sample is garbage
        assert solution.reached is not None and bool((solution.reached[solution.finite] > 1e-3).any())
        assert solution.finite is not None and bool(solution.finite.any())


@pytest.mark.parametrize("kind", NASTY)
@pytest.mark.parametrize(
    "solver", [EulerMaruyama(), TorchSDE(), PredictorCorrector(EulerMaruyama(), AdjustedLangevin())]
)
def test_solvers_on_a_grid_take_its_steps(solver: Solver, kind: str) -> None:
    # a step, and of the corrector the score at the start, at the proposal and at one node of the line
    most = 4 * STEPS + 1
    score, calls = counted(kind, most)
    run(lambda: solver.solve(Reverse(score), START, torch.linspace(1, 0.01, STEPS + 1), 0))
    assert 0 < calls() <= most


LIMITED = ProbabilityFlow(max_steps=STEPS)
FUNCTIONS: dict[str, Callable[[Score], Any]] = {
    "log_prob": lambda score: log_prob(score, START, solver=LIMITED),
    "log_prob exact": lambda score: log_prob(score, START, "exact", solver=LIMITED),
    "bits_per_dim": lambda score: bits_per_dim(score, START, 0.1, solver=LIMITED),
    "encode": lambda score: encode(score, START, solver=LIMITED),
    "decode": lambda score: decode(score, START, solver=LIMITED),
    "invert": lambda score: invert(score, START, method="ode", solver=LIMITED),
}


@pytest.mark.parametrize("kind", NASTY)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_likelihoods_and_codes_end_within_the_limit(name: str, kind: str) -> None:
    most = 2 + 6 * STEPS
    score, calls = counted(kind, most)
    run(functools.partial(FUNCTIONS[name], score))
    assert 0 < calls() <= most


def test_a_bare_answer_is_never_partial() -> None:
    """log_prob, encode and decode answer tensors, which cannot say how far they came: they raise, and say it."""
    score, _ = counted("stiff", 10**6)
    for name, function in FUNCTIONS.items():
        with pytest.raises(
            RuntimeError, match=rf"at t = .* after {STEPS} steps, max_steps = {STEPS} .*Loosen rtol"
        ) as e:
            function(score)
        assert "max_steps=200" in str(e.value), name


def test_the_default_limit_is_2000_steps() -> None:
    assert ProbabilityFlow().max_steps == 2000 and AdaptiveODE().max_steps == AdaptiveSDE().max_steps == 1000


def test_the_adjoint_is_bounded_too() -> None:
    """Forward it is smooth; backward its derivative is another random number each time."""

    class Rough(torch.autograd.Function):
        generator = torch.Generator().manual_seed(0)

        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return -x

        @staticmethod
        def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
            return gradient * torch.randn(gradient.shape, generator=Rough.generator, dtype=gradient.dtype)

    x = START.double().requires_grad_(True)
    solver = ProbabilityFlow(adjoint=True, max_steps=60, rtol=1e-7, atol=1e-7)
    code = encode(as_score(lambda x, t: Rough.apply(x), VP()), x, solver=solver)
    with pytest.raises(RuntimeError, match=r"adjoint ODE.*max_steps = 60"):
        code.sum().backward()


def test_linear_systems_and_fixed_points_are_bounded() -> None:
    calls = 0

    def system(u: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return u * (1 + calls) + math.sin(calls)  # another one each time

    with pytest.warns(RuntimeWarning, match="conjugate gradients"):
        conjugate_gradients(system, START.double(), iterations=7)
    assert calls <= 8
    calls = 0
    found = fixed_point(lambda x: system(-3 * x), START.double(), iterations=9, tolerance=1e-12, memory=3)
    assert found.calls == calls == 10


# ---- progress, and cutting short ----


def bar(act: Callable[[], Any]) -> str:
    err = io.StringIO()
    with redirect_stderr(err):
        act()
    return err.getvalue()


@pytest.mark.parametrize("name", own_steps())
def test_a_bar_for_solvers_that_choose_their_steps(name: str) -> None:
    solver = own_steps()[name][0]
    score = Gaussian(torch.zeros(2), 1.0).score(VP())
    generous = type(solver)(**{**vars(solver), "max_steps": 2000})
    shown = bar(lambda: sample(score, (3, 2), solver=generous, progress=True))
    assert type(solver).__name__ in shown and "100%" in shown and "evaluations" in shown
    assert bar(lambda: sample(score, (3, 2), solver=generous)) == ""


@pytest.mark.parametrize("name", ["log_prob", "log_prob exact", "bits_per_dim", "encode", "decode"])
def test_a_bar_and_a_callback_for_likelihoods_and_codes(name: str) -> None:
    score, x = Gaussian(torch.zeros(2), 1.0).score(VP()), START.double()
    calls: dict[str, Callable[..., Tensor]] = {
        "log_prob": functools.partial(log_prob, score, x),
        "log_prob exact": functools.partial(log_prob, score, x, "exact"),
        "bits_per_dim": functools.partial(bits_per_dim, score, x, 0.1),
        "encode": functools.partial(encode, score, x),
        "decode": functools.partial(decode, score, x),
    }
    call, seen = calls[name], list[Progress]()
    shown = bar(lambda: call(progress=True, callback=seen.append))
    assert name.split()[0].replace("bits_per_dim", "log_prob") in shown and "100%" in shown
    assert bar(call) == "" and torch.equal(call(), call(progress=True, callback=seen.append))
    times = [float(progress.t) for progress in seen[: len(seen) // 2]]
    assert len(times) > 3 and times == sorted(times, reverse=name == "decode")
    assert times[-1] == (VP().t_min if name == "decode" else VP().T) and seen[0].x.shape == x.shape
    assert all(0 < progress.step <= progress.steps == 2000 for progress in seen)


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError("mine"), AssertionError("mine"), RuntimeError("mine")])
@pytest.mark.parametrize("name", [*own_steps(), "SpectralMultistep"])
def test_what_interrupts_a_score_gets_through_at_once(name: str, error: Any) -> None:
    solver = own_steps()[name][0] if name in own_steps() else None
    calls = 0

    def score(x: Tensor, t: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise error
        return -x

    with pytest.raises(error if isinstance(error, type) else type(error)) as caught:
        bar(lambda: sample(as_score(score, VP()), (2, 2), solver=solver, progress=True))
    assert calls == 3 and (isinstance(error, type) or caught.value is error)
    # nothing is left behind: the same solver and score run
    assert run(lambda: sample(as_score(score, VP()), (2, 2), solver=solver).x.shape) in ((2, 2), None)


@pytest.mark.parametrize(
    "error", [ValueError("enough"), AssertionError("enough"), RuntimeError("enough"), KeyboardInterrupt()]
)
def test_a_callback_ends_a_run_with_its_own_exception(error: BaseException) -> None:
    score, steps = Gaussian(torch.zeros(2), 1.0).score(VP()), list[int]()

    def callback(progress: Progress) -> None:
        steps.append(progress.step)
        if len(steps) == 2:
            raise error

    for act in (
        lambda: log_prob(score, START, callback=callback),
        lambda: log_prob(score, START, "exact", callback=callback, solver=ProbabilityFlow(adjoint=True)),
        lambda: encode(score, START, callback=callback),
        lambda: decode(score, START, callback=callback, solver=ProbabilityFlow("rk4", options={"step_size": 0.1})),
        lambda: sample(score, (2, 2), callback=callback, solver=AdaptiveODE()),
        lambda: sample(score, (2, 2), callback=callback, solver=TorchSDE()),
        lambda: sample(score, (2, 2), callback=callback),
    ):
        steps.clear()
        with pytest.raises(type(error)) as caught:
            act()
        assert caught.value is error and len(steps) == 2


@pytest.mark.parametrize("compact", [False, True])
@pytest.mark.parametrize("solver", [AdaptiveODE, AdaptiveSDE])
def test_adaptive_solvers_tell_of_inner_times_while_they_run(solver: Any, compact: bool) -> None:
    """So that a callback can cut them short: the first state comes long before the last evaluation."""
    asked = 0
    exact = Gaussian(torch.zeros(2), torch.tensor([0.1, 2.0])).score(VP())

    def score(x: Tensor, t: Tensor) -> Tensor:
        nonlocal asked
        asked += 1
        return exact(x, t)

    at: list[tuple[int, int]] = []
    made = solver(compact=compact, rtol=1e-3, atol=1e-3)
    solution = sample(as_score(score, VP()), (3, 2), solver=made, callback=lambda p: at.append((p.step, asked)))
    assert [step for step, _ in at] == list(range(1, 26)) and at[0][1] < 0.5 * solution.nfe
    assert [n for _, n in at] == sorted(n for _, n in at)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 2)

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        return self.layer(x)


def test_an_interrupted_run_leaves_autograd_as_it_was() -> None:
    model = ScoreModel(Net(), VP(), "v")

    def stop(progress: Progress) -> None:
        raise KeyboardInterrupt

    for enabled in (True, False):
        with torch.set_grad_enabled(enabled):
            with pytest.raises(KeyboardInterrupt):
                log_prob(model, START, callback=stop)
            assert torch.is_grad_enabled() is enabled
