"""Edits: closed forms on Gaussians and mixtures, exact equalities, orders, invariances, and what bad input is told."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import itertools
import math
import warnings
from typing import Any

import pytest
import torch
from strategies import DEFAULTS, name, normal
from torch import Tensor, nn

from scoresde import grids
from scoresde.editing import (
    PromptToPrompt,
    Way,
    counterfactual,
    diffedit,
    diffedit_mask,
    interpolate,
    invert,
    prompt_to_prompt,
    sdedit,
)
from scoresde.editing.fixed_point import fixed_point
from scoresde.editing.held import Held
from scoresde.editing.prompt_to_prompt import Lockstep, PairedNoise
from scoresde.guidance import classifier_free
from scoresde.models import ScoreModel, as_score
from scoresde.nn import MLP, AttentionMaps, UNet, map_tokens, reweight_tokens, shared_tokens
from scoresde.nn.attention_maps import cross_attention
from scoresde.noise import BrownianNoise, IndependentNoise, PerSampleNoise
from scoresde.problems import Gaussian, GaussianMixture
from scoresde.reverse import Reverse
from scoresde.sampling import sample
from scoresde.sde import EDM, SDE, VE, VP, Cosine, RectifiedFlow
from scoresde.solvers import DDIM, DPMSolverPP, EulerMaruyama, Heun, Multistep, ProbabilityFlow

EXACT: dict[str, float] = {"rtol": 1e-11, "atol": 1e-11}  # float64, some hundred operations of numbers up to 100
SDE_ = pytest.mark.parametrize("sde", DEFAULTS, ids=name)


def gaussian() -> Gaussian:
    root = normal(3, 3, seed=1)
    return Gaussian(torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64), root @ root.mT / 3 + 0.1 * torch.eye(3))


def data(n: int = 6) -> Tensor:
    return gaussian().sample(n, 3)


def zero(x: Tensor, t: Tensor) -> Tensor:
    return torch.zeros_like(x)


def two() -> GaussianMixture:
    """Two far pictures of 1 x 4 x 4 pixels that differ in the left half alone."""
    means = torch.zeros(2, 1, 4, 4, dtype=torch.float64)
    means[0, :, :, :2], means[1, :, :, :2] = -1.0, 1.0
    return GaussianMixture(torch.ones(2), means, 0.05)


# -- inversion -------------------------------------------------------------------------------------------------


@SDE_
@pytest.mark.parametrize("quantity", ["latent", "round trip"])
def test_naive_inversion_is_of_first_order(sde: SDE, quantity: str) -> None:
    problem, x0 = gaussian(), data()
    truth = problem.flow(sde, x0, sde.t_min, sde.T)
    errors = []
    for steps in (200, 400):
        found = invert(problem.score(sde), x0, steps=steps)
        errors.append(float((found.x - truth).norm() if quantity == "latent" else found.round_trip.norm()))
    # each step up and each step down misses h²/2 ẍ on the same side, so neither cancels; the next term is of relative
    # size h, a hundredth or two here
    assert abs(math.log2(errors[0] / errors[1]) - 1) < 0.04


@SDE_
@pytest.mark.parametrize("memory", [0, 3])
def test_implicit_inversion_returns_to_the_picture(sde: SDE, memory: int) -> None:
    problem, x0 = gaussian(), data()
    found = invert(problem.score(sde), x0, steps=20, iterations=200, memory=memory, tolerance=1e-13)
    # 20 steps that leave 1e-13 of the state's size, less of it the further down: contraction is a fraction of 1
    assert found.residual is not None and float(found.residual.max()) <= 1e-13
    assert float(found.round_trip.max()) < 1e-10
    naive = invert(problem.score(sde), x0, steps=20)
    assert naive.residual is None
    assert float(naive.round_trip.min()) > 1e-3
    if memory == 0:
        accelerated = invert(problem.score(sde), x0, steps=20, iterations=200, memory=3, tolerance=1e-13)
        assert accelerated.nfe < found.nfe


def test_round_trip_follows_the_tolerance() -> None:
    sde, problem, x0 = VP(), gaussian(), data()
    found = [invert(problem.score(sde), x0, steps=20, iterations=300, tolerance=tol) for tol in (1e-4, 1e-8)]
    assert found[0].nfe < found[1].nfe
    for result, tol in zip(found, (1e-4, 1e-8), strict=True):
        # 20 steps; a Gaussian's way down shrinks |x| / sqrt(α² λ + σ²), which grows by at most 1/sqrt(λ) ~ 4
        assert float(result.round_trip.max()) < 80 * tol


def test_implicit_inversion_is_ddims_inverse_whatever_the_steps() -> None:
    """The latent of a picture that DDIM made is the latent it was made from."""
    sde, problem = VP(), gaussian()
    grid = grids.log_snr(sde, 8)
    latent = normal(5, 3, seed=4)
    made = DDIM().solve(Reverse(problem.score(sde), 0.0), latent, grid, trajectory=True)
    found = invert(problem.score(sde), made.x, grid=grid, iterations=300, tolerance=1e-14, trajectory=True)
    assert made.trajectory is not None and found.trajectory is not None
    torch.testing.assert_close(found.trajectory, made.trajectory, rtol=1e-10, atol=1e-10)  # as above
    assert torch.equal(found.grid, grid) and torch.equal(found.trajectory[0], found.x)
    assert torch.equal(found.trajectory[-1], made.x)


def test_anderson_converges_where_the_plain_iteration_runs_away() -> None:
    def g(x: Tensor) -> Tensor:
        return -3 * x + 4  # fixed point 1, slope -3

    x = normal(4, 2)
    plain = fixed_point(g, x, iterations=30, tolerance=1e-12)
    assert torch.equal(plain.x, x)  # every step is longer than the one before, so that the start is the best
    quick = fixed_point(g, x, iterations=30, tolerance=1e-12, memory=1)
    torch.testing.assert_close(quick.x, torch.ones_like(x), rtol=1e-9, atol=1e-9)  # a ridge of 1e-12
    assert quick.calls < 6


def test_anderson_is_exact_on_linear_maps_in_as_many_steps_as_dimensions() -> None:
    """Type II Anderson is GMRES on a linear problem: D + 1 residuals and one evaluation to see it."""
    a = torch.diag(torch.tensor([-2.0, 0.5, 0.9], dtype=torch.float64))
    found = fixed_point(lambda x: x @ a + 1, normal(4, 3), iterations=6, tolerance=1e-9, memory=3)
    expected = torch.linalg.solve(torch.eye(3) - a, torch.ones(3, dtype=torch.float64))
    torch.testing.assert_close(found.x, expected.expand(4, 3), rtol=1e-7, atol=1e-7)  # the ridge again
    short = fixed_point(lambda x: x @ a + 1, normal(4, 3), iterations=6, tolerance=1e-9, memory=1)
    assert float(short.moved.max()) > 1e-4


@SDE_
def test_ode_inversion_is_right_up_to_its_tolerance(sde: SDE) -> None:
    problem, x0 = gaussian(), data()
    truth = problem.flow(sde, x0, sde.t_min, sde.T)
    tight = ProbabilityFlow(rtol=1e-10, atol=1e-10)
    found = invert(problem.score(sde), x0, steps=5, method="ode", solver=tight, trajectory=True)
    assert found.trajectory is not None
    scale = float(sde.sigma(sde.T)) + 1
    # local errors of 1e-10 accumulate over some hundred steps, and grow with the scale of the state
    torch.testing.assert_close(found.x / scale, truth / scale, rtol=1e-7, atol=1e-7)
    assert float(found.round_trip.max()) < 1e-6
    for t, x in zip(found.grid, found.trajectory, strict=True):
        # inside the grid torchdiffeq interpolates, by a polynomial of degree four
        torch.testing.assert_close(x / scale, problem.flow(sde, x0, sde.t_min, t) / scale, rtol=1e-5, atol=1e-5)
    loose = invert(problem.score(sde), x0, method="ode", solver=ProbabilityFlow(rtol=1e-3, atol=1e-3))
    assert loose.nfe < found.nfe and float(loose.round_trip.max()) > float(found.round_trip.max())


def test_round_trip_is_that_of_the_reconstruction() -> None:
    sde, problem, x0 = VP(), gaussian(), data()
    found = invert(problem.score(sde), x0, steps=10)
    torch.testing.assert_close(found.round_trip, (found.reconstruction - x0).square().mean(1).sqrt(), **EXACT)
    assert found.nfe == 20  # ten up, ten down


def test_inversion_ends_at_the_time_asked_for_and_where_there_is_no_noise_left() -> None:
    sde, problem, x0 = VP(), gaussian(), data()
    found = invert(problem.score(sde), x0, t=0.3, steps=10, iterations=100)
    assert float(found.grid[0]) == 0.3 and len(found.grid) == 11
    clean = torch.cat([grids.karras(sde, 200, t_start=0.3), torch.zeros(1, dtype=torch.float64)])
    seen: list[float] = []

    def score(x: Tensor, t: Tensor) -> Tensor:
        seen.append(float(t))
        return problem.score(sde)(x, t)

    naive = invert(as_score(score, sde), x0, grid=clean)
    assert min(seen) > 0  # no score at σ = 0
    # first order: 200 steps of log(σ/α) over a range of 6, times a curvature of order one
    torch.testing.assert_close(naive.x, problem.flow(sde, x0, 0.0, 0.3), rtol=0.05, atol=0.05)


@pytest.mark.parametrize("event", [(), (1,), (2, 3), (1, 2, 2, 2)])
@pytest.mark.parametrize("batch", [0, 1, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_any_event_batch_and_dtype(event: tuple[int, ...], batch: int, dtype: torch.dtype) -> None:
    sde = VP()
    x0 = normal(batch, *event, dtype=dtype)

    def score(x: Tensor, t: Tensor) -> Tensor:
        return -x

    for options in ({}, {"iterations": 3, "memory": 2}, {"method": "ode"}):
        found = invert(as_score(score, sde), x0, steps=3, trajectory=True, **options)  # type: ignore[arg-type]
        assert found.trajectory is not None
        assert found.x.shape == x0.shape and found.x.dtype == dtype and found.round_trip.shape == (batch,)
        assert found.trajectory.shape == (4, *x0.shape) and found.trajectory.dtype == dtype
        if options.get("method") == "ode":
            # s = -x is the score of N(0, 1) under VP, whose flow stands still; f32 rounds some hundred times
            torch.testing.assert_close(found.x, x0, rtol=1e-4, atol=1e-4)
    result = sdedit(as_score(score, sde), x0, t=0.5, steps=4, mask=torch.ones(x0.shape, dtype=torch.bool))
    assert result.x.shape == x0.shape and result.x.dtype == dtype
    edit = diffedit(as_score(score, sde), as_score(lambda x, t: -2 * x, sde), x0, t=0.5, steps=3)
    assert edit.x.shape == x0.shape and edit.x.dtype == dtype
    if event:
        assert interpolate(x0, 2 * x0, torch.tensor([0.1, 0.2, 0.3, 1.0])).shape == (4, *x0.shape)


def test_gradients_reach_picture_and_grid() -> None:
    sde, problem = VP(), gaussian()
    x0 = data(2).requires_grad_()
    start = torch.tensor(0.6, dtype=torch.float64, requires_grad=True)

    def latent(x0: Tensor, start: Tensor) -> Tensor:
        return invert(problem.score(sde), x0, t=start, steps=3, iterations=2, memory=1, gradients=True).x

    def regenerated(x0: Tensor, start: Tensor) -> Tensor:
        return sdedit(problem.score(sde), x0, t=start, steps=4, solver=DDIM(), gradients=True).x

    def edited(x0: Tensor, start: Tensor) -> Tensor:
        mask = torch.tensor([1.0, 0.5, 0.0])
        return diffedit(problem.score(sde), as_score(zero, sde), x0, t=start, steps=3, mask=mask, gradients=True).x

    for function in (latent, regenerated, edited):
        assert torch.autograd.gradcheck(function, (x0, start), atol=1e-5, rtol=1e-3)


def every_edit(x0: Tensor, start: Tensor, **options: Any) -> list[Any]:
    """What each edit answers."""
    sde, problem = VP(), gaussian()
    score, nothing = problem.score(sde), as_score(zero, sde)
    both = {"t": start, "steps": 3, **options}
    mask = x0.detach().new_tensor([1.0, 0.5, 0.0]).requires_grad_()
    found = captioned()
    return [
        sdedit(score, x0, trajectory=True, **both),
        sdedit(score, x0, mask=mask, trajectory=True, **both),
        invert(score, x0, trajectory=True, **both),
        invert(score, x0, iterations=2, memory=1, **both),
        invert(score, x0, grid=torch.stack([start, 0.5 * start]), **options),
        counterfactual(score, nothing, x0, **both),
        diffedit(score, nothing, x0, mask=mask, **both),
        diffedit(score, nothing, x0, **both),
        diffedit_mask(score, nothing, x0, t=start, threshold=None, **options),
        prompt_to_prompt(found, LATENT.clone().requires_grad_(), A, B, steps=2, **options),
        interpolate(x0, 2 * x0 + 1, start, **options),
    ]


def tensors(answer: Any) -> list[Tensor]:
    """Those inside, at any depth."""
    if isinstance(answer, Tensor):
        return [answer]
    fields = dataclasses.fields(answer) if dataclasses.is_dataclass(answer) else ()
    return [x for field in fields for x in tensors(getattr(answer, field.name))]


def test_edits_keep_a_graph_only_where_gradients_are_asked_for() -> None:
    x0 = data(2).requires_grad_()
    start = torch.tensor(0.6, dtype=torch.float64, requires_grad=True)
    for answer in every_edit(x0, start):
        assert tensors(answer) and not any(x.requires_grad for x in tensors(answer))
    for answer in every_edit(x0, start, gradients=True):
        main = tensors(answer)[0]
        assert main.requires_grad and main.grad_fn is not None
    with torch.no_grad():  # the caller's mode comes first
        assert not any(
            x.requires_grad for answer in every_edit(x0, start, gradients=True)[2:6] for x in tensors(answer)[:1]
        )
    model = ScoreModel(MLP(3, width=8), VP())
    sdedit(model, x0.float(), t=0.5, steps=2).x.numpy()


def test_states_on_the_way_up_are_kept_where_they_are_asked_for() -> None:
    sde, problem, x0 = VP(), gaussian(), data()
    for options in ({}, {"iterations": 3}, {"method": "ode"}):
        kept = invert(problem.score(sde), x0, steps=4, trajectory=True, **options)  # type: ignore[arg-type]
        bare = invert(problem.score(sde), x0, steps=4, **options)  # type: ignore[arg-type]
        assert kept.trajectory is not None and len(kept.trajectory) == 5 and bare.trajectory is None
        assert torch.equal(kept.trajectory[-1], x0) and torch.equal(kept.trajectory[0], kept.x)
        assert torch.equal(kept.x, bare.x) and torch.equal(kept.reconstruction, bare.reconstruction)
    edit = counterfactual(problem.score(sde), as_score(zero, sde), x0, steps=4)
    assert edit.inversion.trajectory is None


@pytest.mark.parametrize(
    "options",
    [
        {"memory": 2}, {"method": "ddpm"}, {"method": "ode", "iterations": 3}, {"steps": 0}, {"grid": "karras"},
        {"method": "ode", "solver": ProbabilityFlow("rk4")}, {"iterations": 2, "tolerance": -1.0}, {"iteration": 3},
        {"solver": Heun()}, {"seed": 1, "noise": PerSampleNoise(1)}, {"gradients": 1},
    ],
    ids=lambda options: "-".join(options),
)  # fmt: skip
def test_diffedit_looks_at_all_options_before_any_evaluation(options: dict[str, Any]) -> None:
    calls: list[float] = []

    def watched(x: Tensor, t: Tensor) -> Tensor:
        calls.append(float(t))
        return -x

    for edit in (diffedit, counterfactual):
        if edit is diffedit or not {"seed", "noise"} & set(options):
            with pytest.raises((ValueError, TypeError)):
                edit(as_score(watched, VP()), as_score(zero, VP()), data(), t=0.5, **options)
    assert not calls


# -- precision and the ends of the schedule ----------------------------------------------------------------------

HARSH: list[SDE] = [VE(sigma_max=1e6), RectifiedFlow(T=1 - 1e-6)]
NORMAL = Gaussian(torch.zeros(2, dtype=torch.float64), 1.0)
PAIR = GaussianMixture(torch.ones(2), torch.tensor([[-1.0, 0.5], [1.0, -1.0]], dtype=torch.float64), 0.1)


@pytest.mark.parametrize(("steps", "eta"), [(7, 0.0), (10, 1.0), (25, 1.0), (100, 0.0)])
@pytest.mark.parametrize("problem", [NORMAL, PAIR], ids=["normal", "mixture"])
@pytest.mark.parametrize("sde", HARSH, ids=name)
def test_sdedit_keeps_its_precision(sde: SDE, problem: GaussianMixture, steps: int, eta: float) -> None:
    """From σ/α = 1e6, all the way up: standard deviations in float32 as in float64."""
    x0, z = problem.sample(1000, 3), normal(1000, 2, seed=4)

    class Given(IndependentNoise):
        """The same z in both dtypes."""

        def initial(self, shape: tuple[int, ...], *, dtype: torch.dtype, device: torch.device) -> Tensor:
            return z.to(dtype)

        def normal(self, x: Tensor) -> Tensor:
            return super().normal(x.double()).to(x.dtype)

        def stream(self, purpose: str) -> Given:
            return self

    wide, narrow = (
        sdedit(problem.score(sde), x0.to(dtype), t=sde.T, steps=steps, eta=eta, noise=Given(0)).x.double().std(0)
        for dtype in (torch.float64, torch.float32)
    )
    torch.testing.assert_close(narrow, wide, rtol=1e-3, atol=0)


@pytest.mark.parametrize("options", [{}, {"iterations": 10}, {"method": "ode"}], ids=["ddim", "implicit", "ode"])
@pytest.mark.parametrize("sde", HARSH, ids=name)
def test_inversion_keeps_its_precision(sde: SDE, options: dict[str, Any]) -> None:
    x0 = PAIR.sample(50, 3)
    wide, narrow = (invert(PAIR.score(sde), x0.to(dtype), steps=12, **options) for dtype in (x0.dtype, torch.float32))
    # roundings of float32, magnified by up to 100 where a mixture's flow parts its components
    close: dict[str, Any] = {"rtol": 0, "atol": 1e-4, "check_dtype": False}
    torch.testing.assert_close(narrow.x / sde.prior_std, wide.x / sde.prior_std, **close)
    torch.testing.assert_close(narrow.round_trip, wide.round_trip, **close)


@pytest.mark.parametrize("options", [{}, {"iterations": 10}, {"method": "ode"}], ids=["ddim", "implicit", "ode"])
def test_pictures_of_half_precision_are_inverted_in_single(options: dict[str, Any]) -> None:
    x0 = normal(5, 3, dtype=torch.bfloat16)
    score = gaussian().score(VP())
    low, high = (invert(score, x, steps=10, trajectory=True, **options) for x in (x0, x0.float()))
    assert low.trajectory is not None and high.trajectory is not None
    assert low.x.dtype == low.trajectory.dtype == low.reconstruction.dtype == torch.bfloat16
    assert torch.equal(low.trajectory, high.trajectory.bfloat16())
    edit = sdedit(score, x0, t=0.5, solver=DDIM(), steps=10, trajectory=True)
    whole = sdedit(score, x0.float(), t=0.5, solver=DDIM(), steps=10)
    assert edit.trajectory is not None and edit.x.dtype == edit.trajectory.dtype == torch.bfloat16
    assert torch.equal(edit.x, whole.x.bfloat16())


ENDS: list[SDE] = [RectifiedFlow(T=1.0), Cosine(T=1.0)]


@pytest.mark.parametrize("sde", ENDS, ids=name)
def test_inversion_goes_up_to_where_nothing_is_left(sde: SDE) -> None:
    """α(T) = 0, where the latent is noise alone: the flow's, and the picture comes back."""
    problem, x0 = gaussian(), data()
    truth = problem.flow(sde, x0, sde.t_min, sde.T)
    tight = ProbabilityFlow(rtol=1e-10, atol=1e-10)
    exact = invert(problem.score(sde), x0, method="ode", solver=tight)
    torch.testing.assert_close(exact.x, truth, rtol=1e-7, atol=1e-7)
    assert float(exact.round_trip.max()) < 1e-7
    errors = [float((invert(problem.score(sde), x0, steps=n).x - truth).norm()) for n in (200, 400)]
    assert abs(math.log2(errors[0] / errors[1]) - 1) < 0.06  # of first order, as below T
    found = invert(problem.score(sde), x0, steps=20, iterations=200, tolerance=1e-13)
    assert float(found.round_trip.max()) < 1e-10
    with pytest.raises(ValueError, match="put times between the two"):
        invert(problem.score(sde), x0, grid=torch.tensor([sde.T, 0.0], dtype=torch.float64))


