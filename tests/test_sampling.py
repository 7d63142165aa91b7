"""The one-liner and the loop around every solver: seeds, splits, ends, counts, gradients, and the exact law."""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from contextlib import redirect_stderr
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import scoresde.solvers as package
from scoresde import grids, metrics
from scoresde.inverse import Mask, Measurement, pigdm
from scoresde.models import ScoreModel, as_score
from scoresde.noise import BrownianNoise, IndependentNoise, PerSampleNoise
from scoresde.problems import GaussianMixture
from scoresde.reverse import Reverse
from scoresde.sampling import sample
from scoresde.sde import EDM, SDE, VE, VP, Cosine, RectifiedFlow, SubVP
from scoresde.solvers import (
    DDIM,
    Ancestral,
    EulerMaruyama,
    Heun,
    PredictorCorrector,
    ProbabilityFlow,
    ReverseDiffusion,
    Solver,
    SpectralMultistep,
    TorchSDE,
    catalogue,
)
from scoresde.spectrum import Spectrum

SDES: list[SDE] = [VP(), SubVP(), VE(), EDM(), Cosine(), RectifiedFlow()]


def named(value: Any) -> str | None:
    return type(value).__name__ if isinstance(value, (SDE, Solver)) else None


def all_solvers() -> list[Solver]:
    return [kind() for kind in catalogue.classes()]


def mixture(dtype: torch.dtype = torch.float32, event: tuple[int, ...] = (2,)) -> GaussianMixture:
    one = torch.ones(1, *event, dtype=dtype)
    return GaussianMixture(torch.tensor([0.3, 0.7]), torch.cat([-1.5 * one, one]), torch.tensor([0.1, 0.3]))


# ---- seeds ----


@pytest.mark.parametrize("solver", all_solvers(), ids=named)
def test_same_seed_same_samples_another_seed_others(solver: Solver) -> None:
    score = mixture().score(VP())
    a, b, c = (sample(score, (3, 2), solver=solver, steps=4, seed=seed).x for seed in (5, 5, 6))
    assert torch.equal(a, b) and not torch.allclose(a, c)
    assert torch.equal(sample(score, (3, 2), solver=solver, steps=4).x,
                       sample(score, (3, 2), solver=solver, steps=4, seed=0).x)  # fmt: skip


# Those whose samples do not share anything: adaptive steps share an error norm, torchsde's own path a batch shape.
SEPARATE = [s for s in all_solvers() if not isinstance(s, (ProbabilityFlow, TorchSDE))]
SEPARATE += [Heun(churn=3.0), DDIM(eta=1.0), ProbabilityFlow("rk4"), PredictorCorrector(EulerMaruyama())]


@pytest.mark.parametrize(
    ("solver", "path"), [*((s, p) for s in SEPARATE for p in (False, True)), (TorchSDE(), True)], ids=repr
)
def test_any_batch_split_gives_the_same_samples(solver: Solver, path: bool) -> None:
    score = mixture().score(VP())

    def run(first: int, count: int) -> Tensor:
        noise = BrownianNoise(5, T=1.0, first=first) if path else PerSampleNoise(5, first=first)
        return sample(score, (count, 2), solver=solver, steps=4, noise=noise).x

    whole = run(0, 5)
    for sizes in ((2, 3), (1, 1, 1, 1, 1), (4, 1)):
        first = [sum(sizes[:i]) for i in range(len(sizes))]
        parts = torch.cat([run(i, n) for i, n in zip(first, sizes, strict=True)])
        # The noise agrees bit for bit; sums over other batch shapes may round differently in float32.
        torch.testing.assert_close(parts, whole, rtol=1e-5, atol=1e-5)


def test_a_longer_run_continues_the_same_set() -> None:
    score = mixture().score(VP())
    a, b = (sample(score, (n, 2), solver=EulerMaruyama(), steps=4, seed=9).x for n in (3, 7))
    torch.testing.assert_close(a, b[:3], rtol=1e-5, atol=1e-5)  # float32 rounding, as above


def test_seed_is_the_seed_of_per_sample_noise_and_a_generator_will_do() -> None:
    score = mixture().score(VP())

    def run(**keywords: Any) -> Tensor:
        return sample(score, (3, 2), solver=EulerMaruyama(), steps=4, **keywords).x

    assert torch.equal(run(seed=4), run(noise=PerSampleNoise(4)))
    assert torch.equal(run(noise=torch.Generator().manual_seed(1)), run(noise=IndependentNoise(1)))


