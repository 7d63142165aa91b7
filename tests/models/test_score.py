"""ScoreModel: every prediction is the same score, conditions, other schedules, and conversions of any score."""

from __future__ import annotations

import functools
import math
import warnings
from typing import Any, ClassVar

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.integrate import solve_ivp
from strategies import DEFAULTS, DTYPES, EVENTS, bare, draw_times, members, name, normal
from torch import Tensor, nn

from scoresde.models import (
    PREDICTIONS,
    Affine,
    ScoreModel,
    as_score,
    modules_of,
    parameters_of,
    score_of_denoiser,
)
from scoresde.models.model import Transported
from scoresde.problems import Gaussian, GaussianMixture
from scoresde.reverse import Reverse
from scoresde.sde import EDM, SDE, VE, VP, ChainSDE, Cosine, LinearSDE, RectifiedFlow, SubVP

EPS = torch.finfo(torch.float64).eps
MIXTURE = GaussianMixture(
    torch.tensor([0.3, 0.7]),
    torch.tensor([[-1.0, 0.5], [0.8, 0.2]], dtype=torch.float64),
    torch.tensor([0.05, 0.2], dtype=torch.float64),
)


def column(value: Tensor, x: Tensor) -> Tensor:
    return value.reshape(-1, *[1] * (x.ndim - 1))


def lost(sde: SDE, t: Tensor) -> dict[str, float]:
    """Tolerances: a target made of x_0 and ε loses as many digits as σ/α or α/σ has."""
    ratio = sde.sigma(t) / sde.alpha(t)
    return {"rtol": 1e-9, "atol": 1e3 * EPS * float((ratio + 1 / ratio).max())}


def perfect(sde: SDE, predicts: str, sigma_data: float | None) -> ScoreModel:
    """The model whose network returns, by the papers' definitions, the exact target for the mixture."""

    def net(x: Tensor, c: Tensor) -> Tensor:
        t = sde.t_of_log_snr(-2 * c)
        alpha, sigma = column(sde.alpha(t), x), column(sde.sigma(t), x)
        s = 0.5 if predicts == "edm" and sigma_data is None else sigma_data
        if s is not None:
            x = x * (alpha**2 * s**2 + sigma**2).sqrt()  # undo the scaling of the input
        score = MIXTURE.score(sde)(x, t)
        eps, x0 = -sigma * score, (x + sigma**2 * score) / alpha
        if predicts == "edm":
            assert s is not None
            ratio = sigma / alpha  # table 1 of Karras et al. 2022
            skip, out = s**2 / (ratio**2 + s**2), ratio * s / (ratio**2 + s**2).sqrt()
            return (x0 - skip * x / alpha) / out
        targets = {"noise": eps, "x0": x0, "v": alpha * eps - sigma * x0, "score": score, "velocity": eps - x0}
        return targets[predicts]

    return ScoreModel(net, sde, predicts, sigma_data)


# -- predictions ---------------------------------------------------------------------------------------------------


@given(
    sde=members(),
    predicts=st.sampled_from(sorted(PREDICTIONS)),
    sigma_data=st.sampled_from([None, 0.3, 2.0]),
    data=st.data(),
)
def test_every_prediction_is_the_same_score(sde: SDE, predicts: str, sigma_data: float | None, data: Any) -> None:
    t = draw_times(data, sde, 4)
    x = sde.alpha(t)[:, None] * normal(4, 2) + sde.sigma(t)[:, None] * normal(4, 2, seed=1)
    model = perfect(sde, predicts, sigma_data)
    score = MIXTURE.score(sde)(x, t)
    alpha, sigma = sde.alpha(t)[:, None], sde.sigma(t)[:, None]
    close = lost(sde, t)
    torch.testing.assert_close(sigma * model(x, t), sigma * score, **close)
    torch.testing.assert_close(model.noise(x, t), -sigma * score, **close)
    torch.testing.assert_close(model.denoise(x, t), (x + sigma**2 * score) / alpha, **close)
    for t0, row in zip(t, x.split(1), strict=True):  # one time for all
        torch.testing.assert_close(model.noise(row, t0), -sde.sigma(t0) * MIXTURE.score(sde)(row, t0), **close)
        assert torch.equal(model(row, t0), model(row, float(t0)))