@pytest.mark.parametrize("sde", ENDS, ids=name)
def test_sdedit_from_where_nothing_is_left_is_sampling(sde: SDE) -> None:
    """x_T = σ z whatever x_0, the start of ``sample``; outside a mask it follows α x_0 + σ z all the same."""
    problem, x0 = gaussian(), data()
    edit = sdedit(problem.score(sde), x0, t=sde.T, seed=2)
    assert torch.equal(edit.x, sdedit(problem.score(sde), x0 + 1, t=sde.T, seed=2).x)
    z = PerSampleNoise(2).stream("edit").stream("sdedit").initial((6, 3), dtype=x0.dtype, device=x0.device)
    drawn = sample(problem.score(sde), (6, 3), x=sde.prior_std * z)
    assert torch.equal(edit.x, drawn.x)
    held = sdedit(problem.score(sde), x0, t=sde.T, seed=2, mask=torch.tensor([True, False, True]), trajectory=True)
    assert held.trajectory is not None and torch.equal(held.x[:, 1], x0[:, 1])
    level = sde.alpha(held.grid)[:, None], sde.sigma(held.grid)[:, None]
    torch.testing.assert_close(held.trajectory[:, :, 1], level[0] * x0[:, 1] + level[1] * z[:, 1], **EXACT)


