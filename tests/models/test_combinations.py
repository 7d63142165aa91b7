"""What every score answers: one quantity in all its forms, in full precision, under its own schedule alone."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import between, draw_times, members, name, normal
from torch import Tensor, nn
from torch.autograd import forward_ad

from scoresde import grids
from scoresde.models import (
    PREDICTIONS,
    Expectation,
    Linear,
    Score,
    ScoreModel,
    as_score,
    score_of_denoiser,
)
from scoresde.models.combination import NOISE, SCORE, X0, Combination, combine
from scoresde.models.score import DerivedScore, check_score, same_sde
from scoresde.problems import Empirical, Gaussian, GaussianMixture
from scoresde.reverse import Reverse
from scoresde.sampling import sample
from scoresde.sde import EDM, SDE, VE, VP, Chain, ChainSDE, Cosine, RectifiedFlow, ScheduleSDE, SubVP
from scoresde.solvers import SpectralMultistep
from scoresde.spectrum import Spectrum

F64 = torch.float64
MIXTURE = GaussianMixture(
    torch.tensor([0.3, 0.7]), torch.tensor([[-1.0, 0.5], [0.8, 0.2]], dtype=F64), torch.tensor([0.05, 0.2])
)
FULL = GaussianMixture(
    torch.tensor([0.4, 0.6]),
    torch.tensor([[-1.0, 0.5], [0.8, 0.2]], dtype=F64),
    torch.tensor([[[0.5, 0.2], [0.2, 0.3]], [[0.2, -0.1], [-0.1, 0.4]]], dtype=F64),
)
GAUSSIAN = Gaussian(torch.tensor([0.2, -0.6], dtype=F64), torch.tensor([0.4, 1.5], dtype=F64))
POINTS = Empirical(torch.tensor([[-1.0, 0.5], [0.8, 0.2], [0.1, -0.9]], dtype=F64))


def model(sde: SDE, predicts: str, sigma_data: float | None = 0.7) -> ScoreModel:
    """Any network at all: what it means is fixed by its prediction."""
    return ScoreModel(lambda x, c, shift=0.0: torch.sin(2 * x + c[:, None] + shift), sde, predicts, sigma_data)


class Derived(DerivedScore):
    """As a guidance passes questions on to its parts."""

    def __init__(self, score: Score) -> None:
        self.score = score

    def evaluate(self, x: Tensor, t: Tensor, wanted: Combination) -> Tensor:
        return 0.25 * self.score.evaluate(x, t, wanted) + 0.75 * self.score.evaluate(x, t, wanted)


KINDS: dict[str, Callable[[SDE], Score]] = {
    "mixture": MIXTURE.score,
    "mixture with full covariances": FULL.score,
    "component": lambda sde: MIXTURE.score(sde, 1),
    "gaussian": GAUSSIAN.score,
    "empirical": POINTS.score,
    "function": lambda sde: as_score(MIXTURE.score(sde).__call__, sde),
    "denoiser": lambda sde: score_of_denoiser(MIXTURE.score(sde).denoise, sde),
    **{f"model of {p}": lambda sde, p=p: model(sde, p) for p in PREDICTIONS},  # type: ignore[misc]
    "bound": lambda sde: model(sde, "v").bind(shift=0.3),
    "derived": lambda sde: Derived(MIXTURE.score(sde)),
    "under": lambda sde: model(widest(sde), "edm").under(sde),
}


def widest(sde: SDE) -> SDE:
    """A schedule of another kind with all noise levels of this one inside its own."""
    return EDM(T=1e5, t_min=1e-7) if not isinstance(sde, EDM) else RectifiedFlow(T=1 - 1e-7, t_min=1e-7)


def state(sde: SDE, t: Tensor) -> Tensor:
    """Points where the law of x_t is."""
    alpha, sigma = (c.expand(4)[:, None] for c in (sde.alpha(t), sde.sigma(t)))
    return alpha * normal(4, 2) + sigma * normal(4, 2, seed=1)


def lost(sde: SDE, t: Tensor) -> float:
    """Roundings of float64 that an answer may hold, σ/α and α/σ of them where one quantity is made of another."""
    ratio = sde.sigma(t) / sde.alpha(t)
    return 1e3 * torch.finfo(F64).eps * float((1 + ratio + 1 / ratio).max())


# ---- the laws ----


@pytest.mark.parametrize("kind", KINDS)
@given(sde=members(), a=between(-2.0, 2.0), b=between(-2.0, 2.0), each=st.booleans(), data=st.data())
def test_all_forms_of_all_combinations_agree(kind: str, sde: SDE, a: float, b: float, each: bool, data: Any) -> None:
    score, times = KINDS[kind](sde), draw_times(data, sde, 4)
    t = times if each else times[0]
    x = state(sde, t)
    alpha, sigma = (c if each else c.expand(4) for c in (sde.alpha(t), sde.sigma(t)))
    column = [c[:, None] for c in (alpha, sigma)]
    s, x0, eps = score(x, t), score.denoise(x, t), score.noise(x, t)
    assert s.dtype == x0.dtype == eps.dtype == F64 and s.shape == x0.shape == eps.shape == x.shape
    room = lost(sde, t) * float(1 + x0.abs().max() + eps.abs().max())
    close = {"rtol": 1e-9, "atol": room}
    # s = -ε/σ, x = α x_0 + σ ε: in units of ε
    torch.testing.assert_close(-column[1] * s, eps, **close)
    torch.testing.assert_close((x - column[0] * x0) / column[1], eps, **close)
    # b in units of σ and b σ, where the two terms are of one size; as a number, and as one for each sample
    for coefficients in ((a, b), (a * sigma, b * sigma**2), (torch.tensor(a, dtype=F64), b)):
        if not each and isinstance(coefficients[0], Tensor) and coefficients[0].ndim:
            coefficients = (float(coefficients[0][0]), coefficients[1][:1].squeeze())  # type: ignore[index]
        c, d = (torch.as_tensor(v, dtype=F64).reshape(-1, 1) for v in coefficients)
        size = room * float((c.abs() * (1 + x.abs()) + d.abs() * (1 + s.abs())).max())
        got = score.linear(x, t, *coefficients)
        torch.testing.assert_close(got, c * x + d * s, rtol=1e-9, atol=size)
    got = score.expect(x, t, a, b)
    torch.testing.assert_close(got, a * x0 + b * eps, rtol=1e-9, atol=4 * room)
    torch.testing.assert_close(score.expect(x, t, a * alpha if each else a, 0.0),
                               (a * column[0] if each else a) * x0, rtol=1e-9, atol=4 * room)  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_whole_numbers_are_coefficients_too(kind: str) -> None:
    sde, t = VP(), torch.tensor(0.4, dtype=F64)
    score, x = KINDS[kind](sde), normal(4, 2)
    for a, b in ((1, 0), (0, 1), (1, 2), (2, 1), (0, 0)):
        assert torch.equal(score.linear(x, t, a, b), score.linear(x, t, float(a), float(b)))
        assert torch.equal(score.expect(x, t, a, b), score.expect(x, t, float(a), float(b)))
    assert torch.equal(score.denoise(x, 0.4), score.denoise(x, t))  # a time as a number is not rounded
    # nor is one in float32 worked with in float32
    late = torch.tensor(0.4, dtype=torch.float32)
    assert torch.equal(score.linear(x, late, 0.3, 0.7), score.linear(x, late.double(), 0.3, 0.7))


@given(sde=members(), a=between(-2.0, 2.0), b=between(-2.0, 2.0), data=st.data())
def test_the_three_forms_are_one_quantity(sde: SDE, a: float, b: float, data: Any) -> None:
    """a x + b s = p x̂_0 + q ε̂ = A x + B x̂_0 for any x and x̂_0, whatever else."""
    t = draw_times(data, sde, 3)
    alpha, sigma = sde.alpha(t), sde.sigma(t)
    x0, eps = normal(3), normal(3, seed=1)
    x, s = alpha * x0 + sigma * eps, -eps / sigma
    room = 100 * lost(sde, t)
    for wanted in (Linear(a, b * sigma**2), Expectation(a, b), Linear(a * sigma, b * sigma), X0, NOISE, SCORE):
        (of_x, of_s), (p, q), (of_state, of_x0) = (
            wanted.of_score(sde, t), wanted.of_predictions(alpha, sigma), wanted.of_x0(alpha, sigma)
        )  # fmt: skip
        scale = float((1 + 1 / sigma).max()) if wanted is SCORE else 1.0
        expected = p * x0 + q * eps
        torch.testing.assert_close(of_x * x + of_s * s, expected, rtol=1e-9, atol=room * scale)
        torch.testing.assert_close(of_state * x + of_x0 * x0, expected, rtol=1e-9, atol=room * scale)


def test_coefficients_of_samples_go_with_their_samples() -> None:
    rows = torch.tensor([2, 0])
    for wanted in (Linear(0.5, torch.tensor([1.0, 2.0, 3.0])), Expectation(torch.tensor([1.0, 2.0, 3.0]), 0.5)):
        chosen = wanted.for_samples(lambda c: c[rows])
        assert type(chosen) is type(wanted)
        for before, after in zip(wanted, chosen, strict=True):
            expected = before[rows] if isinstance(before, Tensor) else before
            assert torch.equal(torch.as_tensor(after), torch.as_tensor(expected))
    alone = Linear(torch.tensor(0.5), 1.0)
    assert alone.for_samples(lambda c: c[rows]) == alone


def test_sums_take_as_few_passes_as_can_be() -> None:
    """And leave what they are given as it was."""
    x, y, z = normal(3, 2), normal(3, 2, seed=1), normal(3, 2, seed=2)
    before = [v.clone() for v in (x, y, z)]
    each = torch.tensor([1.0, 2.0, 3.0], dtype=F64)
    torch.testing.assert_close(combine((1.0, x), (0.5, y), (-2.0, z)), x + 0.5 * y - 2 * z)
    torch.testing.assert_close(combine((0.3, x), (0.5, y), (each, z)), 0.3 * x + 0.5 * y + each[:, None] * z)
    torch.testing.assert_close(combine((each, x), (0.5, y)), each[:, None] * x + 0.5 * y)
    assert combine((1.0, x)) is x and combine((1.0, x), (0.0, y * torch.nan)) is x
    assert torch.equal(combine((0.0, x), (0.0, y)), torch.zeros(3, 2, dtype=F64))
    assert combine((1.0, x.bfloat16()), (torch.tensor(0.5, dtype=F64), y.bfloat16())).dtype == torch.bfloat16
    assert all(torch.equal(a, b) for a, b in zip(before, (x, y, z), strict=True))


# ---- nothing is lost where σ/α is 1e6 ----

FAR = VE(sigma_max=1e6)


@pytest.mark.parametrize("predicts", ["exact", "x0", "v", "velocity", "edm"])
@pytest.mark.parametrize("sde", [FAR, RectifiedFlow(T=1 - 1e-6)], ids=name)
def test_what_is_denoised_is_right_where_there_is_hardly_any_signal(sde: SDE, predicts: str) -> None:
    t = torch.tensor(sde.T, dtype=F64)
    alpha, sigma = sde.alpha(t), sde.sigma(t)
    assert 0.9e6 < float(sigma / alpha) < 1.1e6
    wide = MIXTURE.score(sde)

    def net(x: Tensor, c: Tensor) -> Tensor:
        """The exact target by its definition, in float64, then in the network's own float32."""
        size = (alpha**2 * 0.49 + sigma**2).sqrt()
        state = x.double() * size
        x0, eps = wide.denoise(state, t), wide.noise(state, t)
        skip, out = alpha * 0.49 / size**2, 0.7 * sigma / size
        targets = {"x0": x0, "v": alpha * eps - sigma * x0, "velocity": eps - x0, "edm": (x0 - skip * state) / out}
        return targets[predicts].float()

    score = wide if predicts == "exact" else ScoreModel(net, sde, predicts, sigma_data=0.7)
    x = (sigma * normal(50, 2)).float()
    expected = wide.denoise(x.double(), t)
    apart = float((MIXTURE.means[0] - MIXTURE.means[1]).norm())  # the scale of the data
    # "velocity" is ε - x_0, of the size of ε: its rounding in float32 is what x_0 can be off by
    room = 1e-6 * apart + (2e-7 if predicts == "velocity" else 0.0)
    assert float((score.denoise(x, t).double() - expected).abs().max()) < room
    # what a solver asks for in place of x̂_0: α x̂_0 = x + σ² s
    got = score.linear(x, t, 1.0, float(sigma**2)).double() / alpha
    assert float((got - expected).abs().max()) < room
    # by arithmetic on the score's values there is nothing right about it
    naive = (x + (sigma**2).float() * score(x, t)) / alpha.float()
    assert float((naive.double() - expected).abs().max()) > 0.05


