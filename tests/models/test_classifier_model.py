"""Guidance by a noise-conditional network: what the network is shown, and what its gradient is."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from scoresde.guidance import classifier
from scoresde.models import ClassifierModel
from scoresde.nn import MLP, NoiseClassifier
from scoresde.problems import Gaussian, GaussianMixture
from scoresde.sampling import sample
from scoresde.sde import EDM, SDE, VE, VP, Cosine, RectifiedFlow, SubVP

MEANS = torch.tensor([[-1.0, 0.0], [1.0, 0.5], [0.0, 1.0]], dtype=torch.float64)
WEIGHTS, VARIANCE = torch.tensor([0.2, 0.3, 0.5], dtype=torch.float64), 0.1
DATA = GaussianMixture(WEIGHTS, MEANS, VARIANCE)


def normals(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def exact(sigma_data: float | None):
    """Bayes' rule for DATA as a network of what it is shown: x/α at noise e^c, scaled to unit variance or not."""

    def net(x: Tensor, c: Tensor) -> Tensor:
        ratio = (2 * c).exp()[:, None]  # (σ/α)²
        if sigma_data is not None:
            x = x * (sigma_data**2 + ratio).sqrt()
        square = (x[:, None] - MEANS).square().sum(-1)
        return WEIGHTS.log() - square / (2 * (VARIANCE + ratio)) + 7.0  # logits: a constant does not matter

    return net


@pytest.mark.parametrize("sde", [VP(), SubVP(), VE(), EDM(), Cosine(), RectifiedFlow()], ids=repr)
@pytest.mark.parametrize("per_sample", [False, True])
def test_one_network_of_scaled_x_and_c_is_the_exact_classifier_under_every_sde(sde: SDE, per_sample: bool) -> None:
    x = normals(5, 2)
    t = torch.linspace(0.2, 0.8, 5, dtype=torch.float64) * sde.T if per_sample else torch.tensor(0.4 * sde.T)
    got = ClassifierModel(exact(1.3), sde, sigma_data=1.3)(x, t)
    # the same numbers along two routes in float64
    torch.testing.assert_close(got, DATA.label_log_prob(sde)(x, t), rtol=1e-9, atol=1e-9)


def test_without_sigma_data_the_network_sees_x_itself() -> None:
    x, t = normals(5, 2), torch.tensor(3.0)
    got = ClassifierModel(exact(None), EDM())(x, t)  # α = 1, so x is x/α
    torch.testing.assert_close(got, DATA.label_log_prob(EDM())(x, t), rtol=1e-9, atol=1e-9)


def test_it_guides_to_the_exact_conditional_score() -> None:
    sde, x, t = VP(), normals(5, 2), torch.tensor(0.3)
    score = classifier(DATA.score(sde), ClassifierModel(exact(1.0), sde, sigma_data=1.0), label=2)
    torch.testing.assert_close(score(x, t), Gaussian(MEANS[2], VARIANCE).score(sde)(x, t), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("image", [False, True])
def test_the_networks_of_the_library_guide(image: bool) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = NoiseClassifier(1, 3, width=8, multipliers=(1, 2)) if image else MLP(16, width=16, depth=1, out_dim=3)
        for parameter in net.parameters():  # a fresh network answers 0 everywhere, whose gradient guides nowhere
            torch.nn.init.normal_(parameter, std=0.2)
    event = (1, 4, 4) if image else (16,)
    data, sde = Gaussian(torch.zeros(event), 1.0), VP()
    log_prob = ClassifierModel(net, sde, sigma_data=1.0)
    label = torch.tensor([0, 2])
    plain = sample(data.score(sde), (2, *event), steps=4).x
    guided = sample(classifier(data.score(sde), log_prob, 5.0, label=label), (2, *event), steps=4).x
    assert guided.isfinite().all() and not torch.equal(plain, guided)
    total = log_prob(plain, torch.tensor(0.1)).exp().sum(1)
    torch.testing.assert_close(total, torch.ones(2), rtol=1e-5, atol=1e-5)  # float32 softmax


def test_bad_input_is_refused() -> None:
    log_prob = ClassifierModel(exact(None), VP())
    with pytest.raises(ValueError, match="t must lie in"):
        log_prob(normals(2, 2), torch.tensor(2.0))
    with pytest.raises(ValueError, match="t has 3 entries"):
        log_prob(normals(2, 2), torch.full((3,), 0.5))
    assert math.isfinite(log_prob(normals(2, 2), torch.tensor(0.5)).sum().item())
