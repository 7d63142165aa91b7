"""Which figure finds which fault: the power of every test of `scoresde.metrics` on real digits that are spoilt.

    python examples/benchmarks/faults.py --size 300

The digits are cut in three: a training set, samples, and data. The samples are real, and spoilt in one way; a test is
given ``size`` of them and as many data, many times, and each row of the table says how often it finds them different
at the level 0.05. The first column, nothing spoilt, is what it should be at most. Copies of training samples are looked
for by two figures of their own, at the same level.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
import tyro
from sklearn.datasets import load_digits
from torch import Tensor
from torch.nn import functional as F

import contest
from scoresde import metrics
from scoresde.data import Dataset, from_tensors
from scoresde.metrics import Features, PixelFeatures, TwoSampleTest

Test = Callable[[Tensor, Tensor], TwoSampleTest]
"""Of features of samples and of data."""


@dataclass
class Config:
    """Measure the power of figures against faults."""

    size: int = 300
    """Samples and data that each test is given."""
    repeats: int = 40
    """Times that it is done."""
    permutations: int = 19
    """Of each test."""
    steps: int = 1500
    """Of the training of the feature spaces."""
    spaces: tuple[Literal["pixels", "labels", "views"], ...] = ("pixels", "labels", "views")
    """Feature spaces: of pixels, learned from labels, learned from two views of each digit."""
    seed: int = 0
    """Of all of it."""


def thirds(seed: int) -> tuple[Dataset, Dataset, Dataset]:
    """Training set, samples and data, as many of each."""
    digits = load_digits()
    every = from_tensors(torch.tensor(digits.images).byte()[:, None], torch.tensor(digits.target), levels=17)
    order = torch.randperm(len(every), generator=torch.Generator().manual_seed(seed))
    first, second, third = order[: len(order) // 3 * 3].chunk(3)
    return every.subset(first), every.subset(second), every.subset(third)


def spoilt(samples: Dataset, training: Dataset, seed: int) -> dict[str, Tensor]:
    """The samples with each fault, by its name."""
    x, label = samples[:]["x"], samples.label
    assert label is not None
    generator = torch.Generator().manual_seed(seed)
    near = torch.tensor([[0, 1.0, 0], [1, 16, 1], [0, 1, 0]])[None, None] / 20
    high = label >= 5
    few = torch.cat([torch.where(~high)[0], torch.where(high)[0][::2]])
    third = len(x) // 3
    return {
        "nothing": x,
        "blur": F.conv2d(x + 1, near, padding=1) - 1,
        "noise": (x + 0.1 * torch.randn(x.shape, generator=generator)).clamp(-1, 1),
        "a class missing": x[label != 9],
        "classes unequal": x[few],
        "a quarter, repeated": x[: len(x) // 4].repeat(4, 1, 1, 1),
        "a third copied": torch.cat([training[:third]["x"], x[third:]]),
    }


def tests_of(count: int, seed: int) -> Mapping[str, Test]:
    """All tests by name."""

    def permuted(statistic: Callable[[Tensor, Tensor], float]) -> Test:
        return lambda a, b: metrics.permutation_test(statistic, a, b, seed, permutations=count)

    def classified(a: Tensor, b: Tensor) -> TwoSampleTest:
        found = metrics.classifier_two_sample_test(a, b, seed)
        return TwoSampleTest(found.accuracy, found.p_value)

    return {
        "Fréchet distance": permuted(metrics.frechet_distance),
        "kernel distance": lambda a, b: metrics.mmd_test(a, b, metrics.PolynomialKernel(), seed, permutations=count),
        "MMD": lambda a, b: metrics.mmd_test(a, b, None, seed, permutations=count),
        "energy distance": lambda a, b: metrics.mmd_test(a, b, metrics.DistanceKernel(), seed, permutations=count),
        "sliced Wasserstein": permuted(lambda a, b: metrics.sliced_wasserstein(a, b, slices=64)),
        "max-sliced Wasserstein": permuted(lambda a, b: metrics.max_sliced_wasserstein(a, b, starts=2, steps=5)),
        "precision": permuted(lambda a, b: -metrics.precision_recall(a, b).precision),
        "recall": permuted(lambda a, b: -metrics.precision_recall(a, b).recall),
        "density": permuted(lambda a, b: abs(metrics.density_coverage(a, b).density - 1)),
        "coverage": permuted(lambda a, b: -metrics.density_coverage(a, b).coverage),
        "Vendi score": permuted(lambda a, b: abs(math.log(metrics.vendi_score(a) / metrics.vendi_score(b)))),
        "classifier": classified,
    }


def copying(known: Tensor) -> Mapping[str, Test]:
    """Tests for copies of ``known``: fewer authentic samples than data, more memorised ones than the rate of data."""

    def memorised(a: Tensor, b: Tensor) -> TwoSampleTest:
        share = metrics.memorised_share(a, known, b)
        return TwoSampleTest(share, above((share - 0.05) / math.sqrt(0.05 * 0.95 * (1 / len(a) + 1 / len(b)))))

    def authentic(a: Tensor, b: Tensor) -> TwoSampleTest:
        p, q = metrics.authenticity(a, known), metrics.authenticity(b, known)
        both = (p * len(a) + q * len(b)) / (len(a) + len(b))
        spread = math.sqrt(max(both * (1 - both), 1e-12) * (1 / len(a) + 1 / len(b)))
        return TwoSampleTest(q - p, above((q - p) / spread))

    return {"memorised share": memorised, "authenticity": authentic}


def above(z: float) -> float:
    """P(N(0, 1) > z)."""
    return 0.5 * math.erfc(z / math.sqrt(2))


def row(test: Test, faulty: Mapping[str, Tensor], data: Tensor, config: Config) -> list[str]:
    """The power against each fault, in percent."""
    cells = []
    for samples in faulty.values():
        found = metrics.power_of_test(test, samples, data, config.seed, size=config.size, repeats=config.repeats)
        cells.append(f"{100 * found.value:.0f}")
    return cells


def main(config: Config) -> None:
    """Spoil, test, print a table for each feature space."""
    torch.set_num_threads(1)
    training, samples, data = thirds(config.seed)
    unlabelled = Dataset(training.data, None, training.scaling, None)
    faulty = spoilt(samples, training, config.seed)
    for name in config.spaces:
        space: Features = PixelFeatures()
        if name != "pixels":
            known = training if name == "labels" else unlabelled
            space = metrics.train_features(known, steps=config.steps, seed=config.seed)
        held = space(data[:]["x"])
        found = {fault: space(x) for fault, x in faulty.items()}
        every = {**tests_of(config.permutations, config.seed), **copying(space(training[:]["x"]))}
        rows = [[test_name, *row(test, found, held, config)] for test_name, test in every.items()]
        print(f"\n{space}, {config.size} samples and {config.size} data, {config.repeats} times\n")
        print(contest.markdown(["% found", *(f"{fault}:" for fault in faulty)], rows), flush=True)


if __name__ == "__main__":
    main(tyro.cli(Config))
