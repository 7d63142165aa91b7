"""The figures of `scoresde evaluate`: what compares two sets, and on what conditions.

    FIGURES["frechet"].compare(samples, data)               # {"frechet_distance": ..., "frechet_extrapolated": ...}
    FIGURES["kernel"].test(samples, data, 199, 0).p_value
    FIGURES["frechet"].unfit(500, 3072)                     # in words why not, or "" where it may be

Sets are rows (n, d) of features in float64.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from scoresde import metrics
from scoresde.metrics import TwoSampleTest

CORRELATED = 256
"""Numbers of a sample up to which correlations are compared."""
PARTS = 2
"""Into how many parts the extrapolated Fréchet distance cuts the sets."""
ALONG_AXES = 1024
"""Numbers of a sample up to which the direction of the largest distance is looked for."""

FigureName = Literal[
    "energy", "sliced", "max-sliced", "moments", "frechet", "kernel", "mmd", "precision-recall", "density-coverage",
    "vendi", "classifier",
]  # fmt: skip
"""Groups of figures that are asked for by name."""


@dataclass(frozen=True)
class Figure:
    """One comparison of a set (n, d) with another (m, d), which may have several values.

    Attributes:
        values: the names of its values, in the order of report.json.
        compare: values by name; some may be missing, where there are too few samples for them.
        centred: values that are 0 on average where the laws agree: a ratio to those of real data says nothing.
        test: the statistic of both sets and its p-value, by (x, y, permutations, seed), where there is a fast one.
        unfit: of sizes (n, d), why the figure would say nothing, in words; empty where it does.
        statistic: one number that grows with the difference, for a permutation test; None where there is none.
    """

    values: tuple[str, ...]
    compare: Callable[[Tensor, Tensor], Mapping[str, float]]
    centred: tuple[str, ...] = ()
    test: Callable[[Tensor, Tensor, int, int], TwoSampleTest] | None = None
    unfit: Callable[[int, int], str] = lambda n, d: ""
    statistic: Callable[[Tensor, Tensor], float] | None = None


def _spread(x: Tensor) -> Tensor:
    """The deviation of each number; of those that never change, that of all."""
    each = x.std(0)
    return torch.where(each > 0, each, x.std().clamp_min(1e-12))


def _moments(a: Tensor, b: Tensor) -> dict[str, float]:
    off = (a.mean(0) - b.mean(0)) / _spread(b)
    found = {
        "mean_off": float(off.square().mean().sqrt()),
        "std_off": float((a.std(0) / _spread(b) - 1).square().mean().sqrt()),
    }
    if 1 < a.shape[1] <= CORRELATED:
        between = (torch.corrcoef(a.T) - torch.corrcoef(b.T)).nan_to_num()
        found["correlation_off"] = float(between.square().mean().sqrt())
    return found


def _frechet(a: Tensor, b: Tensor) -> dict[str, float]:
    found = {"frechet_distance": metrics.frechet_distance(a, b)}
    if min(len(a), len(b)) >= PARTS * (2 * a.shape[1] + 1):
        found["frechet_extrapolated"] = metrics.frechet_extrapolated(a, b, parts=PARTS)
    return found


def _few_for_covariance(n: int, d: int) -> str:
    return "" if n > d else f"needs more samples of each set than features have numbers, {d}; there are {n}"


def _at_least(least: int) -> Callable[[int, int], str]:
    return lambda n, d: "" if n >= least else f"needs at least {least} samples of each set; there are {n}"


def _max_sliced_unfit(n: int, d: int) -> str:
    few = _at_least(4)(n, d)
    return few or ("" if d <= ALONG_AXES else f"looks for a direction among at most {ALONG_AXES} numbers, not {d}")


FIGURES: Mapping[FigureName, Figure] = {
    "energy": Figure(
        ("energy_distance",),
        lambda a, b: {"energy_distance": metrics.energy_distance(a, b)},
        test=lambda a, b, count, seed: metrics.mmd_test(a, b, metrics.DistanceKernel(), seed, permutations=count),
    ),
    "sliced": Figure(
        ("sliced_wasserstein",),
        lambda a, b: {"sliced_wasserstein": metrics.sliced_wasserstein(a, b)},
        statistic=metrics.sliced_wasserstein,
    ),
    "max-sliced": Figure(
        ("max_sliced_wasserstein",),
        lambda a, b: {"max_sliced_wasserstein": metrics.max_sliced_wasserstein(a, b, held_out=True)},
        unfit=_max_sliced_unfit,
        statistic=metrics.max_sliced_wasserstein,
    ),
    "moments": Figure(
        ("mean_off", "std_off", "correlation_off"), _moments, statistic=lambda a, b: sum(_moments(a, b).values())
    ),
    "frechet": Figure(
        ("frechet_distance", "frechet_extrapolated"),
        _frechet,
        centred=("frechet_extrapolated",),
        unfit=_few_for_covariance,
        statistic=metrics.frechet_distance,
    ),
    "kernel": Figure(
        ("kernel_distance",),
        lambda a, b: {"kernel_distance": metrics.kernel_distance(a, b).value},
        centred=("kernel_distance",),
        test=lambda a, b, count, seed: metrics.mmd_test(a, b, metrics.PolynomialKernel(), seed, permutations=count),
        unfit=_at_least(3),
    ),
    "mmd": Figure(
        ("mmd",),
        lambda a, b: {"mmd": metrics.mmd(a, b).value},
        centred=("mmd",),
        test=lambda a, b, count, seed: metrics.mmd_test(a, b, None, seed, permutations=count),
        unfit=_at_least(3),
    ),
    "precision-recall": Figure(
        ("precision", "recall"),
        lambda a, b: metrics.precision_recall(a, b)._asdict(),
        unfit=_at_least(4),
        statistic=lambda a, b: -sum(metrics.precision_recall(a, b)),
    ),
    "density-coverage": Figure(
        ("density", "coverage"),
        lambda a, b: metrics.density_coverage(a, b)._asdict(),
        unfit=_at_least(6),
        statistic=lambda a, b: -metrics.density_coverage(a, b).coverage,
    ),
    "vendi": Figure(("vendi_score",), lambda a, b: {"vendi_score": metrics.vendi_score(a)}),
    "classifier": Figure(("classifier_accuracy",), lambda a, b: {}, unfit=_at_least(20)),
}
"""By name. The classifier makes splits of its own, and has no others."""
ALL: tuple[FigureName, ...] = get_args(FigureName)


def result_of(values: list[float], real: list[float], *, ratio: bool) -> dict[str, float]:
    """Mean and deviation over splits of a value and of its real counterpart; and their ratio."""
    samples, floor = (torch.tensor(one, dtype=torch.float64) for one in (values, real))
    found = {
        "value": samples.mean().item(),
        "std": samples.std().item(),
        "real": floor.mean().item(),
        "real_std": floor.std().item(),
    }
    if ratio and not found["value"] == found["real"] == 0:
        found["ratio"] = found["value"] / found["real"] if found["real"] > 0 else float("inf")
    return found
