"""Laws of the SDE class: what is derived, what is overridden, and what the papers say, agree."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import quad, solve_ivp
from strategies import (
    DEFAULTS,
    DTYPES,
    EVENTS,
    ZERO_TERMINAL,
    at,
    bare,
    draw_times,
    fractions,
    grid_of,
    members,
    name,
    normal,
    sdes,
)
from torch import Tensor
from torch.autograd import gradcheck

from scoresde.problems import Gaussian
from scoresde.sde import (
    EDM,
    SDE,
    VE,
    VP,
    Cosine,
    LinearSDE,
    RectifiedFlow,
    ScheduleSDE,
    SubVP,
    has_signal,
    signal_left,
)

EPS = torch.finfo(torch.float64).eps
FUNCTIONS = ("alpha", "sigma", "f", "g", "log_snr")


# -- the formulas of the papers ------------------------------------------------------------------------------------


@given(low=st.floats(0.01, 2), rise=st.floats(0, 30), t=st.floats(1e-3, 1))
def test_vp_and_sub_vp_are_those_of_song_et_al(low: float, rise: float, t: float) -> None:
    vp, sub = VP(low, low + rise), SubVP(low, low + rise)
    integral = quad(lambda u: low + u * rise, 0, t)[0]
    beta = low + t * rise
    expected = {
        vp: (math.exp(-integral / 2), math.sqrt(-math.expm1(-integral)), -beta / 2, math.sqrt(beta)),
        sub: (
            math.exp(-integral / 2),
            -math.expm1(-integral),
            -beta / 2,
            math.sqrt(beta * -math.expm1(-2 * integral)),
        ),
    }
    for sde, values in expected.items():
        got = [getattr(sde, key)(t).item() for key in ("alpha", "sigma", "f", "g")]
        # quad is exact for a linear integrand up to rounding; exp(-integral) magnifies that by the integral, <= 16
        assert got == pytest.approx(values, rel=100 * EPS, abs=0.0)


@given(low=st.floats(1e-3, 0.1), high=st.floats(1, 400), t=st.floats(0, 2))
def test_ve_is_that_of_song_et_al(low: float, high: float, t: float) -> None:
    sde = VE(low, high, T=2.0)
    sigma = low * (high / low) ** (t / 2)
    growth = math.sqrt(2 * math.log(high / low) / 2)
    got = [getattr(sde, key)(t).item() for key in ("alpha", "sigma", "f", "g")]
    # exp(t/T log r) against r^(t/T): the exponent, at most 13, magnifies a rounding
    assert got == pytest.approx([1.0, sigma, 0.0, sigma * growth], rel=50 * EPS, abs=0.0)


@pytest.mark.parametrize("t", [1e-3, 0.2, 0.77, 0.999])
def test_the_other_members_are_their_papers(t: float) -> None:
    s = 0.008  # Nichol & Dhariwal, eq. 17
    bar = (math.cos((t + s) / (1 + s) * math.pi / 2) / math.cos(s / (1 + s) * math.pi / 2)) ** 2
    # the textbook form 1 - cos²/cos² loses 1/σ² = 3e5 of its digits at t = 1e-3, cos(π/2 - 1e-3) a thousand
    assert Cosine().alpha(t).item() ** 2 == pytest.approx(bar, rel=1e-11)
    assert Cosine().sigma(t).item() ** 2 == pytest.approx(1 - bar, rel=1e-9, abs=1e-14)
    assert (RectifiedFlow().alpha(t).item(), RectifiedFlow().sigma(t).item()) == (1 - t, t)
    assert (EDM().alpha(80 * t).item(), EDM().sigma(80 * t).item()) == (1.0, 80 * t)


def test_ends_of_the_range_are_those_of_the_papers() -> None:
    assert (VP().beta_min, VP().beta_max, VP().T, VP().t_min) == (0.1, 20.0, 1.0, 1e-3)
    assert (VE().t_min, EDM().t_min, EDM().T) == (1e-5, 0.002, 80.0)
    assert VE().sigma(0.0).item() == pytest.approx(0.01, rel=EPS)
    assert VE().sigma(1.0).item() == pytest.approx(50.0, rel=20 * EPS)  # exp(log 5000): 8.5 magnifies a rounding


# -- derived = overridden ------------------------------------------------------------------------------------------


@given(sde=members())
def test_derived_coefficients_equal_the_closed_forms(sde: SDE) -> None:
    t = grid_of(sde)
    base = bare(sde)
    assert type(base).f is SDE.f and type(base).g is SDE.g and type(base).t_of_log_snr is SDE.t_of_log_snr
    # log α and (σ/α)² are differentiated exactly up to rounding; dividing by α^2 >= 1e-8 and cancelling terms of
    # d(σ/α)² costs a few hundred roundings
    torch.testing.assert_close(base.f(t), sde.f(t), rtol=1e-11, atol=1e-13)
    torch.testing.assert_close(base.g(t), sde.g(t), rtol=1e-10, atol=1e-13)
    back, level = sde.t_of_log_snr(sde.log_snr(t)), sde.log_snr(t)
    torch.testing.assert_close(base.t_of_log_snr(level), back, rtol=1e-9, atol=1e-13)


@settings(max_examples=15)
@given(sde=sdes())
def test_moment_odes(sde: SDE) -> None:
    """dm/dt = f m and dv/dt = 2 f v + g², by scipy, carry (α, σ²) from t_min to T."""

    def rate(t: float, state: np.ndarray) -> list[float]:
        time = min(max(t, sde.t_min), sde.T)
        f, g = sde.f(time).item(), sde.g(time).item()
        return [f * state[0], 2 * f * state[1] + g**2]

    middle = 0.5 * (sde.t_min + sde.T)
    ends = torch.tensor([sde.t_min, middle, sde.T], dtype=torch.float64)
    expected = np.stack([sde.alpha(ends), sde.sigma(ends) ** 2])
    scale = expected[:, 0].min()
    found = solve_ivp(
        rate, (sde.t_min, sde.T), expected[:, 0], t_eval=ends, method="DOP853", rtol=1e-10, atol=1e-10 * scale
    )
    # the solver's 1e-10 for each of some hundred steps; chains have kinks, where its error control is blind below it
    np.testing.assert_allclose(found.y, expected, rtol=1e-6, atol=1e-8)


@given(sde=sdes())
def test_log_snr_decreases_and_is_inverted(sde: SDE) -> None:
    t = grid_of(sde)
    level = sde.log_snr(t)
    torch.testing.assert_close(level, 2 * torch.log(sde.alpha(t) / sde.sigma(t)), rtol=1e-12, atol=1e-12)  # roundings
    assert bool((level.diff() < 0).all())
    # a rounding of λ, and of log α and log σ inside it, moves t by dt/dλ = σ²/g² times as much; t itself comes out of
    # sums of order t + 0.1 (Cosine subtracts its s)
    allowed = 64 * EPS * (1 + level.abs()) * (sde.sigma(t) / sde.g(t)) ** 2 + 16 * EPS * (t + 0.1)
    assert bool(((sde.t_of_log_snr(level) - t).abs() <= allowed).all())
    assert bool(((sde.log_snr(sde.t_of_log_snr(level)) - level).abs() <= 1e-11 * (1 + level.abs())).all())


@pytest.mark.parametrize("sde", DEFAULTS, ids=name)
@pytest.mark.parametrize("of", [lambda s: s, bare], ids=["closed", "derived"])
def test_the_ends_of_log_snr_are_the_ends_of_time(sde: SDE, of: Callable[[SDE], SDE]) -> None:
    sde = of(sde)
    highest, lowest = sde.log_snr(0.0).item(), sde.log_snr(sde.t_max).item()
    assert abs(sde.t_of_log_snr(highest).item()) < EPS  # infinite for most: time 0, not NaN
    if math.isfinite(lowest):
        beyond = lowest - 0.9e-9 * abs(lowest)  # the room left for roundings of λ does not lead out of [0, t_max]
        assert sde.t_of_log_snr(beyond).item() <= sde.t_max * (1 + 16 * EPS)
        assert sde.t_of_log_snr(beyond).item() == pytest.approx(sde.t_max, rel=16 * EPS)


@pytest.mark.parametrize("sde", DEFAULTS, ids=name)
@pytest.mark.parametrize("of", [lambda s: s, bare], ids=["closed", "derived"])
def test_differentiable_in_time(sde: SDE, of: Callable[[SDE], SDE]) -> None:
    sde = of(sde)
    t = torch.tensor([0.03, 0.4, 0.9], dtype=torch.float64).mul_(sde.T).requires_grad_()
    for key in FUNCTIONS:
        assert gradcheck(getattr(sde, key), (t,))  # gradcheck's own tolerances: 1e-5 absolute, 1e-3 relative
    level = sde.log_snr(t).detach().requires_grad_()
    assert gradcheck(sde.t_of_log_snr, (level,))
    slope = torch.func.vmap(torch.func.grad(sde.t_of_log_snr))(level.detach())
    tangent = torch.func.jvp(sde.t_of_log_snr, (level.detach(),), (torch.ones(3, dtype=torch.float64),))[1]
    expected = -((sde.sigma(t) / sde.g(t)) ** 2).detach()  # dλ/dt = -g²/σ²
    torch.testing.assert_close(slope, expected, rtol=1e-9, atol=0.0)  # roundings, as for g above
    torch.testing.assert_close(tangent, expected, rtol=1e-9, atol=0.0)  # forward mode sees the same


PARAMETRIC: dict[str, tuple[Callable[..., SDE], tuple[float, ...]]] = {
    "VP": (VP, (0.1, 20.0)),
    "SubVP": (SubVP, (0.3, 12.0)),
    "VE": (VE, (0.02, 30.0)),
    "Cosine": (Cosine, (0.01,)),
    "LinearSDE": (lambda a, b: LinearSDE(lambda t: -a * (1 + t), lambda t: b * (1 + t)), (0.7, 1.3)),
    "ScheduleSDE": (lambda a: ScheduleSDE(lambda t: torch.exp(-a * t), lambda t: torch.expm1(a * t)), (0.8,)),
    "derived VP": (lambda a, b: bare(VP(a, b)), (0.1, 20.0)),
}


@pytest.mark.filterwarnings("error::UserWarning")  # torch warns where a gradient is cut by float(tensor)
@pytest.mark.parametrize(("make", "values"), PARAMETRIC.values(), ids=PARAMETRIC)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_differentiable_in_parameters(make: Callable[..., SDE], values: tuple[float, ...], dtype: torch.dtype) -> None:
    parameters = tuple(torch.tensor(v, dtype=torch.float64).to(dtype).requires_grad_() for v in values)
    t = torch.tensor([0.2, 0.9], dtype=torch.float64)
    level = make(*values).log_snr(t)
    x, y = normal(2, 3), normal(2, 3, seed=1)
    of: dict[str, Callable[[SDE], Any]] = {key: lambda s, key=key: getattr(s, key)(t) for key in FUNCTIONS}
    of["t_of_log_snr"] = lambda s: s.t_of_log_snr(level)
    of["marginal"] = lambda s: s.marginal(x, t)
    of["transition"] = lambda s: s.transition(x, 0.1, t)
    of["bridge"] = lambda s: s.bridge(x, y, 0.1, t, 0.95)
    of["posterior"] = lambda s: s.posterior(x, y, 0.1, t)
    of["prior"] = lambda s: s.prior_log_prob(x)
    of["chain"] = lambda s: s.discretize(30).sigma
    for key, function in of.items():
        if dtype == torch.float64:
            assert gradcheck(lambda *p, function=function: function(make(*p)), parameters), key
        else:
            out = function(make(*parameters))
            out = sum(o.sum() for o in out) if isinstance(out, tuple) else out.sum()
            assert out.dtype == torch.float64, key  # schedule arithmetic is float64 whatever the parameters are
            if out.requires_grad:  # VE's f and α have no parameters
                grads = torch.autograd.grad(out, parameters, allow_unused=True)
                assert any(g is not None and bool(g.isfinite()) for g in grads), key
    assert all(parameter.requires_grad for parameter in parameters)


# -- laws of x_t ---------------------------------------------------------------------------------------------------


@given(sde=sdes(), parts=st.tuples(fractions(), fractions(), fractions()))
def test_transitions_chain_and_match_marginals(sde: SDE, parts: tuple[float, float, float]) -> None:
    s, u, t = at(sde, *parts)
    (r_su, v_su), (r_ut, v_ut), (r_st, v_st) = (sde.transition_coefficients(*pair) for pair in ((s, u), (u, t), (s, t)))
    scale = sde.sigma(t).item() ** 2  # variances are differences of squares up to σ_t²: roundings of that remain
    torch.testing.assert_close(r_su * r_ut, r_st, rtol=16 * EPS, atol=0.0)
    torch.testing.assert_close(v_ut + r_ut**2 * v_su, v_st, rtol=16 * EPS, atol=16 * EPS * scale)
    x0 = normal(4, 2)
    mean, std = sde.marginal(x0, s)
    (carried, added), (expected, total) = sde.transition(mean, s, t), sde.marginal(x0, t)
    torch.testing.assert_close(carried, expected, rtol=16 * EPS, atol=1e-15)
    torch.testing.assert_close((r_st * std) ** 2 + added**2, total**2, rtol=16 * EPS, atol=16 * EPS * scale)


def _condition(mean: Tensor, cov: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance of the last coordinate of a Gaussian given all others, by linear algebra."""
    weights = torch.linalg.solve(cov[:-1, :-1], cov[:-1, -1])
    return mean[-1] + (values - mean[:-1]) @ weights, cov[-1, -1] - weights @ cov[:-1, -1]


