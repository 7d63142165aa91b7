"""Bad calls of metrics: distances of two sets, feature spaces, tests and their power."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch
from bad_calls import (
    COUNT,
    FREE,
    FUNCTION,
    LITERAL,
    NOT_NEGATIVE,
    NUMBER,
    PATH,
    POSITIVE,
    SHAPE,
    STATE,
    TENSOR,
    Call,
    Kind,
)
from torch import Tensor

from scoresde import metrics
from scoresde.data import Dataset, from_tensors
from scoresde.metrics import (
    CosineKernel,
    DistanceKernel,
    FeatureNet,
    GaussianKernel,
    ModuleFeatures,
    NetFeatures,
    PixelFeatures,
    PolynomialKernel,
    RunningMoments,
    TwoSampleTest,
)


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


X, Y = numbers(12, 3), numbers(11, 3, seed=1)
SET = TENSOR.but(another_event=lambda x: torch.ones(12, 5), none=lambda x: x[:0])
FEW = SET.but(one=lambda x: x[:1])
SHAPED = STATE.but(another_event=lambda x: torch.ones(12, 5))
MASK = Kind(
    {
        "a list": lambda right: right.tolist(),
        "numpy": lambda right: right.numpy(),
        "a number": lambda right: 1.0,
        "a text": lambda right: "mask",
        "another event": lambda right: torch.ones(12, 5, dtype=torch.bool),
        "of 8 bits": lambda right: 255 * right.to(torch.uint8),
        "a fraction": lambda right: 0.5 * right,
        "nan": lambda right: torch.full(right.shape, float("nan")),
        "complex": lambda right: right.to(torch.complex64),
        "without values": lambda right: right.to("meta"),
        "sparse": lambda right: right.float().to_sparse(),
        "no axis": lambda right: right[0, 0],
    },
    {"whole": lambda right: right.long(), "floating": lambda right: right.float()},
)
MIXED = MASK.but(all_positive=torch.ones_like, all_negative=torch.zeros_like)
RATE = NUMBER.but(zero=lambda right: 0.0, one=lambda right: 1.0, beyond_floats=lambda right: 10**400)
KERNEL = FUNCTION.but("None", a_class=lambda k: GaussianKernel)
DATASET = FUNCTION.but(few=lambda d: from_tensors(numbers(9, 3)))
FEATURES = FUNCTION.but(a_class=lambda f: NetFeatures, pixels=lambda f: PixelFeatures())
NET = FUNCTION.but(a_class=lambda f: FeatureNet)
NAME = Kind({word: make for word, make in LITERAL.wrong.items() if word != "another text"}).but(empty=lambda right: "")
MEANS = Kind({"a text": lambda r: "0.5", "a number": lambda r: 0.5, "an object": lambda r: object()})


def moments(x: Tensor = X) -> RunningMoments:
    found = RunningMoments()
    found.update(x)
    return found


def net() -> FeatureNet:
    torch.manual_seed(0)
    return FeatureNet((3,), 2, width=8, features=4)


def dataset() -> Dataset:
    return from_tensors(numbers(24, 3), torch.arange(24) % 2)


def saved() -> Path:
    return metrics.save_features(NetFeatures(net(), "labels"), tempfile.mkdtemp())


def flat(x: Tensor) -> Tensor:
    return x.flatten(1)


def apart(a: Tensor, b: Tensor) -> float:
    return float((a.mean() - b.mean()).abs())


def never(a: Tensor, b: Tensor) -> TwoSampleTest:
    return TwoSampleTest(0.0, 1.0)


def nearest_mean(x: Tensor, label: Tensor, new: Tensor) -> Tensor:
    return new @ (x[label == 1].mean(0) - x[label == 0].mean(0))


def two(**more: Any) -> Any:
    return lambda: {"x": X, "y": Y, **more}


SETS = {"x": FEW, "y": FEW}
WITHIN = {"x": FEW, "data": FEW}

CALLS = [
    Call(metrics.energy_distance, two(unbiased=True, chunk=5), kinds=SETS, name="energy_distance(unbiased)"),
    Call(metrics.frechet_distance, two(), kinds=SETS, answer=torch.tensor),
    Call(metrics.frechet_of_moments, lambda: {"x": moments(), "y": moments(Y)}, kinds={"x": FUNCTION, "y": FUNCTION}),
    Call(
        metrics.frechet_bias,
        lambda: {"covariance": torch.eye(3), "n": 10, "m": 20},
        kinds={
            "covariance": TENSOR.but(one_axis=lambda c: c[0], oblong=lambda c: c[:2], none=lambda c: c[:0, :0]),
            "n": COUNT.but(one=lambda n: 1),
            "m": COUNT.but(one=lambda n: 1),
        },
    ),
    Call(
        metrics.frechet_extrapolated,
        lambda: {"x": numbers(20, 2), "y": numbers(21, 2, seed=1), "noise": 0, "parts": 2},
        kinds={**SETS, "parts": COUNT.but(one=lambda p: 1, many=lambda p: 9)},
        named={"parts": "parts|x"},
    ),
    Call(
        metrics.precision_recall,
        lambda: {"x": X, "data": Y, "neighbours": 3, "chunk": 5},
        kinds={**WITHIN, "neighbours": COUNT.but(many=lambda k: 12)},
    ),
    Call(
        metrics.density_coverage,
        lambda: {"x": X, "data": Y, "neighbours": 3, "chunk": 5},
        kinds={**WITHIN, "neighbours": COUNT.but(many=lambda k: 12)},
    ),
    Call(
        metrics.expected_manifold_coverage,
        lambda: {"n": 9, "m": 8, "neighbours": 5},
        kinds={"m": COUNT.but(few=lambda m: 5)},
    ),
    Call(
        metrics.authenticity,
        lambda: {"x": X, "train": Y, "chunk": 5},
        kinds={"x": SET, "train": FEW},
    ),
    Call(metrics.expected_authenticity, lambda: {"dim": 3}),
    Call(metrics.max_sliced_wasserstein, two(noise=0, starts=2, steps=3, held_out=True), kinds=SETS),
    Call(metrics.mmd, two(kernel=GaussianKernel(1.0), unbiased=True, chunk=5), kinds={**SETS, "kernel": KERNEL}),
    Call(metrics.kernel_distance, two(chunk=5), kinds=SETS),
    Call(
        metrics.mmd_test,
        two(kernel=GaussianKernel(1.0), noise=0, permutations=9, chunk=5),
        kinds={**SETS, "kernel": KERNEL},
    ),
    Call(
        metrics.permutation_test,
        two(statistic=apart, noise=0, permutations=9),
        kinds={"x": SET, "y": SET},
        answer=torch.tensor,
    ),
    Call(
        metrics.classifier_two_sample_test,
        two(noise=0, folds=2, classifier=nearest_mean),
        kinds={**SETS, "folds": COUNT.but(one=lambda k: 1, many=lambda k: 9), "classifier": FUNCTION.but("None")},
        named={"folds": "folds"},
    ),
    Call(metrics.median_distance, two(), kinds={"x": SET, "y": SET}),
    Call(metrics.vendi_score, lambda: {"x": X, "kernel": GaussianKernel(1.0)}, kinds={"x": TENSOR, "kernel": KERNEL}),
    Call(
        metrics.vendi_of_similarity,
        lambda: {"similarity": torch.eye(3)},
        kinds={"similarity": TENSOR.but(oblong=lambda k: k[:2], doubled=lambda k: 2 * k, none=lambda k: k[:0, :0])},
    ),
    Call(
        metrics.detectable_shift,
        lambda: {"n": 10, "m": 20, "dim": 3, "level": 0.05, "power": 0.8},
        kinds={"level": RATE, "power": RATE.but(low=lambda p: 0.01)},
        named={"level": "level|power"},
    ),
    Call(
        metrics.power_of_test,
        two(test=never, noise=0, size=5, level=0.05, repeats=3),
        kinds={**SETS, "size": COUNT.but(many=lambda s: 13), "level": RATE},
        named={"size": "size|x"},
    ),
    # -- kernels -------------------------------------------------------------------------------------------------------
    Call(GaussianKernel, lambda: {"bandwidth": 1.5}, kinds={"bandwidth": POSITIVE}),
    Call(
        PolynomialKernel,
        lambda: {"degree": 2, "scale": 0.5, "offset": 1.0},
        kinds={"scale": POSITIVE.but("None"), "offset": NOT_NEGATIVE},
    ),
    Call(DistanceKernel, dict),
    Call(CosineKernel, dict),
    # -- features ------------------------------------------------------------------------------------------------------
    Call(PixelFeatures, dict, answer=lambda f: f(X)),
    Call(
        PixelFeatures().__call__,
        lambda: {"x": X, "batch_size": 5},
        kinds={"x": STATE.but(none=lambda x: x[:0])},
        name="Features.__call__",
    ),
    Call(
        ModuleFeatures,
        lambda: {
            "module": flat,
            "name": "flat",
            "size": 4,
            "channels": 3,
            "range": (-1.0, 1.0),
            "mean": (0.5,),
            "std": (0.5,),
        },
        kinds={
            "name": NAME,
            "range": MEANS.but(backwards=lambda r: (1.0, -1.0), three=lambda r: (0.0, 1.0, 2.0)),
            "mean": MEANS,
            "std": MEANS.but(zero=lambda s: (0.0,)),
            "size": COUNT.but("None", "a list"),
            "channels": COUNT.but("None"),
            "module": FUNCTION,
        },
        answer=lambda f: f(torch.ones(2, 1, 2, 2)),
    ),
    Call(
        NetFeatures,
        lambda: {"net": net(), "kind": "labels", "trained": {"steps": 3}},
        kinds={"net": NET, "kind": LITERAL, "trained": FREE},
        answer=lambda f: f(X),
    ),
    Call(
        FeatureNet,
        lambda: {"event": (3,), "outputs": 2, "width": 8, "features": 4},
        kinds={
            "event": SHAPE.but(none=lambda e: (0,), long=lambda e: (1, 2, 3, 4, 5)),
            "outputs": COUNT.but("zero"),
            "width": COUNT.but(odd=lambda w: 12),
        },
        answer=None,
    ),
    Call(
        metrics.train_features,
        lambda: {
            "dataset": dataset(),
            "steps": 1,
            "seconds": 9.0,
            "batch_size": 8,
            "lr": 1e-3,
            "width": 8,
            "features": 4,
            "seed": 0,
            "device": "cpu",
        },
        kinds={
            "dataset": DATASET,
            "seconds": POSITIVE.but("None"),
            "lr": POSITIVE,
            "batch_size": COUNT.but(one=lambda b: 1),
            "width": COUNT.but(odd=lambda w: 12),
        },
        answer=lambda f: f(X),
    ),
    Call(
        metrics.save_features,
        lambda: {"features": NetFeatures(net(), "labels"), "folder": tempfile.mkdtemp()},
        kinds={"features": FEATURES, "folder": PATH},
        answer=None,
    ),
    Call(
        metrics.load_features,
        lambda: {"folder": saved(), "device": "cpu"},
        kinds={"folder": PATH},
        answer=lambda f: f(X),
    ),
    # -- moments -------------------------------------------------------------------------------------------------------
    Call(RunningMoments, dict, answer=lambda m: m.count),
    Call(moments().update, lambda: {"x": X}, kinds={"x": SET}, answer=None, name="RunningMoments.update"),
    Call(
        moments().merge,
        lambda: {"other": moments()},
        kinds={"other": FUNCTION},
        answer=None,
        name="RunningMoments.merge",
    ),
    Call(
        moments().gathered,
        lambda: {"gather": flat, "device": "cpu"},
        answer=lambda m: m.mean,
        name="RunningMoments.gathered",
    ),
    Call(
        metrics.dice,
        lambda: {"mask": X > 0, "truth": X > 0.5},
        kinds={"mask": MASK, "truth": MASK},
        named={"mask": "mask", "truth": "truth"},
    ),
    Call(metrics.roc_auc, lambda: {"scores": X, "truth": X > 0.5}, kinds={"scores": SHAPED, "truth": MIXED}),
    Call(
        metrics.reliability,
        lambda: {"probability": X.sigmoid(), "truth": X > 0.5, "bins": 4},
        kinds={
            "probability": SHAPED.but(above=lambda x: x + 1, negative=lambda x: x - 1),
            "truth": MASK,
            "bins": COUNT,
        },
        answer=lambda found: found.forecast,
    ),
]
NOT_CALLED = {
    "scoresde.metrics.classifier_test.ClassifierTest": "a tuple",
    "scoresde.metrics.features.Features": "abstract: the call of its kinds is called",
    "scoresde.metrics.kernels.Kernel": "abstract",
    "scoresde.metrics.masks.Reliability": "what a measure answers",
    "scoresde.metrics.neighbours.DensityCoverage": "a tuple",
    "scoresde.metrics.neighbours.PrecisionRecall": "a tuple",
    "scoresde.metrics.sets.Estimate": "a tuple",
    "scoresde.metrics.sets.SampleSizeWarning": "a warning",
    "scoresde.metrics.sets.TwoSampleTest": "a tuple",
}
