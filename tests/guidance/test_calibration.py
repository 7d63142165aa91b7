"""Calibration of classifiers by time: closed forms, the exact classifier, temperatures that are known, refusals."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from scoresde.guidance import Calibration, calibration, classifier
from scoresde.guidance.calibration import fit_temperature
from scoresde.models import ClassifierModel
from scoresde.nn import MLP
from scoresde.noise import IndependentNoise
from scoresde.problems import GaussianMixture
from scoresde.sde import EDM, VP

SDE = VP()
DATA = GaussianMixture(torch.tensor([0.2, 0.3, 0.5]), torch.tensor([[-1.5, 0.0], [1.5, 0.5], [0.0, 1.5]]), 0.4)
EXACT = DATA.label_log_prob(SDE)
TIMES = (0.01, 0.2, 0.4, 0.6)
X0, LABEL = DATA.sample_labelled(4000, 3)


def found(log_prob: Any = EXACT, **options: Any) -> Calibration:
    given: dict[str, Any] = {"sde": SDE, "x0": X0, "label": LABEL, "times": TIMES, "noise": 5, **options}
    return calibration(log_prob, **given)


# -- closed forms ------------------------------------------------------------------------------------------------------


def constant(*p: float) -> Any:
    return lambda x, t: torch.tensor(p, dtype=torch.float64).log().expand(len(x), -1)


def test_a_classifier_that_always_says_the_same() -> None:
    """Of 10 samples 6 are of class 0, and it says 0.7: everything follows by hand."""
    label = torch.tensor([0] * 6 + [1] * 4)
    c = found(constant(0.7, 0.3), x0=torch.zeros(10, 2), label=label, times=[0.5])
    # float64 sums of ten terms
    close = {"rel": 1e-12}
    assert c.samples == 10
    assert c.accuracy.item() == pytest.approx(0.6, **close)
    assert c.confidence.item() == pytest.approx(0.7, **close)
    assert c.nll.item() == pytest.approx(-0.6 * math.log(0.7) - 0.4 * math.log(0.3), **close)
    assert c.ece.item() == pytest.approx(0.1, **close)
    assert c.ece_floor.item() == pytest.approx(math.sqrt(10 * 0.7 * 0.3) / 10, **close)
    assert c.brier.item() == pytest.approx(0.6 * 2 * 0.3**2 + 0.4 * 2 * 0.7**2, **close)
    # sigmoid(logit(0.7) / T) = 0.6, and the Fisher information of β is n d² p (1 - p) with d the logit
    d = math.log(0.7 / 0.3)
    assert c.temperature.item() == pytest.approx(d / math.log(0.6 / 0.4), rel=1e-10)
    assert c.log_temperature_error.item() == pytest.approx(1 / (math.log(1.5) * math.sqrt(10 * 0.24)), rel=1e-10)


def test_bins_keep_errors_of_opposite_sign_apart() -> None:
    def log_prob(x: Tensor, t: Tensor) -> Tensor:
        p = torch.where(x[:, 0] > 0, 0.9, 0.6)
        return torch.stack([p, 1 - p], 1).double().log()

    # where it says 0.6 all are right; where it says 0.9 three of five are. Far out, so that noise changes no side.
    x0 = torch.tensor([[-100.0]] * 5 + [[100.0]] * 5)
    label = torch.tensor([0] * 5 + [0, 0, 0, 1, 1])
    several, one = (found(log_prob, x0=x0, label=label, times=[0.1], bins=bins).ece.item() for bins in (10, 1))
    assert several == pytest.approx(0.5 * 0.4 + 0.5 * 0.3, rel=1e-6)  # probabilities in float32
    assert one == pytest.approx(abs(0.8 - 0.75), rel=1e-5)
    # so does what a calibrated classifier would show: a root for each bin, not the root of their sum
    apart = found(log_prob, x0=x0, label=label, times=[0.1], bins=10).ece_floor.item()
    assert apart == pytest.approx((math.sqrt(5 * 0.6 * 0.4) + math.sqrt(5 * 0.9 * 0.1)) / 10, rel=1e-6)


def test_logits_and_log_probabilities_mean_the_same() -> None:
    a, b = found(), found(lambda x, t: EXACT(x, t) + x[:, :1])
    for name in ("nll", "ece", "temperature"):
        # x_t is float32 and log p of size up to 50, so logits shifted by x differ by 50 roundings of 6e-8
        torch.testing.assert_close(getattr(a, name), getattr(b, name), rtol=1e-5, atol=1e-5)


# -- the exact classifier ----------------------------------------------------------------------------------------------


def test_the_exact_classifier_is_calibrated_at_every_time() -> None:
    c = found()
    # Given x_t, bin m of the ECE is |sum of independent centred terms|/n, of variance Σ p (1 - p)/n²: the mean of all
    # bins together is below ece_floor, and as they are independent their sum has a variance below Σ_i p_i (1 - p_i)/n²
    # <= confidence (1 - confidence)/n, by Jensen. Four standard deviations.
    deviation = (c.confidence * (1 - c.confidence) / c.samples).sqrt()
    assert bool((c.ece < c.ece_floor + 4 * deviation).all())
    assert bool(((c.accuracy - c.confidence).abs() < 4 * deviation).all())
    # the temperature is a maximum likelihood estimate of 1: four of its standard errors
    assert bool((c.temperature.log().abs() < 4 * c.log_temperature_error).all())
    assert bool((c.log_temperature_error < 0.1).all())
    # noise only hides the class: the NLL grows with t, to the entropy of the shares
    assert bool((c.nll.diff() > 0).all()) and bool((c.accuracy.diff() < 0).all())


def test_the_expected_brier_score_of_the_exact_classifier_follows_from_its_own_probabilities() -> None:
    c = found(times=[0.3])
    mean, std = SDE.marginal(X0, 0.3)
    p = EXACT(mean + std * IndependentNoise(5).stream("data").normal(X0), torch.tensor(0.3)).exp().double()
    expected = 1 - p.square().sum(1)  # E_k~p Σ_j (p_j - 1[j = k])² = 1 - Σ p²
    spread = 1.0 / math.sqrt(len(X0))  # the score of a sample lies in [0, 2], so its deviation is below 1
    assert abs(c.brier.item() - expected.mean().item()) < 4 * spread


def test_logits_made_twice_as_sharp_have_temperature_two() -> None:
    exact, sharp = found(), found(lambda x, t: 2 * EXACT(x, t))
    # softmax(2 z / (2 T)) = softmax(z / T), and Newton ends within 1e-12; logits of float32 are doubled exactly
    torch.testing.assert_close(sharp.temperature, 2 * exact.temperature, rtol=1e-9, atol=0)
    assert bool(((sharp.temperature / 2).log().abs() < 4 * sharp.log_temperature_error).all())
    # too sure of itself: dearer and worse calibrated, though its guesses are the same
    assert bool((sharp.nll > exact.nll).all()) and torch.equal(sharp.accuracy, exact.accuracy)
    assert bool((sharp.ece > 3 * exact.ece).all()) and bool((sharp.brier > exact.brier).all())


@pytest.mark.parametrize("factor", [0.05, 0.7, 3.0, 40.0])
def test_the_fit_is_the_least_of_the_nll(factor: float) -> None:
    """From starts far from the end, where Newton's own steps would leave the bracket."""
    z = factor * EXACT(X0.double(), torch.tensor(0.3, dtype=torch.float64))
    temperature, _ = fit_temperature(z, LABEL)

    def nll(scale: float) -> float:
        return nn.functional.cross_entropy(z / (temperature * scale), LABEL).item()

    # at 1 % to both sides the NLL is above its least value by about half the curvature times 1e-4
    assert nll(1.0) < min(nll(1.01), nll(0.99))
    base = fit_temperature(z / factor, LABEL)[0]
    assert temperature == pytest.approx(factor * base, rel=1e-9)