@given(sde=members(), predicts=st.sampled_from(sorted(PREDICTIONS)), event=EVENTS, dtype=DTYPES, data=st.data())
def test_score_noise_and_denoised_agree_for_any_network(
    sde: SDE, predicts: str, event: tuple[int, ...], dtype: torch.dtype, data: Any
) -> None:
    t, x = draw_times(data, sde, 3), normal(3, *event, dtype=dtype)
    model = ScoreModel(lambda x, c: torch.sin(3 * x + column(c, x)), sde, predicts)
    score, eps, x0 = model(x, t), model.noise(x, t), model.denoise(x, t)
    assert score.shape == eps.shape == x0.shape == x.shape and score.dtype == eps.dtype == x0.dtype == dtype
    alpha, sigma = column(sde.alpha(t), x).to(dtype), column(sde.sigma(t), x).to(dtype)
    # ε = -σ s and x = α x_0 + σ ε, with roundings of each coefficient
    tiny = 64 * torch.finfo(dtype).eps
    torch.testing.assert_close(-sigma * score, eps, rtol=tiny, atol=tiny * float((1 + eps.abs()).max()))
    size = float((alpha * x0).abs().max() + (sigma * eps).abs().max() + 1)
    torch.testing.assert_close(alpha * x0 + sigma * eps, x, rtol=tiny, atol=tiny * size)
    assert model(x[:0], t[:0]).shape == (0, *event)


@pytest.mark.parametrize("sigma_data", [None, 0.7])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_what_the_network_sees(sigma_data: float | None, dtype: torch.dtype) -> None:
    seen: list[tuple[Tensor, Tensor]] = []

    def net(x: Tensor, c: Tensor) -> Tensor:
        seen.append((x, c))
        return x.float()  # as under autocast: the answer comes back in x's dtype

    for sde in DEFAULTS:
        model = ScoreModel(net, sde, "v", sigma_data)
        x = normal(3, 2).to(dtype)
        for t in (0.4 * sde.T, torch.full((3,), 0.4 * sde.T, dtype=torch.float64)):
            out = model(x, t)
            got, c = seen.pop()
            assert out.dtype == got.dtype == dtype
            # never below float32: times are not rounded to half precision
            assert c.shape == (3,) and c.dtype == torch.promote_types(dtype, torch.float32)
            expected = torch.as_tensor((sde.sigma(t) / sde.alpha(t)).log())
            torch.testing.assert_close(c, expected.expand(3).to(c.dtype), rtol=0, atol=0)
            deviation = 1.0
            if sigma_data:
                deviation = float((sde.alpha(0.4 * sde.T) ** 2 * sigma_data**2 + sde.sigma(0.4 * sde.T) ** 2).sqrt())
            eps = 2 * torch.finfo(dtype).eps  # a rounding of the coefficient and one of the product
            torch.testing.assert_close(got * deviation, x, rtol=eps, atol=0.0)


def test_scaled_inputs_have_unit_variance() -> None:
    for sde in (VP(), VE(), EDM()):
        x0, eps = 0.7 * normal(20000, 1), normal(20000, 1, seed=1)
        seen: list[Tensor] = []
        model = ScoreModel(lambda x, c, seen=seen: seen.append(x) or x, sde, sigma_data=0.7)  # type: ignore[func-returns-value]
        for t in (0.1 * sde.T, 0.9 * sde.T):
            model(sde.alpha(t) * x0 + sde.sigma(t) * eps, t)
            assert seen.pop().var().item() == pytest.approx(1.0, abs=5 * math.sqrt(2 / 20000))  # five deviations


def test_edm_scales_by_half_unless_told() -> None:
    x = normal(3, 2)
    assert ScoreModel(torch.tanh_, VP(), "edm").sigma_data == 0.5 and ScoreModel(torch.tanh_, VP()).sigma_data is None
    default, half, other = (ScoreModel(lambda x, c: x.sin(), VP(), "edm", s) for s in (None, 0.5, 0.6))
    assert torch.equal(default(x, 0.5), half(x, 0.5)) and not torch.equal(default(x, 0.5), other(x, 0.5))


