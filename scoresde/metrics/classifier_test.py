r"""Classifier two-sample test: how often a classifier that has learned to tell two sets apart is right on new samples.

    found = classifier_two_sample_test(samples, data)       # .accuracy: 1/2 where the laws are equal
    found.accuracy, found.error, found.p_value
    classifier_two_sample_test(samples, data, classifier=forest)    # any (x, label, new) -> log-odds of new

It looks for whatever difference a classifier can learn, and for none that it cannot.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from scoresde import checks
from scoresde.metrics.sets import check_sizes, two_sets
from scoresde.noise import Noise, as_noise

Classifier = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Of training rows (n, d), their labels (n,) in {0, 1} and new rows (k, d), all float64: log-odds of label 1, (k,)."""


class ClassifierTest(NamedTuple):
    """What a classifier finds.

    Attributes:
        accuracy: cross-validated, the mean of that on x and that on y: 1/2 where the laws are equal.
        error: its standard error, as if the folds' classifiers were one.
        p_value: of sets as well told apart or better; P(p <= a) <= a where the laws are one, mostly far below.
    """

    accuracy: float
    error: float
    p_value: float


def classifier_two_sample_test(
    x: Tensor,
    y: Tensor,
    noise: Noise | torch.Generator | int = 0,
    *,
    folds: int = 5,
    classifier: Classifier | None = None,
) -> ClassifierTest:
    r"""Cross-validated accuracy of a classifier between two sets, and its p-value (C2ST).

    Lopez-Paz & Oquab 2017 (arXiv:1610.06545, section 3). The best classifier of laws p and q is right with the
    probability ½ + ¼∫|p - q|: Φ(δ/2) for Gaussians δ deviations apart.

    Each fold has a p-value: given the classifier, whose training saw none of the fold, the ranks of its log-odds there
    are those of a random grouping where the laws are equal (Mann & Whitney 1947, doi:10.1214/aoms/1177730491, by the
    normal limit with corrections for ties and continuity). Folds are not independent, for each trains on the others,
    and a binomial test of the accuracy over all of them rejects too often. So the K p-values are joined by Rüger's
    rule, min(1, K/k p_(k)) with k = ⌈K/2⌉, which holds under any dependence (Rüger 1978, Metrika 25).

    Args:
        x: (n, *event).
        y: (m, *event).
        noise: source of the folds and of the classifier's weights.
        folds: K, at least 2.
        classifier: see :data:`Classifier`; a network of two layers on standardised rows unless told.

    Raises:
        TypeError, ValueError: fewer than 4 samples of a set in each fold, not finite, events of two shapes; a
            classifier that answers something else.
    """
    folds = checks.count(folds, name="folds", least=2)
    a, b = two_sets(x, y)
    check_sizes(a, b, least=4 * folds, names=("x", "y"), what=f"folds={folds}")
    source = as_noise(noise, "classifier test")
    if classifier is None:
        classify: Classifier = lambda rows, label, new: mlp_log_odds(rows, label, new, source)  # noqa: E731
    else:
        checks.function(classifier, name="classifier", what="(x, label, new) -> log-odds", takes=3)
        classify = classifier
    cpu = torch.device("cpu")
    parts = [
        as_noise(noise, f"folds of {name}").initial((len(s),), dtype=torch.float64, device=cpu).argsort().chunk(folds)
        for name, s in (("x", a), ("y", b))
    ]
    right: list[list[Tensor]] = [[], []]
    p_values = []
    for k in range(folds):
        train, new = (
            [
                s[torch.cat([p for i, p in enumerate(part) if (i == k) == own]).to(s.device)]
                for s, part in zip((a, b), parts, strict=True)
            ]
            for own in (False, True)
        )
        label = torch.cat([torch.zeros(len(train[0])), torch.ones(len(train[1]))]).double().to(a.device)
        odds = _checked(classify(torch.cat(train), label, torch.cat(new)), len(new[0]) + len(new[1]))
        low, high = odds[: len(new[0])], odds[len(new[0]) :]
        right[0].append((low < 0).double() + 0.5 * (low == 0).double())
        right[1].append((high > 0).double() + 0.5 * (high == 0).double())
        p_values.append(rank_p_value(low, high))
    shares = [torch.cat(one) for one in right]
    accuracy = float(sum(one.mean() for one in shares)) / 2
    error = 0.5 * math.sqrt(sum(float(one.mean() * (1 - one.mean())) / len(one) for one in shares))
    k = math.ceil(folds / 2)
    return ClassifierTest(accuracy, error, min(1.0, folds / k * sorted(p_values)[k - 1]))