def test_fits_without_an_end_stop_at_a_hundred_and_say_so() -> None:
    z, label = torch.tensor([[1.0, 0.0], [0.0, 1.0]], dtype=torch.float64), torch.tensor([0, 1])
    assert fit_temperature(z, label) == (1 / 100, math.inf)  # never mistaken
    assert fit_temperature(z, 1 - label) == (100, math.inf)  # always mistaken
    assert fit_temperature(0 * z, label) == (1.0, math.inf)  # says nothing


# -- between the times -------------------------------------------------------------------------------------------------


def test_temperatures_between_are_interpolated_over_log_snr() -> None:
    """Logits sharpened by a factor that is a power of σ/α: log T is linear in log-SNR, so it is met everywhere."""

    def ratio(t: Any) -> Tensor:
        return (-0.25 * SDE.log_snr(t)).exp()

    c = found(lambda x, t: ratio(t) * EXACT(x, t), times=[0.6, 0.1, 0.3])
    exact = found(times=[0.6, 0.1, 0.3])
    torch.testing.assert_close(c.temperature_at(c.times), c.temperature, rtol=1e-12, atol=0)
    # 1e-7 for logits scaled in float32
    at = torch.tensor([0.15, 0.25, 0.5], dtype=torch.float64)
    torch.testing.assert_close(c.temperature_at(at), ratio(at) * exact.temperature_at(at), rtol=1e-5, atol=0)
    # constant beyond the ends; a number and a tensor of one time alike
    assert c.temperature_at(0.99).item() == pytest.approx(c.temperature[0].item(), rel=1e-12)
    assert c.temperature_at(torch.tensor(1e-3)).item() == pytest.approx(c.temperature[1].item(), rel=1e-12)
    assert c.temperature_at(0.2).shape == () and c.temperature_at(at[:1]).shape == (1,)
    t = torch.tensor(0.2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(c.temperature_at, t)


def test_one_time_serves_all() -> None:
    c = found(times=[0.3])
    assert c.temperature_at(torch.tensor([0.1, 0.9])).tolist() == [c.temperature.item()] * 2


def test_guidance_takes_the_temperature() -> None:
    """Logits sharpened twofold at twice the temperature are those of the exact classifier."""
    sharp, score = found(lambda x, t: 2 * EXACT(x, t)), DATA.score(SDE)
    exact = found()
    for t in (torch.tensor(0.15), torch.linspace(0.1, 0.5, len(X0[:20]))):
        a, b = (
            classifier(score, log_prob, 3.0, label=1, temperature=c.temperature_at)(X0[:20], t)
            for log_prob, c in ((lambda x, t: 2 * EXACT(x, t), sharp), (EXACT, exact))
        )
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)  # float32
        assert not torch.allclose(a, classifier(score, lambda x, t: 2 * EXACT(x, t), 3.0, label=1)(X0[:20], t))