# -- counterfactuals -------------------------------------------------------------------------------------------


@SDE_
def test_counterfactual_is_one_flow_up_and_the_other_down(sde: SDE) -> None:
    means = torch.tensor([[1.0, -2.0], [-1.0, 0.5]], dtype=torch.float64)
    spreads = torch.tensor([[0.3, 1.0], [1.5, 0.2]], dtype=torch.float64)
    mixture = GaussianMixture(torch.ones(2), means, spreads)
    source, target = (Gaussian(m, s) for m, s in zip(means, spreads, strict=True))
    x0 = source.sample(6, 2)
    up = source.flow(sde, x0, sde.t_min, sde.T)
    truth = target.flow(sde, up, sde.T, sde.t_min)
    edit = counterfactual(
        mixture.score(sde, label=0),
        mixture.score(sde, label=1),
        x0,
        steps=4,
        method="ode",
        solver=ProbabilityFlow(rtol=1e-9, atol=1e-9),
    )
    torch.testing.assert_close(edit.x, truth, rtol=1e-5, atol=1e-5)  # tolerances summed over two hundred steps
    assert torch.equal(edit.difference, edit.x - x0)
    errors = []
    for steps in (200, 400):
        coarse = counterfactual(mixture.score(sde, 0), mixture.score(sde, 1), x0, steps=steps)
        errors.append(float((coarse.x - truth).norm()))
    assert abs(math.log2(errors[0] / errors[1]) - 1) < 0.06  # DDIM's order, both ways


