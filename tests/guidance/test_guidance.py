"""Guidance: the formulas, the number of network calls, what composes with what, gradients, and refusals."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from scoresde.guidance import (
    LinearGuidance,
    Twist,
    TwistedGuidance,
    autoguidance,
    classifier,
    classifier_free,
    compose,
    projected,
)
from scoresde.guidance.classifier import ClassifierGuided
from scoresde.guidance.leaf import on_leaf
from scoresde.models import ClassifierModel, ScoreModel, as_score
from scoresde.models.combination import SCORE, X0
from scoresde.problems import GaussianMixture
from scoresde.sampling import sample
from scoresde.sde import EDM, SDE, VE, VP, Cosine, RectifiedFlow, SubVP
from scoresde.solvers import DDIM

SDES: list[SDE] = [VP(), SubVP(), VE(), EDM(), Cosine(), RectifiedFlow()]
# Sums of a few terms, in two orders.
ROUNDING = {"rtol": 1e-10, "atol": 1e-10}


def normals(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def mixture(event: tuple[int, ...] = (2,), k: int = 3) -> GaussianMixture:
    d = math.prod(event)
    root = normals(k, d, d, seed=1)
    covariances = root @ root.mT / d + 0.1 * torch.eye(d, dtype=torch.float64)
    return GaussianMixture(torch.tensor([1.0, 2.0, 3.0])[:k], normals(k, *event, seed=2), covariances)


class Net(nn.Module):
    """A label-conditional network that notes each call; label 3 is its null."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(normals(4, 2, seed=3))
        self.null_conditions = {"label": 3}
        self.batches: list[int] = []

    def forward(self, x: Tensor, c: Tensor, label: Tensor) -> Tensor:
        self.batches.append(len(x))
        return torch.tanh(x + self.weight[label]) * (1 + 0.1 * c[:, None].to(x))


def model() -> ScoreModel:
    return ScoreModel(Net(), VP())


X, T, Y = normals(4, 2, seed=4), torch.tensor(0.4, dtype=torch.float64), torch.tensor([0, 1, 2, 1])
PLAIN = as_score(lambda x, t: x, VP())


# ---- classifier-free ----


@pytest.mark.parametrize("scale", [-0.5, 0.3, 2.0, 7.5])
@pytest.mark.parametrize("t", [T, torch.tensor([0.1, 0.4, 0.7, 1.0], dtype=torch.float64)], ids=["one t", "each t"])
def test_classifier_free_is_its_formula_in_one_call(scale: float, t: Tensor) -> None:
    net = model()
    conditional, unconditional = net(X, t, {"label": Y}), net(X, t, {"label": torch.full((4,), 3)})
    net.net.batches.clear()
    got = classifier_free(net, {"label": Y}, scale)(X, t)
    torch.testing.assert_close(got, unconditional + scale * (conditional - unconditional), **ROUNDING)
    assert net.net.batches == [8]


@pytest.mark.parametrize(("scale", "label"), [(1.0, Y), (1, Y), (0.0, torch.full((4,), 3)), (0, torch.full((4,), 3))])
def test_scale_one_is_conditional_and_zero_unconditional_at_the_price_of_one(scale: float, label: Tensor) -> None:
    net = model()
    expected = net(X, T, {"label": label})
    net.net.batches.clear()
    assert torch.equal(classifier_free(net, {"label": Y}, scale)(X, T), expected)
    assert net.net.batches == [4]
    assert torch.equal(classifier_free(net, {"label": Y})(X, T), net(X, T, {"label": Y}))  # the default is 1


def test_a_number_is_a_label_for_the_whole_batch() -> None:
    net = model()
    for scale in (0.0, 1.0, 3.0):
        a, b = (classifier_free(net, {"label": label}, scale)(X, T) for label in (1, torch.ones(4, dtype=torch.long)))
        assert torch.equal(a, b)