# -- options -----------------------------------------------------------------------------------------------------------


def test_pieces_are_as_large_as_told_and_change_nothing() -> None:
    seen: list[int] = []

    def watched(x: Tensor, t: Tensor) -> Tensor:
        seen.append(len(x))
        return EXACT(x, t)

    small, whole = found(watched, batch_size=1500, times=[0.3]), found(times=[0.3], batch_size=10**6)
    assert seen == [1500, 1500, 1000]
    torch.testing.assert_close(small.nll, whole.nll, rtol=1e-6, atol=0)  # log p in float32


def test_the_noise_is_the_one_given() -> None:
    assert torch.equal(found(noise=5).nll, found(noise=5).nll)
    assert not torch.equal(found(noise=5).nll, found(noise=6).nll)
    state = torch.get_rng_state()
    found(noise=5)
    assert torch.equal(state, torch.get_rng_state())


def test_a_model_of_ours_is_taken_as_it_is() -> None:
    model = ClassifierModel(MLP(2, width=8, depth=1, out_dim=3), SDE, sigma_data=1.0).eval()
    c = found(model)
    # a fresh network says nothing: uniform probabilities, and a temperature without influence
    assert c.nll.tolist() == pytest.approx([math.log(3)] * 4, rel=1e-6)
    assert c.temperature.tolist() == [1.0] * 4 and c.log_temperature_error.tolist() == [math.inf] * 4


class Elsewhere(nn.Module):
    """Has its parameters on another device than the data, and answers on the CPU (a meta tensor holds no numbers)."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros((), device="meta"))
        self.seen: list[tuple[str, int]] = []

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        self.seen.append((x.device.type, len(x)))
        return torch.zeros(len(x), 3)


@pytest.mark.parametrize("wrap", [lambda model: model, lambda model: model.forward], ids=["module", "method"])
def test_samples_go_to_the_device_of_the_classifier(wrap: Any) -> None:
    model = Elsewhere().eval()
    c = found(wrap(model), times=[0.3], batch_size=3000)
    assert model.seen == [("meta", 3000), ("meta", 1000)]
    assert c.nll.item() == pytest.approx(math.log(3), rel=1e-6)
    devices: list[str] = []
    found(lambda x, t: devices.append(x.device.type) or EXACT(x, t), times=[0.3])  # a function tells no device
    assert devices == ["cpu"] * 4


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"x0": X0.long()}, TypeError, "x0 must be a floating tensor"),
        ({"x0": X0 * math.nan}, ValueError, "x0 must be finite"),
        ({"label": LABEL.float()}, TypeError, "labels must be integers"),
        ({"label": LABEL.tolist()}, TypeError, "must be a torch.Tensor"),
        ({"label": LABEL[:5]}, ValueError, r"\(4000,\); got \(5,\)"),
        ({"x0": X0[:0], "label": LABEL[:0]}, ValueError, "at least one sample"),
        ({"label": LABEL + 1}, ValueError, r"in 0..2, the classes of log_prob; got 1 to 3"),
        ({"label": LABEL - 1}, ValueError, "got -1 to 1"),
        ({"times": 0.5}, ValueError, "one axis of different times"),
        ({"times": [0.5, 0.5]}, ValueError, "one axis of different times"),
        ({"times": []}, ValueError, "one axis of different times"),
        ({"times": [0.5, 2.0]}, ValueError, r"times must lie in \[0, 1\]"),
        ({"times": [0.0, 0.5]}, ValueError, r"where σ\(t\) > 0.*t_min"),
        ({"bins": 0}, ValueError, "bins"),
        ({"batch_size": 0}, ValueError, "batch_size"),
        ({"noise": "five"}, TypeError, "noise|seed"),
        ({"log_prob": lambda x, t: x.sum(1)}, ValueError, r"all classes, \(B, K\); got \(1000,\)"),
        ({"log_prob": lambda x, t: EXACT(x, t) / 0}, ValueError, "NaN or infinity at t = 0.01.*return logits"),
        (
            {"log_prob": ClassifierModel(MLP(2, out_dim=3), VP(beta_max=5.0)).eval()},
            ValueError,
            "the classifier has VP",
        ),
        ({"log_prob": DATA.label_log_prob(EDM())}, ValueError, "the classifier has EDM"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, dict) else None,
)
def test_bad_input_is_refused(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        found(**options)