def _checked(odds: object, count: int) -> Tensor:
    if not isinstance(odds, Tensor) or odds.shape != (count,) or not odds.is_floating_point():
        raise ValueError(f"classifier must answer floating log-odds ({count},), got {checks.got(odds)}.")
    if not bool(odds.isfinite().all()):
        raise ValueError(f"classifier must answer finite log-odds, got NaN or infinity in {checks.got(odds)}.")
    return odds.detach().double().cpu()


def rank_p_value(low: Tensor, high: Tensor) -> float:
    """P(as many pairs with low < high | one law), one-sided, of (n,) and (m,): Mann & Whitney's U, normal limit."""
    n, m = len(low), len(high)
    both = torch.cat([low, high])
    values, place, counts = both.unique(return_inverse=True, return_counts=True)
    ranks = (counts.cumsum(0) - (counts - 1) / 2)[place].double()
    u = float(ranks[n:].sum()) - m * (m + 1) / 2
    ties = float((counts.double() ** 3 - counts).sum()) / ((n + m) * (n + m - 1))
    variance = n * m / 12 * (n + m + 1 - ties)
    if variance <= 0 or len(values) == 1:
        return 1.0
    return 0.5 * math.erfc((u - n * m / 2 - 0.5) / math.sqrt(2 * variance))


def mlp_log_odds(
    rows: Tensor, label: Tensor, new: Tensor, noise: Noise, *, width: int = 64, steps: int = 200
) -> Tensor:
    """Log-odds (k,) of ``new`` by a network of two layers, fitted to all rows by AdamW.

    Rows are standardised; classes count equally, whatever their sizes. The best steps are chosen on every fifth row,
    which is not fitted: more steps learn the samples by heart.
    """
    mean, std = rows.mean(0), rows.std(0)
    std = torch.where(std > 1e-8 * rows.abs().max().clamp_min(1e-300), std, 1.0)
    inputs, wanted = ((rows - mean) / std).float(), label.float()
    held = torch.arange(len(rows), device=rows.device) % 5 == 0
    layers = [nn.utils.skip_init(nn.Linear, *sizes) for sizes in ((rows.shape[1], width), (width, 1))]
    net = nn.Sequential(layers[0], nn.SiLU(), layers[1])
    with torch.no_grad():  # from the given noise, not from torch's generators
        for layer in layers:
            draw = noise.initial(tuple(layer.weight.shape), dtype=torch.float32, device=torch.device("cpu"))
            layer.weight.copy_(draw / math.sqrt(layer.weight.shape[1]))
            layer.bias.zero_()
    net.to(rows.device)
    weight = torch.where(wanted > 0.5, 0.5 / wanted.mean(), 0.5 / (1 - wanted.mean()))
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-2, weight_decay=0.1)
    best, found = math.inf, new.new_zeros(len(new))
    for step in range(steps):
        loss = F.binary_cross_entropy_with_logits(net(inputs[~held])[:, 0], wanted[~held], weight[~held])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        if step % 10 == 9:
            with torch.no_grad():
                off = float(F.binary_cross_entropy_with_logits(net(inputs[held])[:, 0], wanted[held], weight[held]))
                if off < best:
                    best, found = off, net(((new - mean) / std).float())[:, 0].double()
    return found