def test_global_randomness_is_neither_read_nor_moved() -> None:
    score, state = mixture().score(VP()), torch.get_rng_state()
    runs = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        before = torch.get_rng_state()
        runs.append([sample(score, (2, 2), solver=s, steps=3).x for s in all_solvers()])
        assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))
    torch.set_rng_state(state)


# ---- grid, start, end ----


def test_the_start_is_the_prior_at_the_first_time() -> None:
    seen: list[Tensor] = []

    def score(x: Tensor, t: Tensor) -> Tensor:
        seen.append(x)
        return -x

    sde = VE()
    z = PerSampleNoise(3).initial((4, 2), dtype=torch.float32, device=torch.device("cpu"))
    sample(as_score(score, sde), (4, 2), steps=2, seed=3)
    torch.testing.assert_close(seen[0], z * sde.sigma_max, rtol=1e-6, atol=0)  # float32
    seen.clear()
    sample(as_score(score, sde), (4, 2), grid=torch.tensor([0.5, 0.1]), seed=3)
    torch.testing.assert_close(seen[0], z * float(sde.sigma(0.5)), rtol=1e-6, atol=0)


def test_a_given_start_is_used_and_its_dtype_kept() -> None:
    score, x = mixture().score(VP()), torch.full((3, 2), 0.7, dtype=torch.float64)
    solution = sample(score, (3, 2), x=x, trajectory=True, steps=3)
    assert solution.trajectory is not None and torch.equal(solution.trajectory[0], x)
    assert solution.x.dtype == torch.float64
    assert bool((solution.x == solution.x[0]).all())


def test_grids_as_functions_tensors_and_the_default() -> None:
    score, sde = mixture().score(VP()), VP()
    default = sample(score, (2, 2), steps=7)
    assert torch.equal(default.grid, grids.spectral(sde, 7)) and default.nfe == 7  # six, and one to denoise
    wide = sample(score, (2, 2), steps=7, solver=SpectralMultistep(Spectrum(2.0, 3.0)))
    assert torch.equal(wide.grid, grids.spectral(sde, 7, spectrum=Spectrum(2.0, 3.0)))
    assert torch.equal(sample(score, (2, 2), steps=7, solver=Heun()).grid, grids.karras(sde, 7))
    assert len(sample(score, (2, 2)).grid) == 26
    own = sample(score, (2, 2), steps=7, grid=grids.uniform)
    assert torch.equal(own.grid, grids.uniform(sde, 7))
    given = sample(score, (2, 2), steps=99, grid=grids.uniform(sde, 7))
    assert torch.equal(given.x, own.x)
    listed = sample(score, (2, 2), grid=grids.uniform(sde, 7).tolist())  # type: ignore[arg-type]
    assert torch.equal(listed.x, own.x)


def test_eta_is_the_solvers_own_unless_given() -> None:
    score = mixture().score(VP())

    def run(**keywords: Any) -> Tensor:
        return sample(score, (2, 2), steps=4, seed=1, **keywords).x

    assert torch.equal(run(solver=EulerMaruyama()), run(solver=EulerMaruyama(), eta=1.0))
    assert torch.equal(run(solver=DDIM()), run(solver=DDIM(), eta=0.0))
    assert torch.equal(run(solver=DDIM(eta=0.5)), run(solver=DDIM(), eta=0.5))
    assert not torch.allclose(run(solver=EulerMaruyama()), run(solver=EulerMaruyama(), eta=0.5))
    assert torch.equal(run(), run(solver=SpectralMultistep()))
    assert torch.equal(run(), run(eta=0.0)) and not torch.allclose(run(), run(eta=1.0))
    with pytest.raises(ValueError, match="probability-flow ODE"):
        run(solver=Heun(), eta=1.0)


@pytest.mark.parametrize("solver", all_solvers(), ids=named)
def test_denoise_is_tweedie_at_the_last_time_and_costs_one(solver: Solver) -> None:
    sde, data = VP(), mixture()
    a, b = (sample(data.score(sde), (3, 2), solver=solver, steps=3, denoise=d) for d in (False, True))
    assert b.nfe == a.nfe + 1 and b.denoised and not a.denoised
    alpha, sigma, t = (float(v) for v in (sde.alpha(1e-3), sde.sigma(1e-3), 1e-3))
    expected = (a.x + sigma**2 * data.score(sde)(a.x, torch.tensor(t))) / alpha
    torch.testing.assert_close(b.x, expected, rtol=1e-5, atol=1e-6)  # float32
    denoised = sample(data.score(sde), (3, 2), solver=solver, steps=3, trajectory=True)
    assert denoised.trajectory is not None and torch.equal(denoised.trajectory[-1], a.x)  # never denoised