# ---- a score knows its SDE ----


def test_schedules_are_compared_by_what_they_are() -> None:
    same_sde({"one": VP(), "two": VP(T=0.9, t_min=0.01), "three": ScheduleTwin()})
    same_sde({"one": RectifiedFlow(), "two": RectifiedFlow(T=1.0)})
    for other in (SubVP(), VP(beta_max=19.9), RectifiedFlow(), EDM(), ChainSDE(VP().discretize(1000))):
        with pytest.raises(ValueError, match=r"a score means nothing under another schedule. .*model\.under\(sde\)"):
            same_sde({"the guide": VP(), "the model": other})
    with pytest.raises(ValueError, match=r"a has EDM.*b has EDM"):  # not one time in common
        same_sde({"a": EDM(T=1.0), "b": EDM(T=80.0, t_min=2.0)})


@dataclasses.dataclass(frozen=True)
class ScheduleTwin(SDE):
    """VP, written by somebody else."""

    def alpha(self, t: Tensor) -> Tensor:  # type: ignore[override]
        return torch.exp(-0.25 * t**2 * 19.9 - 0.05 * t)

    def sigma(self, t: Tensor) -> Tensor:  # type: ignore[override]
        return (1 - self.alpha(t) ** 2).clamp_min(0).sqrt()