def test_a_prediction_of_ones_own() -> None:
    """F = ε/2, as one function."""

    def predicts_half_noise(alpha: Tensor, sigma: Tensor, sigma_data: float) -> Affine:
        assert sigma_data == 1.0
        return Affine(torch.zeros_like(alpha), 2 * torch.ones_like(alpha), 1 / alpha, -2 * sigma / alpha)

    x = normal(3, 2)
    mine = ScoreModel(lambda x, c: 0.5 * x.sin(), VP(), predicts_half_noise)
    usual = ScoreModel(lambda x, c: x.sin(), VP())
    for method in ("forward", "noise", "denoise"):
        torch.testing.assert_close(getattr(mine, method)(x, 0.4), getattr(usual, method)(x, 0.4), rtol=8 * EPS, atol=0)
    warped = mine.under(RectifiedFlow(T=0.99, t_min=0.01))
    torch.testing.assert_close(warped(x, 0.4), usual.under(RectifiedFlow(T=0.99, t_min=0.01))(x, 0.4))


def test_a_module_keeps_its_parameters_and_gradients() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(2, dtype=torch.float64))

        def forward(self, x: Tensor, c: Tensor, shift: float = 0.0) -> Tensor:
            return torch.sin(self.weight * x + c[:, None] + shift)

    model = ScoreModel(Net(), VP())
    assert [key for key, _ in model.named_parameters()] == ["net.weight"]
    x = normal(3, 2).requires_grad_()
    t = torch.tensor([0.2, 0.5, 0.8], dtype=torch.float64, requires_grad=True)
    for method in (model.forward, model.noise, model.denoise):
        assert torch.autograd.gradcheck(method, (x, t))  # gradcheck's own tolerances
    loss = model(x, t).square().sum()
    assert all(bool((g != 0).all()) for g in torch.autograd.grad(loss, [model.net.weight, x, t]))
    bound = model.bind(shift=2.0)
    assert torch.equal(bound(x, t), model(x, t, {"shift": 2.0})) and not torch.equal(bound(x, t), model(x, t))
    assert torch.equal(bound.denoise(x, t), model.denoise(x, t, {"shift": 2.0}))
    # Tweedie's x + σ² s and the prediction's own form differ by roundings
    torch.testing.assert_close(
        as_score(bound.__call__, model.sde).denoise(x, t), bound.denoise(x, t), rtol=1e-12, atol=1e-12
    )
    with pytest.raises(ValueError, match="takes no condition shfit; it takes shift"):
        model.bind(shfit=2.0)
    rows = torch.func.vmap(lambda x, t: model(x[None], t)[0])(x, t)
    torch.testing.assert_close(rows, model(x, t), rtol=8 * EPS, atol=1e-15)  # the same formula, batched otherwise


# -- other schedules -----------------------------------------------------------------------------------------------


def inside(new: type[SDE], own: SDE) -> SDE:
    """The new schedule over exactly the trained one's range of σ/α."""
    last = {Cosine: 0.9999, RectifiedFlow: 0.9999, EDM: 1e4}.get(new, 1.5)
    whole = new(T=last, t_min=0.0)
    ends = whole.t_of_log_snr(own.log_snr(torch.tensor([own.t_min, own.T], dtype=torch.float64))).tolist()
    return new(t_min=ends[0], T=ends[1])


PAIRS = [(VP(), new) for new in (SubVP, Cosine, RectifiedFlow, EDM)] + [(RectifiedFlow(t_min=0.01), EDM), (SubVP(), VP)]
PAIRS += [(VE(), EDM), (bare(VP()), EDM)]


@pytest.mark.filterwarnings("error::UserWarning")  # the range is the trained one's: nothing to warn of
@pytest.mark.parametrize(("own", "new"), PAIRS, ids=lambda v: getattr(v, "__name__", type(v).__name__))
@pytest.mark.parametrize(("predicts", "sigma_data"), [("noise", 0.7), ("x0", None), ("edm", 1.3)])
def test_score_under_another_schedule_is_exact(
    own: SDE, new: type[SDE], predicts: str, sigma_data: float | None
) -> None:
    other = inside(new, own)
    model = perfect(own, predicts, sigma_data).under(other)
    t = (other.t_min + (other.T - other.t_min) * torch.tensor([0.01, 0.2, 0.5, 0.9, 1.0])).double()
    t = t.clamp_max(other.T)
    alpha, sigma = other.alpha(t)[:, None], other.sigma(t)[:, None]
    x = alpha * normal(5, 2) + sigma * normal(5, 2, seed=1)
    exact = MIXTURE.score(other)(x, t)
    close = lost(other, t)
    torch.testing.assert_close(sigma * model(x, t), sigma * exact, **close)
    torch.testing.assert_close(model.noise(x, t), -sigma * exact, **close)
    torch.testing.assert_close(model.denoise(x, t), (x + sigma**2 * exact) / alpha, **close)
    back = model.under(own)  # through a second schedule and home again
    own_t = own.t_of_log_snr(other.log_snr(t))
    y = x * own.alpha(own_t)[:, None] / alpha
    torch.testing.assert_close(back.noise(y, own_t), model.noise(x, t), **close)
    assert isinstance(back, Transported) and back.trained_under is own and back.net is model.net


