"""The contrastive model: what it is asked, its gradient for guidance, zero-shot classes, and the truth it reaches."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from scoresde.data import Scaling, from_tensors
from scoresde.guidance import classifier
from scoresde.models import ContrastiveModel, ScoreModel
from scoresde.nn import MLP, DualEncoder
from scoresde.noise import IndependentNoise
from scoresde.problems import GaussianMixture
from scoresde.sde import VP, Cosine
from scoresde.times import LogNormalSigma, Stratified
from scoresde.train import train_contrastive
from scoresde.train.draws import seeded

SDE = VP()
TOKENS = torch.tensor([[1, 2], [3, 0], [4, 4]])


def model(**options: Any) -> ContrastiveModel:
    with seeded(torch.device("cpu"), 0):
        net = DualEncoder(
            1, event_dims=1, captions={"caption": {"vocabulary": 4, "length": 2, "width": 8, "layers": 1}}, size=5,
            width=8, multipliers=(1,), blocks=1, attention_levels=(), **options,
        )  # fmt: skip
    return ContrastiveModel(net, SDE, sigma_data=1.0).eval()


def told(**options: Any) -> ContrastiveModel:
    """The same with weights at random throughout: blocks start at zero, which hides what they are told."""
    own = model(**options)
    with seeded(torch.device("cpu"), 1):
        for parameter in own.parameters():
            if parameter.ndim > 1:
                nn.init.normal_(parameter, std=0.2)
    return own


def states(count: int = 3) -> Tensor:
    return torch.randn(count, 1, 4, generator=torch.Generator().manual_seed(1))


def test_its_answers_are_those_of_its_network() -> None:
    own, x, t = told(), states(), torch.tensor(0.3)
    alpha, sigma = SDE.alpha(t.double()), SDE.sigma(t.double())
    scaled = x / float((alpha**2 + sigma**2).sqrt())
    c = (sigma / alpha).log().float().expand(3)
    torch.testing.assert_close(own.image(x, t), own.net(scaled, c))
    logits = own(x, t, TOKENS[:2])
    assert logits.shape == (3, 2)
    torch.testing.assert_close(logits, own.scale * own.image(x, t) @ own.caption(TOKENS[:2]).T)
    torch.testing.assert_close(own.pairs(x, t, TOKENS), own(x, t, TOKENS), rtol=1e-4, atol=1e-4)  # float32
    # clean events are states at t_min
    torch.testing.assert_close(own.image(x), own.image(x, SDE.t_min))
    # one caption for all, or one each
    torch.testing.assert_close(own.similarity(TOKENS)(x, t), own(x, t, TOKENS).diagonal())
    torch.testing.assert_close(own.similarity(TOKENS[:1])(x, t), own(x, t, TOKENS[:1])[:, 0])


def test_cosines_are_not_rounded_by_autocast() -> None:
    own, x, t = told(), states(), torch.tensor(0.3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        u, v = own.image(x, t), own.caption(TOKENS)
        logits, log_p = own(x, t, TOKENS), own.zero_shot(TOKENS)(x, t)
    # float32 of numbers up to 14; in bfloat16 they would be off by up to 14 * 2^-9 = 0.03
    expected = own.scale * (u @ v.T)
    torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(log_p, expected.log_softmax(1), rtol=1e-5, atol=1e-5)


def test_the_gradient_of_the_similarity_by_finite_differences() -> None:
    own, t = told().double(), torch.tensor([0.05, 0.3, 0.7], dtype=torch.float64)
    x = states().double()
    guided = classifier(SDE_SCORE, own.similarity(TOKENS), scale=1.5)
    found = (guided(x, t) - SDE_SCORE(x, t)) / 1.5
    function, h = own.similarity(TOKENS), 1e-5
    for place in range(4):
        step = torch.zeros_like(x)
        step[:, 0, place] = h
        slope = (function(x + step, t) - function(x - step, t)) / (2 * h)
        # central differences: h² of a third derivative of order 1, and rounding 1e-16 / h of numbers near 10
        torch.testing.assert_close(found[:, 0, place], slope.detach(), rtol=1e-6, atol=1e-7)
    # what it says depends on how much noise there is
    early, late = function(x, torch.tensor(0.1)), function(x, torch.tensor(0.8))
    assert (early - late).abs().max() > 1e-3


SDE_SCORE = GaussianMixture(torch.ones(1), torch.zeros(1, 1, 4), 1.0).score(SDE)


def test_zero_shot_is_the_softmax_over_prompts_and_averages_several_of_a_class() -> None:
    own, x, t = told(), states(), torch.tensor(0.2)
    log_p = own.zero_shot(TOKENS)(x, t)
    torch.testing.assert_close(log_p, own(x, t, TOKENS).log_softmax(1))
    several = torch.stack([TOKENS, TOKENS.roll(1, 0)], 1)  # (K, M, L)
    v = own.caption(TOKENS)
    mean = F.normalize((v + v.roll(1, 0)) / 2, dim=1)
    torch.testing.assert_close(own.zero_shot(several).vectors, mean)
    torch.testing.assert_close(own.zero_shot(several)(x, t).exp().sum(1), torch.ones(3))
    # it is a classifier for guidance, of the model's schedule
    guided = classifier(SDE_SCORE, own.zero_shot(TOKENS), label=2)
    assert guided(x, t).shape == x.shape
    with pytest.raises(ValueError, match="Cosine"):
        classifier(GaussianMixture(torch.ones(1), torch.zeros(1, 1, 4), 1.0).score(Cosine()), own.similarity(TOKENS))


def test_captions_are_read_without_dropout_and_without_a_graph() -> None:
    own = model(dropout=0.5).train()
    assert torch.equal(own.similarity(TOKENS).vectors, own.similarity(TOKENS).vectors)
    assert not own.similarity(TOKENS).vectors.requires_grad
    assert own.training  # its mode comes back


def test_training_reaches_the_log_ratio_of_densities_at_every_time() -> None:
    """Of a mixture whose captions name the component: s(x, t, y) = log p(y | x_t) / p(y), so the softmax over captions
    of equal shares is the exact classifier.
    """
    means = torch.tensor([[-1.2, 0.0, 0.5, 0.0], [1.2, 0.5, 0.0, 0.0], [0.0, -1.0, 0.0, 1.0]])
    mixture = GaussianMixture(torch.ones(3), means, 0.3)
    x, label = mixture.sample_labelled(4096, 0)
    names = torch.tensor([[1, 2], [3, 0], [4, 4]])
    dataset = from_tensors(
        x[:, None].float(), channels="first", scaling=Scaling(0.0, 1.0), conditions={"caption": names[label]}
    )
    own = model().train()
    options: dict[str, Any] = {"lr": 6e-3, "warmup": 10, "decay": "cosine", "ema": 0.9, "progress": False, "cpu": True}
    times = Stratified(LogNormalSigma(-0.5, 1.0))
    run = train_contrastive(own, dataset, steps=350, batch_size=128, times=times, **options)
    for _ in run:
        pass
    found, exact = run.ema_model(), mixture.label_log_prob(SDE)
    x0, label = mixture.sample_labelled(2048, 1)
    for t in (0.05, 0.2, 0.4):
        mean, std = SDE.marginal(x0, t)
        noisy = mean + std * IndependentNoise(2).normal(x0)
        with torch.no_grad():
            log_q = found.zero_shot(names)(noisy[:, None].float(), t).double()
            log_p = exact(noisy, torch.tensor(t)).double()
        bayes = -log_p.gather(1, label[:, None]).mean().item()
        excess = (log_p - log_q).gather(1, label[:, None]).mean().item()
        information = torch.log(torch.tensor(3.0)).item() - bayes
        # of what can be known of the component from x_t, a tenth is missed at most after so short a training
        assert information > 0.1 and excess < 0.1 * information, t


def test_bad_input_is_refused_before_any_work() -> None:
    own, x = model(), states()
    with pytest.raises(TypeError, match="network of two encoders"):
        ContrastiveModel(MLP(3), SDE)
    with pytest.raises(ValueError, match="there are 2 captions: expected one for each, or one"):
        own.similarity(TOKENS[:2])(x, torch.tensor(0.3))
    with pytest.raises(ValueError, match="at least one caption"):
        own.similarity(TOKENS[:0])
    with pytest.raises(ValueError, match="tokens of caption run from 1 to 5"):
        own.similarity(torch.tensor([[1, 5]]))
    with pytest.raises(ValueError, match="at least one for each class"):
        own.zero_shot(torch.zeros(2, 0, 2, dtype=torch.long))
    with pytest.raises(TypeError, match="prompts must be tokens"):
        own.zero_shot([1, 2])  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="ContrastiveModel"):
        train_contrastive(ScoreModel(MLP(3), SDE), None, steps=1, batch_size=2)  # type: ignore[arg-type]