def test_a_function_becomes_a_score_and_a_score_stays_one() -> None:
    sde, exact = VP(), MIXTURE.score(VP())
    assert as_score(exact, sde) is exact and as_score(exact, VP(T=0.9)) is exact
    with pytest.raises(ValueError, match=r"sde has SubVP.*the score has VP"):
        as_score(exact, SubVP())
    with pytest.raises(ValueError, match="another schedule"):
        as_score(model(VP(), "v"), RectifiedFlow())
    known = as_score(lambda x, t: -x, sde, sigma_data=0.3)
    assert known.sde is sde and known.sigma_data == 0.3 and as_score(lambda x, t: -x, sde).sigma_data is None
    assert score_of_denoiser(lambda x, t: x, sde, sigma_data=2.0).sigma_data == 2.0
    for make in (as_score, score_of_denoiser):
        with pytest.raises(TypeError, match=r"sde must be an SDE, got .*The order is \w+\(\w+, sde\)"):
            make(sde, lambda x, t: x)  # type: ignore[arg-type]
        with pytest.raises(TypeError, match=r"must be a function \(x, t\) -> \w+, got 3"):
            make(3, sde)  # type: ignore[arg-type]
        for bad in (0.0, -1.0, float("nan")):
            with pytest.raises(ValueError, match="sigma_data must be positive"):
                make(lambda x, t: x, sde, sigma_data=bad)


