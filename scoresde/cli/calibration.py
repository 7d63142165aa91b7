"""Whether posterior samples are calibrated: coverage with its error, and a picture of ranks.

    found = interval_coverage(samples, truth, levels=(0.5, 0.9))       # (n, S, d) and (n, d)
    found.coverage, found.errors, found.verdict()
    draw_ranks(Path("ranks.png"), samples, truth, names=["a", "b"])

For samples and truth of one law the rank of the truth among its samples is uniform, for any law (Talts et al. 2018,
arXiv:1804.06788, theorem 1).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from scoresde.cli.pictures import new_figure, save_figure
from scoresde.metrics import calibration_error, coverage, rank

BINS = 20
"""Of a picture of ranks."""
FAR = 3.0
"""Standard errors from which coverage is called off."""


@dataclass(frozen=True)
class IntervalCoverage:
    """Coverage of central intervals.

    Attributes:
        levels: of the intervals.
        coverage: over all coordinates, for each level. errors: their standard errors.
        each: for each coordinate, one number for each level.
        error: ∫ |F(u) - u| du over all, see ``scoresde.metrics.calibration_error``.
        pairs: cases that were judged. draws: samples of each.
    """

    levels: tuple[float, ...]
    coverage: tuple[float, ...]
    errors: tuple[float, ...]
    each: tuple[tuple[float, ...], ...]
    error: float
    pairs: int
    draws: int

    def verdict(self) -> str:
        """What is wrong, in words; empty where nothing is."""
        off = [
            (share - level) / error
            for level, share, error in zip(self.levels, self.coverage, self.errors, strict=True)
            if error > 0
        ]
        if not off or max(map(abs, off)) < FAR:
            return ""
        worst = max(off, key=abs)
        kind = (
            "overconfident: its intervals are too narrow" if worst < 0 else "too cautious: its intervals are too wide"
        )
        return (
            f"the posterior is {kind}, by {abs(worst):.1f} standard errors of the coverage. More simulations help "
            "most; then more --train-steps, or a wider network."
        )

    def to_json(self, names: Sequence[str]) -> dict[str, Any]:
        """For a report."""
        labels = [f"{level:g}" for level in self.levels]
        return {
            "coverage": dict(zip(labels, self.coverage, strict=True)),
            "standard_error": dict(zip(labels, self.errors, strict=True)),
            "each": {
                name: dict(zip(labels, shares, strict=True)) for name, shares in zip(names, self.each, strict=True)
            },
            "calibration_error": self.error,
            "pairs": self.pairs,
            "draws": self.draws,
            "verdict": self.verdict() or "no fault seen",
        }


def interval_coverage(samples: Tensor, truth: Tensor, levels: Sequence[float]) -> IntervalCoverage:
    """Coverage of the truths (n, d) by the intervals of their samples (n, S, d).

    The standard errors are those of a share over n cases, as if all d coordinates of a case said the same.
    """
    n = len(truth)
    return IntervalCoverage(
        levels=tuple(levels),
        coverage=tuple(coverage(samples, truth, level) for level in levels),
        errors=tuple(math.sqrt(level * (1 - level) / n) for level in levels),
        each=tuple(
            tuple(coverage(samples[..., i], truth[..., i], level) for level in levels) for i in range(truth.shape[1])
        ),
        error=calibration_error(samples, truth),
        pairs=n,
        draws=samples.shape[1],
    )


def draw_ranks(path: Path, samples: Tensor, truth: Tensor, names: Sequence[str]) -> None:
    """A PNG of histograms of the truth's ranks, one for each coordinate, with the band in which 95 % of bins lie."""
    below, equal = rank(samples, truth)
    middle = (below.double() + equal.double() / 2 + 0.5) / (samples.shape[1] + 1)
    count = len(names)
    columns = min(4, count)
    figure, axes = new_figure(-(-count // columns), columns, size=2.2, width=2.6)
    expected = len(truth) / BINS
    spread = 1.96 * math.sqrt(expected * (1 - 1 / BINS))
    for i, axis in enumerate(axes.flat):
        if i >= count:
            axis.set_axis_off()
            continue
        axis.axhspan(max(0.0, expected - spread), expected + spread, color="0.85")
        axis.hist(middle[:, i].numpy(), bins=BINS, range=(0, 1), color="C0", alpha=0.7)
        axis.set_title(names[i], fontsize=8)
        axis.set_xlabel("rank of the truth among its samples", fontsize=7)
        axis.set_ylabel("held-out pairs", fontsize=7)
        axis.tick_params(labelsize=6)
    figure.suptitle("uniform where the posterior is right; U: too narrow, dome: too wide", fontsize=8)
    save_figure(path, figure)
