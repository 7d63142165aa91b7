"""The maps that are to find blobs: healthy counterfactuals of several kinds, and controls that lack the idea.

A map is added by writing it, and naming it in :func:`maps_of`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

import scoresde as ss
from scoresde import editing, metrics
from scoresde.editing import Anomaly


@dataclass(frozen=True)
class Search:
    """What every map works with.

    Attributes:
        plain: the score of healthy pictures. labelled: the same given what they are of, and guided: guided towards it;
            None for a model without labels.
        x: (N, C, H, W) pictures with blobs.
        mean: (C, H, W) of healthy training pictures. std: likewise.
        levels: σ/α to which pictures are noised.
        samples: draws at each level. steps: of the way back. seed: of all noise.
    """

    plain: ss.Score
    labelled: ss.Score | None
    guided: ss.Score | None
    x: Tensor
    mean: Tensor
    std: Tensor
    levels: tuple[float, ...]
    samples: int
    steps: int
    seed: int

    made: dict[tuple[int, int, int], Anomaly] = field(default_factory=dict)

    def anomaly(self, score: ss.Score, steps: int, samples: int) -> Anomaly:
        """The library's map, each once."""
        key = (id(score), steps, samples)
        if key not in self.made:
            options: dict[str, Any] = {"levels": self.levels, "seed": self.seed}
            self.made[key] = editing.anomaly_map(score, self.x, samples=samples, steps=steps, **options)
        return self.made[key]


@dataclass(frozen=True)
class Found:
    """A map (N, 1, H, W), evaluations, and where there are such the healthy pictures."""

    map: Tensor
    nfe: int = 0
    healthy: Tensor | None = None


def chance(search: Search) -> Found:
    """Noise."""
    draw = torch.Generator().manual_seed(search.seed)
    return Found(torch.rand(len(search.x), 1, *search.x.shape[2:], generator=draw))


def unusual_pixels(search: Search) -> Found:
    """Deviations of each pixel from its mean over training pictures: no model at all."""
    return Found(((search.x - search.mean) / search.std).abs().mean(1, keepdim=True))


def denoiser(search: Search, score: ss.Score) -> Found:
    """The error of one step of denoising, over as many draws as one counterfactual has evaluations, or more."""
    found = search.anomaly(score, 0, search.samples)
    return Found(found.map, found.nfe, found.x)


def one_counterfactual(search: Search, score: ss.Score) -> Found:
    """A single draw at each level."""
    found = search.anomaly(score, search.steps, 1)
    return Found(found.map, found.nfe, found.x)


def counterfactuals(search: Search, score: ss.Score) -> Found:
    """Several draws at each level."""
    found = search.anomaly(score, search.steps, search.samples)
    return Found(found.map, found.nfe, found.x)


def of_the_mean(search: Search, score: ss.Score) -> Found:
    """The error of their mean, without their spread."""
    found = search.anomaly(score, search.steps, search.samples)
    return Found(found.difference.abs().mean(1, keepdim=True), found.nfe, found.x)


def over_their_spread(search: Search, score: ss.Score) -> Found:
    """Their mean's error in units of their spread."""
    found = search.anomaly(score, search.steps, search.samples)
    # a level of digits, below which differences mean nothing
    deviations = found.difference.abs() / (found.spread.square() + 0.1**2).sqrt()
    return Found(deviations.mean(1, keepdim=True), found.nfe, found.x)


def inverted(search: Search, score: ss.Score) -> Found:
    """Up the ODE under the plain score, down under another: nothing is drawn."""
    sde, total, nfe, healthy = score.sde, torch.zeros_like(search.x[:, :1]), 0, torch.zeros_like(search.x)
    for level in search.levels:
        t = sde.t_of_log_snr(-2 * torch.tensor(level, dtype=torch.float64).log())
        edit = editing.counterfactual(search.plain, score, search.x, t=t, steps=search.steps)
        total, nfe = total + edit.difference.abs().mean(1, keepdim=True), nfe + edit.nfe
        healthy = healthy + edit.x / len(search.levels)
    return Found(total / len(search.levels), nfe, healthy)


def maps_of(search: Search) -> Mapping[str, Callable[[], Found]]:
    """Every map by its name, controls first."""
    ways: dict[str, Callable[[], Found]] = {
        "chance": partial(chance, search),
        "unusual pixels": partial(unusual_pixels, search),
    }
    scores = {"": search.plain, ", label": search.labelled, ", guided": search.guided}
    for name, score in scores.items():
        if score is None:
            continue
        ways[f"denoiser, one step{name}"] = partial(denoiser, search, score)
        ways[f"one counterfactual{name}"] = partial(one_counterfactual, search, score)
        ways[f"counterfactuals{name}"] = partial(counterfactuals, search, score)
        ways[f"mean of counterfactuals{name}"] = partial(of_the_mean, search, score)
        ways[f"counterfactuals over their spread{name}"] = partial(over_their_spread, search, score)
        if name:
            ways[f"inverted, then down{name}"] = partial(inverted, search, score)
    return ways


def smoothed(maps: Tensor, times: int) -> Tensor:
    """Each pixel with its neighbours, by weights 1 2 1 along each axis, so many times: sqrt(times / 2) pixels."""
    row = torch.tensor([1.0, 2.0, 1.0], dtype=maps.dtype, device=maps.device) / 4
    for _ in range(times):
        maps = F.conv2d(F.pad(maps, (1, 1, 1, 1), mode="replicate"), (row[:, None] * row)[None, None])
    return maps


def figures(found: Found, mask: Tensor, smoothing: int) -> dict[str, float]:
    """Areas under the curve, of all pixels together and picture by picture, plain and smoothed; the best Dice."""
    maps = found.map.cpu()
    soft = smoothed(maps, smoothing)
    some = [i for i in range(len(mask)) if bool(mask[i].any())]
    each = torch.tensor([metrics.roc_auc(soft[i : i + 1], mask[i : i + 1]) for i in some])
    # of ten thresholds, chosen on the same pictures: what a perfect choice would give
    cuts = torch.quantile(soft.flatten()[:: max(1, soft.numel() // 100_000)], torch.linspace(0.8, 0.995, 10))
    best = max(float(metrics.dice(soft > cut, mask).mean()) for cut in cuts)
    return {
        "auc": metrics.roc_auc(maps, mask),
        "auc_smoothed": metrics.roc_auc(soft, mask),
        "auc_by_picture": float(each.mean()),
        "best_dice": best,
        "nfe": float(found.nfe),
    }