def test_counterfactual_of_equal_scores_is_the_round_trip() -> None:
    sde, problem, x0 = VP(), gaussian(), data()
    for options in ({"steps": 8}, {"steps": 8, "t": 0.4, "iterations": 3}, {"method": "ode"}):
        edit = counterfactual(problem.score(sde), problem.score(sde), x0, **options)
        assert torch.equal(edit.x, edit.inversion.reconstruction)
        assert edit.nfe > edit.inversion.nfe


def test_scores_of_two_schedules_are_refused() -> None:
    source, other, x0 = gaussian().score(VP()), gaussian().score(EDM()), data()
    for edit in (counterfactual, diffedit, diffedit_mask):
        with pytest.raises(ValueError, match=r"source_score has VP.*target_score has EDM.*another schedule"):
            edit(source, other, x0, t=0.5)  # type: ignore[operator]
    same = gaussian().score(VP())  # another object of one schedule will do
    assert torch.equal(counterfactual(source, same, x0, steps=3).x, counterfactual(source, source, x0, steps=3).x)


def test_the_options_of_the_way_are_those_of_invert() -> None:
    known = inspect.signature(invert).parameters
    assert set(Way.__annotations__) == set(known) - {"score", "x0", "t", "trajectory", "gradients"}


def test_a_lower_time_changes_less() -> None:
    mixture, sde = two(), VP()
    x0 = mixture.sample_labelled(40, 1)
    pictures = x0[0][x0[1] == 0]
    changes = [
        float(counterfactual(mixture.score(sde, 0), mixture.score(sde, 1), pictures, t=t).difference.norm())
        for t in (0.1, 0.4, 1.0)
    ]
    assert changes[0] < changes[1] < changes[2]


# -- SDEdit ----------------------------------------------------------------------------------------------------


@SDE_
def test_sdedit_is_noise_then_flow(sde: SDE) -> None:
    """Deterministic from x_t on: the closed form of the flow map, with the z that the seed draws."""
    problem, x0 = gaussian(), data()
    t = float(sde.t_of_log_snr(0.0))  # σ = α
    run = sdedit(problem.score(sde), x0, t=t, steps=60, seed=5, denoise=False, trajectory=True)
    assert run.trajectory is not None and float(run.grid[0]) == t
    z = (run.trajectory[0] - sde.alpha(t) * x0) / sde.sigma(t)
    z_again = PerSampleNoise(5).stream("edit").stream("sdedit").initial((6, 3), dtype=x0.dtype, device=x0.device)
    torch.testing.assert_close(z, z_again, **EXACT)
    # third order in 60 steps, on a grid made for few
    torch.testing.assert_close(run.x, problem.flow(sde, run.trajectory[0], t, sde.t_min), rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_sdedit_of_data_under_their_own_score_is_data(eta: float) -> None:
    """p_t is kept whatever t; mean and covariance of 20000 samples."""
    sde, problem, n = VP(), gaussian(), 20000
    x0 = problem.sample(n, 8)
    mean, covariance = problem.moments(sde, sde.t_min)
    scale = float(covariance.diagonal().max())
    for t in (0.1, 0.5, 1.0):
        x = sdedit(problem.score(sde), x0, t=t, eta=eta, steps=60, seed=1, denoise=False).x
        # four standard errors of a mean and of a variance of n, and a hundredth for 60 steps of second weak order
        torch.testing.assert_close(x.mean(0), mean, rtol=0, atol=4 * math.sqrt(scale / n) + 0.01 * scale)
        torch.testing.assert_close(x.T.cov(), covariance, rtol=0, atol=scale * (4 * math.sqrt(2 / n) + 0.01))


def test_sdedit_is_faithful_early_and_free_late() -> None:
    """On a Gaussian the result given x_0 has correlation k = α_t/α_s · slope² with it; here from the closed form."""
    sde, n = VP(), 20000
    problem = Gaussian(torch.zeros(1, dtype=torch.float64), 1.0)
    x0 = problem.sample(n, 8)
    correlations = []
    for t in (0.05, 0.3, 1.0):
        x = sdedit(problem.score(sde), x0, t=t, seed=1).x
        correlations.append(float(torch.corrcoef(torch.stack([x[:, 0], x0[:, 0]]))[0, 1]))
        # λ = 1 under VP stands still: x = α x_0 + σ z, so the correlation is α; four standard errors of n
        assert abs(correlations[-1] - float(sde.alpha(t))) < 4 / math.sqrt(n)
    assert correlations[0] > correlations[1] > correlations[2]


def test_level_is_the_time_at_which_sigma_over_alpha_is_so_large() -> None:
    sde, problem, x0 = EDM(), gaussian(), data()
    by_level = sdedit(problem.score(sde), x0, level=2.5)
    by_time = sdedit(problem.score(sde), x0, t=2.5)
    torch.testing.assert_close(by_level.x, by_time.x, **EXACT)


def test_sdedit_repeats_from_a_seed_sample_by_sample() -> None:
    sde, problem, x0 = VP(), gaussian(), data()
    options: dict[str, Any] = {"t": 0.5, "solver": EulerMaruyama(), "steps": 10}
    first = sdedit(problem.score(sde), x0, seed=3, **options).x
    assert torch.equal(sdedit(problem.score(sde), x0[:2], seed=3, **options).x, first[:2])
    assert not torch.allclose(sdedit(problem.score(sde), x0, seed=4, **options).x, first)
    by_noise = sdedit(problem.score(sde), x0, noise=PerSampleNoise(3).stream("edit"), **options).x
    assert torch.equal(by_noise, first)
    made_from = PerSampleNoise(3).initial((6, 3), dtype=x0.dtype, device=x0.device)
    again = sdedit(problem.score(sde), x0, seed=3, t=1.0, trajectory=True).trajectory
    assert again is not None  # a picture made from seed 3 does not get its own x_T back
    assert float((again[0] - made_from).abs().min()) > 1e-3
    assert (
        float((sdedit(problem.score(sde), x0, t=0.5, eta=1.0).x - sdedit(problem.score(sde), x0, t=0.5).x).abs().max())
        > 1e-2
    )


@pytest.mark.parametrize(
    ("solver", "eta"),
    [(DDIM(), 0.0), (DDIM(), 1.0), (Heun(), 0.0), (Multistep(), 0.0), (EulerMaruyama(), 1.0), (None, None)],
    ids=["ddim", "ddim eta 1", "heun", "multistep", "em", "default"],
)
def test_masks_of_sdedit(solver: Any, eta: float | None) -> None:
    """Independent coordinates: inside, the result is that without a mask; outside it is x_0."""
    sde = VP()
    problem = Gaussian(torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64), torch.tensor([0.3, 1.0, 2.0]))
    x0 = data()
    options: dict[str, Any] = {"t": 0.5, "solver": solver, "steps": 12, "eta": eta, "seed": 2}
    free = sdedit(problem.score(sde), x0, **options).x
    mask = torch.tensor([True, False, True])
    held = sdedit(problem.score(sde), x0, mask=mask, trajectory=True, **options)
    torch.testing.assert_close(held.x[:, mask], free[:, mask], **EXACT)
    assert torch.equal(held.x[:, 1], x0[:, 1])
    rows = torch.tensor([True] + 5 * [False])[:, None]  # a sample may be left alone, if not all are
    assert torch.equal(sdedit(problem.score(sde), x0, mask=rows, **options).x[1:], x0[1:])
    assert torch.equal(sdedit(problem.score(sde), x0, mask=torch.ones(6, 3), **options).x, free)
    assert held.trajectory is not None
    level = (sde.alpha(held.grid)[:, None], sde.sigma(held.grid)[:, None])
    z = (held.trajectory[:, :, 1] - level[0] * x0[:, 1]) / level[1]
    moves = float(z.diff(dim=0).abs().max())
    assert moves > 0.1 if eta == 1 else moves < 1e-9  # the marginal, by new noise or by the same all the way
    assert float(z.abs().max()) < 6