def test_what_is_no_score_is_told_how_to_become_one() -> None:
    exact = MIXTURE.score(VP())
    assert check_score(exact) is exact
    for wrong, told in (
        (lambda x, t: x, r"must be a Score .*; write as_score\(guide, sde\)"),
        (nn.Linear(2, 2), r"got Linear; write as_score\(guide, sde\)"),
        (VP(), "got the SDE VP: a score knows its own, leave it out"),
        (3, r"must be a Score \(model\.bind\(label=y\), problem\.score\(sde\), a guidance\), got int\."),
    ):
        with pytest.raises(TypeError, match=told):
            check_score(wrong, name="guide")
    with pytest.raises(TypeError, match=r"a score knows its own"):
        Reverse(VP(), exact)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"a score knows its own"):
        sample(VP(), (2, 2))  # type: ignore[arg-type]


@pytest.mark.parametrize("answer", [None, torch.zeros(3), torch.zeros(3, 2, 1)], ids=["none", "short", "long"])
def test_answers_of_another_shape_are_refused(answer: Any) -> None:
    for score, what in (
        (as_score(lambda x, t: answer, VP()), "the score"),
        (score_of_denoiser(lambda x, t: answer, VP()), "the denoiser"),
        (ScoreModel(lambda x, c: answer, VP()), "the network"),
    ):
        with pytest.raises(ValueError, match=f"{what} must return a tensor shaped like x"):
            score.linear(torch.zeros(3, 2), 0.5, 0.3, 0.7)


