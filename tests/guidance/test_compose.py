"""Several conditions: the formula, one call, what independent conditions compose to, and refusals."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from scoresde.guidance import LinearGuidance, classifier_free, compose
from scoresde.models import ScoreModel
from scoresde.models.combination import SCORE
from scoresde.nn import MLP
from scoresde.problems import GaussianMixture
from scoresde.sde import EDM, SDE, VE, VP, Cosine, RectifiedFlow, SubVP

SDES: list[SDE] = [VP(), SubVP(), VE(), EDM(), Cosine(), RectifiedFlow()]
# Sums of a few terms, in two orders.
ROUNDING = {"rtol": 1e-10, "atol": 1e-10}


def normals(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


X, Y = normals(4, 2, seed=4), torch.tensor([0, 1, 2, 1])
T = torch.tensor(0.4, dtype=torch.float64)
TIMES = [
    pytest.param(torch.tensor(0.4, dtype=torch.float64), id="one t"),
    pytest.param(torch.tensor([0.1, 0.4, 0.7, 1.0], dtype=torch.float64), id="each t"),
]


class Net(nn.Module):
    """A label and a caption of two words; 3 and 0 are "not given"."""

    def __init__(self) -> None:
        super().__init__()
        self.label, self.words = nn.Parameter(normals(4, 2, seed=1)), nn.Parameter(normals(5, 2, seed=2))
        self.null_conditions = {"label": 3, "caption": 0}
        self.batches: list[int] = []

    def forward(self, x: Tensor, c: Tensor, label: Tensor, caption: Tensor | None = None) -> Tensor:
        self.batches.append(len(x))
        caption = NO_WORDS[:1].expand(len(x), 2) if caption is None else caption
        return torch.tanh(x + self.label[label] * self.words[caption].sum(1))


def model() -> ScoreModel:
    return ScoreModel(Net(), VP())


NO_LABEL, NO_WORDS = torch.full((4,), 3), torch.zeros(4, 2, dtype=torch.long)
WORDS = torch.tensor([[1, 2], [3, 4], [2, 0], [4, 4]])


@pytest.mark.parametrize("t", TIMES)
def test_compose_is_its_formula_in_one_call(t: Tensor) -> None:
    """Terms that give different conditions: what a term leaves out is not given there."""
    net = model()
    none = net(X, t, {"label": NO_LABEL, "caption": NO_WORDS})
    one = net(X, t, {"label": Y, "caption": NO_WORDS})
    other = net(X, t, {"label": NO_LABEL, "caption": WORDS})
    both = net(X, t, {"label": torch.full((4,), 2), "caption": WORDS})
    net.net.batches.clear()
    terms = [(2.0, {"label": Y}), (-0.7, {"caption": WORDS}), (0.3, {"caption": WORDS, "label": 2})]
    guided = compose(net, terms)
    expected = none + 2 * (one - none) - 0.7 * (other - none) + 0.3 * (both - none)
    torch.testing.assert_close(guided(X, t), expected, **ROUNDING)
    assert net.net.batches == [4 * 4] and isinstance(guided, LinearGuidance)
    parts = guided.parts(X, t, SCORE)
    assert [p.weight for p in parts] == pytest.approx([1 - 2 + 0.7 - 0.3, 2, -0.7, 0.3], abs=1e-12)
    for part, score in zip(parts, (none, one, other, both), strict=True):
        torch.testing.assert_close(part.value, score, **ROUNDING)


def test_one_term_is_classifier_free() -> None:
    net = model()
    for scale in (0.0, 1.0, 3.0):
        a = compose(net, [(scale, {"label": Y, "caption": WORDS})])(X, T)
        b = classifier_free(net, {"label": Y, "caption": WORDS}, scale)(X, T)
        torch.testing.assert_close(a, b, **ROUNDING)


@pytest.mark.parametrize(
    ("weights", "size"), [((0.5, 0.5), 8), ((1.0, 0.0), 4), ((0.0, 2.0), 8), ((0.0, 0.0), 4), ((2.0, 1.0), 12)]
)
def test_branches_of_weight_0_are_not_evaluated(weights: tuple[float, float], size: int) -> None:
    net = model()
    compose(net, [(weights[0], {"label": Y}), (weights[1], {"label": 1})])(X, T)
    assert net.net.batches == [size]


@pytest.mark.parametrize("sde", SDES, ids=lambda s: type(s).__name__)
def test_and_of_independent_conditions_is_the_joint_condition(sde: SDE) -> None:
    """Four Gaussians on a square, labelled by side and by height, which are independent given x, so that
    s(x | side) + s(x | height) - s(x) = s(x | side, height). "Not left" at weight -1 turns p into p / p(left | x)."""
    corners = torch.tensor([[-1.0, -1.0], [-1.0, 1.0], [1.0, -1.0], [1.0, 1.0]], dtype=torch.float64)
    square = GaussianMixture(torch.ones(4), corners, 0.1)
    pairs = [GaussianMixture(torch.ones(2), corners[rows], 0.1) for rows in ([0, 1], [2, 3], [0, 2], [1, 3])]

    none = torch.full((4,), 2)

    def net(x: Tensor, c: Tensor, side: Tensor, height: Tensor | None = None) -> Tensor:
        height = none.repeat(len(x) // 4) if height is None else height
        t = sde.t_of_log_snr(-2 * c)
        scores = [pair.score(sde)(x, t) for pair in pairs] + [square.score(sde)(x, t)]
        return torch.stack(scores)[torch.where(side < 2, side, torch.where(height < 2, 2 + height, 4)), range(len(x))]

    net.null_conditions = {"side": 2, "height": 2}  # type: ignore[attr-defined]
    wrapped = ScoreModel(net, sde, "score")
    for level in (0.1, 1.0, 5.0):
        t = sde.t_of_log_snr(torch.tensor(-2 * math.log(level), dtype=torch.float64))
        x = X * sde.alpha(t)
        both = compose(wrapped, [(1.0, {"side": 1}), (1.0, {"height": 0})])(x, t)
        # sums of scores of size 1/σ²
        torch.testing.assert_close(both, square.score(sde, 2)(x, t), rtol=1e-8, atol=1e-8)
        leaf = x.clone().requires_grad_(True)
        log_left = square.label_log_prob(sde)(leaf, t)[:, :2].logsumexp(1)
        (away,) = torch.autograd.grad(log_left.sum(), leaf)
        without = compose(wrapped, [(-1.0, {"side": 0})])(x, t)
        torch.testing.assert_close(without, square.score(sde)(x, t) - away, rtol=1e-8, atol=1e-8)


def test_one_null_for_a_condition_that_all_terms_share() -> None:
    net = ScoreModel(lambda x, c, label: x * label[:, None], VP())
    guided = compose(net, [(2.0, {"label": 1}), (-1.0, {"label": 4})], null=7)
    t = torch.tensor(0.4)
    none, one, four = (net(X, t, {"label": torch.full((4,), k)}) for k in (7, 1, 4))
    torch.testing.assert_close(guided(X, t), none + 2 * (one - none) - (four - none), **ROUNDING)


def test_a_library_network_with_vectors_composes() -> None:
    """Its nulls are NaN and a number of classes; a number stands for all rows."""
    net = MLP(2, width=8, depth=1, num_classes=3, vectors={"place": 2, "size": 1})
    for i, parameter in enumerate(net.parameters()):  # a new network's last layers are 0
        nn.init.normal_(parameter, generator=torch.Generator().manual_seed(i))
    wrapped, x, t = ScoreModel(net, VP()), X.float(), torch.tensor(0.4)
    place = X.float()[:1]
    guided = compose(wrapped, [(2.0, {"label": 1}), (1.5, {"place": place}), (-1.0, {"size": 3})])
    none = wrapped(x, t)
    one, two = wrapped(x, t, {"label": torch.ones(4).long()}), wrapped(x, t, {"place": place.expand(4, 2)})
    three = wrapped(x, t, {"size": torch.full((4,), 3.0)})
    # float32 sums of a few terms
    expected = none + 2 * (one - none) + 1.5 * (two - none) - (three - none)
    room = 1e-5 * float(none.detach().abs().max())
    torch.testing.assert_close(guided(x, t), expected, rtol=1e-4, atol=room)
    assert float((one - none).detach().abs().min()) > 0


@pytest.mark.parametrize(
    ("build", "error", "match"),
    [
        (lambda: compose(model(), []), ValueError, "at least one term"),
        (lambda: compose(model(), {"label": 1}), TypeError, "list of"),  # type: ignore[arg-type]
        (lambda: compose(model(), [{"label": 1}]), TypeError, r"must be \(weight"),  # type: ignore[list-item]
        (lambda: compose(model(), [(1.0, 3)]), TypeError, r"must be \(weight"),  # type: ignore[list-item]
        (lambda: compose(model(), [(1.0, {})]), ValueError, "needs a condition"),
        (lambda: compose(model(), [(math.nan, {"label": 1})]), ValueError, "finite number"),
        (lambda: compose(model(), [("2", {"label": 1})]), ValueError, "finite number"),  # type: ignore[list-item]
        (lambda: compose(model(), [(1.0, {"text": 1})]), ValueError, "takes no condition text"),
        (lambda: compose(model(), [(1.0, {"text": 1})], null={"text": 0}), ValueError, "takes label, caption"),
        (lambda: compose(model(), [(1.0, {"label": 1}), (1.0, {"caption": WORDS})], null=0), ValueError, "mapping"),
        (lambda: compose(model().bind(label=1), [(1.0, {"label": 1})]), TypeError, "ScoreModel"),  # type: ignore[arg-type]
        (lambda: compose(model(), [(1.0, {"caption": WORDS.float()})]), ValueError, "whole numbers"),
        (
            lambda: compose(model(), [(1, {"caption": WORDS}), (1, {"caption": WORDS[:, :1]})])(X, T),
            ValueError,
            "shape",
        ),
        (lambda: compose(model(), [(1.0, {"label": Y[:2]})])(X, T), ValueError, "2 rows but x has 4"),
    ],
)
def test_refusals(build: Callable[[], Any], error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        build()
