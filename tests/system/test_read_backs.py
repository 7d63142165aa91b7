"""Within a run of fixed steps the host never waits for the device: from the first call of the network to the last no
number is read back, and nothing is copied over that the host would have to wait for.

The device is a stand-in (:mod:`elsewhere`), which tells of what ``torch.cuda.set_sync_debug_mode`` tells of on a GPU;
there ``examples/benchmarks/gpu.py`` asks that. Each case runs twice, and the second run is looked at: in the first an
operator works out its tables and sends them over. What it answers is compared with the CPU's.
"""

from __future__ import annotations

import functools
import re
import sys
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from elsewhere import AFAR, OnDevice, device, waits
from public_objects import Coder
from test_matrix import SDES
from torch import Tensor, nn

from scoresde import editing, grids, inverse, particles
from scoresde.checks.lasting import kept_at
from scoresde.checks.later import Lagging, answering, later
from scoresde.guidance import (
    autoguidance,
    cfg_plus_plus,
    classifier,
    classifier_free,
    clip,
    compose,
    projected,
    threshold,
)
from scoresde.interop import Latent, from_noise, from_velocity
from scoresde.inverse import DiffPIR, Measurement, RePaint, Replacement, dps, moment_matching, pigdm
from scoresde.models import PREDICTIONS, ClassifierModel, Score, ScoreModel
from scoresde.nn import MLP, UNet
from scoresde.noise import BrownianNoise, IndependentNoise, Noise
from scoresde.reverse import Reverse
from scoresde.sampling import sample
from scoresde.sde import SDE, VP, ScheduleSDE
from scoresde.solvers import (
    DDIM,
    AdjustedLangevin,
    EulerMaruyama,
    Heun,
    Langevin,
    PredictorCorrector,
    Solver,
    SpectralMultistep,
    StochasticRungeKutta,
    catalogue,
)

SHAPE, STEPS = (3, 2), 3
AROUND = 8
"""Waits allowed before the first call of the network and after the last, whatever the steps: checks of the start, of
conditions and of the end, and the draw of the tables of a Brownian path."""


class Log:
    """What was heard, with the number of calls of the network that had begun by then."""

    def __init__(self) -> None:
        self.calls = 0
        self.waits: list[tuple[int, str]] = []

    def called(self, *_: Any) -> None:
        self.calls += 1

    def __call__(self, why: str) -> None:
        frame: Any = sys._getframe()
        while frame is not None and "/scoresde/" not in frame.f_code.co_filename:
            frame = frame.f_back
        place = None if frame is None else frame.f_code.co_filename.rpartition("/scoresde/")[2]
        where = "the test" if frame is None else f"{place}:{frame.f_lineno}"
        self.waits.append((self.calls, f"{why} at {where}"))

    @property
    def within(self) -> list[str]:
        """Between the first call of the network and the last."""
        return [why for calls, why in self.waits if 0 < calls < self.calls]

    def places(self, *, but: str = "nowhere") -> list[str]:
        """All that was heard, without sizes, which may be those of a trajectory."""
        return [re.sub(r"\(.*?\)", "", why) for _, why in self.waits if but not in why]

    @property
    def around(self) -> list[str]:
        return [why for calls, why in self.waits if not 0 < calls < self.calls]