def test_what_is_held_can_be_taken_of_some_samples() -> None:
    """As particles do between steps: what follows is what follows for those samples."""
    process, grid, rows = Reverse(gaussian().score(VP()), 0.0), grids.karras(VP(), 5), torch.tensor([2, 0, 2])
    x, mask = normal(4, 3), torch.tensor([1.0, 0.0, 1.0], dtype=torch.float64)

    def run(at: int) -> Tensor:
        solver = Held(DPMSolverPP(), mask, lambda done, t, noise: torch.full((3,), float(done)).double())
        now, state = solver.start(process, x, grid, PerSampleNoise(0))
        for i, (t, s) in enumerate(itertools.pairwise(grid)):
            if i == at:
                now, state = now[rows], solver.selected(state, lambda v: v[rows])
            now, state = solver.step(process, now, t, s, PerSampleNoise(0), state)
        return now

    torch.testing.assert_close(run(2), run(-1)[rows], **EXACT)
    assert Held(DPMSolverPP(), mask, lambda *_: x).has_memory


def test_a_mask_between_zero_and_one_blends() -> None:
    sde, problem, x0 = VP(), gaussian(), data()
    options: dict[str, Any] = {"t": 0.4, "steps": 5}
    ends = [sdedit(problem.score(sde), x0, mask=torch.full((3,), m), **options).x for m in (1e-3, 0.5, 1.0)]
    far = [float((x - x0).norm()) for x in ends]
    assert 0 < far[0] < 0.01 * far[1] < far[1] < far[2]


# -- DiffEdit --------------------------------------------------------------------------------------------------


@SDE_
def test_mask_is_where_the_means_differ(sde: SDE) -> None:
    """Gaussians of equal spread: the difference of the scores is α Δμ / (α² λ + σ²) whatever x."""
    gap = torch.tensor([0.0, 1.0, -4.0, 2.5, 1.9], dtype=torch.float64)
    source, target = (Gaussian(m, 0.3) for m in (torch.zeros(5, dtype=torch.float64), gap))
    x0, t = source.sample(3, 1), float(sde.t_of_log_snr(0.0))
    score = source.score(sde), target.score(sde)
    soft = diffedit_mask(*score, x0, t=t, samples=2, threshold=None, clip=math.inf)
    torch.testing.assert_close(soft, (gap.abs() / 4).expand(3, 5), **EXACT)
    hard = diffedit_mask(*score, x0, t=t, clip=math.inf)
    assert hard.dtype == torch.bool and hard[0].tolist() == [False, False, True, True, False]
    low = diffedit_mask(*score, x0, t=t, clip=math.inf, threshold=0.2)
    assert low[0].tolist() == [False, True, True, True, True]
    # the mean is 1.88: clipped at 1.2 times that, the scale is 2.256
    clipped = diffedit_mask(*score, x0, t=t, threshold=None, clip=1.2)
    expected = (gap.abs() / (1.2 * gap.abs().mean())).clamp_max(1)
    torch.testing.assert_close(clipped, expected.expand(3, 5), **EXACT)


def test_mask_averages_channels_and_draws() -> None:
    sde = VP()
    x0 = torch.zeros(2, 3, 2, 2, dtype=torch.float64)
    lift = torch.zeros(3, 2, 2, dtype=torch.float64)
    lift[0, 0, 0], lift[:, 1, 1] = 3.0, 2.0
    soft = diffedit_mask(
        as_score(zero, sde), as_score(lambda x, t: lift.expand_as(x), sde), x0, t=0.5, threshold=None, clip=math.inf
    )
    assert soft.shape == (2, 1, 2, 2)
    torch.testing.assert_close(soft[0, 0], torch.tensor([[0.5, 0.0], [0.0, 1.0]], dtype=torch.float64), **EXACT)

    calls: list[Tensor] = []

    def noisy(x: Tensor, t: Tensor) -> Tensor:
        calls.append(x)
        return x

    random = [
        diffedit_mask(as_score(zero, sde), as_score(noisy, sde), x0, t=0.5, samples=n, threshold=None, clip=9.0)
        for n in (1, 400)
    ]
    assert len(calls) == 401
    # |z| averaged: relative spread of one entry sqrt(π/2 - 1) = 0.76, over channels and draws far less
    assert float(random[0].amin()) < 0.6 and float(random[1].amin()) > 0.85
    z = [(x - sde.alpha(0.5) * x0) / sde.sigma(0.5) for x in calls]
    assert abs(float(torch.stack(z).std()) - 1) < 0.05  # 9600 draws, 0.007 standard errors
    one, other, again = (
        diffedit_mask(as_score(zero, sde), as_score(noisy, sde), x0, t=0.5, threshold=None, seed=s) for s in (1, 2, 1)
    )
    assert torch.equal(one, again) and not torch.equal(one, other)


def test_scores_that_agree_leave_an_empty_mask_and_the_picture() -> None:
    sde, problem, x0 = VP(), gaussian(), data()
    assert not diffedit_mask(problem.score(sde), problem.score(sde), x0, t=0.5).any()
    with pytest.warns(UserWarning, match="6 of 6 samples is empty"):
        edit = diffedit(problem.score(sde), problem.score(sde), x0, t=0.5, steps=5)
    assert torch.equal(edit.x, x0)

    def half(x: Tensor, t: Tensor) -> Tensor:  # another opinion about the last three samples alone
        return problem.score(sde)(x, t) + (torch.arange(len(x)) >= 3)[:, None] * torch.tensor([1.0, 0.0, 0.0])

    with pytest.warns(UserWarning, match="3 of 6 samples is empty"):
        edit = diffedit(problem.score(sde), as_score(half, sde), x0, t=0.5, steps=5)
    assert torch.equal(edit.x[:3], x0[:3]) and bool((edit.x[3:, 0] != x0[3:, 0]).all())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        diffedit(problem.score(sde), as_score(zero, sde), x0, t=0.5, steps=5)


@pytest.mark.parametrize("options", [{}, {"iterations": 5}, {"method": "ode"}], ids=["ddim", "implicit", "ode"])
def test_diffedit_changes_the_inside_alone(options: dict[str, Any]) -> None:
    mixture, sde = two(), VP()
    x0, label = mixture.sample_labelled(20, 4)
    x0 = x0[label == 0]
    source, target = mixture.score(sde, 0), mixture.score(sde, 1)
    edit = diffedit(source, target, x0, t=0.6, steps=40, **options)
    assert bool(edit.mask[..., :2].all()) and not bool(edit.mask[..., 2:].any())
    assert torch.equal(edit.x[..., 2:], x0[..., 2:])  # to the last bit, not to the round trip's error
    whole = counterfactual(source, target, x0, t=0.6, steps=40, **options)
    # independent pixels: inside the edit is the counterfactual's; "ode" goes down by Heun's 40 steps
    close = {"rtol": 1e-2, "atol": 1e-2} if options.get("method") else EXACT
    torch.testing.assert_close(edit.x[..., :2], whole.x[..., :2], **close)
    assert float((edit.x[..., :2] - x0[..., :2]).mean()) > 1
    assert edit.nfe == 20 + edit.inversion.nfe + (79 if options.get("method") else 40) + bool(options.get("method"))