@pytest.mark.parametrize(
    ("solver", "nfe"),
    [
        (DDIM(), 6), (EulerMaruyama(), 6), (ReverseDiffusion(), 6), (Heun(), 12), (TorchSDE(), 6),
        (ProbabilityFlow("rk4"), 24), (PredictorCorrector(), 12), (package.Ancestral(), 6),
        (PredictorCorrector(Heun(), package.Langevin(steps=3)), 30), (package.AnnealedLangevin(steps=2), 14),
    ],
    ids=repr,
)  # fmt: skip
def test_evaluations_are_counted(solver: Solver, nfe: int) -> None:
    calls = 0

    def score(x: Tensor, t: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return -x

    solution = sample(as_score(score, VP()), (2, 2), solver=solver, steps=6, denoise=False)
    assert solution.nfe == calls == nfe


def test_samples_carry_no_graph_and_leave_parameters_alone() -> None:
    net = nn.Linear(2, 2)
    model = ScoreModel(lambda x, c: net(x), VP())
    for solver in all_solvers():
        assert not sample(model, (2, 2), solver=solver, steps=2).x.requires_grad
    assert net.weight.grad is None and net.weight.requires_grad


def test_device_and_dtype() -> None:
    score = mixture().score(VP())
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        assert sample(score, (2, 2), steps=2, dtype=dtype).x.dtype == dtype
    model = ScoreModel(nn.Linear(2, 2), VP())
    model.net.forward = lambda x, c: x  # type: ignore[method-assign,assignment]
    for source in (model, model.bind()):
        assert sample(source, (2, 2), steps=2).x.device.type == "cpu"
    assert sample(score, (2, 2), steps=2, device="cpu").x.device.type == "cpu"


# ---- progress and callbacks ----


def test_progress_bar_and_callback_together() -> None:
    seen: list[int] = []
    err = io.StringIO()
    score = mixture().score(VP())
    with redirect_stderr(err):
        a = sample(
            score,
            (2, 2),
            steps=5,
            progress=True,
            callback=lambda p: seen.append(p.step),
            trajectory=True,
        )
    assert seen == [1, 2, 3, 4, 5] and "SpectralMultistep" in err.getvalue() and "5/5" in err.getvalue()
    quiet = io.StringIO()
    with redirect_stderr(quiet):
        b = sample(score, (2, 2), steps=5, trajectory=True)
    assert quiet.getvalue() == "" and torch.equal(a.x, b.x) and a.nfe == b.nfe
    assert a.trajectory is not None and a.trajectory.shape == (6, 2, 2)
    assert sample(score, (2, 2), steps=5).trajectory is None


# ---- the law ----


def floor(data: GaussianMixture, n: int) -> tuple[float, float]:
    """Mean and standard deviation of the distance between two real sets of n, by sampling such pairs."""
    values = torch.tensor([
        metrics.energy_distance(data.sample(n, 2 * i + 100), data.sample(n, 2 * i + 101)) for i in range(12)
    ])  # fmt: skip
    return float(values.mean()), float(values.std())


@pytest.mark.parametrize("sde", SDES, ids=named)
def test_default_solver_samples_the_exact_law(sde: SDE) -> None:
    data, n = mixture(event=(3,)), 600
    mean, std = floor(data, n)
    x = sample(data.score(sde), (n, 3), steps=30, seed=1, denoise=False).x
    # Within 5 standard deviations of what two real sets show, estimated from 12 pairs (so 20 per cent loose).
    assert metrics.energy_distance(x, data.sample(n, 7)) < mean + 6 * std
    share = float((x.mean(1) < 0).float().mean())
    assert abs(share - 0.3) < 5 * math.sqrt(0.3 * 0.7 / n)


@pytest.mark.parametrize("solver", all_solvers(), ids=named)
def test_every_solver_samples_nearly_the_law(solver: Solver) -> None:
    """No sharper than the method: first-order bias of 40 steps or the corrector's 2 per cent, but no wrong law."""
    data, n = mixture(), 500
    mean, _ = floor(data, n)
    x = sample(data.score(VP()), (n, 2), solver=solver, steps=40, seed=2).x
    # 0.02: a tenth of the energy distance (0.2) that a component of half or twice the weight would give
    assert metrics.energy_distance(x, data.sample(n, 8)) < mean + 0.02


# ---- gradients through a solve ----


DETERMINISTIC = [DDIM(), EulerMaruyama(), ReverseDiffusion(), Heun(), ProbabilityFlow("rk4"), ProbabilityFlow()]
STOCHASTIC = [DDIM(eta=0.7), EulerMaruyama(), ReverseDiffusion(), Heun(churn=1.0), PredictorCorrector(DDIM(eta=0.5)),
              package.Ancestral(), package.AnnealedLangevin(steps=2), TorchSDE()]  # fmt: skip
CASES = [(s, 0.0) for s in DETERMINISTIC]
CASES += [(s, 1.0 if s.default_eta or isinstance(s, EulerMaruyama) else 0.0) for s in STOCHASTIC]


@pytest.mark.parametrize(("solver", "eta"), CASES, ids=repr)
def test_gradients_to_the_start_and_to_parameters(solver: Solver, eta: float) -> None:
    sde = VP(t_min=0.05)
    data = mixture(torch.float64)
    exact = data.score(sde)

    def end(x: Tensor, strength: Tensor) -> Tensor:
        process = Reverse(as_score(lambda x, t: strength * exact(x, t), sde), eta)
        return solver.solve(process, x, grids.log_snr(sde, 3), BrownianNoise(4, T=1.0)).x

    x = torch.randn(2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0), requires_grad=True)
    strength = torch.tensor(1.1, dtype=torch.float64, requires_grad=True)
    # Central differences at 1e-6: rounding 1e-10, truncation 1e-12, times slopes of some tens. An adaptive solver's
    # steps move with its input, within the tolerance of 1e-5.
    loose = solver == ProbabilityFlow()
    assert torch.autograd.gradcheck(end, (x, strength), atol=1e-2 if loose else 1e-4, rtol=1e-2 if loose else 1e-3)