def test_a_model_is_sampled_under_its_own_schedule_and_no_other() -> None:
    """There is no place left to name another; ``under`` carries it over, and then it is right."""
    own = RectifiedFlow(T=0.99, t_min=0.01)
    exact = model_of(own)
    end = sample(exact, (800, 2), steps=30, seed=1)
    assert end.grid[0] == own.T and Reverse(exact).sde is own
    with pytest.raises(ValueError, match="another schedule"):
        as_score(exact, VP())
    low, high = (float(v) for v in own.log_snr(torch.tensor([own.T, own.t_min])))
    whole = VP(t_min=0.0, T=1.0)
    other = VP(t_min=float(whole.t_of_log_snr(high)), T=float(whole.t_of_log_snr(low)))
    start = normal(800, 2, dtype=torch.float32)
    runs = [
        sample(score, (800, 2), x=score.sde.prior_std.float() * start, grid=grids.log_snr, steps=200).x
        for score in (exact, exact.under(other))
    ]
    # the same flow: x_T differs by α_T x̂_0 alone, 1 in 100 of it, and the methods' errors at 200 steps
    torch.testing.assert_close(runs[0], runs[1], rtol=0, atol=0.05)


def model_of(sde: SDE) -> ScoreModel:
    def net(x: Tensor, c: Tensor) -> Tensor:
        t = sde.t_of_log_snr(-2 * c.double())
        return MIXTURE.score(sde).denoise(x.double(), t).to(x.dtype)

    return ScoreModel(net, sde, "x0")


# ---- the scale of the data ----


def test_the_default_takes_the_scale_of_the_score() -> None:
    """A score that knows its scale is sampled as if the solver had been told, in grid and in method."""
    sde = VP()
    model = ScoreModel(lambda x, c: 0.05 * torch.tanh(3 * x + 0.1 * c[:, None]), sde, "x0", sigma_data=0.2)
    told = sample(model, (4, 2), solver=SpectralMultistep(Spectrum.assumed((2,), 0.2)), steps=8)
    function = model.__call__
    for score in (model, model.bind(), Derived(model), as_score(function, sde, sigma_data=0.2)):
        assert score.sigma_data == 0.2
        found = sample(score, (4, 2), steps=8)
        assert torch.equal(found.grid, told.grid) and torch.equal(
            found.grid, grids.spectral(sde, 8, spectrum=Spectrum(0.2, 0.2))
        )
        torch.testing.assert_close(found.x, told.x, rtol=0, atol=1e-4)  # float32, a function's by other arithmetic
    unknown = sample(as_score(function, sde), (4, 2), steps=8)
    assert torch.equal(unknown.grid, grids.spectral(sde, 8)) and not torch.allclose(unknown.x, told.x, atol=1e-3)
    # what the solver is told goes before what the score knows
    assert torch.equal(sample(model, (4, 2), solver=SpectralMultistep(Spectrum(1.0, 1.0)), steps=8).grid, unknown.grid)
    assert ScoreModel(lambda x, c: x, sde, "edm").sigma_data == 0.5  # which always scales