@pytest.mark.parametrize(("own", "new"), PAIRS[:4] + PAIRS[6:7], ids=lambda v: getattr(v, "__name__", type(v).__name__))
def test_probability_flow_ends_are_the_same_up_to_alpha(own: SDE, new: type[SDE]) -> None:
    other = inside(new, own)
    model = perfect(own, "noise", None)
    start = own.sigma(own.T) * normal(3, 2)

    def end(sde: SDE, score: ScoreModel, x: Tensor) -> Tensor:
        """The probability-flow ODE from T to t_min, in the log-SNR, which both schedules share."""
        assert score.sde == sde
        process = Reverse(score, eta=0.0)
        ends = [sde.log_snr(t).item() for t in (sde.T, sde.t_min)]

        def rate(level: float, flat: Any) -> Any:
            t = sde.t_of_log_snr(min(max(level, ends[0]), ends[1]))
            drift = process.drift(torch.as_tensor(flat).reshape(x.shape), t)
            return (-((sde.sigma(t) / sde.g(t)) ** 2) * drift).flatten().numpy()  # dt/dλ = -σ²/g²

        found = solve_ivp(rate, ends, x.flatten().numpy(), method="DOP853", rtol=1e-9, atol=1e-11)
        return torch.from_numpy(found.y[:, -1]).reshape(x.shape)

    scale = [other.alpha(end_) / own.alpha(own_end) for end_, own_end in [(other.T, own.T), (other.t_min, own.t_min)]]
    first = end(own, model, start)
    second = end(other, model.under(other), start * scale[0])
    # the ODE tolerance of 1e-9 for each of about a hundred steps
    torch.testing.assert_close(second, first * scale[1], rtol=1e-6, atol=1e-7)
    assert first.abs().max() < 5  # on the data's scale, so the integration did carry noise to data


def test_conditions_go_along() -> None:
    model = ScoreModel(lambda x, c, shift=0.0: x.sin() + shift, VP())
    other = model.under(RectifiedFlow(t_min=0.05, T=0.9))
    x = normal(2, 3)
    assert not torch.equal(other(x, 0.5, {"shift": 1.0}), other(x, 0.5))
    assert torch.equal(other.bind(shift=1.0)(x, 0.5), other(x, 0.5, {"shift": 1.0}))
    with pytest.raises(TypeError):
        other(x, 0.5, {"shfit": 1.0})


def test_a_range_that_was_not_trained_is_told() -> None:
    model = ScoreModel(lambda x, c: x, RectifiedFlow(t_min=0.01, T=0.9))
    for wider in (RectifiedFlow(t_min=0.001, T=0.9), RectifiedFlow(t_min=0.01, T=0.95), VP(t_min=0.0)):
        with pytest.warns(UserWarning, match="but the network was trained under RectifiedFlow on"):
            model.under(wider)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.under(RectifiedFlow(t_min=0.01, T=0.9)).under(RectifiedFlow(t_min=0.02, T=0.8))
    with pytest.warns(UserWarning):
        beyond = ScoreModel(lambda x, c: x, VE()).under(EDM(t_min=1e-4))
    with pytest.raises(ValueError, match="log_snr must be one that"):
        beyond(normal(2, 2), 1e-4)  # VE's least σ is 0.01


def test_models_follow_the_device_of_the_state() -> None:
    """On "meta", a device without numbers, as on an accelerator."""
    x, t = torch.empty(3, 2, device="meta"), torch.tensor([0.1, 0.2, 0.3])
    model = ScoreModel(lambda x, c: x * c[:, None], VP(), "edm")
    for score in (model, model.under(RectifiedFlow(t_min=0.05, T=0.9)), model.under(LinearSDE(-1.0, 1.5, t_min=0.05))):
        for time in (t, t.to("meta"), 0.2):
            for method in (score.forward, score.noise, score.denoise):
                assert method(x, time).device.type == "meta"


