"""Couplings of data and noise: the exact plan, what stays of the laws, what is lost of the score, what is refused."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

import scoresde
from scoresde.editing import diffedit_mask, sdedit
from scoresde.guidance import autoguidance, classifier, classifier_free
from scoresde.inverse import Measurement, dps
from scoresde.losses import OptimalTransport, coupled_noise, coupling
from scoresde.models import ScoreModel
from scoresde.models.conditions import TrainedWith
from scoresde.nn import MLP
from scoresde.particles import tilted
from scoresde.reverse import Reverse
from scoresde.sde import SDE, VE, VP, RectifiedFlow
from scoresde.solvers import DDIM, EulerMaruyama, Heun, PredictorCorrector

F64 = torch.float64


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def cost(x0: Tensor, eps: Tensor) -> float:
    return float((x0 - eps).double().square().sum())


@pytest.mark.parametrize("event", [(1,), (3,), (2, 2)])
@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_no_order_of_the_noises_is_nearer(event: tuple[int, ...], dtype: torch.dtype) -> None:
    x0, eps = normal(6, *event, dtype=dtype), normal(6, *event, seed=1, dtype=dtype)
    found = coupled_noise(x0, eps)
    best = min(cost(x0, eps[list(order)]) for order in itertools.permutations(range(6)))
    assert cost(x0, found) == pytest.approx(best, rel=1e-6)  # of ties in rounding
    assert found.dtype == dtype and torch.equal(found.flatten(1).sort(0).values, eps.flatten(1).sort(0).values)


def test_on_a_line_the_order_of_the_noises_is_that_of_the_data() -> None:
    x0, eps = normal(200, 1), normal(200, 1, seed=1)
    found = coupled_noise(x0, eps)
    assert torch.equal(found[x0[:, 0].argsort()], eps.sort(0).values)


def test_paths_of_a_gaussian_become_straight() -> None:
    """x_0 ~ N(0, s²): ε -> x_0/s as B grows, so that the velocity ε - x_0 is a function of x_t, whatever the pair."""
    s, gaps = 2.0, []
    for batch in (64, 1024):
        x0 = s * normal(batch, 1, dtype=F64)
        found = coupled_noise(x0, normal(batch, 1, seed=1, dtype=F64))
        gaps.append(float((found - x0 / s).square().mean()))
    # E W_2² between two samples of size n of N(0, 1) is about (log log n)/n (Bobkov & Ledoux 2019, corollary 6.14),
    # twice that here; independent pairs have 2
    assert gaps[0] < 0.2 and gaps[1] < 0.02 and gaps[1] < gaps[0] / 4


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.uint8])
def test_within_each_label_the_noises_stay(dtype: torch.dtype) -> None:
    x0, eps, label = normal(40, 2), normal(40, 2, seed=1), (torch.arange(40) % 2).to(dtype)
    found = coupled_noise(x0, eps, conditions={"label": label})
    for value in (0, 1):
        rows = label.long() == value
        assert torch.equal(found[rows], coupled_noise(x0[rows], eps[rows]))
    assert cost(x0, found) < cost(x0, eps)


def test_coupling_across_labels_skews_the_noise_of_each_and_within_them_does_not() -> None:
    """Two classes at ±2: plain, class 1 gets the noises on its side, of mean sqrt(2/π); within labels, of mean 0."""
    batch, n, seeds = 64, 32, range(40)
    means: dict[str, list[float]] = {"plain": [], "within": []}
    label = torch.arange(batch) // n
    for seed in seeds:
        x0 = 4.0 * label[:, None] - 2 + 0.1 * normal(batch, 1, seed=seed)
        eps = normal(batch, 1, seed=1000 + seed)
        means["plain"].append(float(coupled_noise(x0, eps)[label == 1].mean()))
        means["within"].append(float(coupled_noise(x0, eps, conditions={"label": label})[label == 1].mean()))
    plain, within = (float(torch.tensor(one).mean()) for one in means.values())
    assert plain == pytest.approx((2 / torch.pi) ** 0.5, abs=0.05)  # of 40 batches: error 0.02
    assert abs(within) < 4 / (n * len(seeds)) ** 0.5  # four standard errors


def test_floating_conditions_hold_noises_back_by_their_weight() -> None:
    """w = 0 is the plain coupling, a large w leaves each noise at its own condition, between them the skew falls."""
    x0, eps = normal(60, 2), normal(60, 2, seed=1)
    y = x0[:, :1] + 0.3 * normal(60, 1, seed=2)
    given = {"y": y}
    assert torch.equal(coupled_noise(x0, eps, conditions=given, condition_weight=0), coupled_noise(x0, eps))
    assert torch.equal(coupled_noise(x0, eps, conditions=given, condition_weight=1e6), eps)

    def skew(weight: float) -> float:  # of noise and condition, which ought to be independent
        found = coupled_noise(x0, eps, conditions=given, condition_weight=weight)[:, :1]
        return abs(float((found * y).mean()))

    assert skew(0.0) > skew(3.0) > skew(100.0)


def test_rows_that_are_not_given_are_a_value_of_their_own() -> None:
    x0, eps = normal(20, 2), normal(20, 2, seed=1)
    y = torch.zeros(20, 1)
    y[::2] = torch.nan
    found = coupled_noise(x0, eps, conditions={"y": y}, condition_weight=1e6)
    for rows in (slice(0, None, 2), slice(1, None, 2)):
        assert torch.equal(found[rows], coupled_noise(x0[rows], eps[rows]))
    assert not torch.equal(found, coupled_noise(x0, eps))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"eps": normal(5, 2)}, "x0 and eps"),
        ({"conditions": {"y": normal(6, 1)}}, "condition_weight must be given"),
        ({"conditions": {"label": torch.zeros(5, dtype=torch.int64)}}, "a row for each of the 6"),
        ({"conditions": {"label": 3}}, "conditions"),
        ({"x0": normal(6, 2) / 0}, "x0"),
        ({"condition_weight": -1.0}, "condition_weight"),
    ],
)
def test_what_makes_no_sense_is_refused(arguments: dict[str, Any], message: str) -> None:
    given = {"x0": normal(6, 2), "eps": normal(6, 2, seed=1), **arguments}
    with pytest.raises((TypeError, ValueError), match=message):
        coupled_noise(given.pop("x0"), given.pop("eps"), **given)
    with pytest.raises((TypeError, ValueError), match="condition_weight"):
        OptimalTransport(-1.0)


# -- what is lost ------------------------------------------------------------------------------------------------------

S = 2.0


def coupled_model(*, told: bool = True) -> ScoreModel:
    """What training with ε = x_0/s teaches exactly: x_t = (α s + σ) ε, so that E[ε | x_t] = x_t/(α s + σ)."""
    sde = RectifiedFlow(T=1.0)

    def net(x: Tensor, c: Tensor) -> Tensor:
        sigma = c.exp() / (1 + c.exp())  # σ/(α + σ), and α + σ = 1
        at_end = torch.where(c.isinf(), 1.0, sigma)
        return ((1 - S) * x / ((1 - at_end) * S + at_end)[:, None]).to(x.dtype)

    model = ScoreModel(net, sde, "velocity")
    model.trained_with = TrainedWith((), {}, True, coupling="optimal transport" if told else None)
    return model


def test_the_ode_of_the_coupled_path_is_straight_and_right() -> None:
    """One Euler step from noise gives s ε, exactly: E[x_0 | x_T = ε] under the coupling."""
    eps = normal(500, 1, dtype=F64)
    for steps in (1, 7):
        found = scoresde.sample(coupled_model(), (500, 1), x=eps, steps=steps, eta=0.0, solver=DDIM(), dtype=F64,
                                denoise=False, grid=torch.linspace(1, 0, steps + 1, dtype=F64)).x  # fmt: skip
        torch.testing.assert_close(found.abs(), S * eps.abs(), rtol=1e-6, atol=1e-6)


def test_its_answers_are_no_score() -> None:
    """-E[ε | x_t]/σ is -x/(σ (α s + σ)), and the score of x_t = (α s + σ) ε is -x/(α s + σ)²."""
    model, x, t = coupled_model(), normal(5, 1, dtype=F64), 0.4
    width = 0.6 * S + 0.4
    torch.testing.assert_close(model(x, t), -x / (0.4 * width), rtol=1e-9, atol=0)
    assert ((model(x, t) + x / width**2).abs() > 0.5 * (x / width**2).abs()).all()


def test_a_reverse_sde_with_it_goes_wrong_and_is_refused() -> None:
    """The data have the deviation s = 2; the reverse SDE, were it allowed, ends elsewhere."""
    options: dict[str, Any] = {"steps": 200, "seed": 0, "eta": 1.0, "solver": EulerMaruyama(), "dtype": F64}
    grid = torch.linspace(0.98, 0.02, 201, dtype=F64)
    wrong = scoresde.sample(coupled_model(told=False), (4000, 1), grid=grid, **options).x
    assert abs(float(wrong.std()) / S - 1) > 0.2  # 4000 samples tell the deviation to 1 %
    with pytest.raises(ValueError, match=r"EulerMaruyama, which draws noise.*coupled \(optimal transport\)"):
        scoresde.sample(coupled_model(), (4, 1), grid=grid, **options)


def test_noise_of_its_own_half_way_goes_wrong_and_is_refused() -> None:
    """x_t = α x_0 + σ z has the variance α² s² + σ², that of the path (α s + σ)²; the ODE scales by s/(α s + σ)."""
    x0, t = S * normal(20_000, 1, dtype=F64), 0.5
    options: dict[str, Any] = {"t": t, "solver": DDIM(), "steps": 3, "seed": 1, "denoise": False}
    wrong = sdedit(coupled_model(told=False), x0, **options).x
    assert float(wrong.std()) == pytest.approx(S * (0.25 * S**2 + 0.25) ** 0.5 / (0.5 * S + 0.5), rel=0.02)
    with pytest.raises(ValueError, match=r"sdedit, which mixes.*coupled \(optimal transport\)"):
        sdedit(coupled_model(), x0, **options)
    with pytest.raises(ValueError, match=r"mask, which mixes.*coupled"):
        diffedit_mask(coupled_model(), coupled_model(told=False), torch.ones(2, 1, 4, dtype=F64), t=t)


@pytest.mark.parametrize(("sde", "lost"), [(VP(), 0.0066), (VE(0.01, 50.0), 0.0196)], ids=["VP", "VE"])
def test_what_is_lost_where_the_signal_does_not_end(sde: SDE, lost: float) -> None:
    """1 - σ/(α s + σ) at T with s = 1, as the top of the file says."""
    end = sde.alpha(sde.T) / (sde.alpha(sde.T) + sde.sigma(sde.T))
    assert float(end) == pytest.approx(lost, rel=0.02)
    assert f"{lost:.1%}".replace(".0", "").replace("%", " %") in (coupling.__doc__ or "")


def conditional() -> ScoreModel:
    model = ScoreModel(MLP(2, width=4, depth=1, num_classes=3), VP(), "v", sigma_data=1.0)
    model.trained_with = TrainedWith(("label",), {"label": 0.1}, True, coupling="optimal transport")
    return model


def test_all_that_takes_it_for_a_score_is_refused_and_the_ode_is_not() -> None:
    model = conditional()
    label = torch.tensor([1])
    score = model.bind(label=label)
    for solver in (PredictorCorrector(), Heun(churn=10.0)):
        with pytest.raises(ValueError, match="coupled"):
            scoresde.sample(score, (2, 2), steps=3, seed=0, solver=solver)
    with pytest.raises(ValueError, match="coupled"):
        classifier(score, lambda x, t: -x.square().sum(1))
    with pytest.raises(ValueError, match="coupled"):
        dps(score, Measurement.simulate(torch.ones(2, 2), lambda x: x[:, :1], 0.1, noise=0))
    guided = classifier_free(model, {"label": label}, scale=2.0)
    with pytest.raises(ValueError, match="coupled"):
        tilted(guided, (8, 2), steps=3, seed=0)
    plain = ScoreModel(MLP(2, width=4, depth=1), VP(), "v", sigma_data=1.0)
    for one in (guided, autoguidance(plain, score, 2.0), score, model.under(VP(beta_max=10.0)).bind(label=label)):
        assert one.coupling == "optimal transport"
        assert scoresde.sample(one, (2, 2), steps=3, seed=0, solver=Heun()).x.shape == (2, 2)
    assert Reverse(score, 0.0).drift(torch.zeros(2, 2), 0.5).shape == (2, 2)
    assert plain.coupling is None