@given(sde=sdes(), parts=st.tuples(*[st.floats(0.02, 0.98)] * 3), values=st.tuples(*[st.floats(-3, 3)] * 2))
def test_bridge_and_posterior_by_brute_force(
    sde: SDE, parts: tuple[float, float, float], values: tuple[float, float]
) -> None:
    """x_0 ~ N(m, p) makes (x_0, x_s, x_u, x_t) jointly Gaussian: Cov(x_a, x_b) = α_a α_b p + (α_b/α_a) σ_a², a < b."""
    s, u, t = at(sde, *parts)
    if min(u - s, t - u) < 0.02 * (sde.T - sde.t_min):
        return  # nearly equal times: the covariance is singular and elimination, not the formula, loses the digits
    times = torch.tensor([s, t, u], dtype=torch.float64)
    alpha, variance = sde.alpha(times), sde.sigma(times) ** 2
    p, m = 0.7, 0.3
    cov = torch.empty(3, 3, dtype=torch.float64)
    for i in range(3):
        for j in range(3):
            first, last = (i, j) if times[i] <= times[j] else (j, i)
            cov[i, j] = p * alpha[i] * alpha[j] + alpha[last] / alpha[first] * variance[first]
    given_values = torch.tensor(values, dtype=torch.float64)
    ends = given_values[:, None]
    # the tolerance: roundings of 2e-16 magnified by the condition number of the covariance that is solved
    loss = 1e3 * EPS * torch.linalg.cond(cov[:2, :2]).item()
    scale = cov[2, 2].item()
    mean, std = sde.bridge(ends[:1], ends[1:], s, u, t)
    expected, left = _condition(m * alpha, cov, given_values)
    assert mean.item() == pytest.approx(expected.item(), rel=loss, abs=10 * loss * (1 + scale))
    assert std.item() ** 2 == pytest.approx(left.item(), rel=loss, abs=loss * scale)

    # p(x_s | x_0, x_t): order (x_0, x_t, x_s)
    a, v = alpha[[1, 0]], variance[[1, 0]]
    cov = torch.full((3, 3), p, dtype=torch.float64)
    cov[0, 1:] = cov[1:, 0] = p * a
    cov[1, 1], cov[2, 2] = p * a[0] ** 2 + v[0], p * a[1] ** 2 + v[1]
    cov[1, 2] = cov[2, 1] = p * a[0] * a[1] + a[0] / a[1] * v[1]
    loss = 1e3 * EPS * torch.linalg.cond(cov[:2, :2]).item()
    scale = cov[2, 2].item()
    mean, std = sde.posterior(ends[:1], ends[1:], s, t)
    expected, left = _condition(torch.tensor([m, m * a[0], m * a[1]]).double(), cov, given_values)
    assert mean.item() == pytest.approx(expected.item(), rel=loss, abs=10 * loss * (1 + scale))
    assert std.item() ** 2 == pytest.approx(left.item(), rel=loss, abs=loss * scale)