def test_null_is_the_networks_own_a_value_or_a_mapping() -> None:
    net = model()
    own = classifier_free(net, {"label": Y}, 3.0)(X, T)
    for null in (3, torch.tensor(3), {"label": 3}, {"label": torch.tensor(3), "unused": 1}):
        assert torch.equal(classifier_free(net, {"label": Y}, 3.0, null=null)(X, T), own)
    other = classifier_free(net, {"label": Y}, 3.0, null=0)(X, T)
    a, b = net(X, T, {"label": Y}), net(X, T, {"label": torch.zeros(4, dtype=torch.long)})
    torch.testing.assert_close(other, b + 3 * (a - b), **ROUNDING)


def test_several_conditions_of_any_shape() -> None:
    def net(x: Tensor, c: Tensor, label: Tensor, text: Tensor) -> Tensor:
        return x * label[:, None] + text.sum(1)

    wrapped = ScoreModel(net, VP())
    text, empty = normals(4, 5, 2, seed=6), normals(5, 2, seed=7)
    got = classifier_free(wrapped, {"label": Y, "text": text}, 2.0, null={"label": 0, "text": empty})(X, T)
    a = wrapped(X, T, {"label": Y, "text": text})
    b = wrapped(X, T, {"label": torch.zeros(4, dtype=torch.long), "text": empty.expand(4, 5, 2)})
    torch.testing.assert_close(got, b + 2 * (a - b), **ROUNDING)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_dtype_is_kept(dtype: torch.dtype) -> None:
    net = ScoreModel(lambda x, c, label: x * label[:, None], VP())
    data = mixture()
    x = X.to(dtype)
    assert classifier_free(net, {"label": Y}, 2.0, null=0)(x, T).dtype == dtype
    if dtype == torch.float32:  # the mixture's own arithmetic wants no half precision
        assert classifier(data.score(VP()), data.label_log_prob(VP()), 2.0, label=Y)(x, T).dtype == dtype


