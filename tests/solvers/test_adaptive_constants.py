"""Adaptive solvers step by step, their formulas written out: the constants that a law or an error would hardly show."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from strategies import normal
from torch import Tensor

from scoresde.models import as_score
from scoresde.noise import BrownianNoise, IndependentNoise, Noise, PerSampleNoise
from scoresde.problems import GaussianMixture
from scoresde.reverse import Reverse
from scoresde.sde import EDM, SDE, VP, RectifiedFlow
from scoresde.solvers import AdaptiveODE, AdaptiveSDE
from scoresde.solvers._adams import Adams
from scoresde.solvers._embedded import DORMAND_PRINCE, EmbeddedPair
from scoresde.solvers._remembered import Driver, Followed, Remembered
from scoresde.solvers._step_control import StepLimits, Tolerance, ratios

F64 = torch.float64
MIXTURE = GaussianMixture(torch.ones(2), torch.tensor([[-1.0, 0.3], [0.7, 0.1]], dtype=F64), 0.05)
ROUNDING = {"rtol": 1e-9, "atol": 1e-11}


def tensor(*values: Any) -> Tensor:
    return torch.tensor(values, dtype=F64)


def rms(x: Tensor) -> Tensor:
    return x.square().mean(1).sqrt()


class Given(Noise):
    """Normals in a known order."""

    def __init__(self, *draws: Tensor) -> None:
        self.draws = list(draws)

    def normal(self, x: Tensor) -> Tensor:
        return self.draws.pop(0)

    def initial(self, shape: Any, *, dtype: Any, device: Any) -> Tensor:
        raise AssertionError("nothing is drawn from the prior")


# ---- the limits of steps, and the tolerance ----


def test_defaults() -> None:
    for solver in (AdaptiveODE(), AdaptiveSDE()):
        assert (solver.shrink, solver.grow, solver.safety, solver.max_steps) == (0.2, 2.5, 0.7, 1000)
    assert (AdaptiveODE().rtol, AdaptiveODE().atol, AdaptiveODE().max_order) == (1e-4, 1e-4, 6)
    assert (AdaptiveSDE().rtol, AdaptiveSDE().atol) == (1e-2, 1e-2)


def test_the_next_step() -> None:
    limits = StepLimits(shrink=0.2, grow=2.5, safety=0.7)
    h, factor = tensor(0.1).expand(6), tensor(0.05, 0.5, 0.95, 1.2, 3.0, 1.0)
    taken = torch.ones(6, dtype=torch.bool)
    torch.testing.assert_close(limits.next(h, factor, taken), 0.1 * tensor(0.2, 0.5, 0.95, 1.2, 2.5, 1.0))
    torch.testing.assert_close(limits.next(h, factor, ~taken), 0.1 * tensor(0.2, 0.5, 0.9, 0.9, 0.9, 0.9))


def test_the_tolerance() -> None:
    x = normal(5, 3)
    torch.testing.assert_close(Tolerance(0.03, 0.002).of(x), 0.002 + 0.03 * rms(x), **ROUNDING)
    for dtype, eps in ((torch.float32, 2.0**-23), (F64, 2.0**-52)):
        assert Tolerance(1e-30, 1e-3).above_rounding(dtype) == Tolerance(4 * eps, 1e-3)
        assert Tolerance(0.1, 1e-3).above_rounding(dtype) == Tolerance(0.1, 1e-3)


def test_where_a_run_without_a_score_at_its_end_ends() -> None:
    """σ = 0: at least 0.01 here, or half the first value; α = 0: at most 50, or twice the last."""
    flow = RectifiedFlow(T=1.0, t_min=0.0)

    def ends(*times: float) -> tuple[list[float], bool]:
        found, to_zero = ratios(flow, tensor(*times), 0.01, 50.0)
        return found.tolist(), to_zero

    assert ends(0.9, 0.5, 0.001, 0.0) == (pytest.approx([9.0, 1.0, 0.01, 0.01]), True)
    assert ends(0.012, 0.0) == (pytest.approx([0.012 / 0.988, 0.5 * 0.012 / 0.988]), True)
    assert ends(0.9, 0.1) == (pytest.approx([9.0, 1 / 9]), False)
    assert ends(1.0, 0.5) == (pytest.approx([50.0, 1.0]), False)
    assert ends(1.0, 0.99) == (pytest.approx([198.0, 99.0]), False)
    assert ends(1.0, 0.0) == (pytest.approx([50.0, 0.01]), True)


@pytest.mark.parametrize("scale", [1.0, 0.3])
def test_how_near_to_the_data_and_to_noise_a_run_goes(scale: float) -> None:
    """To a noise level of about the root of the tolerance without noise, of the tolerance with it."""
    flow = RectifiedFlow(T=1.0, t_min=0.0)
    grid, x = tensor(1.0, 0.0), normal(2, 2)
    for method in ("adams", "dopri5"):
        solver: Any = AdaptiveODE(method=method, rtol=1e-3, atol=3e-3, sigma_data=scale)  # type: ignore[arg-type]
        line, _ = solver.begin(Reverse(MIXTURE.score(flow), 0.0), x, grid, IndependentNoise(0))
        least, most = scale * math.sqrt(4e-3), scale / 4e-3
        expected = -torch.atan(tensor(most, least) / scale)
        torch.testing.assert_close(line.ends, expected, **ROUNDING)
    solver = AdaptiveSDE(rtol=1e-3, atol=3e-3, sigma_data=scale)
    line, _ = solver.begin(Reverse(MIXTURE.score(flow), 1.0), x, grid, IndependentNoise(0))
    torch.testing.assert_close(line.ends, -tensor(scale / 4e-3, scale * 4e-3).log(), **ROUNDING)


@pytest.mark.parametrize(("part", "steps"), [(1 / 1.049, 1), (1 / 1.051, 2)])
def test_a_last_step_goes_a_little_further_rather_than_leave_a_splinter(part: float, steps: int) -> None:
    sde = VP()
    process, x = Reverse(as_score(lambda x, t: -x, sde), 0.0), normal(2, 2)  # the flow rests: every step is taken
    line, _ = AdaptiveODE().begin(process, x, tensor(0.9, 0.4), IndependentNoise(0))
    whole = float(line.ends[1] - line.ends[0])
    run = AdaptiveODE(first_step=part * whole, rtol=10.0, atol=10.0).solve(process, x, tensor(0.9, 0.4))
    assert run.nfe == 1 + steps


# ---- Adams ----


def adams(tolerance: Tolerance, max_order: int = 6) -> tuple[Any, Adams, Tensor, Tensor]:
    process, x = Reverse(MIXTURE.score(VP()), 0.0), normal(3, 2)
    solver = AdaptiveODE(rtol=tolerance.rtol, atol=tolerance.atol, max_order=max_order)
    line, method = solver.begin(process, x, tensor(0.9, 0.4), IndependentNoise(0))
    assert isinstance(method, Adams)
    return line, method, line.enter(x), line.ends[0].expand(3)


def test_the_first_steps_of_adams_written_out() -> None:
    """Order 1: Euler predicts, the trapezoidal rule corrects, their difference is the error; then order 2."""
    tolerance = Tolerance(0.02, 0.003)
    line, method, y, p = adams(tolerance)
    torch.testing.assert_close(method.first_step(y), (0.003 + 0.02 * rms(y)).sqrt(), **ROUNDING)

    def slope(y: Tensor, p: Tensor) -> Tensor:
        return line.slope(y, line.at(p))

    h = tensor(0.04, 0.02, 0.03)
    one = h[:, None]
    v = slope(y, p)
    guess = y + one * v
    new = slope(guess, p + h)
    after = y + one * 0.5 * (v + new)
    got, error, factor = method.attempt(y, p, h, p + h)
    torch.testing.assert_close(got, after, **ROUNDING)
    scale = 0.003 + 0.02 * torch.maximum(rms(y), rms(after))
    expected = rms(one * 0.5 * (new - v)) / scale
    torch.testing.assert_close(error, expected, **ROUNDING)
    torch.testing.assert_close(factor, 0.7 * expected ** (-1 / 2), **ROUNDING)
    torch.testing.assert_close(
        method.between(y, tensor(0.3).expand(3)), y + one * (0.3 * v + 0.045 * (new - v)), **ROUNDING
    )

    method.commit(torch.ones(3, dtype=torch.bool))
    y, p, before, v, old = after, p + h, v, new, h
    h = 1.5 * old
    one, two = h[:, None], old[:, None]
    rise = (v - before) / two  # a divided difference
    guess = y + one * v + one**2 / 2 * rise
    new = slope(guess, p + h)
    second = ((new - v) / one - rise) / (one + two)
    # through three values, Newton's form from the newest: ∫ over the step
    after = y + one * v + one**2 / 2 * rise + second * (one**3 / 3 + two * one**2 / 2)
    got, error, factor = method.attempt(y, p, h, p + h)
    torch.testing.assert_close(got, after, **ROUNDING)
    scale = 0.003 + 0.02 * torch.maximum(rms(y), rms(after))
    expected = rms(second * (one**3 / 3 - one**3 / 2)) / scale
    torch.testing.assert_close(error, expected, **ROUNDING)


# ---- the embedded pair ----


def test_the_pairs_controller_written_out() -> None:
    process, x = Reverse(MIXTURE.score(VP()), 0.0), normal(3, 2)
    solver = AdaptiveODE(method="dopri5", rtol=2e-6, atol=3e-7)
    line, method = solver.begin(process, x, tensor(0.9, 0.2), IndependentNoise(0))
    assert isinstance(method, EmbeddedPair)
    y, p = line.enter(x), line.ends[0].expand(3)
    torch.testing.assert_close(method.first_step(y), 0.1 * (3e-7 + 2e-6 * rms(y)) ** (1 / 5), **ROUNDING)
    last, outcomes = torch.ones(3, dtype=F64), set()
    for length in (0.1, 0.15, 0.35, 0.1):
        h = tensor(length).expand(3)
        after, error, factor = method.attempt(y, p, h, p + h)
        difference = sum(w * k for w, k in zip(DORMAND_PRINCE.error, method.slopes, strict=True))
        scale = 3e-7 + 2e-6 * torch.maximum(rms(y), rms(after))
        torch.testing.assert_close(error, rms(difference) * h / scale, rtol=1e-6, atol=0)  # type: ignore[arg-type]
        smooth = error.clamp_min(1e-10) ** (-0.7 / 5) * last ** (0.4 / 5)
        plain = error.clamp_min(1e-10) ** (-1 / 5)
        accepted = error <= 1
        outcomes |= set(accepted.tolist())
        torch.testing.assert_close(factor, 0.7 * torch.where(accepted, smooth, plain), **ROUNDING)
        method.commit(accepted)
        last = torch.where(accepted, error.clamp_min(1e-4), last)
        y, p = torch.where(accepted[:, None], after, y), torch.where(accepted, p + h, p)
    assert outcomes == {True, False}


# ---- the stochastic pair ----


class Handed(Driver):
    """Given noises N."""

    def __init__(self, noise: Noise, x: Tensor, eta: Any) -> None:
        super().__init__(noise, x, eta)

    def attempt(self, p: Tensor, target: Tensor, times: tuple[Tensor, Tensor]) -> Tensor:
        return normal(*self.template.shape, seed=3)

    def between(self, p: Tensor, times: tuple[Tensor, Tensor]) -> Tensor:
        return normal(*self.template.shape, seed=4)

    def commit(self, moved: Tensor, accepted: Tensor) -> None:
        pass


@pytest.mark.parametrize("eta", [0.6, 1.0])
@pytest.mark.parametrize("sde", [VP(), EDM()], ids=["VP", "EDM"])
def test_a_step_of_the_stochastic_pair_written_out(sde: SDE, eta: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("scoresde.solvers.adaptive.driver", Handed)
    score, scale, k = MIXTURE.score(sde), 0.8, 1 + eta**2
    t = tensor(0.6 * sde.T)[0]
    x = sde.sigma(t) * normal(3, 2)
    solver = AdaptiveSDE(rtol=0.02, atol=0.003, sigma_data=scale)
    line, method = solver.begin(Reverse(score, eta), x, torch.stack([t, t / 50]), IndependentNoise(0))
    y, p = line.enter(x), line.ends[0].expand(3)
    torch.testing.assert_close(method.first_step(y), tensor(0.5).expand(3), **ROUNDING)

    h = tensor(0.3, 0.5, 0.8)
    s = sde.t_of_log_snr(2 * (p + h))
    a, b = sde.alpha(s)[:, None], sde.sigma(s)[:, None]
    whole = 1 - torch.exp(-k * h)[:, None]
    data = score.denoise(x, t)
    shrunk = torch.exp(-(eta**2) * h)[:, None]
    guess = b / sde.sigma(t) * shrunk * x + a * whole * data + b * normal(3, 2, seed=3)
    change = a * (1 - whole / (k * h[:, None])) * (score.denoise(guess, s) - data)
    size = (a**2 + (b / scale) ** 2).sqrt()
    after, error, factor = method.attempt(y, p, h, p + h)
    torch.testing.assert_close(after, (guess + change) / size, **ROUNDING)
    room = 0.003 + 0.02 * torch.maximum(rms(y), rms(after))
    torch.testing.assert_close(error, rms(change / size) / room, **ROUNDING)
    torch.testing.assert_close(factor, 0.7 * error ** (-2 / 3), **ROUNDING)

    part = tensor(0.4).expand(3)
    u = sde.t_of_log_snr(2 * (p + part * h))
    a, b = sde.alpha(u)[:, None], sde.sigma(u)[:, None]
    whole = 1 - torch.exp(-k * part * h)[:, None]
    rising = (1 - whole / (k * part * h)[:, None]) * 0.4
    inside = b / sde.sigma(t) * torch.exp(-(eta**2) * part * h)[:, None] * x + a * whole * data
    inside = inside + a * rising * (score.denoise(guess, s) - data) + b * normal(3, 2, seed=4)
    size = (a**2 + (b / scale) ** 2).sqrt()
    torch.testing.assert_close(method.between(y, part), inside / size, **ROUNDING)


# ---- the noise of steps that are taken back ----


def conditional(rate: float, known: dict[float, float]) -> Callable[[float], tuple[float, float]]:
    """Mean and variance of R at a place, given values: dR = -rate R dh + sqrt(2 rate) dW from R(0) = 0."""

    def covariance(u: float, v: float) -> float:
        return math.exp(-rate * abs(u - v)) - math.exp(-rate * (u + v))

    def at(place: float) -> tuple[float, float]:
        gram = tensor(*[[covariance(u, v) for v in known] for u in known])
        cross = tensor(*[covariance(place, v) for v in known])
        gain = torch.linalg.solve(gram, cross)
        return float(gain @ tensor(*known.values())), covariance(place, place) - float(gain @ cross)

    return at


@pytest.mark.parametrize("eta", [0.5, 1.0])
def test_what_a_rejected_step_has_drawn_is_bridged_exactly(eta: float) -> None:
    """Free, tied to one fact, then between places: the conditional law of R by its covariance, and given normals."""
    draws = [tensor([5.0]), tensor([0.7]), tensor([-1.1]), tensor([0.4]), tensor([0.9])]
    x, rate = torch.zeros(1, 1, dtype=F64), eta**2

    class Apart(Given):
        def stream(self, purpose: str) -> Noise:
            return Given(tensor([1.3]), tensor([-0.2]))

    driver = Remembered(Apart(*draws), x, eta)
    times = (tensor(0.5), tensor(0.5))

    def attempt(p: float, s: float) -> float:
        return float(driver.attempt(tensor(p), tensor(s), times))

    def law(place: float, **known: float) -> tuple[float, float]:
        return conditional(rate, {float(k[1:].replace("_", ".")): v for k, v in known.items()})(place)

    moved = torch.ones(1, dtype=torch.bool)
    # a free step from 0 to 1.0, taken back
    far = attempt(0.0, 1.0)
    assert far == pytest.approx(math.sqrt(1 - math.exp(-2 * rate)) * 0.7, rel=1e-12)
    driver.commit(moved, ~moved)
    # up to the fact, if a step comes nearly there; else as far as it goes
    assert float(driver.reach(tensor(0.0), tensor(0.92))) == 1.0 and 1.0 < 1.1 * 0.92
    assert float(driver.reach(tensor(0.0), tensor(0.908))) == 0.908 and 1.1 * 0.908 < 1.0
    # half of it: from the bridge
    mean, variance = law(0.4, _1_0=far)
    near = attempt(0.0, 0.4)
    assert near == pytest.approx(mean + math.sqrt(variance) * -1.1, rel=1e-10)
    # inside that step: between 0 and 0.4
    mean, variance = law(0.1, _0_4=near)
    inside = float(driver.between(tensor(0.1), times))
    assert inside == pytest.approx(mean + math.sqrt(variance) * 1.3, rel=1e-10)
    mean, variance = conditional(rate, {0.1: inside, 0.4: near})(0.3)
    assert float(driver.between(tensor(0.3), times)) == pytest.approx(mean + math.sqrt(variance) * -0.2, rel=1e-10)
    driver.commit(moved, moved)
    # onto the fact itself: nothing is drawn that counts, N = R_1 - e^{-η² Δ} R_0.4
    assert attempt(0.4, 1.0) == pytest.approx(far - math.exp(-rate * 0.6) * near, rel=1e-12)
    driver.commit(moved, moved)
    # free again
    assert attempt(1.0, 1.5) == pytest.approx(math.sqrt(1 - math.exp(-rate)) * 0.9, rel=1e-12)


@pytest.mark.parametrize("eta", [0.5, 1.0])
def test_a_given_path_is_scaled_to_the_exact_deviation(eta: float) -> None:
    x, path = torch.zeros(2, 3, dtype=F64), BrownianNoise(1, 1.0)
    driver = Followed(path, x, eta)
    p, s = tensor(0.0, 0.0), tensor(0.5, 0.2)
    times = tensor(0.8, 0.8), tensor(0.5, 0.6)
    got = driver.attempt(p, s, times)
    deviation = (1 - torch.exp(-2 * eta**2 * (s - p))).sqrt()
    expected = deviation[:, None] * BrownianNoise(1, 1.0).between(x, *times)
    torch.testing.assert_close(got, expected, **ROUNDING)
    inner = tensor(0.3, 0.1)
    later = tensor(0.8, 0.8), tensor(0.6, 0.7)
    deviation = (1 - torch.exp(-2 * eta**2 * inner)).sqrt()
    expected = deviation[:, None] * BrownianNoise(1, 1.0).between(x, *later)
    torch.testing.assert_close(driver.between(inner, later), expected, **ROUNDING)


def test_which_noise_is_followed_and_which_is_remembered() -> None:
    x = torch.zeros(2, 3, dtype=F64)
    solver, process = AdaptiveSDE(), Reverse(MIXTURE.score(VP()), 1.0)
    for noise, kind in ((BrownianNoise(0, 1.0), Followed), (PerSampleNoise(0), Remembered)):
        _, method = solver.begin(process, x[:, :2], tensor(0.9, 0.1), noise)
        assert type(method.driver) is kind  # type: ignore[attr-defined]
