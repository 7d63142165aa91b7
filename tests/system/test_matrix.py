"""Every SDE × every solver × every guidance × events of rank 1, 2 and 3, generated: what is added joins by itself."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import itertools
import math
import typing
from collections.abc import Callable
from typing import Any

import pytest
import torch
from strategies import ZERO_TERMINAL
from torch import Tensor

import scoresde.sde as family
import scoresde.solvers as package
from scoresde import grids, inverse
from scoresde.guidance import autoguidance, classifier, classifier_free, compose, projected
from scoresde.models import Score, ScoreModel
from scoresde.problems import GaussianMixture
from scoresde.sampling import sample
from scoresde.sde import EDM, SDE, VP, ChainSDE, LinearSDE, ScheduleSDE
from scoresde.solvers import Heun, Solver, catalogue

# Those that need arguments; any other SDE of the package starts without.
BUILT: dict[type[SDE], SDE] = {
    ChainSDE: ChainSDE(VP().discretize(40)),
    LinearSDE: LinearSDE(lambda t: -0.5 - 4 * t, lambda t: (1 + 8 * t).sqrt()),
    ScheduleSDE: ScheduleSDE(lambda t: torch.cos(1.5 * t), lambda t: torch.sin(1.5 * t)),
}
EVENTS = [(2,), (1, 2), (1, 2, 1)]
GUIDANCE = ["none", "classifier", "classifier_free", "classifier over classifier_free"]
LABELS = torch.tensor([0, 1])


def public(package: Any, base: type) -> list[Any]:
    kinds = (getattr(package, name) for name in package.__all__)
    return [k for k in kinds if isinstance(k, type) and issubclass(k, base) and k is not base]


def sdes() -> dict[str, SDE]:
    return {kind.__name__: BUILT[kind] if kind in BUILT else kind() for kind in public(family, SDE)}


def solvers() -> dict[str, Solver]:
    """Each class in each of its Literal variants, with the tolerance of adaptive methods and inner loops cut down."""
    cheap = {"rtol": 0.05, "atol": 0.05, "steps": 4}
    found = [Heun(churn=2.0), *catalogue.variants()]
    cut = [dataclasses.replace(s, **{k: v for k, v in cheap.items() if hasattr(s, k)}) for s in found]
    return {repr(solver): solver for solver in cut}


@functools.cache
def problem(event: tuple[int, ...]) -> GaussianMixture:
    """Two components at ±1.5 along every axis: five standard deviations apart on each."""
    one = torch.ones(1, *event)
    return GaussianMixture(torch.tensor([0.5, 0.5]), torch.cat([-1.5 * one, 1.5 * one]), 0.09)


class ExactNetwork:
    """What a class-conditional network would learn: E[x_0 | x] given x/sqrt(α² + σ²) and c = log(σ/α), label 2 = null.

    The law of x/α depends on σ/α alone, so this network knows no SDE.
    """

    null_conditions: typing.ClassVar[dict[str, int]] = {"label": 2}

    def __init__(self, event: tuple[int, ...]) -> None:
        self.levels, self.data = EDM(T=1e9), problem(event)
        self.scores = [self.data.score(self.levels, 0), self.data.score(self.levels, 1), self.data.score(self.levels)]

    def __call__(self, x: Tensor, c: Tensor, label: Tensor) -> Tensor:
        sigma = c.exp()
        wide = sigma.reshape(-1, *[1] * (x.ndim - 1))
        raw = x * (1 + wide**2).sqrt()
        return torch.stack([score.denoise(raw, sigma) for score in self.scores])[label, torch.arange(len(x))]


def guided(kind: str, sde: SDE, event: tuple[int, ...]) -> Score:
    data = problem(event)
    model = ScoreModel(ExactNetwork(event), sde, "x0", sigma_data=1.0)  # type: ignore[arg-type]
    if kind == "none":
        return model.bind(label=LABELS)
    if kind == "classifier":
        return classifier(data.score(sde), data.label_log_prob(sde), 1.5, label=LABELS)
    free = classifier_free(model, {"label": LABELS}, 1.5)
    if kind == "classifier_free":
        return free
    return classifier(free, data.label_log_prob(sde), 0.5, label=LABELS)


def further(kind: str, sde: SDE, event: tuple[int, ...]) -> Score:
    """The variants of guidance, and posteriors of a measurement of the first number, ±1.5."""
    model = ScoreModel(ExactNetwork(event), sde, "x0", sigma_data=1.0)  # type: ignore[arg-type]
    first = torch.zeros(event, dtype=torch.bool)
    first.view(-1)[0] = True
    seen = inverse.Measurement(torch.tensor([[-1.5], [1.5]]), inverse.Mask(first), 0.2)
    made: dict[str, Callable[[], Score]] = {
        "interval": lambda: classifier_free(model, {"label": LABELS}, 1.5, interval=(0.5, 4.0)),
        "rescaled": lambda: classifier_free(model, {"label": LABELS}, 1.5, rescale=0.7),
        "negative": lambda: classifier_free(model, {"label": LABELS}, 1.2, negative=1 - LABELS),
        "schedule": lambda: classifier_free(model, {"label": LABELS}, lambda t: 1 + 0.5 * t),
        "projected": lambda: projected(model, {"label": LABELS}, 1.5, parallel=0.5, norm=3.0),
        "autoguidance": lambda: autoguidance(model.bind(label=LABELS), model.bind(label=2), 1.5),
        "compose": lambda: compose(model, [(1.5, {"label": LABELS}), (-0.2, {"label": 1 - LABELS})]),
        "pigdm": lambda: inverse.pigdm(model.bind(label=2), seen),
        "moment matching": lambda: inverse.moment_matching(model.bind(label=2), seen),
    }
    return made[kind]()


SDES, SOLVERS = sdes(), solvers()
FURTHER = [
    "interval", "rescaled", "negative", "schedule", "projected", "autoguidance", "compose", "pigdm", "moment matching",
]  # fmt: skip


@functools.cache
def grid(sde: str) -> Tensor:
    """Four steps over the noise levels at which a sample chooses its component, each halving σ/α."""
    start, end = (SDES[sde].t_of_log_snr(-2 * math.log(ratio)) for ratio in (6.0, 0.4))
    return grids.log_snr(SDES[sde], 4, t_start=start, t_end=end)


def combinations() -> list[Any]:
    """Each class of solver in full; its further variants under every SDE too, with guidance and events in turn."""
    others = list(itertools.product(GUIDANCE, EVENTS))
    seen: set[type[Solver]] = set()
    found = []
    for i, (name, solver) in enumerate(SOLVERS.items()):
        for j, sde in enumerate(SDES):
            taken = others if type(solver) not in seen else [others[(i + j) % len(others)]]
            found += [(sde, name, guidance, event) for guidance, event in taken]
        seen.add(type(solver))
    return [pytest.param(*one, id=f"{one[0]}-{one[1]}-{one[2]}-rank{len(one[3])}") for one in found]


@pytest.mark.parametrize(("sde", "solver", "guidance", "event"), combinations())
def test_every_combination_generates(sde: str, solver: str, guidance: str, event: tuple[int, ...]) -> None:
    score = guided(guidance, SDES[sde], event)
    solution = sample(score, (2, *event), solver=SOLVERS[solver], grid=grid(sde), seed=1)
    x = solution.x
    assert x.shape == (2, *event) and x.dtype == torch.float32
    assert bool(x.isfinite().all()) and solution.nfe > 0 and not x.requires_grad
    # The label moved each sample to its side: the components end five standard deviations from the middle on each
    # axis, and four steps blur their law by less than that.
    sides = x.flatten(1).mean(1)
    assert float(sides[0]) < 0 < float(sides[1]), f"labels 0, 1 gave {sides.tolist()}"


def rotated() -> list[Any]:
    """Each class of solver under each variant, SDEs and events in turn."""
    classes = {type(solver): name for name, solver in reversed(SOLVERS.items())}
    names = list(SDES)
    return [
        pytest.param(names[(i + j) % len(names)], name, kind, EVENTS[(i + j) % 2], id=f"{name}-{kind}")
        for i, name in enumerate(classes.values())
        for j, kind in enumerate(FURTHER)
    ]


@pytest.mark.parametrize(("sde", "solver", "kind", "event"), rotated())
def test_every_variant_of_guidance_works_with_every_solver(
    sde: str, solver: str, kind: str, event: tuple[int, ...]
) -> None:
    score = further(kind, SDES[sde], event)
    x = sample(score, (2, *event), solver=SOLVERS[solver], grid=grid(sde), seed=1).x
    assert x.shape == (2, *event) and bool(x.isfinite().all()) and not x.requires_grad
    # a label is of the whole event; a measurement, after four steps, of the number that was measured at least
    measured = kind in ("pigdm", "moment matching")
    sides = x.flatten(1)[:, 0] if measured else x.flatten(1).mean(1)
    assert float(sides[0]) < 0 < float(sides[1]), f"{kind} gave {sides.tolist()}"


def from_the_end() -> list[Any]:
    """Each class of solver from a time without signal, under each SDE that ends in one; guidance and events in turn."""
    classes = {type(solver): name for name, solver in reversed(SOLVERS.items())}
    return [
        pytest.param(sde, name, ("none", "classifier_free")[(i + j) % 2], EVENTS[(i + j) % 3], id=f"{name}-{sde}")
        for i, name in enumerate(classes.values())
        for j, sde in enumerate(ZERO_TERMINAL)
    ]


@pytest.mark.parametrize(("sde", "solver", "guidance", "event"), from_the_end())
def test_every_solver_starts_where_no_signal_is_left(
    sde: str, solver: str, guidance: str, event: tuple[int, ...]
) -> None:
    """From T itself, α(T) = 0, in one step to noise levels at which a sample chooses its component."""
    schedule = ZERO_TERMINAL[sde]
    start, end = (schedule.t_of_log_snr(-2 * math.log(ratio)) for ratio in (6.0, 0.4))
    times = torch.cat([start.new_tensor([schedule.T]), grids.log_snr(schedule, 4, t_start=start, t_end=end)])
    score = guided(guidance, schedule, event)
    x = sample(score, (2, *event), solver=SOLVERS[solver], grid=times, seed=1).x
    sides = x.flatten(1).mean(1)
    assert bool(x.isfinite().all()) and float(sides[0]) < 0 < float(sides[1]), f"labels 0, 1 gave {sides.tolist()}"


def test_the_matrix_is_complete() -> None:
    assert {type(s).__name__ for s in SDES.values()} == {k.__name__ for k in public(family, SDE)}
    # all but the bases of solvers of one's own, and what is fitted to one process
    unmade = {kind for kind in public(package, Solver) if inspect.isabstract(kind)} | {package.Fitted}
    assert {type(s) for s in SOLVERS.values()} == set(public(package, Solver)) - unmade == set(catalogue.classes())
    assert [len(e) for e in EVENTS] == [1, 2, 3]


@pytest.mark.parametrize("sde", SDES)
def test_the_exact_network_is_exact(sde: str) -> None:
    """Under every SDE the model's scores are those of the mixture and of its components."""
    schedule, event = SDES[sde], (1, 2)
    model, data = ScoreModel(ExactNetwork(event), schedule, "x0", sigma_data=1.0), problem(event)  # type: ignore[arg-type]
    for t in (schedule.t_min, 0.3 * schedule.T, schedule.T):
        time = torch.tensor(t, dtype=torch.float64)
        x0 = data.sample(3, 2)
        mean, std = schedule.marginal(x0, time)
        x = (mean + std * torch.randn(x0.shape, generator=torch.Generator().manual_seed(0))).double()
        label = torch.tensor([0, 1, 2])
        got = model(x, time, {"label": label})
        expected = torch.cat([
            data.score(schedule, k if k < 2 else None)(x[k : k + 1], time) for k in range(3)
        ])  # fmt: skip
        # c is a float64 log here; what is left is cancellation in (α x_0 - x)/σ², worst at the smallest σ
        scale = float(schedule.alpha(time) / schedule.sigma(time) ** 2)
        torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-12 * max(scale, 1 / math.sqrt(scale)))