@pytest.mark.parametrize("sde", [VP(), Cosine()], ids=name)
def test_an_exact_score_is_finite_where_no_noise_is_left(sde: SDE) -> None:
    """At σ = 0 of data with a density: backends look there."""
    x, t = normal(4, 2), torch.tensor(0.0, dtype=F64)
    score = GAUSSIAN.score(sde)
    mean, covariance = GAUSSIAN.moments(sde, 0.0)
    torch.testing.assert_close(score(x, t), -(x - mean) / covariance.diagonal(), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(score.denoise(x, t), x, rtol=1e-12, atol=1e-12)
    drift = Reverse(score, 0.0).drift(x, t)
    torch.testing.assert_close(drift, sde.f(t) * x - 0.5 * sde.g(t) ** 2 * score(x, t), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("predicts", sorted(PREDICTIONS))
def test_derivatives_by_time_are_taken_in_every_mode(predicts: str) -> None:
    """Coefficients become numbers where nothing looks on: never under a forward or reverse derivative, nor a map."""
    model = ScoreModel(lambda x, c: x * c[:, None].sin(), VP(), predicts, sigma_data=1.0)
    x, t, step = normal(4, 2), torch.tensor(0.3, dtype=F64), 1e-6

    def answer(t: Tensor) -> Tensor:
        return model.linear(x, t, 0.3, 0.2)

    expected = (answer(t + step) - answer(t - step)) / (2 * step)
    with forward_ad.dual_level():
        dual = forward_ad.unpack_dual(answer(forward_ad.make_dual(t, torch.ones_like(t)))).tangent
    found = (
        torch.func.jvp(answer, (t,), (torch.ones_like(t),))[1],
        torch.func.jacrev(answer)(t),
        torch.autograd.functional.jacobian(answer, t),
        dual,
    )
    for value in found:
        # central differences: step² and the rounding of values of size 10 over the step
        torch.testing.assert_close(value, expected, rtol=1e-7, atol=1e-7)
    torch.testing.assert_close(torch.vmap(answer)(torch.stack([t, 2 * t])), torch.stack([answer(t), answer(2 * t)]))


def test_a_map_over_parameters_of_a_score() -> None:
    """As ensembles are evaluated: x is one tensor for all, what the score answers is not."""
    x, t = normal(3, 2), torch.tensor(0.4, dtype=F64)

    def answer(rate: Tensor) -> Tensor:
        return as_score(lambda x, t: -rate * x, VP()).linear(x, t, 0.7, 0.2)

    rates = torch.tensor([0.5, 2.0], dtype=F64)
    torch.testing.assert_close(torch.vmap(answer)(rates), torch.stack([answer(rate) for rate in rates]))


@pytest.mark.parametrize(
    "t", [torch.tensor(0.3, dtype=F64), torch.tensor([0.3, 0.5, 0.9], dtype=F64)], ids=["()", "(B,)"]
)
def test_a_model_compiles_to_one_graph(t: Tensor) -> None:
    model = ScoreModel(lambda x, c: x * c[:, None].cos(), VP(), "noise", sigma_data=1.0)
    chain = ChainSDE(Chain.from_betas(torch.linspace(1e-3, 0.2, 20, dtype=F64)))  # never asked anything before
    scores: list[Score] = [model, as_score(lambda x, t: -x, VP()), model.under(chain)]
    for score in scores:
        compiled = torch.compile(lambda x, t, s=score: s.linear(x, t, 0.3, 0.2), fullgraph=True, backend="eager")
        x = normal(3, 2)
        torch.testing.assert_close(compiled(x, t), score.linear(x, t, 0.3, 0.2))


def test_a_map_over_times_where_alpha_is_constant() -> None:
    sde, x, times = ScheduleSDE(lambda t: 1.0, lambda t: 0.1 + t), normal(3, 2), torch.tensor([0.2, 0.7], dtype=F64)  # type: ignore[arg-type, return-value]
    score = as_score(lambda x, t: -x, sde)
    found = torch.vmap(lambda t: score.denoise(x, t))(times)
    torch.testing.assert_close(found, torch.stack([score.denoise(x, t) for t in times]))


@pytest.mark.parametrize(("predicts", "method"), [("x0", "denoise"), ("noise", "noise"), ("score", "__call__")])
def test_what_a_model_answers_is_nobody_elses_memory(predicts: str, method: str) -> None:
    """A network may write its next answer where its last one stood, as CUDA graphs do; and x is the caller's."""
    held = torch.zeros(3, 2, dtype=F64)

    def net(x: Tensor, c: Tensor) -> Tensor:
        return held.copy_(x.tanh() * c[:, None])

    x, other = normal(3, 2), normal(3, 2, seed=1)
    model = ScoreModel(net, EDM(), predicts)
    first = getattr(model, method)(x, 0.5)
    before = first.clone()
    getattr(model, method)(other, 2.0)
    assert torch.equal(first, before)
    same = getattr(ScoreModel(lambda x, c: x, EDM(), predicts), method)(x, 0.5)
    assert same.data_ptr() != x.data_ptr()