def test_times_and_coefficients_for_each_sample_go_to_the_device_of_the_state() -> None:
    """As many solvers and users give them: on the CPU, in float64, whatever kind of score is asked."""
    sde, x, t = VP(), torch.empty(3, 2, device="meta"), torch.tensor([0.2, 0.5, 0.9], dtype=torch.float64)
    model = ScoreModel(lambda x, c: x * c[:, None], sde, "v")
    plain = [as_score(lambda x, t: -x, sde), score_of_denoiser(lambda x, t: x, sde)]
    for score in (*plain, model.bind(), model.under(RectifiedFlow(t_min=0.05, T=0.9))):
        alpha, sigma = score.sde.alpha(t), score.sde.sigma(t)
        answers = [score(x, t), score.linear(x, t, alpha, sigma), score.expect(x, t, alpha, sigma)]
        answers += [Reverse(score, eta).drift(x, t) for eta in (0.0, 1.0)]
        assert all(out.device.type == "meta" and out.shape == x.shape for out in answers)


# -- any score -----------------------------------------------------------------------------------------------------


@given(sde=members(), data=st.data())
def test_tweedie_and_its_inverse(sde: SDE, data: Any) -> None:
    t = draw_times(data, sde, 3)
    x = sde.alpha(t)[:, None] * normal(3, 2) + sde.sigma(t)[:, None] * normal(3, 2, seed=1)
    variance, mean = torch.tensor(0.4, dtype=torch.float64), torch.tensor([0.2, -0.6], dtype=torch.float64)
    score = Gaussian(mean, variance).score(sde)
    alpha, sigma = sde.alpha(t)[:, None], sde.sigma(t)[:, None]
    # E[x_0 | x_t] by linear regression of two Gaussians
    gain = alpha * variance / (alpha**2 * variance + sigma**2)
    got = as_score(score.__call__, sde).denoise(x, t)
    torch.testing.assert_close(got, mean + gain * (x - alpha * mean), **lost(sde, t))  # x + σ² s cancels
    # the exact score knows it without that
    torch.testing.assert_close(score.denoise(x, t), mean + gain * (x - alpha * mean), rtol=1e-12, atol=1e-14)
    again = score_of_denoiser(score.denoise, sde)
    size = float((x / sigma**2).abs().max())  # α D - x cancels to σ of it
    torch.testing.assert_close(again(x, t), score(x, t), rtol=1e-7, atol=1e-12 * size)


def test_a_time_given_as_a_number_is_not_rounded() -> None:
    seen: list[Any] = []

    def score(x: Tensor, t: Tensor) -> Tensor:
        seen.append(t)
        return x

    for method in ("denoise", "noise", "__call__"):
        getattr(as_score(score, EDM()), method)(normal(2, 3), 0.3)
        time = seen.pop()
        assert time.dtype == torch.float64 and time.item() == 0.3
    with pytest.raises(ValueError, match="t must lie in"):
        as_score(score, EDM()).denoise(normal(2, 3), 81.0)


# -- bad input -----------------------------------------------------------------------------------------------------


def test_bad_models() -> None:
    net = torch.tanh
    with pytest.raises(ValueError, match="predicts must be one of noise, x0, v, score, velocity, edm"):
        ScoreModel(net, VP(), "epsilon")
    with pytest.raises(TypeError, match=r"predicts must be one of .*, or a function; got <class 'type'>"):
        ScoreModel(net, VP(), type)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"The order is ScoreModel\(net, sde\)"):
        ScoreModel(VP(), net)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="net must be a function"):
        ScoreModel(None, VP())  # type: ignore[arg-type]
    for value in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match="sigma_data must be positive"):
            ScoreModel(net, VP(), sigma_data=value)