@pytest.mark.parametrize(
    "solver", [DDIM(), DDIM(eta=0.7), EulerMaruyama(), ReverseDiffusion(), Heun(), ProbabilityFlow("rk4")], ids=repr
)
@pytest.mark.parametrize("sde", [VP(t_min=0.05), Cosine(T=0.9, t_min=0.05)], ids=named)
def test_gradients_to_the_grid(solver: Solver, sde: SDE) -> None:
    """A grid may be a function of parameters, in log-SNR as well as in t."""
    score = mixture(torch.float64).score(sde)
    x = torch.randn(2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    noise = [torch.randn(2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(i)) for i in range(4)]

    class Fixed(PerSampleNoise):
        """The same normals for every grid: those of a Brownian path would move with the times."""

        def __init__(self) -> None:
            super().__init__()
            self.left = list(noise)

        def normal(self, x: Tensor) -> Tensor:
            return self.left.pop(0)

    def end(levels: Tensor) -> Tensor:
        grid = sde.t_of_log_snr(levels)
        return solver.solve(Reverse(score, 0.0), x, grid, Fixed()).x

    ends = sde.log_snr(torch.tensor([0.8 * sde.T, 0.1 * sde.T], dtype=torch.float64))
    levels = torch.linspace(float(ends[0]), float(ends[1]), 4, dtype=torch.float64).requires_grad_(True)
    # as above; the root-finding of t_of_log_snr is exact to 1e-12
    assert torch.autograd.gradcheck(end, (levels,), atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("solver", [EulerMaruyama(), ReverseDiffusion(), DDIM()], ids=named)
def test_gradients_to_eta(solver: Solver) -> None:
    """A tensor () on the dial is differentiable."""
    sde = VP(t_min=0.05)
    score = mixture(torch.float64).score(sde)
    x = torch.randn(2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))

    def end(eta: Tensor) -> Tensor:
        process = Reverse(score, eta)  # type: ignore[arg-type]
        return solver.solve(process, x, grids.log_snr(sde, 3), PerSampleNoise(1)).x

    assert torch.autograd.gradcheck(end, (torch.tensor(0.6, dtype=torch.float64, requires_grad=True),), atol=1e-4)


def test_gradients_to_parameters_of_the_schedule() -> None:
    score = mixture(torch.float64)
    x = torch.randn(2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))

    def end(beta_max: Tensor) -> Tensor:
        sde = VP(beta_max=beta_max, t_min=0.05)  # type: ignore[arg-type]
        return Heun().solve(Reverse(score.score(sde), 0.0), x, torch.linspace(1.0, 0.1, 4)).x

    assert torch.autograd.gradcheck(end, (torch.tensor(9.0, dtype=torch.float64, requires_grad=True),), atol=1e-4)


