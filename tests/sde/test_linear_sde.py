"""SDEs from a user's functions: f and g integrated to α and σ, or α and σ themselves."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.integrate import quad
from strategies import bare, grid_of, integrated, members, name
from torch import Tensor
from torch.autograd import gradcheck

from scoresde.sde import EDM, SDE, VE, VP, Cosine, LinearSDE, RectifiedFlow, ScheduleSDE, SubVP

STARTING_CLEAN: tuple[SDE, ...] = (VP(), SubVP(), EDM(), Cosine(), RectifiedFlow())  # σ(0) = 0, as quadrature begins


@given(sde=members().filter(lambda s: not isinstance(s, VE)))
def test_integrated_members_are_the_members(sde: SDE) -> None:
    t = torch.cat([grid_of(sde), torch.logspace(-6, 0, 13, dtype=torch.float64) * sde.T])
    linear = integrated(sde)
    # the promise of the issue and of LinearSDE's docstring (panels settle at 1e-11)
    torch.testing.assert_close(linear.alpha(t), sde.alpha(t), rtol=1e-10, atol=0.0)
    torch.testing.assert_close(linear.sigma(t), sde.sigma(t), rtol=1e-10, atol=0.0)
    # f and g are the user's own, not derivatives of the integrals
    torch.testing.assert_close(linear.f(t), sde.f(t), rtol=0.0, atol=0.0)
    torch.testing.assert_close(linear.g(t), sde.g(t), rtol=0.0, atol=0.0)


def test_exploding_variance_from_zero() -> None:
    """VE starts at σ_min, quadrature at 0: the variances differ by σ_min² everywhere."""
    ve, t = VE(), grid_of(VE())
    linear = LinearSDE(0.0, ve.g)
    torch.testing.assert_close(linear.sigma(t) ** 2 + ve.sigma_min**2, ve.sigma(t) ** 2, rtol=2e-10, atol=0.0)  # so
    assert bool((linear.alpha(t) == 1).all())


@given(f=st.floats(-3, 1), g=st.floats(0.1, 5), t=st.floats(1e-6, 2))
def test_constant_coefficients_are_ornstein_uhlenbeck(f: float, g: float, t: float) -> None:
    sde = LinearSDE(f, g, T=2.0)
    variance = g * g * (math.expm1(2 * f * t) / (2 * f) if f else t)
    # the promised 1e-10; expm1 is exact to rounding
    assert sde.alpha(t).item() == pytest.approx(math.exp(f * t), rel=1e-10, abs=0.0)
    assert sde.sigma(t).item() == pytest.approx(math.sqrt(variance), rel=1e-10, abs=0.0)


def test_against_nested_quadrature() -> None:
    """f and g of no named member, integrated a second time by scipy."""

    def f(t: Any) -> Any:
        return -(1 + torch.as_tensor(3 * t, dtype=torch.float64).sin()) * (2 - t)

    def g(t: Any) -> Any:
        return (torch.as_tensor(t, dtype=torch.float64).cos() + 1.5) ** 2

    sde = LinearSDE(f, g, T=1.3)
    for t in (1e-3, 0.3, 1.3):
        log_alpha = quad(lambda u: float(f(u)), 0, t, epsrel=1e-12)[0]
        ratio = quad(
            lambda u: float(g(u)) ** 2 * math.exp(-2 * quad(lambda w: float(f(w)), 0, u, epsrel=1e-13)[0]),
            0,
            t,
            epsrel=1e-12,
        )[0]
        assert sde.alpha(t).item() == pytest.approx(math.exp(log_alpha), rel=1e-10, abs=0.0)
        assert sde.sigma(t).item() == pytest.approx(math.exp(log_alpha) * math.sqrt(ratio), rel=1e-10, abs=0.0)


def bump(t: Any, at: float, width: float) -> Any:
    return torch.exp(-(((torch.as_tensor(t, dtype=torch.float64) - at) / width) ** 2))


def bump_area(t: float, at: float, width: float) -> float:
    """∫_0^t of the bump."""
    return 0.5 * math.sqrt(math.pi) * width * (math.erf((t - at) / width) + math.erf(at / width))


def test_panels_are_added_for_features_that_only_alpha_sees() -> None:
    sde = LinearSDE(lambda t: -30 * bump(t, 1.0, 0.01), lambda t: (1 - t) ** 8)  # no noise where f acts
    for t in (0.5, 0.99, 1.0):
        assert sde.alpha(t).item() == pytest.approx(math.exp(-30 * bump_area(t, 1.0, 0.01)), rel=1e-10)  # the promise


def test_panels_are_added_for_features_that_only_sigma_sees() -> None:
    sde = LinearSDE(0.0, lambda t: torch.sqrt(1 + 50 * bump(t, 0.5, 0.01)))
    for t in (0.2, 0.51, 1.0):
        assert sde.sigma(t).item() == pytest.approx(math.sqrt(t + 50 * bump_area(t, 0.5, 0.01)), rel=1e-10)


def test_small_times_keep_their_relative_accuracy() -> None:
    """At t = 0.01 the bump is 1e-8 of σ², later it is nothing: only early times ask for panels."""
    sde = LinearSDE(0.0, lambda t: torch.sqrt(t**4 + 1e-15 * bump(t, 5.6e-3, 4e-5)))
    for t in (6e-3, 1e-2, 1.0):
        exact = math.sqrt(t**5 / 5 + 1e-15 * bump_area(t, 5.6e-3, 4e-5))
        assert sde.sigma(t).item() == pytest.approx(exact, rel=1e-10, abs=0.0)


@pytest.mark.parametrize("sde", STARTING_CLEAN, ids=name)
@pytest.mark.parametrize("of", [integrated, bare], ids=["LinearSDE", "ScheduleSDE"])
def test_everything_else_follows(sde: SDE, of: Callable[[SDE], SDE]) -> None:
    mine, t = of(sde), grid_of(sde, 9)
    # 1e-10 in α and σ is 4e-10 in λ, times dt/dλ <= t for these members; λ itself reaches 14
    torch.testing.assert_close(mine.log_snr(t), sde.log_snr(t), rtol=1e-10, atol=1e-9)
    torch.testing.assert_close(mine.t_of_log_snr(sde.log_snr(t)[1:-1]), t[1:-1], rtol=1e-8, atol=1e-12)
    s, u, end = t[1], t[4], t[7]
    for ours, theirs in zip(mine.transition_coefficients(s, u), sde.transition_coefficients(s, u), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=0.0)  # a difference of σ², so some digits fewer
    x, y = torch.ones(2, 3, dtype=torch.float64), torch.arange(6.0, dtype=torch.float64).reshape(2, 3)
    for ours, theirs in [
        (mine.marginal(x, t[:2]), sde.marginal(x, t[:2])),
        (mine.bridge(x, y, s, u, end), sde.bridge(x, y, s, u, end)),
        (mine.posterior(x, y, s, u), sde.posterior(x, y, s, u)),
    ]:
        torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-10)
    torch.testing.assert_close(mine.prior_log_prob(x), sde.prior_log_prob(x), rtol=1e-9, atol=1e-9)
    chain, expected = mine.discretize(7), SDE.discretize(sde, 7)
    torch.testing.assert_close(chain.sigma, expected.sigma, rtol=1e-8, atol=0.0)


def test_differentiable_in_time_and_in_what_the_functions_hold() -> None:
    a = torch.tensor(0.8, dtype=torch.float64, requires_grad=True)
    b = torch.tensor(1.7, dtype=torch.float64, requires_grad=True)
    t = torch.tensor([0.01, 0.5, 0.99], dtype=torch.float64, requires_grad=True)

    def linear(a: Tensor, b: Tensor) -> SDE:
        return LinearSDE(lambda t: -a * (1 + t), lambda t: b * torch.sqrt(1 + t * a))

    def schedule(a: Tensor, b: Tensor) -> SDE:
        return ScheduleSDE(lambda t: torch.exp(-a * t), lambda t: b * t)

    for make in (linear, schedule):
        for key in ("alpha", "sigma", "f", "g", "log_snr"):
            # gradcheck's own tolerances; its steps of 1e-6 change the number of panels by none
            assert gradcheck(lambda a, b, t, make=make, key=key: getattr(make(a, b), key)(t), (a, b, t)), key
        level = make(a, b).log_snr(t).detach()
        assert gradcheck(lambda a, b, level, make=make: make(a, b).t_of_log_snr(level), (a, b, level.requires_grad_()))
    # the derivative of the quadrature in t is the coefficient itself
    sde = linear(a.detach(), b.detach())
    torch.testing.assert_close(SDE.f(sde, t), sde.f(t), rtol=1e-9, atol=0.0)  # 1e-10 in α, differentiated
    torch.testing.assert_close(SDE.g(sde, t), sde.g(t), rtol=1e-9, atol=0.0)


@pytest.mark.parametrize("make", [lambda: integrated(VP()), lambda: bare(VP())], ids=["LinearSDE", "ScheduleSDE"])
def test_shapes_and_dtypes(make: Callable[[], SDE]) -> None:
    sde = make()
    for key in ("alpha", "sigma", "f", "g", "log_snr"):
        function = getattr(sde, key)
        assert function(0.5).shape == () and function(torch.zeros(0)).shape == (0,)
        assert function(torch.tensor([0.5, 0.6])).dtype == torch.float32
        # one time alone or among others: sums over the panels may run in another order
        both = function(torch.tensor([0.5, 0.6], dtype=torch.float64))
        torch.testing.assert_close(both[0], function(0.5), rtol=1e-14, atol=0.0)


def test_numbers_and_float32_parameters() -> None:
    """A function may answer with a number, or in float32 from a float32 parameter."""
    rate = torch.tensor(-0.75, requires_grad=True)
    sde = LinearSDE(lambda t: rate, lambda t: 2.0)
    assert sde.alpha(0.5).dtype == torch.float64
    assert torch.autograd.grad(sde.alpha(0.5), rate)[0].item() == pytest.approx(0.5 * math.exp(-0.375), rel=1e-6)
    flat = ScheduleSDE(lambda t: 1.0, lambda t: t.float(), T=2.0)  # type: ignore[arg-type,return-value]
    assert flat.f(0.5).item() == 0.0 and flat.sigma(0.5).item() == 0.5


BAD_LINEAR: list[tuple[Any, Any, dict[str, float], type[Exception], str]] = [
    (math.nan, 1.0, {}, ValueError, "f must be finite"),
    (lambda t: -1 / (0.5 - t).clamp_min(0), 1.0, {}, ValueError, "must be finite inside"),
    (lambda t: -1 / (1 - t), 1.0, {}, ValueError, "diverges or jumps"),
    (lambda t: (t > 0.31).double(), 1.0, {}, ValueError, "diverges or jumps"),
    (-1.0, 0.0, {}, ValueError, r"g must be positive: it is 0 on \(0, 1\]"),
    (-1.0, lambda t: (t > 0.5).double(), {}, ValueError, r"g must be positive: it is 0 on \(0, 0\.5\]"),
    (lambda t: torch.ones(3), 1.0, {}, ValueError, r"given \(\d+,\) and answered \(3,\)"),
    (-1.0, lambda t: t[:, None] * t, {}, ValueError, "must work elementwise"),
    ("minus one", 1.0, {}, TypeError, "minus one"),
    (-1.0, 1.0, {"T": math.nan}, ValueError, "T must be a number, got nan"),
    (-1.0, 1.0, {"T": 1e-4}, ValueError, "t_min < T"),
]


@pytest.mark.parametrize(("f", "g", "options", "error", "message"), BAD_LINEAR)
def test_bad_coefficients(f: Any, g: Any, options: dict[str, float], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        LinearSDE(f, g, **options)


BAD_SCHEDULE: list[tuple[Any, Any, dict[str, float], str]] = [
    (lambda t: 0.9 - t, lambda t: t, {}, r"α\(t\) > 0"),
    (lambda t: (0.9 - t).clamp_min(0), lambda t: t, {}, r"α\(t\) > 0 but at T"),
    (lambda t: -torch.ones_like(t), lambda t: t, {}, r"α\(t\) > 0"),
    (torch.ones_like, lambda t: -t, {}, r"σ\(t\) >= 0"),
    (lambda t: t * math.nan, lambda t: t, {}, r"α\(t\) > 0"),
    (torch.ones_like, lambda t: t * math.nan, {}, r"σ\(t\) >= 0"),
    (torch.ones_like, torch.ones_like, {}, "must increase"),
    (torch.ones_like, lambda t: 1 - t, {}, "must increase"),
    (torch.ones_like, lambda t: (t - 0.2).clamp_min(0), {}, "must increase"),
    (torch.ones_like, lambda t: torch.zeros(7), {}, "must work elementwise"),
    (torch.ones_like, lambda t: t, {"t_min": 2.0}, "t_min < T"),
]


@pytest.mark.parametrize(("alpha", "sigma", "options", "message"), BAD_SCHEDULE)
def test_bad_schedules(alpha: Any, sigma: Any, options: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ScheduleSDE(alpha, sigma, **options)


def test_log_snr_is_that_of_alpha_and_sigma() -> None:
    sde, t = (
        LinearSDE(lambda t: -0.5 - 4 * t, lambda t: (1 + 8 * t).sqrt()),
        torch.linspace(0, 1, 9, dtype=torch.float64),
    )
    torch.testing.assert_close(sde.log_snr(t), SDE.log_snr(sde, t), rtol=1e-13, atol=1e-13)  # rounding of logarithms
    torch.testing.assert_close(sde.inverse_snr(t), SDE.inverse_snr(sde, t), rtol=1e-13, atol=0)