@pytest.mark.parametrize("sde", [s for s in DEFAULTS if s.sigma(0.0) == 0], ids=name)
def test_ends_of_bridges_and_posteriors_are_the_given_points(sde: SDE) -> None:
    x, y = normal(3, 2), normal(3, 2, seed=1)
    s, t = 0.2 * sde.T, 0.7 * sde.T
    for (mean, std), point in [
        (sde.posterior(x, y, 0.0, t), x),
        (sde.posterior(x, y, t, t), y),
        (sde.bridge(x, y, s, s, t), x),
        (sde.bridge(x, y, s, t, t), y),
    ]:
        torch.testing.assert_close(mean, point, rtol=8 * EPS, atol=1e-15)  # one product of weights 1 and 0
        assert std.max() == 0


# -- shapes and dtypes ---------------------------------------------------------------------------------------------


@given(sde=sdes(), event=EVENTS, dtype=DTYPES, data=st.data())
def test_any_event_shape_and_per_sample_times(sde: SDE, event: tuple[int, ...], dtype: torch.dtype, data: Any) -> None:
    batch = data.draw(st.integers(1, 4))
    x, y = normal(batch, *event, dtype=dtype), normal(batch, *event, seed=1, dtype=dtype)
    s, u, t = torch.stack([draw_times(data, sde, batch) for _ in range(3)]).sort(0).values
    t = torch.where(t == s, torch.full_like(t, sde.T), t)
    s = torch.where(t == s, torch.full_like(s, sde.t_min), s)
    together = {
        "marginal": (sde.marginal(x, t), lambda i: sde.marginal(x[i : i + 1], t[i])),
        "transition": (sde.transition(x, s, t), lambda i: sde.transition(x[i : i + 1], s[i], t[i])),
        "bridge": (sde.bridge(x, y, s, u, t), lambda i: sde.bridge(x[i : i + 1], y[i : i + 1], s[i], u[i], t[i])),
        "posterior": (sde.posterior(x, y, s, t), lambda i: sde.posterior(x[i : i + 1], y[i : i + 1], s[i], t[i])),
    }
    # one rounding to x's dtype of each coefficient, where a scalar t multiplies in float64
    close = 8 * torch.finfo(dtype).eps
    for key, ((mean, std), alone) in together.items():
        assert mean.shape == x.shape and mean.dtype == dtype, key
        assert std.shape == (batch, *[1] * len(event)) and std.dtype == dtype, key
        for i in range(batch):
            one_mean, one_std = alone(i)
            assert one_std.shape == () and one_mean.dtype == dtype, key
            size = 1e-30 + close * float(x.abs().max() + y.abs().max())
            torch.testing.assert_close(mean[i : i + 1], one_mean, rtol=close, atol=size)
            torch.testing.assert_close(std[i].flatten()[0].double(), one_std, rtol=close, atol=1e-30)