@pytest.mark.parametrize(
    ("build", "error", "match"),
    [
        (lambda: classifier_free(model(), {}, 2.0), ValueError, "needs a condition"),
        (lambda: classifier_free(model(), 2.0), TypeError, "conditions must be a mapping by name"),  # type: ignore[arg-type]
        (lambda: classifier_free(model(), label=Y, scale=2.0), TypeError, "label"),  # type: ignore[call-arg]
        (lambda: classifier_free(model().bind(label=Y), {"label": Y}, 2.0), TypeError, "ScoreModel"),  # type: ignore[arg-type]
        (lambda: classifier_free(lambda x, t: x, {"label": Y}, 2.0), TypeError, "ScoreModel"),  # type: ignore[arg-type]
        (
            lambda: classifier_free(ScoreModel(lambda x, c, label: x, VP()), {"label": Y}, 2.0),
            ValueError,
            "null condition",
        ),
        (
            lambda: classifier_free(model(), {"label": Y}, 2.0, null={"class": 1}),
            ValueError,
            "null must have a value for label",
        ),
        (lambda: classifier_free(model(), {"text": Y}, 2.0), ValueError, "takes no condition text"),
        (
            lambda: classifier_free(ScoreModel(lambda x, c, **cond: x, VP()), {"label": Y, "text": Y}, 2.0, null=3),
            ValueError,
            "mapping by name",
        ),
        (lambda: classifier_free(model(), {"label": Y}, math.nan), ValueError, "finite number"),
        (lambda: classifier_free(model(), {"label": Y}, math.inf), ValueError, "finite number"),
        (lambda: classifier_free(model(), {"label": Y}, True), ValueError, "finite number"),
        (lambda: classifier_free(model(), {"label": Y}, "3"), ValueError, "finite number"),  # type: ignore[arg-type]
        (lambda: classifier_free(model(), {"label": Y[:3]}, 2.0)(X, T), ValueError, "3 rows but x has 4"),
        (lambda: classifier_free(model(), {"label": Y}, 2.0, null=torch.zeros(2)), ValueError, "whole numbers"),
        (lambda: classifier(mixture().score(VP()), mixture().label_log_prob(VP()), math.nan), ValueError, "finite"),
    ],
)
def test_refusals(build: Callable[[], Any], error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        build()


# ---- classifier ----


@pytest.mark.parametrize("sde", SDES, ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("event", [(2,), (1, 2), (1, 2, 2)])
def test_exact_classifier_at_scale_one_is_the_component(sde: SDE, event: tuple[int, ...]) -> None:
    data = mixture(event)
    for part in (0.01, 0.3, 1.0):
        t = torch.tensor(part * sde.T, dtype=torch.float64)
        mean, std = sde.marginal(data.sample(4, 5), t)
        x = mean + std * normals(4, *event, seed=6)
        got = classifier(data.score(sde), data.label_log_prob(sde), label=Y)(x, t)
        # a softmax and its derivative against the component alone: rounding, relative to scores of size 1/σ
        torch.testing.assert_close(got, data.score(sde, Y)(x, t), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("scale", [-1.0, 0.5, 4.0])
def test_classifier_is_its_formula(scale: float) -> None:
    data, sde = mixture(), VP()
    base, one = data.score(sde)(X, T), classifier(data.score(sde), data.label_log_prob(sde), label=Y)(X, T)
    got = classifier(data.score(sde), data.label_log_prob(sde), scale, label=Y)(X, T)
    torch.testing.assert_close(got, base + scale * (one - base), **ROUNDING)


def test_log_prob_of_one_class_needs_no_label_and_a_number_labels_all() -> None:
    data, sde = mixture(), VP()
    every = data.label_log_prob(sde)
    picked = classifier(data.score(sde), lambda x, t: every(x, t)[:, 1], 2.0)(X, T)
    assert torch.equal(picked, classifier(data.score(sde), every, 2.0, label=1)(X, T))
    assert torch.equal(picked, classifier(data.score(sde), every, 2.0, label=torch.ones(4).long())(X, T))


def test_scale_zero_never_calls_the_classifier() -> None:
    def never(x: Tensor, t: Tensor) -> Tensor:
        raise AssertionError("called")

    score = mixture().score(VP())
    assert torch.equal(classifier(score, never, 0.0, label=1)(X, T), score(X, T))


@pytest.mark.parametrize(
    ("log_prob", "label", "match"),
    [
        (lambda x, t: x.sum(), None, r"\(4,\)"),
        (lambda x, t: x, None, "say which with label="),
        (lambda x, t: x.sum(1), 0, r"\(4, K\)"),
        (lambda x, t: x[:2], 0, r"\(4, K\)"),
        (lambda x, t: x, 2, r"0\.\.1"),
        (lambda x, t: x, torch.tensor([0, 1, 2, 0]), r"0\.\.1"),
        (lambda x, t: x, torch.tensor([0, 1]), r"a whole number, \(4,\) or \(1,\)"),
        (lambda x, t: x.detach().sum(1), None, "does not depend on x"),
        (lambda x, t: torch.zeros(4, requires_grad=True), None, "does not depend on x"),
    ],
)
def test_bad_classifiers(log_prob: Any, label: Any, match: str) -> None:
    def never(x: Tensor, t: Tensor) -> Tensor:
        raise AssertionError("the score was evaluated before the classifier was checked")

    guided = classifier(as_score(never, VP()), log_prob, 1.0, label=label)
    assert isinstance(guided, ClassifierGuided)
    for use in (guided, guided.denoise, lambda x, t: guided.parts(x, t, SCORE), guided.twist):
        with pytest.raises(ValueError, match=match):
            use(X, T)


@pytest.mark.parametrize(
    "label",
    [True, torch.tensor(True), torch.ones(4).bool(), 0.5, torch.ones(4), 1j, "one", torch.ones(4, 1).long()],
    ids=["bool", "bool ()", "bool (B,)", "float", "float (B,)", "complex", "str", "(B, 1)"],
)
def test_a_label_is_whole_numbers(label: Any) -> None:
    with pytest.raises(ValueError, match="label must be a whole number"):
        classifier(PLAIN, lambda x, t: x, 1.0, label=label)


def test_one_row_of_labels_is_for_all_samples() -> None:
    data = mixture()
    one, row, each = (
        classifier(data.score(VP()), data.label_log_prob(VP()), 2.0, label=label)(X, T)
        for label in (1, torch.tensor([1]), torch.full((4,), 1))
    )
    assert torch.equal(one, row) and torch.equal(one, each)
    with pytest.raises(ValueError, match=r"0\.\.2"):
        classifier(data.score(VP()), data.label_log_prob(VP()), 2.0, label=torch.tensor([3]))(X, T)


def test_inference_mode_is_named_where_it_is_the_cause() -> None:
    data = mixture()
    with torch.inference_mode(), pytest.raises(ValueError, match="no_grad"):
        classifier(data.score(VP()), data.label_log_prob(VP()), label=1)(X.clone(), T)


# ---- temperature, and the tilt as such ----


@pytest.mark.parametrize("sde", SDES, ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("t", [T, torch.tensor([0.1, 0.4, 0.7, 1.0], dtype=torch.float64)], ids=["one t", "each t"])
def test_temperature_divides_before_the_softmax(sde: SDE, t: Tensor) -> None:
    """∇ log softmax(log p / τ)_y = (1/τ) Σ_k (1[k = y] - q_k) ∇ log p(k | x), with q the tempered probabilities."""
    data, t = mixture(), t * sde.T
    every = data.label_log_prob(sde)
    base = data.score(sde)(X, t)
    slopes = torch.stack([data.score(sde, k)(X, t) - base for k in range(3)], 1)  # ∇ log p(k | x), by Bayes

    def schedule(t: Tensor) -> Tensor:
        return 0.5 + t / sde.T

    for temperature in (0.4, 3.0, schedule, lambda t: 1.7):
        given = temperature(t) if callable(temperature) else temperature
        tau = torch.as_tensor(given, dtype=torch.float64).reshape(-1, 1)
        log_share = (every(X, t) / tau).log_softmax(1)
        pull = torch.nn.functional.one_hot(Y, 3) - log_share.exp()
        expected = base + 2 * torch.einsum("bk,bkd->bd", pull, slopes) / tau
        got = classifier(data.score(sde), every, 2.0, label=Y, temperature=temperature)
        # a softmax differentiated by hand and by autograd, relative to scores of size 1/σ
        torch.testing.assert_close(got(X, t), expected, rtol=1e-9, atol=1e-9)
        assert isinstance(got, TwistedGuidance)
        torch.testing.assert_close(got.twist(X, t).log_psi, 2 * log_share[torch.arange(4), Y], **ROUNDING)


def test_a_temperature_that_is_a_tensor_gets_its_gradient_even_at_one() -> None:
    data, sde = mixture(), VP()

    def value(tau: Tensor) -> Tensor:
        return classifier(data.score(sde), data.label_log_prob(sde), 2.0, label=Y, temperature=tau)(X, T)

    for tau in (1.0, 0.7):
        assert torch.autograd.gradcheck(value, torch.tensor(tau, dtype=torch.float64, requires_grad=True))


def test_a_classifier_is_a_known_twist() -> None:
    data, sde = mixture(), VP()
    every = data.label_log_prob(sde)
    guided = classifier(data.score(sde), every, 2.5, label=Y, t_end=0.0)
    assert isinstance(guided, TwistedGuidance) and isinstance(guided, LinearGuidance)
    x0, log_psi, gradient = guided.twist(X, T)
    with torch.no_grad():
        assert not guided.twist(X, T).log_psi.requires_grad
    assert torch.equal(x0, data.score(sde).denoise(X, T))
    x = X.clone().requires_grad_(True)
    value = 2.5 * every(x, T)[torch.arange(4), Y]
    torch.testing.assert_close(log_psi, value, **ROUNDING)
    torch.testing.assert_close(gradient, torch.autograd.grad(value.sum(), x)[0], **ROUNDING)
    torch.testing.assert_close(data.score(sde)(X, T) + gradient, guided(X, T), **ROUNDING)
    # at t_end = 0 the exact classifier is that of the data
    tilt = data.tilted_log_prob(X, Y, 2.5) - data.log_prob(X)
    torch.testing.assert_close(guided.log_potential(X), tilt, **ROUNDING)
    later = classifier(data.score(sde), every, 2.5, label=Y, t_end=0.2)
    assert isinstance(later, TwistedGuidance)
    torch.testing.assert_close(later.log_potential(X), 2.5 * every(X, 0.2)[torch.arange(4), Y], **ROUNDING)


def test_a_classifier_model_knows_its_last_time() -> None:
    learned = ClassifierModel(lambda x, c: x * c[:, None], VP(t_min=0.02))
    guided, unknown = (
        classifier(as_score(lambda x, t: x, VP(t_min=0.02)), by, 2.0, label=1) for by in (learned, lambda x, t: x)
    )
    assert isinstance(guided, TwistedGuidance) and isinstance(unknown, TwistedGuidance)
    torch.testing.assert_close(guided.log_potential(X), 2 * learned(X, 0.02)[:, 1], **ROUNDING)
    guided.check()
    for ask in (unknown.check, lambda: unknown.log_potential(X)):
        with pytest.raises(ValueError, match="t_end="):
            ask()


def test_a_twist_has_its_potential_unless_it_says_otherwise() -> None:
    class Flat(TwistedGuidance):
        sde = VP()

        def twist(self, x: Tensor, t: Tensor) -> Twist:
            return Twist(x, x.sum(1), torch.ones_like(x))

        def log_potential(self, x0: Tensor) -> Tensor:
            return x0.sum(1)

    Flat().check()
    # and the score follows from the twist: x̂_0 = x says ε̂ = x (1 - α)/σ, and ψ bends it
    alpha, sigma = VP().alpha(T), VP().sigma(T)
    torch.testing.assert_close(Flat()(X, T), -X * (1 - alpha) / sigma**2 + 1, **ROUNDING)
    torch.testing.assert_close(Flat().denoise(X, T), X + sigma**2 / alpha, **ROUNDING)


@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("required", [True, False])
def test_the_leaf_is_x_itself_only_where_the_caller_differentiates(grad: bool, required: bool) -> None:
    x = X.clone().requires_grad_(required)
    with torch.set_grad_enabled(grad):
        leaf, value = on_leaf(lambda x: x.square().sum(1), x, name="f")
        assert torch.is_grad_enabled() is grad
    assert (leaf is x) is (grad and required) and torch.equal(leaf, x)
    assert torch.equal(torch.autograd.grad(value.sum(), leaf)[0], 2 * X) and x.requires_grad is required
    with pytest.raises(ValueError, match="f must be differentiable in x"):
        on_leaf(lambda x: x.detach(), x, name="f")


def test_classifier_guidance_keeps_its_tilt_over_other_guidance() -> None:
    """Over classifier_free: the twist's law is the guided one, and the classifier bends what is left."""
    data, sde, net = mixture(), VP(), model()
    free = classifier_free(net, {"label": Y}, 2.0)
    outer, alone = (classifier(s, data.label_log_prob(sde), 1.5, label=1) for s in (free, data.score(sde)))
    assert isinstance(outer, TwistedGuidance) and isinstance(alone, TwistedGuidance)
    twist = outer.twist(X, T)
    assert torch.equal(twist.x0, free.denoise(X, T)) and torch.equal(twist.gradient, alone.twist(X, T).gradient)


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"temperature": 0.0}, ValueError, "temperature must be positive"),
        ({"temperature": math.nan}, ValueError, "temperature must be positive"),
        ({"temperature": True}, TypeError, "got True"),
        ({"temperature": "2"}, TypeError, "temperature must be a real number"),
        ({"temperature": 2.0, "label": None}, ValueError, r"\(B, K\) and say which class with label="),
        ({"temperature": lambda t: t, "label": None}, ValueError, r"\(B, K\) and say which class with label="),
        ({"t_end": -1.0}, ValueError, "t_end must be a time"),
        ({"t_end": math.inf}, ValueError, "t_end must be a time"),
        ({"log_prob": 3}, TypeError, "log_prob must be a function"),
        ({"label": -1}, ValueError, "label must be at least 0"),
    ],
)
def test_refusals_of_temperature_and_end(options: dict[str, Any], error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        classifier(**{"score": PLAIN, "log_prob": lambda x, t: x, "label": 1, **options})


@pytest.mark.parametrize(
    ("temperature", "match"),
    [
        (lambda t: -1.0, "positive and finite"),
        (lambda t: math.nan, "positive and finite"),
        (lambda t: torch.ones(3), r"one number \(\) or \(4,\)"),
        (lambda t: torch.ones(4, 1), r"one number \(\) or \(4,\)"),
    ],
)
def test_bad_temperatures_of_t(temperature: Any, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        classifier(PLAIN, lambda x, t: x, 1.0, label=1, temperature=temperature)(X, T)


# ---- both, and gradients ----


def exact_model(sde: SDE, data: GaussianMixture) -> ScoreModel:
    """A ScoreModel with label 3 = null whose scores are the mixture's exactly."""

    def net(x: Tensor, c: Tensor, label: Tensor) -> Tensor:
        t = sde.t_of_log_snr(-2 * c)
        return torch.stack([
            data.score(sde, int(k) if k < 3 else None)(row[None], s)[0] for row, s, k in zip(x, t, label, strict=True)
        ])  # fmt: skip

    return ScoreModel(net, sde, "score")


def test_classifier_free_with_exact_scores_is_exact_classifier_guidance() -> None:
    """s(x) + w (s(x|y) - s(x)) = s(x) + w ∇ log p(y|x), by Bayes."""
    data, sde = mixture(), VP()
    for scale in (0.0, 1.0, 3.0):
        free = classifier_free(exact_model(sde, data), {"label": Y}, scale, null=3)(X, T)
        guided = classifier(data.score(sde), data.label_log_prob(sde), scale, label=Y)(X, T)
        torch.testing.assert_close(free, guided, rtol=1e-8, atol=1e-8)  # t found from log(σ/α): 1e-10 relative


def test_guidances_compose_and_add() -> None:
    data, sde = mixture(), VP()
    free = classifier_free(exact_model(sde, data), {"label": Y}, 1.5, null=3)
    both = classifier(free, data.label_log_prob(sde), 0.5, label=Y)(X, T)
    once = classifier(data.score(sde), data.label_log_prob(sde), 2.0, label=Y)(X, T)
    torch.testing.assert_close(both, once, rtol=1e-8, atol=1e-8)
    twice = classifier(
        classifier(data.score(sde), data.label_log_prob(sde), 0.5, label=Y), data.label_log_prob(sde), 1.5, label=Y
    )
    torch.testing.assert_close(twice(X, T), once, **ROUNDING)


@pytest.mark.parametrize("wants_grad", [True, False])
def test_values_do_not_depend_on_the_grad_mode(wants_grad: bool) -> None:
    data, sde = mixture(), VP()
    x = X.clone().requires_grad_(wants_grad)
    score = classifier(classifier_free(model(), {"label": Y}, 2.0), data.label_log_prob(sde), 2.0, label=Y)
    with torch.enable_grad():
        a = score(x, T)
    with torch.no_grad():
        b = score(x, T)
    assert torch.equal(a, b) and not b.requires_grad and x.grad is None and x.requires_grad == wants_grad


def test_x_may_be_a_view_made_without_gradients() -> None:
    """As the adjoints of the backends hand it over: it claims to require gradients and cannot be differentiated in."""
    data, sde = mixture(), VP()
    score, x = classifier(data.score(sde), data.label_log_prob(sde), 2.0, label=Y), X.clone().requires_grad_(True)
    with torch.no_grad():
        assert torch.equal(score(x.view(2, 4).view(4, 2), T), score(X, T))


def test_gradients_pass_through_guidance_to_x_and_to_both_networks() -> None:
    data, sde, net = mixture(), VP(), model()
    temperature = torch.tensor(1.3, dtype=torch.float64, requires_grad=True)
    every = data.label_log_prob(sde)
    score = classifier(
        classifier_free(net, {"label": Y}, 2.0), lambda x, t: (every(x, t) / temperature).log_softmax(1), 2.0, label=Y
    )

    def value(x: Tensor, weight: Tensor, temperature_: Tensor) -> Tensor:
        return score(x, T)

    weight = net.net.weight
    # gradcheck compares with central differences at its own default tolerances
    assert torch.autograd.gradcheck(value, (X.clone().requires_grad_(True), weight, temperature), atol=1e-5)
    # and where x itself needs none, the parameters still get theirs
    grads = torch.autograd.grad(score(X, T).square().sum(), [weight, temperature])
    assert all(float(g.abs().sum()) > 0 for g in grads)


def test_guided_sampling_reaches_the_component() -> None:
    """More than moving: at scale 1 the samples have the component's own mean, within 5 standard errors."""
    data = GaussianMixture(torch.tensor([0.8, 0.2]), torch.tensor([[-1.0], [1.0]]), torch.tensor([0.2, 0.05]))
    score = classifier(data.score(VP()), data.label_log_prob(VP()), label=1)
    n = 2000
    x = sample(score, (n, 1), steps=25, denoise=False, seed=3).x
    # 0.02: Heun's bias at 25 steps (see test_orders); unguided the mean is -0.6
    assert abs(float(x.mean()) - 1) < 5 * math.sqrt(0.05 / n) + 0.02


def test_at_scale_zero_no_classifier_is_asked() -> None:
    def forbidden(x: Tensor, t: Tensor) -> Tensor:
        raise AssertionError("asked")

    score = mixture().score(VP())
    guided: Any = classifier(score, forbidden, 0.0)
    assert torch.equal(guided(X, T), score(X, T)) and torch.equal(guided.twist(X, T).x0, score.denoise(X, T))
    assert [part.weight for part in guided.parts(X, T, X0)] == [1.0]
    assert not guided.twist(X, T).log_psi.any() and not guided.twist(X, T).gradient.any()
    guided.check()
    assert not guided.log_potential(X).any()


# ---- how much errors are amplified ----


def test_every_guidance_says_by_how_much_errors_come_out_larger() -> None:
    """Σ |a_i| of the weighted sum, worked out from the parts where there are any."""
    net, label = model(), {"label": Y}
    guided = classifier_free(net, label, 3.0)
    bent = classifier(PLAIN, lambda x, t: x.sum(1), scale=2.0)
    both = classifier(guided, lambda x, t: x.sum(1), scale=2.0)
    composed = compose(net, [(2.0, label), (-1.0, label)])
    scores = [guided, classifier_free(net, label, 1.0), bent, composed, autoguidance(guided, PLAIN, 2.0)]
    for score in scores:
        assert isinstance(score, LinearGuidance)
        assert score.amplification == pytest.approx(sum(abs(part.weight) for part in score.parts(X, T, SCORE)))
    assert isinstance(both, LinearGuidance)
    assert both.amplification >= sum(abs(part.weight) for part in both.parts(X, T, SCORE))
    assert PLAIN.amplification == net.bind(label=Y).amplification == 1.0
    assert projected(net, label, 4.0).amplification == 7.0
    tempered = classifier(PLAIN, ClassifierModel(Logits(), VP()), label=1, scale=1.0, temperature=0.1)
    assert tempered.amplification == pytest.approx(19.0)


class Logits(nn.Module):
    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        return torch.stack([x[:, 0], -x[:, 0]], 1)


@pytest.mark.parametrize("sde", [VP(), EDM(), RectifiedFlow(T=1.0)], ids=lambda sde: type(sde).__name__)
def test_a_schedule_is_asked_at_one_time_as_in_a_run(sde: SDE) -> None:
    """Schedules of ordinary numbers, by the solvers that ask for amplification and by those that do not."""
    net = ScoreModel(Net(), sde, predicts="x0")

    def stepwise(t: Tensor) -> float:
        return 8.0 if 0.2 < float((-0.5 * sde.log_snr(t)).exp()) < 2.4 else 1.0

    score = classifier_free(net, {"label": Y}, stepwise)
    assert score.amplification == 15.0  # narrow in t under EDM, and found
    assert classifier_free(net, {"label": Y}, 8.0, interval=(0.2, 3.0)).amplification == 15.0
    assert classifier_free(net, {"label": Y}, 8.0, interval=(1e5, 1e6)).amplification == 1.0  # never inside
    for solver in (None, DDIM()):
        assert sample(score, (4, 2), steps=5, solver=solver, dtype=torch.float64).x.isfinite().all()
    with pytest.raises(ValueError, match="must be finite"):
        sample(classifier_free(net, {"label": Y}, lambda t: math.nan), (4, 2), steps=5)