def test_diffedit_takes_a_mask_of_ones_own() -> None:
    sde, problem, x0 = VP(), gaussian(), data()
    mask = torch.tensor([True, False, False])
    edit = diffedit(problem.score(sde), as_score(zero, sde), x0, t=0.5, mask=mask, steps=6)
    assert torch.equal(edit.x[:, 1:], x0[:, 1:]) and not torch.allclose(edit.x[:, 0], x0[:, 0])
    assert edit.nfe == 18 and torch.equal(edit.mask, mask)
    one, other = (diffedit(problem.score(sde), as_score(zero, sde), x0, t=0.5, steps=6, seed=s).mask for s in (1, 1))
    assert torch.equal(one, other)


# -- interpolation ---------------------------------------------------------------------------------------------


def test_interpolation_starts_at_a_and_ends_at_b() -> None:
    a, b = normal(3, 2, 2, seed=1), normal(3, 2, 2, seed=2)
    for path in ("spherical", "straight"):
        out = interpolate(a, b, torch.tensor([0.0, 0.3, 1.0]), path=path)  # type: ignore[arg-type]
        assert out.shape == (3, 3, 2, 2)
        torch.testing.assert_close(out[0], a, **EXACT)
        torch.testing.assert_close(out[2], b, **EXACT)
        torch.testing.assert_close(interpolate(a, b, 0.3, path=path), out[1], rtol=1e-7, atol=1e-7)  # type: ignore[arg-type]
    assert interpolate(a.float(), b.float(), 0.5).dtype == torch.float32


def test_the_arc_keeps_the_norm_and_turns_at_constant_speed() -> None:
    a, b = (x / x.norm(dim=1, keepdim=True) for x in (normal(4, 5, seed=1), normal(4, 5, seed=2)))
    out = interpolate(3 * a, 3 * b, torch.linspace(-0.5, 1.5, 9, dtype=torch.float64))
    torch.testing.assert_close(out.norm(dim=2), torch.full((9, 4), 3.0, dtype=torch.float64), **EXACT)
    cosine = (out[1:] * out[:-1]).sum(2) / 9
    angle = torch.arccos((a * b).sum(1)) / 4
    torch.testing.assert_close(cosine, angle.cos().expand(8, 4), **EXACT)
    torch.testing.assert_close(interpolate(a, a, 0.3), a, **EXACT)
    near = a + 1e-9 * b  # where the angle is lost in an arccos
    torch.testing.assert_close((interpolate(a, near, 0.25) - a) / 1e-9, 0.25 * b, rtol=0, atol=1e-6)


@pytest.mark.parametrize("path", ["spherical", "straight"])
def test_latents_between_two_have_the_priors_variance(path: Any) -> None:
    n, d = 40000, 16
    a, b = 2 * normal(n, d, seed=1), 2 * normal(n, d, seed=2)
    for w in (0.2, 0.5):
        x = interpolate(a, b, w, path=path) / 2
        # E|x|² = D - 2 Var|a| E[c_a c_b cos θ]: with Var|a| < 1/2 and the expectation, over the density of θ, below
        # 1/D in size, 1 + O(1/D²); four standard errors of the n D squares
        assert abs(float(x.square().mean()) - 1) < (1 / d**2 if path == "spherical" else 0) + 4 * math.sqrt(2 / (n * d))
        assert float(x.mean(0).abs().max()) < 5 / math.sqrt(n)
        if path == "straight":  # Gaussian again: the fourth moment's standard error is 3 sqrt(96 / 9 / (n D)) = 0.012
            assert abs(float((x**4).mean()) - 3) < 0.05
    assert float((0.5 * (a + b) / 2).square().mean()) < 0.51  # what the plain line would do


# -- prompt-to-prompt ------------------------------------------------------------------------------------------


@functools.cache
def captioned() -> ScoreModel:
    """A captioned network whose layers, which start at zero, have been given weights."""
    captions = {"caption": {"vocabulary": 9, "length": 4, "width": 16, "layers": 1}}
    net = UNet(1, width=8, multipliers=(1,), blocks=1, attention_levels=(0,), captions=captions)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(
                0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(parameter.numel()))
            )
    return ScoreModel(net, VP(), predicts="edm", sigma_data=1.0).eval()


A, B = {"caption": torch.tensor([[1, 2, 3, 0]] * 2)}, {"caption": torch.tensor([[1, 2, 5, 4]] * 2)}
LATENT = normal(2, 1, 4, 4, dtype=torch.float32)


def words(**options: Any) -> PromptToPrompt:
    given: dict[str, Any] = {"source": A, "target": B, "solver": DDIM(), "steps": 4, **options}
    return prompt_to_prompt(captioned(), LATENT, given.pop("source"), given.pop("target"), **given)


def drawn(cond: dict[str, Tensor], *, scale: float = 1.0, solver: Any = None, eta: float = 0.0) -> Tensor:
    score = classifier_free(captioned(), cond, scale)
    with torch.no_grad():
        process = Reverse(score, eta)
        grid = grids.karras(VP(), 4)
        return (solver or DDIM()).solve(process, LATENT, grid, PerSampleNoise(0).stream("edit"), denoise=True).x


@pytest.mark.parametrize("scale", [1.0, 3.0])
@pytest.mark.parametrize(("solver", "eta"), [(DDIM(), 0.0), (Heun(), 0.0), (DDIM(), 1.0)], ids=["ddim", "heun", "sde"])
def test_equal_captions_give_equal_pictures(scale: float, solver: Any, eta: float) -> None:
    both = words(target=A, scale=scale, solver=solver, eta=eta, until=1.0)
    # the network with its maps put back in differs from the fused kernel by a rounding of float32
    close = {"rtol": 1e-3, "atol": 1e-4}
    torch.testing.assert_close(both.x, both.source, **close)
    torch.testing.assert_close(both.source, drawn(A, scale=scale, solver=solver, eta=eta), **close)
    assert both.nfe == 2 * (9 if isinstance(solver, Heun) else 5)


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_until_zero_is_plain_sampling_of_both(eta: float) -> None:
    both = words(until=0.0, eta=eta, scale=2.0)
    close = {"rtol": 1e-3, "atol": 1e-4}  # the same sum of two scores in another order, a rounding of float32
    torch.testing.assert_close(both.x, drawn(B, eta=eta, scale=2.0), **close)
    torch.testing.assert_close(both.source, drawn(A, eta=eta, scale=2.0), **close)
    assert float((both.x - both.source).abs().max()) > 1e-2


def test_two_captions_in_lockstep_have_coefficients_of_their_own() -> None:
    """Coefficients and times (2B,) are those of their samples, with maps exchanged and without."""
    model, t = captioned(), torch.tensor([0.2, 0.3, 0.4, 0.6], dtype=torch.float64)
    a, b = torch.tensor([1.0, 2.0, 3.0, 4.0], dtype=torch.float64), torch.tensor([0.5, -1.0, 2.0, 0.1]).double()
    x = normal(4, 1, 4, 4, dtype=torch.float32)
    for edit, stop in ((None, 2.0), (lambda source, own: own, -1.0)):
        both = Lockstep(model.bind(**A), model.bind(**B), model, edit, stop)
        with torch.no_grad():
            got, score = both.linear(x, t, a, b), both(x, t)
        own = torch.cat([model(x[:2], t[:2], A), model(x[2:], t[2:], B)])
        torch.testing.assert_close(score, own, rtol=1e-3, atol=1e-4)
        shape = (4, 1, 1, 1)
        expected = a.float().reshape(shape) * x + b.float().reshape(shape) * score
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)  # roundings of float32
    assert both.sde is model.sde and both.sigma_data == 1.0