@pytest.mark.parametrize("transport", [False, True])
def test_bad_calls(transport: bool) -> None:
    calls: list[Tensor] = []
    model = ScoreModel(lambda x, c: calls.append(x) or x, RectifiedFlow(t_min=0.01, T=0.9))  # type: ignore[func-returns-value]
    if transport:
        model = model.under(RectifiedFlow(t_min=0.02, T=0.85))
    x = torch.zeros(3, 2)
    bad: list[tuple[Any, Any, type[Exception], str]] = [
        (x, 0.0, ValueError, r"no noise where σ\(t\) = 0|log-SNR"),
        (x, torch.tensor([0.0, 0.5, 0.5]), ValueError, r"no noise where σ\(t\) = 0|log-SNR"),
        (x, 1.1, ValueError, "t must lie in"),
        (x, math.nan, ValueError, "t must lie in"),
        (x, torch.full((2,), 0.5), ValueError, "2 entries but x has 3"),
        (x[:1], torch.full((2,), 0.5), ValueError, "2 entries but x has 1"),
        (x, torch.full((3, 1), 0.5), ValueError, "one per sample"),
        (x, "now", TypeError, "t must be a real number"),
        (x.long(), 0.5, TypeError, "x must be a floating tensor"),
        (x.numpy(), 0.5, TypeError, r"torch\.Tensor"),
        (torch.tensor(0.5), 0.5, ValueError, "batch axis"),
    ]
    for state, t, error, message in bad:
        for method in (model.forward, model.noise, model.denoise):
            with pytest.raises(error, match=message):
                method(state, t)
    assert not calls  # before any work


@pytest.mark.parametrize("answer", [None, torch.zeros(3), torch.zeros(3, 2, 1), (torch.zeros(3, 2),)], ids=repr)
def test_networks_that_answer_wrongly(answer: Any) -> None:
    with pytest.raises(ValueError, match="the network must return a tensor shaped like x"):
        ScoreModel(lambda x, c: answer, VP())(torch.zeros(3, 2), 0.5)


@pytest.mark.parametrize("sde", [ChainSDE(VP().discretize(30)), bare(VP()), LinearSDE(-1.0, 2.0)], ids=name)
def test_models_run_under_custom_schedules(sde: SDE) -> None:
    x = normal(3, 2)
    model = ScoreModel(lambda x, c: x.sin(), sde)
    t = torch.tensor([0.2, 0.5, 1.0], dtype=torch.float64)
    torch.testing.assert_close(model(x, t), -x.sin() / sde.sigma(t)[:, None], rtol=8 * EPS, atol=0)  # s = -ε/σ


def test_a_transported_model_holds_its_network_once_and_is_built_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model = ScoreModel(nn.Linear(2, 2), VP())
    model.net.forward = lambda x, c: nn.functional.linear(x, model.net.weight)  # type: ignore[method-assign]
    moved = model.under(EDM(T=50.0, t_min=0.01)).under(VE(0.02, 20.0))
    assert set(moved.state_dict()) == set(model.state_dict())
    assert len(list(moved.parameters())) == 2
    expected = model.under(VE(0.02, 20.0))(torch.ones(3, 2), 0.5)

    def never(*args: Any, **keywords: Any) -> None:
        raise AssertionError("a model was built during an evaluation")

    monkeypatch.setattr(ScoreModel, "__init__", never)
    torch.testing.assert_close(moved(torch.ones(3, 2), 0.5), expected)


def test_modules_of_finds_every_module_once() -> None:
    model, judge = ScoreModel(nn.Linear(2, 2), VP()), nn.Linear(2, 1)

    class Holder:
        def __init__(self) -> None:
            self.score, self.classifier = model.bind(), judge

    assert modules_of(Holder())[0] is model and judge in modules_of(Holder())
    assert modules_of(lambda x, t: judge(x)) == ()  # closed over: cannot be seen
    shared = {"score": model, "again": (model, functools.partial(judge))}
    assert len(parameters_of(Holder())) == 4
    assert {id(p) for p in parameters_of([shared])} == {id(p) for p in [*model.parameters(), *judge.parameters()]}


def test_a_number_or_a_row_is_bound_for_the_whole_batch() -> None:
    class Net(torch.nn.Module):
        null_conditions: ClassVar[dict[str, Any]] = {"label": 9, "size": math.nan}

        def forward(self, x: Tensor, c: Tensor, label: Tensor, size: Tensor, power: Any) -> Tensor:
            assert label.shape == (len(x),) and size.shape == (len(x), 2) and power == 2
            return x * label[:, None] + size.sum(1, keepdim=True)

    model, x, t = ScoreModel(Net(), VP()), torch.ones(3, 4), torch.tensor(0.3)
    size = torch.tensor([[1.0, 2.0]])
    each = model.bind(label=torch.full((3,), 5), size=size.expand(3, 2), power=2)(x, t)
    for label in (5, torch.tensor(5), torch.tensor([5])):
        assert torch.equal(model.bind(label=label, size=size, power=2)(x, t), each)