# ---- what is refused, before any work ----


def never(x: Tensor, t: Tensor) -> Tensor:
    raise AssertionError("the score was called though the input is bad")


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        ({"shape": 3}, TypeError, "shape must be"),
        ({"shape": ()}, ValueError, "shape must be"),
        ({"shape": (2.0, 2)}, TypeError, "shape must be"),
        ({"shape": (-1, 2)}, ValueError, "shape must be"),
        ({"solver": Heun}, TypeError, "solver must be a Solver"),
        ({"solver": "heun"}, TypeError, "solver must be a Solver"),
        ({"steps": 0}, ValueError, "steps must be a whole number from 1"),
        ({"steps": 2.5}, TypeError, "steps must be a whole number from 1"),
        ({"grid": "karras"}, TypeError, "grids.karras"),
        ({"grid": torch.tensor([0.1, 0.5])}, ValueError, "strictly decreasing"),
        ({"grid": lambda sde, n: torch.tensor([2.0, 1.0])}, ValueError, r"\[0, 1\]"),
        ({"eta": -1.0}, ValueError, "eta"),
        ({"eta": math.inf}, ValueError, "eta"),
        ({"eta": 1e7}, ValueError, "at most 1e[+]06, got 10000000"),
        ({"seed": 1.5}, TypeError, "seed"),
        ({"seed": 1, "noise": IndependentNoise(0)}, ValueError, "not both"),
        ({"noise": "a"}, TypeError, "noise must be"),
        ({"x": [0.0]}, TypeError, "torch.Tensor"),
        ({"x": torch.zeros(3, 2)}, ValueError, "shape asked for"),
        ({"x": torch.zeros(2, 2, dtype=torch.int64)}, TypeError, "floating"),
        ({"x": torch.full((2, 2), math.nan)}, ValueError, "NaN"),
        ({"dtype": torch.int64}, TypeError, "floating dtype"),
        ({"dtype": torch.complex64}, TypeError, "floating dtype"),
        ({"score": None}, TypeError, "score must be a Score"),
        ({"score": never}, TypeError, r"write as_score\(score, sde\)"),
        ({"score": VP()}, TypeError, "a score knows its own, leave it out"),
    ],
)
def test_bad_arguments(change: dict[str, Any], error: type[Exception], match: str) -> None:
    arguments: dict[str, Any] = {"score": as_score(never, VP()), "shape": (2, 2)} | change
    with pytest.raises(error, match=match):
        sample(arguments.pop("score"), arguments.pop("shape"), **arguments)


@pytest.mark.parametrize(
    ("score", "error", "match"),
    [
        (lambda x, t: x[:1], ValueError, "shaped like x"),
        (lambda x, t: x * math.nan, FloatingPointError, "NaN"),
        (lambda x, t: x * 1e30, FloatingPointError, "steps are too long"),
    ],
)
def test_bad_scores(score: Callable[[Tensor, Tensor], Tensor], error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        sample(as_score(score, VP()), (2, 2))


def test_a_rough_score_is_not_extrapolated_unless_it_is_asked_for() -> None:
    """Posterior scores say of themselves that they are rough, through whatever is made of them."""
    score = mixture().score(VP())
    posterior = pigdm(score, Measurement(torch.tensor([[0.3], [0.1]]), Mask(torch.tensor([True, False])), 0.1))
    assert posterior.rough and not score.rough
    run = partial(sample, posterior, (2, 2), steps=8, seed=1)
    assert torch.equal(run().x, run(solver=Ancestral()).x) and torch.equal(run(eta=1.0).x, run().x)
    assert torch.equal(run(eta=0.0).x, run(solver=SpectralMultistep()).x)
    known = Spectrum.assumed((2,))
    assert torch.equal(run().x, run(grid=partial(grids.spectral, spectrum=known)).x)
    assert not torch.equal(run().x, run(grid=grids.karras).x)
    assert not torch.equal(run(eta=0.0).x, run().x)