def test_until_counts_the_steps() -> None:
    """The number of evaluations whose maps are replaced: 4 steps and the last denoising."""
    for until, expected in ((0.0, 0), (0.5, 2), (0.75, 3), (1.0, 5)):
        calls: list[Tensor] = []

        def edit(source: Tensor, own: Tensor, calls: list[Tensor] = calls) -> Tensor:
            calls.append(source)
            return own

        both = words(until=until, edit=edit)
        layers = len(cross_attention(captioned()))
        assert len(calls) == expected * layers
        torch.testing.assert_close(both.x, drawn(B), rtol=1e-3, atol=1e-4)  # own maps: nothing changes but rounding


def test_the_maps_are_those_of_the_source_at_the_same_time() -> None:
    """One step by hand: the target's network call with the source's recorded maps in it."""
    model, t = captioned(), torch.tensor(0.1, dtype=torch.float64)
    with torch.no_grad():
        with AttentionMaps().recording(model) as maps:
            model(LATENT, t, A)
        with maps.injecting(model):
            expected = model(LATENT, t, B)
        own = model(LATENT, t, B)
    seen: list[Tensor] = []

    class Spy(DDIM):
        def solve(self, process: Reverse, x: Tensor, *rest: Any, **more: Any) -> Any:
            seen.append(process.score(x, t))
            return super().solve(process, x, *rest, **more)

    words(solver=Spy(), until=1.0)
    torch.testing.assert_close(seen[0][2:], expected, rtol=1e-4, atol=1e-5)  # the same operations
    assert float((own - expected).abs().max()) > 1e-2


def test_edits_are_made_of_the_parts_of_nn() -> None:
    pairs = shared_tokens(A["caption"][0], B["caption"][0])
    refined = words(edit=lambda source, own: map_tokens(source, own, pairs), until=1.0).x
    swapped = words(until=1.0).x
    weighed = words(edit=lambda source, own: reweight_tokens(source, {3: 2.0}), until=1.0).x
    for one, other in itertools.combinations((refined, swapped, weighed, drawn(B)), 2):
        assert float((one - other).abs().max()) > 1e-3


def test_a_real_picture_keeps_its_reconstruction_as_the_source() -> None:
    model = captioned()
    picture = 0.5 * normal(2, 1, 4, 4, seed=9, dtype=torch.float32)
    found = invert(model.bind(**A), picture, t=0.5, steps=6, iterations=60, memory=3)
    both = prompt_to_prompt(model, found.x, A, B, grid=found.grid, solver=DDIM(), denoise=False, until=1.0)
    torch.testing.assert_close(both.source, found.reconstruction, rtol=1e-3, atol=1e-4)
    assert float((both.x - both.source).abs().max()) > 1e-2


def test_at_scale_one_no_null_condition_is_asked_for() -> None:
    model = captioned()

    class Bare(nn.Module):
        """The captioned network, without a word about what stands for "no caption"."""

        def __init__(self) -> None:
            super().__init__()
            self.inner = model.net

        def forward(self, x: Tensor, c: Tensor, caption: Tensor) -> Tensor:
            return torch.as_tensor(self.inner(x, c, caption=caption))

    bare = ScoreModel(Bare(), VP(), predicts="edm", sigma_data=1.0).eval()
    both = prompt_to_prompt(bare, LATENT, A, B, solver=DDIM(), steps=4)
    assert torch.equal(both.x, words().x)
    with pytest.raises(ValueError, match="null"):
        prompt_to_prompt(bare, LATENT, A, B, scale=2.0)


def test_conditions_may_be_called_as_options_are() -> None:
    """A network whose caption goes by the name of an option of classifier-free guidance."""
    model = captioned()

    class Renamed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.null_conditions = model.net, {"negative": 0}

        def forward(self, x: Tensor, c: Tensor, negative: Tensor) -> Tensor:
            return torch.as_tensor(self.inner(x, c, caption=negative))

    renamed = ScoreModel(Renamed(), VP(), predicts="edm", sigma_data=1.0).eval()
    for scale in (1.0, 2.0):
        one, other = ({"negative": given["caption"]} for given in (A, B))
        both = prompt_to_prompt(renamed, LATENT, one, other, solver=DDIM(), steps=4, scale=scale)
        assert torch.equal(both.x, words(scale=scale).x)


def test_paired_noise_is_the_same_for_both_halves() -> None:
    x, t, s = torch.zeros(4, 3), torch.tensor(0.5, dtype=torch.float64), torch.tensor(0.25, dtype=torch.float64)
    paired = PairedNoise(BrownianNoise(3, 1.0))
    paired.check(torch.tensor([1.0, 0.5, 0.25], dtype=torch.float64))
    draw = paired.between(x, t, s)
    assert torch.equal(draw[:2], draw[2:]) and torch.equal(draw[:2], BrownianNoise(3, 1.0).between(x[:2], t, s))
    paired = PairedNoise(PerSampleNoise(1))
    place = paired.position()
    first = paired.normal(x)
    paired.rewind(place)
    assert torch.equal(paired.normal(x), first) and torch.equal(first[:2], first[2:])
    start = paired.initial((4, 3), dtype=x.dtype, device=x.device)
    assert torch.equal(start[:2], start[2:]) and not torch.equal(start[0], start[1])
    assert torch.equal(paired.stream("a").normal(x)[:2], PerSampleNoise(1).stream("a").normal(x[:2]))
    with pytest.raises(ValueError, match="Brownian path"):
        paired.path_key()


# -- bad input -------------------------------------------------------------------------------------------------

S, X = VP(), normal(2, 3)


PLAIN, ZERO = as_score(lambda x, t: -x, S), as_score(zero, S)


def plain() -> ScoreModel:
    return ScoreModel(MLP(3, num_classes=2), VP())