class Bench:
    """Networks on a device, whose calls are counted."""

    def __init__(self, log: Log, there: torch.device) -> None:
        self.log, self.there = log, there

    def at(self, module: Any, seed: int = 0) -> Any:
        """The module with weights of N(0, 0.04), there."""
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.copy_(0.2 * torch.randn(parameter.shape, generator=generator))
        module.register_forward_pre_hook(self.log.called)
        return module.to(self.there)

    def labels(self) -> Tensor:
        return torch.tensor([0, 1, 2]).to(self.there)

    def model(self, sde: SDE | None = None, seed: int = 0, predicts: str = "v") -> ScoreModel:
        net = self.at(MLP(2, width=8, depth=1, num_classes=3), seed)
        return ScoreModel(net, VP() if sde is None else sde, predicts, sigma_data=1.0)

    def bound(self, seed: int = 0) -> Score:
        return self.model(seed=seed).bind(label=self.labels())

    def bound_to(self, count: int) -> Score:
        return self.model().bind(label=(torch.arange(count) % 3).to(self.there))

    def measured_once(self) -> Measurement:
        """One measurement for any number of samples."""
        return Measurement(torch.tensor([0.5]).to(self.there), inverse.Mask(torch.tensor([True, False])), 0.2)

    def classifier(self) -> ClassifierModel:
        return ClassifierModel(self.at(MLP(2, width=8, depth=1, out_dim=3), 1), VP(), sigma_data=1.0)

    def told(self) -> nn.Module:
        class Told(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.layer = nn.Linear(3, 2)

            def forward(self, x: Tensor, told: Tensor) -> Tensor:
                return self.layer(torch.cat([x, told.to(x.dtype)[:, None]], 1)).tanh()

        return self.at(Told())

    def pictures(self) -> ScoreModel:
        captions: Any = {"caption": {"vocabulary": 5, "length": 3, "width": 8, "layers": 1}}
        net = UNet(1, width=4, multipliers=(1, 2), blocks=1, attention_levels=(-1,), captions=captions)
        return ScoreModel(self.at(net), VP(), "v", sigma_data=1.0)

    def measured(self, operator: Any = None, *, there: bool = True) -> Measurement:
        operator = inverse.Mask(torch.tensor([True, False])) if operator is None else operator
        y = Measurement.simulate(torch.linspace(-1, 1, 6).reshape(SHAPE), operator, 0.2, noise=0).y
        return Measurement(y.to(self.there) if there else y, operator, 0.2)


Run = Callable[[], Any]
Case = Callable[[Bench], Run]


def heard(case: Case, times: int = 2) -> tuple[Any, Log]:
    """What the last of some runs answers on the device, and what was heard of it."""
    log = Log()
    with warnings.catch_warnings(), device(AFAR, log) as there:
        warnings.simplefilter("ignore")
        run = case(Bench(log, there))
        for _ in range(times):
            log.calls, log.waits = 0, []
            answer = run()
    return answer, log


def holds(case: Case, *, times: int = 2, lagging: bool = False) -> Log:
    """The law, for one case; ``lagging`` allows for the answers of :class:`Lagging`, which a GPU has from an event."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        here = case(Bench(Log(), torch.device("cpu")))()
    there, log = heard(case, times)
    assert isinstance(there, OnDevice) and log.calls > 1
    # the same operations in the same order but for fused and in-place kernels; guidance magnifies their roundings
    assert torch.allclose(there.held, here, rtol=2e-4, atol=2e-4 * float(here.abs().max()))
    within = [why for why in log.within if not (lagging and "checks/later.py" in why)]
    assert within == []
    around = [why for why in log.around if "checks/later.py" not in why]
    assert len(around) <= AROUND, around
    return log


def sampled(score: Callable[[Bench], Score], **options: Any) -> Case:
    """Three steps; a noise is made anew for each run."""

    def case(bench: Bench) -> Run:
        made = score(bench)

        def run() -> Tensor:
            given = {key: value() if key == "noise" else value for key, value in options.items()}
            chosen = {"seed": 0, **given} if "noise" not in given else given
            if callable(chosen.get("solver")) and not isinstance(chosen["solver"], Solver):
                chosen["solver"] = chosen["solver"](bench)
            return sample(made, SHAPE, steps=STEPS, device=bench.there, **chosen).x

        return run

    return case


# -- the stand-in ------------------------------------------------------------------------------------------------------

WAITS: dict[str, Callable[[Tensor], Any]] = {
    "item": lambda x: x.sum().item(),
    "bool": lambda x: bool(x.sum() > 0),
    "float": lambda x: float(x[0]),
    "tolist": lambda x: x.tolist(),
    "cpu": lambda x: x.cpu(),
    "to cpu": lambda x: x.to("cpu", non_blocking=True),
    "nonzero": lambda x: x.nonzero(),
    "mask": lambda x: x[x > 0],
    "masked_select": lambda x: x.masked_select(x > 0),
    "put by a mask": lambda x: x.clone().index_put_((x > 0,), x.new_zeros(())),
    "unique": lambda x: x.unique(),
    "equal": lambda x: torch.equal(x, x),
    "tensor": lambda x: torch.tensor([1.0], device=x.device),
    "from main memory": lambda x: torch.ones(3).to(x.device),
    "copy_": lambda x: x.copy_(torch.ones(3)),
    "indices of main memory": lambda x: x[torch.tensor([0, 1])],
    "where with a number of main memory": lambda x: torch.where(x > 0, torch.tensor(1.0), x),
    "repeat_interleave": lambda x: x.repeat_interleave(torch.ones(3, dtype=torch.int64, device=AFAR)),
    "cholesky": lambda x: torch.linalg.cholesky(torch.eye(2, device=x.device)),
    "eigh": lambda x: torch.linalg.eigh(torch.eye(2, device=x.device)),
    "multinomial": lambda x: torch.multinomial(x.abs() + 1, 2),
}
RUNS_ON: dict[str, Callable[[Tensor], Any]] = {
    "a number": lambda x: 2.0 * x + torch.tensor(0.5, dtype=torch.float64),
    "full": lambda x: torch.full((3,), 0.5, device=x.device),
    "copied behind the queue": lambda x: torch.ones(3).to(x.device, non_blocking=True),
    "where": lambda x: torch.where(x > 0, 1.0, x),
    "masked_fill": lambda x: x.masked_fill(x > 0, 1.0),
    "gather": lambda x: x.gather(0, torch.zeros(3, dtype=torch.int64, device=AFAR)),
    "cholesky_ex": lambda x: torch.linalg.cholesky_ex(torch.eye(2, device=x.device)),
    "double": lambda x: x.double().sum(),
}


@pytest.mark.parametrize("name", WAITS)
def test_the_stand_in_tells_of_a_wait(name: str) -> None:
    _, log = heard(lambda bench: functools.partial(WAITS[name], _three(bench)), times=1)
    assert log.waits


@pytest.mark.parametrize("name", RUNS_ON)
def test_the_stand_in_says_nothing_of_what_runs_on(name: str) -> None:
    _, log = heard(lambda bench: functools.partial(RUNS_ON[name], _three(bench)), times=1)
    assert not log.waits


def _three(bench: Bench) -> Tensor:
    return torch.tensor([1.0, -2.0, 3.0]).to(bench.there)


def test_a_wait_inside_of_a_network_is_found() -> None:
    """The law itself: a network that reads a number back is caught, with the line."""

    def case(bench: Bench) -> Run:
        net = bench.at(nn.Linear(2, 2))

        def reads(x: Tensor, c: Tensor) -> Tensor:
            return net(x) * (2.0 if bool(x.sum() > 0) else 1.0)

        return lambda: sample(ScoreModel(reads, VP(), "v"), SHAPE, steps=STEPS, seed=0, device=bench.there).x

    _, log = heard(case)
    assert len(log.within) == log.calls - 1 and "_local_scalar_dense" in log.within[0]
    assert waits("add", [], (), {}, True) == ""


# -- solvers, schedules, predictions, noises ---------------------------------------------------------------------------


def fixed() -> list[tuple[Solver, float]]:
    """Every public solver of fixed steps with each η that it takes; its further variants with one, 1 where they may."""
    found: list[tuple[Solver, float]] = []
    for solver in (one for one in catalogue.variants() if one.steps_on_grid):
        new = not any(type(solver) is type(other) for other, _ in found)
        takes = [eta for eta in (1.0, 0.0) if _takes(solver, eta)]
        found += [(solver, eta) for eta in (takes if new else takes[:1])]
    return found


MODEL = ScoreModel(MLP(2, width=8, depth=1), VP())


def _takes(solver: Solver, eta: float) -> bool:
    try:
        solver.check(Reverse(MODEL, eta))
    except ValueError:
        return False
    return True


@pytest.mark.parametrize(
    ("solver", "eta"), fixed(), ids=lambda one: f"{one:g}" if isinstance(one, float) else catalogue.label(one)
)
def test_every_solver_of_fixed_steps(solver: Solver, eta: float) -> None:
    holds(sampled(Bench.bound, solver=solver, eta=eta), times=1)


def _generator() -> Noise:
    return IndependentNoise(torch.Generator().manual_seed(0))


OPTIONS: dict[str, dict[str, Any]] = {
    "churn": {"solver": Heun(churn=2.0)},
    "Langevin": {"solver": PredictorCorrector(EulerMaruyama(), Langevin())},
    "adjusted": {"solver": PredictorCorrector(EulerMaruyama(), AdjustedLangevin())},
    "a path": {"solver": EulerMaruyama(), "noise": functools.partial(BrownianNoise, 0, 1.0)},
    "a path and its areas": {"solver": StochasticRungeKutta(), "noise": functools.partial(BrownianNoise, 0, 1.0)},
    "a generator of main memory": {"solver": EulerMaruyama(), "noise": _generator},
    "a trajectory": {"trajectory": True},
    "a callback": {"callback": lambda progress: None},
    "a progress bar": {"progress": True},
    "half precision": {"dtype": torch.bfloat16},
}


@pytest.mark.parametrize("name", OPTIONS)
def test_noises_correctors_and_what_looks_on(name: str) -> None:
    holds(sampled(Bench.bound, **OPTIONS[name]))


@pytest.mark.parametrize("name", SDES)
def test_every_schedule(name: str) -> None:
    for solver in (DDIM(), SpectralMultistep()):
        holds(sampled(lambda bench: bench.model(SDES[name]).bind(label=1), solver=solver, eta=1.0))


@pytest.mark.parametrize("predicts", PREDICTIONS)
def test_every_prediction(predicts: str) -> None:
    holds(sampled(lambda bench: bench.model(predicts=predicts).bind(label=1), solver=DDIM()))


def test_a_run_that_is_differentiated() -> None:
    """Forward and backward."""

    def case(bench: Bench) -> Run:
        score = bench.bound()

        def run() -> Tensor:
            x = torch.ones(SHAPE, device=bench.there, requires_grad=True)
            solution = Heun().solve(Reverse(score, 0.0), x, grids.karras(VP(), STEPS))
            (gradient,) = torch.autograd.grad(solution.x.sum(), x)
            return gradient

        return run

    holds(case)


# -- guidance and posteriors -------------------------------------------------------------------------------------------

GUIDANCE: dict[str, Callable[[Bench], Score]] = {
    "one label for all": lambda b: b.model().bind(label=1),
    "classifier_free": lambda b: classifier_free(b.model(), {"label": 1}, 3.0),
    "classifier_free, a label each": lambda b: classifier_free(b.model(), {"label": b.labels()}, 3.0),
    "classifier_free, labels in main memory": lambda b: classifier_free(b.model(), {"label": torch.arange(3)}, 3.0),
    "interval and rescale": lambda b: classifier_free(
        b.model(), {"label": b.labels()}, 3.0, interval=(0.1, 5.0), rescale=0.5
    ),
    "negative": lambda b: classifier_free(b.model(), {"label": b.labels()}, 3.0, negative=2),
    "a null of one's own": lambda b: classifier_free(b.model(), {"label": b.labels()}, 3.0, null=3),
    "by time": lambda b: classifier_free(b.model(), {"label": b.labels()}, lambda t: 1 + 2 * t),
    "cfg++": lambda b: classifier_free(b.model(), {"label": 1}, cfg_plus_plus(VP(), grids.log_snr(VP(), STEPS), 0.5)),
    "projected": lambda b: projected(b.model(), {"label": b.labels()}, 3.0, norm=1.0),
    "clip": lambda b: clip(b.bound(), (-0.5, 1.0)),
    "threshold": lambda b: threshold(b.bound(), 0.5, limit=0.5),
    "autoguidance": lambda b: autoguidance(b.bound(), b.bound(1), 2.0),
    "compose": lambda b: compose(b.model(), [(2.0, {"label": 0}), (-1.0, {"label": b.labels()})]),
    "classifier": lambda b: classifier(b.bound(), b.classifier(), 2.0, label=1),
    "classifier, a label each": lambda b: classifier(b.bound(), b.classifier(), 2.0, label=b.labels()),
    "classifier, a temperature": lambda b: classifier(b.bound(), b.classifier(), 2.0, label=1, temperature=2.0),
    "classifier, by time": lambda b: classifier(b.bound(), b.classifier(), 2.0, label=1, temperature=lambda t: 1 + t),
    "under another schedule": lambda b: b.model().under(VP(beta_max=15.0, T=0.9)).bind(label=1),
    "latent": lambda b: Latent(b.bound(), Coder().to(b.there), scaling_factor=2.0),
    "a network of velocities": lambda b: from_velocity(b.told()),
    "a network of a chain": lambda b: from_noise(b.told(), torch.linspace(0.01, 0.3, 20)),
}  # fmt: skip

POSTERIORS: dict[str, Callable[[Bench], Score]] = {
    "dps": lambda b: dps(b.bound(), b.measured()),
    "dps, norm": lambda b: dps(b.bound(), b.measured(), step="norm"),
    "dps, y in main memory": lambda b: dps(b.bound(), b.measured(there=False)),
    "dps of a function": lambda b: dps(b.bound(), Measurement(torch.ones(SHAPE).to(b.there), torch.square, 0.2)),
    "pigdm": lambda b: pigdm(b.bound(), b.measured()),
    "moment_matching": lambda b: moment_matching(b.bound(), b.measured()),
    "moment_matching, the full gradient": lambda b: moment_matching(b.bound(), b.measured(), full_gradient=True),
    "moment_matching, by turns": lambda b: moment_matching(b.bound(), b.measured(), chunk=1),
}


@pytest.mark.parametrize("name", GUIDANCE)
def test_every_guidance(name: str) -> None:
    holds(sampled(GUIDANCE[name], solver=DDIM(), eta=1.0))


@pytest.mark.parametrize("name", POSTERIORS)
def test_every_posterior_score(name: str) -> None:
    holds(sampled(POSTERIORS[name], solver=EulerMaruyama(), eta=1.0))


def test_conjugate_gradients_look_one_turn_behind() -> None:
    """At most one look for each turn, besides those of one evaluation more."""
    case = sampled(lambda b: moment_matching(b.bound(), b.measured(), covariance="cg"), solver=DDIM(), eta=1.0)
    log = holds(case, lagging=True)
    assert log.within


OPERATORS: dict[str, Callable[[], Any]] = {
    "Identity": lambda: inverse.Identity((2,)),
    "Mask": lambda: inverse.Mask(torch.tensor([True, False])),
    "Downsample": lambda: inverse.Downsample(2, (2,)),
    "Blur": lambda: inverse.Blur(torch.tensor([0.7]), (2,)),
    "Grayscale": lambda: inverse.Grayscale((2,), (0.3, 0.7)),
    "Matrix": lambda: inverse.Matrix.gaussian(1, (2,), 0),
    "composition": lambda: inverse.Matrix(torch.ones(1, 1)) @ inverse.Mask(torch.tensor([True, False])),
    "FunctionOperator": lambda: inverse.FunctionOperator(every_other, event=(2,)),
}


def every_other(x: Tensor) -> Tensor:
    return x.cumsum(-1)[..., ::2]


@pytest.mark.parametrize("name", OPERATORS)
def test_every_operator(name: str) -> None:
    """Where there is no closed form, A Aᵀ is solved by conjugate gradients."""
    made = OPERATORS[name]
    holds(sampled(lambda b: pigdm(b.bound(), b.measured(made())), solver=DDIM()), lagging=True)
    holds(sampled(Bench.bound, solver=lambda b: Replacement(b.measured(made()))), lagging=True)


@pytest.mark.parametrize("kind", [DiffPIR, Replacement, functools.partial(RePaint, resamplings=2)])
def test_solvers_that_know_a_measurement_in_main_memory(kind: Any) -> None:
    holds(sampled(Bench.bound, solver=lambda b: kind(b.measured(there=False))))


# -- particles and edits -----------------------------------------------------------------------------------------------

PARTICLES: dict[str, Callable[[Bench, int], Tensor]] = {
    "tilted": lambda b, n: particles.tilted(
        classifier_free(b.model(), {"label": 1}, 2.0), (8, 2), steps=n, groups=2, device=b.there
    ).mean(),
    "twisted": lambda b, n: particles.twisted(
        pigdm(b.bound_to(8), b.measured_once()), (8, 2), steps=n, groups=2, moves=1, device=b.there
    ).mean(),
    "never resampled": lambda b, n: particles.twisted(
        pigdm(b.bound_to(8), b.measured_once()), (8, 2), steps=n, threshold=0.0, device=b.there
    ).mean(),
}  # fmt: skip

X0 = torch.linspace(-1, 1, 6).reshape(SHAPE)

EDITS: dict[str, Callable[[Bench, int], Tensor]] = {
    "sdedit": lambda b, n: editing.sdedit(b.bound(), X0.to(b.there), t=0.5, steps=n).x,
    "sdedit with a mask": lambda b, n: (
        editing.sdedit(b.bound(), X0.to(b.there), t=0.5, steps=n, mask=torch.tensor([[True, False]]).to(b.there)).x
    ),
    "invert": lambda b, n: editing.invert(b.bound(), X0.to(b.there), steps=n).x,
    "counterfactual": lambda b, n: editing.counterfactual(b.bound(), b.bound(1), X0.to(b.there), steps=n).x,
    "diffedit": lambda b, n: editing.diffedit(b.bound(), b.bound(1), X0.to(b.there), t=0.5, steps=n).x,
    "diffedit with a mask": lambda b, n: (
        editing.diffedit(b.bound(), b.bound(1), X0.to(b.there), t=0.5, steps=n, mask=torch.tensor([[True, False]])).x
    ),
    "anomaly_map": lambda b, n: editing.anomaly_map(b.bound(), X0.to(b.there), levels=[0.5], samples=2, steps=n).map,
    "prompt_to_prompt": lambda b, n: (
        editing.prompt_to_prompt(
            b.pictures(),
            torch.linspace(-1, 1, 16).reshape(1, 1, 4, 4).to(b.there),
            {"caption": torch.tensor([[1, 2, 0]]).to(b.there)},
            {"caption": torch.tensor([[1, 3, 0]]).to(b.there)},
            steps=n,
        ).x
    ),
}


@pytest.mark.parametrize("name", [*PARTICLES, *EDITS])
def test_particles_and_edits_wait_no_oftener_for_more_steps(name: str) -> None:
    """They are several runs, each of which is looked at when it has ended: how often does not depend on the steps."""
    edit = {**PARTICLES, **EDITS}[name]
    few, many = (heard(lambda b, n=n: lambda: edit(b, n), times=1)[1] for n in (2, 5))
    assert many.calls > few.calls
    assert many.places() == few.places()


def test_implicit_steps_of_an_inversion_look_one_turn_behind() -> None:
    def invert(b: Bench, iterations: int) -> Run:
        score, x0 = b.bound(), X0.to(b.there)
        return lambda: editing.invert(score, x0, steps=2, iterations=iterations, memory=2 if iterations else 0).x

    here = invert(Bench(Log(), torch.device("cpu")), 4)()
    plain, solved = (heard(functools.partial(invert, iterations=n), times=1) for n in (0, 4))
    assert torch.allclose(solved[0].held, here, rtol=1e-4, atol=1e-4)  # roundings of float32
    assert solved[1].places(but="checks/later.py") == plain[1].places() != solved[1].places()


# -- learned schedules -------------------------------------------------------------------------------------------------


class Learned(SDE, nn.Module):
    def __init__(self) -> None:
        nn.Module.__init__(self)
        self.width = nn.Parameter(torch.tensor(16.0, dtype=torch.float64))

    def alpha(self, t: Tensor) -> Tensor:  # type: ignore[override]
        return (8.0 - nn.functional.softplus(self.width) * t).sigmoid().sqrt()

    def sigma(self, t: Tensor) -> Tensor:  # type: ignore[override]
        return (nn.functional.softplus(self.width) * t - 8.0).sigmoid().sqrt()


class Part(nn.Module):
    def __init__(self, sign: float) -> None:
        super().__init__()
        self.width, self.sign = nn.Parameter(torch.tensor(16.0, dtype=torch.float64)), sign

    def forward(self, t: Tensor) -> Tensor:
        return (self.sign * (8.0 - self.width * t)).sigmoid().sqrt()


class Annealed(Learned):
    """With a number that is no parameter."""

    factor = 1.0

    def alpha(self, t: Tensor) -> Tensor:  # type: ignore[override]
        return (8.0 - self.factor * nn.functional.softplus(self.width) * t).sigmoid().sqrt()

    def sigma(self, t: Tensor) -> Tensor:  # type: ignore[override]
        return (self.factor * nn.functional.softplus(self.width) * t - 8.0).sigmoid().sqrt()


class Methods(nn.Module):
    """Whose methods are functions of the time, and bring it to the parameters themselves."""

    def __init__(self) -> None:
        super().__init__()
        self.width = nn.Parameter(torch.tensor(16.0, dtype=torch.float64))

    def alpha(self, t: Tensor) -> Tensor:
        return (8.0 - self.width * t.to(self.width.device)).sigmoid().sqrt()

    def sigma(self, t: Tensor) -> Tensor:
        return (self.width * t.to(self.width.device) - 8.0).sigmoid().sqrt()


class Owner(SDE):
    """Neither a module nor a dataclass: where its numbers are nobody can tell."""

    def __init__(self, inner: Methods) -> None:
        self.inner = inner

    def alpha(self, t: Tensor) -> Tensor:  # type: ignore[override]
        return self.inner.alpha(t)

    def sigma(self, t: Tensor) -> Tensor:  # type: ignore[override]
        return self.inner.sigma(t)


def _anneal(sde: Any) -> None:
    sde.factor = 1.5


CHANGES: dict[str, tuple[Callable[[Any], SDE], Callable[[Any, Any], Any]]] = {
    "in place": (lambda part: part, lambda part, sde: part.width.mul_(1.5)),
    "beside the count of changes": (lambda part: part, lambda part, sde: part.width.data.mul_(1.5)),
    "a number": (lambda part: part, lambda part, sde: _anneal(sde)),
    "of methods": (lambda part: ScheduleSDE(part.alpha, part.sigma), lambda part, sde: part.width.mul_(1.5)),
    "of an inner object": (Owner, lambda part, sde: part.width.mul_(1.5)),
}


def changing(name: str, there: torch.device) -> tuple[Any, SDE]:
    part: Any = Methods() if name in ("of methods", "of an inner object") else Annealed()
    sde = CHANGES[name][0](part)  # before it is moved: that asks for derivatives, which the stand-in does not know
    part.to(there)
    return part, sde


@pytest.mark.parametrize("name", CHANGES)
def test_a_schedule_that_changes_between_runs(name: str) -> None:
    """The copy in main memory lasts for one run."""
    times = torch.linspace(0.1, 0.9, 3, dtype=torch.float64)

    def asked(there: torch.device) -> Tensor:
        part, sde = changing(name, there)
        found = []
        with torch.no_grad():
            for _ in range(2):
                with answering():
                    found += [sde.alpha(times).cpu() for _ in range(3)]
                CHANGES[name][1](part, sde)
        return torch.stack(found)

    here = asked(torch.device("cpu"))
    assert not torch.allclose(here[0], here[-1], rtol=1e-2)
    with device(AFAR) as there:
        found = asked(there)
    assert torch.allclose(found, here, rtol=1e-12)


@pytest.mark.parametrize("name", ["in place", "of methods", "of an inner object"])
def test_a_schedule_is_learned_within_a_run(name: str) -> None:
    """No copy stands in the way of a gradient, wherever the parameter is found."""

    def gradient(there: torch.device) -> Tensor:
        part, sde = changing(name, there)
        with answering():
            for _ in range(2):
                last = sde.alpha(torch.tensor(0.4, dtype=torch.float64))
        return torch.autograd.grad(last, part.width)[0]

    here = gradient(torch.device("cpu"))
    with device(AFAR) as there:
        found = gradient(there)
    assert here != 0
    assert torch.allclose(found.held, here, rtol=1e-12)  # type: ignore[attr-defined]


LEARNED: dict[str, Callable[[], SDE]] = {
    "a module": Learned,
    "a parameter": lambda: VP(nn.Parameter(torch.tensor(0.1, dtype=torch.float64)), 20.0),  # type: ignore[arg-type]
    "functions": lambda: ScheduleSDE(Part(1.0), Part(-1.0)),
}


@pytest.mark.parametrize("name", LEARNED)
def test_a_schedule_whose_parameters_lie_there(name: str) -> None:
    """It is asked through a copy in main memory, made anew when they have changed."""

    def case(bench: Bench) -> Run:
        model = bench.model(LEARNED[name]()).to(bench.there)
        assert all(p.device == bench.there for p in model.parameters())
        return lambda: sample(model.bind(label=1), SHAPE, solver=DDIM(), steps=STEPS, seed=0, device=bench.there).x

    holds(case)

    def changed(bench: Bench) -> Run:
        model = bench.model(LEARNED[name]()).to(bench.there)
        times = torch.tensor(0.4, dtype=torch.float64)

        def run() -> Tensor:
            with torch.no_grad():
                before = model.sde.alpha(times)
                for p in (p for p in model.parameters() if p.dtype == torch.float64):
                    p.mul_(1.5)
                assert model.sde.alpha(times) != before
                return model.sde.alpha(times)

        return run

    there, _ = heard(changed, times=2)
    here = changed(Bench(Log(), torch.device("cpu")))
    here()
    assert there == pytest.approx(here().item(), rel=1e-12)


# -- the parts ---------------------------------------------------------------------------------------------------------


def test_a_copy_is_kept_until_the_tensor_changes() -> None:
    with device(AFAR) as there:
        x = torch.arange(3.0)
        first = kept_at(x, there)
        assert kept_at(x, there) is first and kept_at(x, there, torch.float64) is not first
        x.add_(1)
        again = kept_at(x, there)
        assert again is not first and torch.equal(again.held, x)  # type: ignore[attr-defined]
        with torch.inference_mode():
            assert kept_at(torch.ones(2), there).device == there
            assert not kept_at(x, there).is_inference()
        leaf = torch.ones(2, requires_grad=True)
        (gradient,) = torch.autograd.grad(kept_at(leaf, there).sum(), leaf)
        assert torch.equal(gradient, torch.ones(2))


def test_what_is_asked_later_is_answered_at_once_on_the_cpu_and_else_when_the_run_ends() -> None:
    said: list[str] = []
    with answering():
        later(torch.tensor(True), lambda: said.append("cpu"))
        assert said == ["cpu"]
    with device(AFAR) as there:
        yes, no = torch.ones((), dtype=torch.bool, device=there), torch.zeros((), dtype=torch.bool, device=there)
        later(yes, lambda: said.append("outside"))
        with answering():
            later(yes, lambda: said.append("first"))
            later(no, lambda: said.append("never"))
            with answering():
                later(yes, lambda: said.append("within"))
            later(yes, lambda: said.append("last"))
            assert said == ["cpu", "outside", "within"]
        assert said[3:] == ["first", "last"]
        with pytest.raises(KeyError), answering():
            later(yes, lambda: said.append("after an error"))
            raise KeyError
        assert len(said) == 5
        with answering():
            for i in range(5000):
                later(yes, lambda i=i: said.append(str(i)))
            assert len(said) == 5 + 4096
        assert said[5:] == [str(i) for i in range(5000)]


def test_a_device_is_answered_by_the_turn_before() -> None:
    turns = [torch.tensor(value) for value in (True, True, False, False)]
    going = Lagging()
    assert [going.any(flag) for flag in turns] == [True, True, False, False]
    with device(AFAR) as there:
        going = Lagging()
        assert [going.any(flag.to(there)) for flag in turns] == [True, True, True, False]