@pytest.mark.parametrize("sde", DEFAULTS, ids=name)
def test_times_of_any_kind_are_the_same_time(sde: SDE) -> None:
    t = 0.25 * sde.T
    for key in FUNCTIONS:
        function = getattr(sde, key)
        exact = function(t)
        assert exact.dtype == torch.float64 and exact.shape == ()
        same: list[Any] = [torch.tensor(t, dtype=torch.float64), np.float64(t), np.asarray(t), [t]]
        assert all(function(other).flatten().item() == exact.item() for other in same)
        assert function(np.array([t, t])).shape == (2,)
        assert function(torch.zeros(0, dtype=torch.float64)).shape == (0,)
        for dtype, out in [(torch.float32, torch.float32), (torch.bfloat16, torch.float32), (torch.float64,) * 2]:
            rounded = torch.tensor([t], dtype=torch.float64).to(dtype)
            got = function(rounded)
            assert got.dtype == out
            # the formula itself runs in float64 at the time that came in; only the answer is rounded
            torch.testing.assert_close(got, function(rounded.double()).to(out), rtol=0, atol=0)
    assert EDM().sigma(3).item() == 3.0 and EDM().sigma(torch.tensor([2, 3])).tolist() == [2.0, 3.0]


@pytest.mark.parametrize("end", [0.3, 0.7, 1.1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_last_time_may_come_in_rounded(end: float, dtype: torch.dtype) -> None:
    sde = VP(T=end)
    t = torch.tensor([end], dtype=torch.float64).to(dtype)  # float32(0.3) > 0.3
    assert sde.alpha(t).item() == pytest.approx(sde.alpha(end).item(), rel=20 * torch.finfo(dtype).eps)  # |f| <= 10
    for any_sde in (*DEFAULTS, *map(bare, DEFAULTS), sde):
        last = torch.tensor(any_sde.T)
        if last.double() <= any_sde.t_max:
            back = any_sde.t_of_log_snr(any_sde.log_snr(last))  # λ in float32 may lie a rounding outside its range
            assert back.item() == pytest.approx(any_sde.T, rel=1e-5)  # λ rounds by 1e-6, dt/dλ <= T/2
            any_sde.alpha(back)


def test_half_precision_states() -> None:
    for dtype in (torch.bfloat16, torch.float16):
        x = normal(3, 4).to(dtype)
        for t in (0.5, torch.full((3,), 0.5, dtype=torch.float64)):
            mean, std = VP().marginal(x, t)
            exact, scale = VP().marginal(x.double(), t)
            assert mean.dtype == dtype
            torch.testing.assert_close(mean.double(), exact, rtol=2 * torch.finfo(dtype).eps, atol=0)  # two roundings
            torch.testing.assert_close(std.double(), scale, rtol=torch.finfo(dtype).eps, atol=0)


def test_per_sample_times_follow_the_device_of_the_state() -> None:
    """On "meta", a device without numbers, as on an accelerator: nothing may mix devices or read a value back."""
    x, t = torch.empty(3, 2, device="meta"), torch.tensor([0.1, 0.2, 0.3])
    for sde in (VP(), VE(), RectifiedFlow()):
        outputs = [sde.marginal(x, t), sde.transition(x, 0.05, t), sde.bridge(x, x, 0.05, t, 0.5)]
        outputs += [sde.posterior(x, x, 0.05, t), sde.marginal(x, t.to("meta"))]
        outputs += [sde.transition(x, 0.05, t.to("meta")), sde.transition(x, t.to("meta"), 0.5)]
        assert all(mean.device.type == "meta" and mean.shape == x.shape for mean, _ in outputs)


def test_transforms_and_compilation() -> None:
    t, x = torch.tensor([0.1, 0.6], dtype=torch.float64), normal(2, 3)
    for sde in (VP(), bare(VP())):
        for key in FUNCTIONS:
            function = getattr(sde, key)
            torch.testing.assert_close(torch.func.vmap(function)(t), function(t), rtol=EPS, atol=0)
        slope = torch.func.vmap(torch.func.grad(sde.alpha))(t)
        torch.testing.assert_close(slope, sde.alpha(t) * sde.f(t), rtol=1e-13, atol=0)  # α' = f α, roundings
    compiled = torch.compile(lambda x, t: VP().marginal(x, t), backend="eager", fullgraph=True)(x, t)
    torch.testing.assert_close(compiled, VP().marginal(x, t), rtol=0, atol=0)


# -- where coefficients diverge, and bad input ---------------------------------------------------------------------


@given(sde=sdes())
def test_a_value_or_an_error_but_never_nan(sde: SDE) -> None:
    for t in {0.0, sde.t_min, sde.T, sde.t_max}:
        for key in FUNCTIONS:
            try:
                value = getattr(sde, key)(t)
            except ValueError as error:
                assert key in ("f", "g") and f"{t:g}" in str(error) and not 0 < t <= sde.T
            else:
                assert not bool(value.isnan())
                assert bool(value.isfinite()) or (key == "log_snr" and t in (0.0, sde.t_max))


@pytest.mark.parametrize("sde", [Cosine(), RectifiedFlow()], ids=name)
def test_ends_where_no_signal_is_left(sde: SDE) -> None:
    x = normal(2, 3)
    assert sde.alpha(1.0).item() == 0 and sde.log_snr(1.0).item() == -math.inf
    assert sde.t_of_log_snr(-math.inf).item() == 1.0 and abs(sde.t_of_log_snr(math.inf).item()) < EPS
    assert bool(sde.transition(x, 0.5, 1.0)[1] == sde.sigma(1.0))  # ratio 0: all of x_t is noise
    for call in (sde.f, sde.g):
        with pytest.raises(ValueError, match=r"no finite value at t = 1\. Stay inside"):
            call(1.0)
    # from there a time leads to itself alone, as every other does
    y = normal(2, 3, seed=1)
    for mean, std in (sde.transition(y, 1.0, 1.0), sde.posterior(x, y, 1.0, 1.0), sde.bridge(x, y, 0.5, 1.0, 1.0)):
        assert torch.equal(mean, y) and not std.any()
    assert dataclasses.replace(sde, T=1.0).prior_std == sde.sigma(1.0)


@pytest.mark.parametrize("sde", ZERO_TERMINAL.values(), ids=ZERO_TERMINAL)
def test_zero_terminal_snr(sde: SDE) -> None:
    """The prior is the law of x_T, whatever x_0; up to T all is as everywhere."""
    assert sde.T == 1.0 and not has_signal(sde.alpha(sde.T), sde.sigma(sde.T))
    t = grid_of(sde)
    assert signal_left(sde.alpha(t), sde.sigma(t)).tolist() == [True] * 32 + [False]
    assert bool((sde.sigma(t[:-1]) / sde.alpha(t[:-1])).diff().gt(0).all())
    level = sde.log_snr(t)
    # -inf, or -75 where rounding left 6e-17 of α; dt/dλ = σ²/g² times the rounding of λ <= 25
    assert level[-1].item() < -70 and bool(level.diff().lt(0).all())
    torch.testing.assert_close(sde.t_of_log_snr(level), t, rtol=1e-10, atol=1e-11)
    # no signal at all is none of it, too, however little rounding leaves
    assert sde.t_of_log_snr(torch.tensor([-math.inf, -80.0])).tolist() == pytest.approx([1.0, 1.0], rel=1e-15)
    x = normal(3, 2)
    mean, std = sde.marginal(x, sde.T)
    assert mean.abs().max() < 1e-15 and std == sde.prior_std
    wide = Gaussian(torch.tensor([5.0, -3.0]).double(), 4.0)
    torch.testing.assert_close(sde.prior_log_prob(x), wide.log_prob(x, sde, sde.T), rtol=1e-14, atol=1e-14)
    # transitions into T forget: ratio 0, all variance new; and they chain
    ratio, variance = sde.transition_coefficients(t[:-1], sde.T)
    assert bool(ratio.abs().max() < 1e-12)  # 6e-17 over the α of the time before
    torch.testing.assert_close(variance, (sde.prior_std**2).expand(32), rtol=1e-14, atol=0.0)
    mean, std = sde.bridge(x, normal(3, 2, seed=1), 0.1, 0.6, sde.T)  # the end says nothing of the middle
    torch.testing.assert_close((mean, std), sde.transition(x, 0.1, 0.6), rtol=1e-14, atol=1e-15)
    mean, std = sde.posterior(x, normal(3, 2, seed=1), 0.6, sde.T)
    torch.testing.assert_close((mean, std), sde.marginal(x, 0.6), rtol=1e-14, atol=1e-15)


@given(key=st.sampled_from(sorted(ZERO_TERMINAL)), parts=st.tuples(fractions(), fractions()))
def test_transitions_chain_up_to_zero_terminal_snr(key: str, parts: tuple[float, float]) -> None:
    """In particular the way to the last level of a chain, which is linear in nothing, is that of a Markov process."""
    sde = ZERO_TERMINAL[key]
    s, u, t = at(sde, *(0.999 * part for part in parts), 1.0)
    (r_su, v_su), (r_ut, v_ut), (r_st, v_st) = (sde.transition_coefficients(*pair) for pair in ((s, u), (u, t), (s, t)))
    torch.testing.assert_close(r_su * r_ut, r_st, rtol=16 * EPS, atol=0.0)
    torch.testing.assert_close(v_ut + r_ut**2 * v_su, v_st, rtol=16 * EPS, atol=16 * EPS)
    assert v_su.item() >= 0 and (s == u or v_su.item() > 0)


@pytest.mark.parametrize("sde", [*DEFAULTS, *map(bare, DEFAULTS), *ZERO_TERMINAL.values()], ids=lambda s: repr(s)[:30])
def test_slopes_of_alpha_and_sigma(sde: SDE) -> None:
    """``derivatives`` by central differences; at T, where f diverges if α = 0, by one-sided ones."""
    t = sde.t_min + (sde.T - sde.t_min) * torch.tensor([0.1, 0.31, 0.5, 0.77, 0.96], dtype=torch.float64)
    short = 1e-6 * sde.T
    for got, function in zip(sde.derivatives(t), (sde.alpha, sde.sigma), strict=True):
        expected = (function(t + short) - function(t - short)) / (2 * short)
        # third derivatives of up to (20/T)³ times short²; roundings of σ <= 80 over short
        torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-8 * sde.sigma(sde.T).item())
        (end,), last = sde.derivatives(torch.tensor([sde.T]))[0 if function == sde.alpha else 1], sde.T - 1e-12
        expected = 1.5 * function(last) - 2 * function(last - short) + 0.5 * function(last - 2 * short)
        assert end.dtype == torch.float32
        assert end.item() == pytest.approx(expected.item() / short, rel=1e-5, abs=1e-6 * sde.sigma(sde.T).item())
    mixed = torch.tensor([sde.T, 0.3 * sde.T], dtype=torch.float64)  # one of them without signal
    for row, one in enumerate(mixed):
        for both, alone in zip(sde.derivatives(mixed), sde.derivatives(one), strict=True):
            assert both[row].item() == pytest.approx(alone.item(), rel=1e-9, abs=1e-12)


def test_slopes_are_refused_where_they_are_infinite() -> None:
    for sde in (VP(), bare(VP()), Cosine()):
        with pytest.raises(ValueError, match="no finite value at t = 0"):
            sde.derivatives(0.0)  # σ ~ sqrt(t)


@pytest.mark.parametrize("sde", [RectifiedFlow(T=1.0), Cosine(T=1.0), ZERO_TERMINAL["chain"]], ids=name)
def test_a_chain_ends_where_its_sde_does(sde: SDE) -> None:
    chain = sde.discretize(10)
    assert chain.ratio[-1] == 0 and chain.variance[-1] == sde.prior_std**2
    torch.testing.assert_close(chain.sigma, sde.sigma(chain.times), rtol=1e-12, atol=0.0)  # sums of 10 terms


@pytest.mark.parametrize(
    "bad",
    [None, "0.5", True, 1j, torch.tensor(1j), torch.tensor([True]), np.array([0.5 + 1j]), np.array(["a"]), Ellipsis],
    ids=repr,
)
def test_times_that_are_no_numbers(bad: Any) -> None:
    for call in (VP().alpha, bare(VP()).f, VP().log_snr, VP().t_of_log_snr, lambda t: VP().marginal(normal(1, 2), t)):
        with pytest.raises(TypeError, match=r"must be a (real )?number or (a )?tensor, got"):
            call(bad)


@pytest.mark.parametrize("bad", [-0.1, 1.1, math.nan, math.inf, torch.tensor([0.5, math.nan]), np.array([2.0])])
def test_times_out_of_range(bad: Any) -> None:
    x = normal(2, 3)
    vp = VP()
    for call in (vp.alpha, vp.f, bare(vp).g, vp.log_snr, lambda t: vp.marginal(x, t), lambda t: vp.transition(x, 0, t)):
        with pytest.raises(ValueError, match=r"must lie in \[0, 1\], the time range of|time range"):
            call(bad)


@pytest.mark.parametrize("sde", [VP(), SubVP(), VE(), EDM(), bare(VP())], ids=name)
def test_log_snr_out_of_range(sde: SDE) -> None:
    lowest = sde.log_snr(sde.T).item()
    for bad in (lowest - 0.1, math.nan, -math.inf, torch.tensor([0.0, math.nan])):
        with pytest.raises(ValueError, match="log_snr must be one that"):
            sde.t_of_log_snr(bad)
    with pytest.raises(ValueError, match="log_snr must be one that"):
        VE().t_of_log_snr(20.0)  # VE has σ(0) = σ_min


def test_states_and_batches_that_do_not_fit() -> None:
    sde, x, two = VP(), normal(3, 2), torch.tensor([0.1, 0.2])
    calls: dict[str, Callable[[Any, Any], Any]] = {
        "marginal": lambda x, t: sde.marginal(x, t),
        "transition": lambda x, t: sde.transition(x, t, 0.9),
        "transition's end": lambda x, t: sde.transition(x, 0.05, t),
        "bridge": lambda x, t: sde.bridge(x, x, 0.05, t, 0.9),
        "bridge's start": lambda x, t: sde.bridge(x, x, t, 0.5, 0.9),
        "posterior": lambda x, t: sde.posterior(x, x, t, 0.9),
    }
    for call in calls.values():
        for batch in (x, x[:1]):  # one sample must not be broadcast against two times
            with pytest.raises(ValueError, match=r"has 2 entries but x has \d samples"):
                call(batch, two)
        with pytest.raises(ValueError, match=r"one time \(\) or one per sample"):
            call(x, torch.zeros(3, 1))
        for bad in (x.numpy(), [1.0], x.long()):
            with pytest.raises(TypeError, match=r"must be a (torch\.Tensor|floating tensor)"):
                call(bad, 0.5)
        with pytest.raises(ValueError, match="batch axis"):
            call(torch.tensor(1.0), 0.5)
    for call in (sde.bridge, sde.posterior):
        with pytest.raises(ValueError, match="same shape"):
            call(x, x[:2], 0.1, 0.2) if call == sde.posterior else call(x, x[:2], 0.1, 0.2, 0.3)
    with pytest.raises(ValueError, match="same shape"):
        sde.transition_coefficients(two, torch.tensor([0.5, 0.6, 0.7]))


def test_times_in_the_wrong_order() -> None:
    sde, x = VP(), normal(2, 3)
    for call in (
        lambda: sde.transition(x, 0.5, 0.4),
        lambda: sde.transition(x, torch.tensor([0.1, 0.5]), 0.4),
        lambda: sde.bridge(x, x, 0.1, 0.5, 0.4),
        lambda: sde.bridge(x, x, 0.3, 0.2, 0.4),
        lambda: sde.posterior(x, x, 0.5, 0.4),
    ):
        with pytest.raises(ValueError, match="forward in time"):
            call()
    for call in (lambda: sde.bridge(x, x, 0.5, 0.5, 0.5), lambda: sde.posterior(x, x, 0.0, 0.0)):
        with pytest.raises(ValueError, match="take s < t"):
            call()


BAD_PARAMETERS: list[tuple[Callable[..., SDE], dict[str, Any], type[Exception], str]] = [
    (VP, {"T": math.nan}, ValueError, "T must be a number, got nan"),
    (VP, {"T": math.inf}, ValueError, "t_min < T"),
    (VP, {"t_min": -1e-3}, ValueError, "0 <= t_min"),
    (VP, {"t_min": 1.0}, ValueError, "t_min < T"),
    (VP, {"beta_min": 0.0}, ValueError, "beta_min must be positive"),
    (VP, {"beta_min": math.nan}, ValueError, "beta_min must be a number"),
    (VP, {"beta_min": 21.0}, ValueError, "at least beta_min"),
    (SubVP, {"beta_max": math.inf}, ValueError, "beta_max must be positive and finite"),
    (SubVP, {"beta_max": "20"}, TypeError, "real number"),
    (VP, {"beta_max": torch.tensor([20.0])}, TypeError, r"shape \(\), got a tensor \(1,\)"),
    (VP, {"beta_max": torch.tensor(math.nan)}, ValueError, "beta_max must be a number"),
    (VE, {"sigma_min": -1.0}, ValueError, "sigma_min must be positive"),
    (VE, {"sigma_max": 0.005}, ValueError, "must exceed sigma_min"),
    (VE, {"sigma_max": math.inf}, ValueError, "sigma_max must be positive and finite"),
    (Cosine, {"s": 0.0}, ValueError, "s must be positive"),
    (Cosine, {"T": 1.01}, ValueError, "T <= 1"),
    (RectifiedFlow, {"T": 1.01}, ValueError, "T <= 1"),
    (EDM, {"T": 0.001}, ValueError, "t_min < T"),
]


@pytest.mark.parametrize(("kind", "bad", "error", "message"), BAD_PARAMETERS)
def test_bad_parameters(kind: Callable[..., SDE], bad: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        kind(**bad)


def test_a_member_is_ten_lines() -> None:
    @dataclasses.dataclass(frozen=True)
    class Power(SDE):
        power: float = 2.0

        def alpha(self, t: Tensor) -> float:  # type: ignore[override]
            return 1.0  # a constant will do: it is spread over the times

        def sigma(self, t: Tensor) -> Tensor:  # type: ignore[override]
            return t**self.power

    sde = Power(power=3.0)
    assert sde.f(0.5).item() == 0
    assert sde.alpha(torch.tensor([0.5, 0.6])).tolist() == [1.0, 1.0]
    assert sde.g(0.5).item() == pytest.approx(math.sqrt(6 * 0.5**5), rel=1e-14)  # g² = d t⁶/dt, roundings
    assert sde == Power(power=3.0) and hash(sde) == hash(Power(power=3.0)) and sde != Power()
    with pytest.raises(dataclasses.FrozenInstanceError):
        sde.power = 1.0  # type: ignore[misc]


def test_nothing_starts_where_no_signal_is_left() -> None:
    @dataclasses.dataclass(frozen=True)
    class Early(SDE):
        def alpha(self, t: Tensor) -> Tensor:  # type: ignore[override]
            return (1 - 2 * t).clamp_min(0)

        def sigma(self, t: Tensor) -> Tensor:  # type: ignore[override]
            return t

    with pytest.raises(ValueError, match=r"nothing starts from s = 0\.6"):
        Early().transition(normal(2, 3), 0.6, 0.7)


def test_a_schedule_that_gains_signal_is_refused() -> None:
    @dataclasses.dataclass(frozen=True)
    class Wrong(SDE):
        def alpha(self, t: Tensor) -> Tensor:  # type: ignore[override]
            return torch.ones_like(t)

        def sigma(self, t: Tensor) -> Tensor:  # type: ignore[override]
            return 1 - t

    with pytest.raises(ValueError, match="g has no finite value"):
        Wrong().g(0.5)


# -- what cannot be derived ----------------------------------------------------------------------------------------


def test_functions_that_hide_their_derivative_are_refused() -> None:
    grid = torch.linspace(0, 1, 1001, dtype=torch.float64)
    table = grid**2 + 0.01 * grid

    def looked_up(t: Tensor) -> Tensor:
        return table[(t * 1000).round().long()]

    def numbers(t: Tensor) -> Tensor:
        return torch.tensor([v.item() for v in t.detach()], dtype=torch.float64)

    for sigma in (looked_up, numbers, lambda t: t.detach()):
        with pytest.raises(ValueError, match=r"g² cannot be derived.*\.item"):
            ScheduleSDE(lambda t: torch.ones_like(t), sigma)
    with pytest.raises(ValueError, match=r"f cannot be derived"):
        ScheduleSDE(lambda t: 1 - 0.5 * t.detach(), lambda t: t)
    # steep, flat at one end, and over twelve orders of magnitude: all derivable
    ScheduleSDE(lambda t: torch.ones_like(t), lambda t: torch.sigmoid(40 * (t - 0.5)))
    ScheduleSDE(lambda t: 1 - t, lambda t: t**4, T=0.999)
    ScheduleSDE(lambda t: torch.ones_like(t), lambda t: 1e-6 * 1e12**t)


def test_a_rising_snr_is_refused_at_any_scale() -> None:
    """The room for rounding of a schedule that rests is relative to σ²/T."""

    @dataclasses.dataclass(frozen=True)
    class Scaled(SDE):
        scale: float = 1.0
        slope: float = 0.0

        def alpha(self, t: Tensor) -> Tensor:  # type: ignore[override]
            return torch.ones_like(t)

        def sigma(self, t: Tensor) -> Tensor:  # type: ignore[override]
            return self.scale * (1 + self.slope * t)

    for scale in (1e-8, 1.0, 1e8):
        assert Scaled(scale=scale).g(0.3).item() == 0
        with pytest.raises(ValueError, match="g has no finite value"):
            Scaled(scale=scale, slope=-0.5).g(0.3)


@pytest.mark.parametrize("make", [lambda p: VP(beta_min=p), lambda p: Cosine(s=p), lambda p: EDM()])
def test_deviations_of_zero_have_gradient_zero(make: Any) -> None:
    parameter, t = (torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in (0.1, 0.0))
    sde, x = make(parameter), normal(3, 2)
    deviations = [
        sde.marginal(x, t)[1],
        sde.transition(x, t, t)[1],
        sde.posterior(x, x, t, 0.5)[1],
        sde.bridge(x, x, t, t, 0.5)[1],
    ]
    inputs = [t] if isinstance(sde, EDM) else [t, parameter]
    for std in deviations:
        assert float(std) == 0
        if std.requires_grad:
            gradients = torch.autograd.grad(std, inputs, allow_unused=True)
            assert all(g is None or bool(g.isfinite()) for g in gradients)


def test_derived_g_is_refused_where_sigma_is_zero() -> None:
    """VP's σ ~ sqrt(t) has an infinite slope at 0, so autodiff knows nothing of g(0) = sqrt(β_min) there."""
    sde = ScheduleSDE(VP().alpha, VP().sigma)
    with pytest.raises(ValueError, match=r"g has no finite value at t = 0"):
        sde.g(0.0)
    # a little later the derivation holds, to the rounding of 1 - α² (about 1e-16 / 1e-7)
    assert sde.g(1e-6).item() == pytest.approx(VP().g(1e-6).item(), rel=1e-8)