@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        (lambda: sdedit(PLAIN, X), ValueError, "neither"),
        (lambda: sdedit(PLAIN, X, t=0.5, level=1.0), ValueError, "both"),
        (lambda: sdedit(PLAIN, X, level=-1.0), ValueError, "level must be positive"),
        (lambda: sdedit(PLAIN, X, level=1e9), ValueError, "log-SNR"),
        (lambda: sdedit(PLAIN, X, level=1e-9), ValueError, "level must be a σ/α above"),
        (lambda: sdedit(PLAIN, X, t=S.t_min), ValueError, "above t_min"),
        (lambda: sdedit(PLAIN, X, t=1.5), ValueError, r"\[0, 1\]"),
        (lambda: sdedit(PLAIN, X, t=torch.tensor([0.5, 0.6])), ValueError, "one time for the batch"),
        (lambda: sdedit(S, X, t=0.5), TypeError, "a score knows its own"),  # type: ignore[arg-type]
        (lambda: sdedit(lambda x, t: -x, X, t=0.5), TypeError, r"write as_score\(score, sde\)"),  # type: ignore[arg-type]
        (lambda: invert(3, X), TypeError, "score must be a Score.*got int"),  # type: ignore[arg-type]
        (lambda: sdedit(PLAIN, X.long(), t=0.5), TypeError, "x0 must be a floating"),
        (lambda: sdedit(PLAIN, X * math.nan, t=0.5), ValueError, "NaN"),
        (lambda: sdedit(PLAIN, X, t=0.5, solver="heun"), TypeError, "Heun"),  # type: ignore[arg-type]
        (lambda: sdedit(PLAIN, X, t=0.5, grid=torch.ones(3)), TypeError, "starts its grid at t"),  # type: ignore[arg-type]
        (lambda: sdedit(PLAIN, X, t=0.5, grid="karras"), TypeError, "grids.karras"),  # type: ignore[arg-type]
        (lambda: sdedit(PLAIN, X, t=0.5, seed=1, noise=IndependentNoise(1)), ValueError, "not both"),
        (lambda: sdedit(PLAIN, X, t=0.5, mask=torch.ones(4)), ValueError, "broadcast to x0"),
        (lambda: sdedit(PLAIN, X, t=0.5, mask=torch.ones(5, 2, 3)), ValueError, "broadcast to x0"),
        (lambda: sdedit(PLAIN, X, t=0.5, mask=torch.full((3,), 255.0)), ValueError, "divide by 255"),
        (lambda: sdedit(PLAIN, X, t=0.5, mask=torch.full((3,), math.nan)), ValueError, r"lie in \[0, 1\]"),
        (lambda: sdedit(PLAIN, X, t=0.5, mask=torch.ones(3).long()), TypeError, "mask.bool"),
        (lambda: sdedit(PLAIN, X, t=0.5, mask=[1, 0, 1]), TypeError, "torch.Tensor"),  # type: ignore[arg-type]
        (
            lambda: sdedit(PLAIN, X, t=0.5, mask=torch.ones(3), solver=ProbabilityFlow()),
            ValueError,
            "own steps",
        ),
        (lambda: invert(PLAIN, X, method="ddpm"), ValueError, "ddim"),  # type: ignore[arg-type]
        (lambda: invert(PLAIN, X, method="ode", iterations=3), ValueError, "belong to"),
        (lambda: invert(PLAIN, X, method="ode", tolerance=1e-3), ValueError, "belong to"),
        (lambda: invert(PLAIN, X, solver=ProbabilityFlow()), ValueError, "steps on the grid"),
        (lambda: invert(PLAIN, X, method="ode", solver=Heun()), TypeError, "ProbabilityFlow"),  # type: ignore[arg-type]
        (lambda: invert(PLAIN, X, method="ode", solver=ProbabilityFlow("rk4")), ValueError, "step_size"),
        (lambda: invert(PLAIN, X, memory=2), ValueError, "iterations=20"),
        (lambda: invert(PLAIN, X, iterations=-1), ValueError, "iterations"),
        (lambda: invert(PLAIN, X, iterations=3, tolerance=0.0), ValueError, "tolerance"),
        (lambda: invert(PLAIN, X, t=0.5, grid=torch.tensor([0.5, 0.1])), ValueError, "not both"),
        (lambda: invert(PLAIN, X, grid=torch.tensor([0.1, 0.5])), ValueError, "decreasing"),
        (lambda: invert(PLAIN, X, steps=0), ValueError, "steps"),
        (lambda: invert(as_score(lambda x, t: x[:1], S), X), ValueError, "shaped like x"),
        (lambda: invert(as_score(lambda x, t: x / 0, S), X), FloatingPointError, "NaN or infinite"),
        (lambda: counterfactual(PLAIN, None, X), TypeError, "target_score must be a Score"),  # type: ignore[arg-type]
        (
            lambda: diffedit_mask(PLAIN, ZERO, X, t=0.5, threshold=1.0),
            ValueError,
            "threshold",
        ),
        (lambda: diffedit_mask(PLAIN, ZERO, X, t=0.5, clip=1.0), ValueError, "clip"),
        (lambda: diffedit_mask(PLAIN, ZERO, X, t=0.5, samples=0), ValueError, "samples"),
        (lambda: diffedit_mask(PLAIN, ZERO, X, t=0.0), ValueError, "above t_min"),
        (
            lambda: diffedit(PLAIN, ZERO, X, t=0.5, mask=torch.ones(3), seed=1),
            ValueError,
            "draws nothing",
        ),
        (
            lambda: diffedit(PLAIN, ZERO, X, t=0.5, mask=torch.zeros(3).bool()),
            ValueError,
            "nothing to edit",
        ),
        (lambda: sdedit(PLAIN, X, t=0.5, mask=torch.zeros(3)), ValueError, "1 - mask"),
        (lambda: sdedit(PLAIN, X, t=0.5, gradients="yes"), TypeError, "gradients"),  # type: ignore[arg-type]
        (lambda: invert(PLAIN, X, grid="karras"), TypeError, "grids.karras"),  # type: ignore[arg-type]
        (lambda: diffedit(PLAIN, ZERO, X, t=0.5, grid="karras"), TypeError, "grids.karras"),  # type: ignore[arg-type]
        (lambda: words(grid="karras"), TypeError, "grids.karras"),
        (lambda: words(scale=math.nan), ValueError, "scale"),
        (
            lambda: diffedit(PLAIN, ZERO, X, t=0.5, mask=torch.ones(2)),
            ValueError,
            "broadcast",
        ),
        (
            lambda: diffedit(PLAIN, ZERO, X, t=0.5, grid=torch.tensor([0.5, 0.1])),
            TypeError,
            "a function",
        ),  # type: ignore[arg-type]
        (lambda: words(until=1.5), ValueError, "share of the steps"),
        (lambda: words(edit=3), TypeError, "two maps"),
        (lambda: words(source=[1, 2]), TypeError, "source must be a Mapping"),
        (lambda: words(target={"text": 1}), ValueError, "same conditions"),
        (lambda: words(solver=ProbabilityFlow()), ValueError, "own steps"),
        (lambda: words(edit=lambda source, own: own[:1]), ValueError, "shape"),
        (lambda: prompt_to_prompt(PLAIN, X, A, B), TypeError, "ScoreModel"),  # type: ignore[arg-type]
        (
            lambda: prompt_to_prompt(plain(), X.float(), {"label": 0}, {"label": 1}),
            ValueError,
            "no cross-attention",
        ),
        (lambda: interpolate(X, X[:1], 0.5), ValueError, "same shape"),
        (lambda: interpolate(X, 0 * X, 0.5), ValueError, "zero"),
        (lambda: interpolate(X, -X, 0.5), ValueError, "opposite"),
        (lambda: interpolate(X, X, math.nan), ValueError, "weights"),
        (lambda: interpolate(X, X, torch.ones(2, 2)), ValueError, r"\(W,\)"),
        (lambda: interpolate(X, X, 0.5, path="arc"), ValueError, "spherical"),  # type: ignore[arg-type]
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_errors_tell_the_way_out(call: Any, error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        call()


def test_what_the_straight_path_takes_and_the_arc_does_not() -> None:
    torch.testing.assert_close(interpolate(X, -X, 0.25, path="straight"), X * 0.5 / math.sqrt(0.625), **EXACT)
    assert torch.equal(interpolate(X, 0 * X, 1.0, path="straight"), 0 * X)


@pytest.mark.parametrize("memory", [0, 2])
def test_a_fixed_point_does_not_depend_on_the_rest_of_the_batch(memory: int) -> None:
    """A sample stays where it has settled, while a slow one beside it goes on."""
    start, rate = normal(2, 3), torch.tensor([[0.1, 0.1, 0.1], [0.9, 0.5, -0.8]], dtype=torch.float64)
    together = fixed_point(lambda x: rate * x + 1, start, iterations=40, tolerance=1e-4, memory=memory)
    alone = fixed_point(lambda x: rate[:1] * x + 1, start[:1], iterations=40, tolerance=1e-4, memory=memory)
    assert together.calls > alone.calls
    torch.testing.assert_close(together.x[:1], alone.x, rtol=1e-14, atol=1e-14)  # roundings of batched algebra
