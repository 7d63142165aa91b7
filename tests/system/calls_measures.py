"""Bad calls of losses, densities of times, grids, metrics, problems, spectra and the reverse process."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from bad_calls import (
    COUNT_FROM_0,
    FRACTION,
    FREE,
    FUNCTION,
    NOT_NEGATIVE,
    NUMBER,
    OPEN_TENSOR,
    POSITIVE,
    SCORE,
    SHAPE,
    TENSOR,
    TIME,
    TIME_BESIDE_X,
    WHOLE,
    Call,
    Kind,
)
from bad_calls import SDE as SDE_KIND
from right_values import model

from scoresde import (
    VP,
    Empirical,
    Gaussian,
    GaussianMixture,
    Reverse,
    Spectrum,
    dsm_loss,
    grids,
    losses,
    metrics,
    times,
)
from scoresde.curve import LossCurve
from scoresde.models import Expectation
from scoresde.problems import EmpiricalScore, LabelLogProb, MixtureScore
from scoresde.sde import Chain

X = torch.tensor([[0.5, -1.0, 2.0], [1.5, 0.25, -0.75]])
MIXTURE = GaussianMixture(torch.ones(2), torch.tensor([[-1.0, 0.0, 0.5], [1.0, 1.0, 0.0]]), torch.tensor([0.5, 1.0]))
EMPIRICAL = Empirical(X)
GAUSSIAN = Gaussian(torch.zeros(3), torch.eye(3))
A = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 1.0]])


def chain() -> Chain:
    return Chain(torch.tensor([0.3, 0.7, 1.0]), torch.tensor([0.9, 0.8, 0.7]), torch.tensor([0.2, 0.3, 0.4]))


SINGLE_TIME = TIME.but(several=lambda right: torch.tensor([right, right]))
ENDS = dict.fromkeys(("t_start", "t_end"), SINGLE_TIME.but("None"))
EVENT = OPEN_TENSOR.but(another_event=lambda x: torch.ones(2, 5))
OF_SET = TENSOR.but(another_event=lambda x: torch.ones(2, 5), none=lambda x: x[:0])
WEIGHTING = FUNCTION.but(another_text=lambda right: "nonsense", a_list=lambda right: ["edm"])
LABEL = WHOLE.but(
    "an empty tensor",
    "a tensor (2,)",
    "a list",
    negative=lambda right: -1,
    above=lambda right: 7,
    another_batch=lambda right: torch.zeros(5, dtype=torch.long),
    fractions=lambda right: torch.ones(2),
    bools=lambda right: torch.tensor([True, False]),
)
UNIFORMS = Kind(
    {w: m for w, m in TENSOR.wrong.items() if w not in ("whole numbers", "without values")}  # 0 and 1 are in [0, 1]
).but(two_axes=lambda u: u[None], above=lambda u: u + 1, below=lambda u: u - 1)
# What tensors of numbers may also be given as, and what they may not.
ARRAY = Kind(
    {w: m for w, m in TENSOR.wrong.items() if w not in ("a number", "a list", "numpy", "whole numbers", "no axis")}
)
WEIGHTS = ARRAY.but(
    negative=lambda w: -w, zero=lambda w: 0 * w, longer=lambda w: torch.cat([w, w]), two_axes=lambda w: w[None]
)
LEVELS = TENSOR.but("None")
RATE = FRACTION.but(zero=lambda right: 0.0, one=lambda right: 1.0)


def problems() -> Iterator[Call]:
    every: dict[str, Kind] = {"x": EVENT, "t": TIME_BESIDE_X, "n": COUNT_FROM_0, "label": LABEL, "s": TIME_BESIDE_X}
    sde = VP()
    for name, problem in {"GaussianMixture": MIXTURE, "Empirical": EMPIRICAL, "Gaussian": GAUSSIAN}.items():
        for method, given in {
            "sample": {"n": 3, "noise": 0},
            "log_prob": {"x": X, "sde": sde, "t": 0.5},
            "expectation": {"x": X, "sde": sde, "t": 0.5, "wanted": Expectation(1.0, 0.0)},
            "score": {"sde": sde},
            "label_log_prob": {"sde": sde},
        }.items():
            answer: Any = lambda result: result  # noqa: E731
            if method in ("score", "label_log_prob"):
                answer = lambda score: score(X, 0.5)  # noqa: E731
            kinds = every
            if method == "log_prob" and name != "Empirical":  # without both it is the density of the data
                kinds = every | {"sde": SDE_KIND, "t": TIME_BESIDE_X}
            yield Call(
                getattr(problem, method),
                lambda given=given: dict(given),
                kinds=kinds | {"wanted": FREE},
                name=f"{name}.{method}",
                answer=answer,
            )
    label = {"x": X, "label": 1, "scale": 1.5}
    for method, given in {
        "sample_labelled": {"n": 3, "noise": 0},
        "tilted_log_prob": {**label, "sde": sde, "t": 0.5},
        "tilted_sample": {"label": 1, "scale": 1.5, "n": 3, "noise": 0},
        "posterior": {"operator": A, "y": torch.tensor([0.5, 1.0]), "noise_std": 0.5},
    }.items():
        single = LABEL.but(several=lambda right: torch.tensor([0, 1]))
        yield Call(
            getattr(MIXTURE, method),
            lambda given=given: dict(given),
            name=f"GaussianMixture.{method}",
            kinds=every
            | {
                "scale": NUMBER if method == "tilted_log_prob" else NOT_NEGATIVE,
                "noise_std": NOT_NEGATIVE,
                "operator": OPEN_TENSOR.but(
                    "a class", another_event=lambda a: torch.ones(2, 5), one_axis=lambda a: a[0]
                ),
                "y": ARRAY.but(longer=lambda y: torch.cat([y, y])),
                **({"label": single} if method == "tilted_sample" else {}),
            },
            answer=(lambda mixture: mixture.means) if method == "posterior" else lambda result: result,
        )
    yield Call(GAUSSIAN.moments, lambda: {"sde": sde, "t": 0.5}, kinds={"t": SINGLE_TIME}, name="Gaussian.moments")
    yield Call(GAUSSIAN.flow, lambda: {"sde": sde, "x": X, "t": 0.5, "s": 0.25}, kinds=every, name="Gaussian.flow")
    yield Call(
        MIXTURE.score(sde, 1).problem.score,
        lambda: {"sde": sde, "label": 1},
        kinds={"label": LABEL.but("None", "another batch")},
        name="GaussianMixture.score(label)",
        answer=lambda score: score(X, 0.5),
    )
    yield Call(
        LabelLogProb(MIXTURE, sde).__call__, lambda: {"x": X, "t": 0.5}, kinds=every, name="LabelLogProb.__call__"
    )
    yield Call(
        LabelLogProb, lambda: {"problem": MIXTURE, "sde": sde}, kinds={"problem": SCORE}, answer=lambda p: p(X, 0.5)
    )
    yield Call(
        MixtureScore,
        lambda: {"problem": MIXTURE, "sde": sde, "label": 1},
        kinds={"problem": SCORE, "label": LABEL.but("None", "another batch")},
        answer=lambda score: score(X, 0.5),
    )
    yield Call(
        EmpiricalScore, lambda: {"problem": EMPIRICAL, "sde": sde}, kinds={"problem": SCORE}, answer=lambda s: s(X, 0.5)
    )
    yield Call(
        GaussianMixture,
        lambda: {"weights": torch.ones(2), "means": X, "covariances": torch.tensor([0.5, 1.0])},
        kinds={
            "weights": WEIGHTS,
            "means": ARRAY.but(one_axis=lambda m: m[0], whole=lambda m: m.long(), none=lambda m: m[:0]),
            "covariances": ARRAY.but(negative=lambda c: -c, longer=lambda c: torch.cat([c, c])),
        },
        answer=lambda mixture: mixture.log_prob(X),
    )
    yield Call(
        Gaussian,
        lambda: {"mean": X[0], "covariance": torch.eye(3)},
        kinds={
            "mean": ARRAY.but(whole=lambda m: m.long(), none=lambda m: m[:0], point=lambda m: m[0]),
            "covariance": ARRAY.but(
                negative=lambda c: -c,
                larger=lambda c: torch.eye(4),
                skew=lambda c: c + c.cumsum(0),
                of_three=lambda c: c[None],
            ),
        },
        answer=lambda problem: problem.log_prob(X),
    )
    yield Call(
        Empirical,
        lambda: {"data": X, "weights": torch.ones(2)},
        kinds={
            "data": ARRAY.but(whole=lambda x: x.long(), one_axis=lambda x: x[0], none=lambda x: x[:0]),
            "weights": WEIGHTS.but("None"),
        },
        answer=lambda problem: problem.log_prob(X, VP(), 0.5),
    )


def densities() -> Iterator[Call]:
    for density in (
        times.UniformTime(),
        times.LogNormalSigma(),
        times.LogitNormalTime(),
        times.LogSNRTime(),
        times.LevelTime(chain()),
        times.Stratified(),
    ):
        yield Call(
            density.sample,
            lambda: {"sde": VP(), "u": torch.tensor([0.25, 0.5])},
            kinds={"u": UNIFORMS},
            answer=tuple,
            name=f"{type(density).__name__}.sample",
        )


CALLS = [
    Call(
        dsm_loss,
        lambda: {
            "model": model(),
            "x0": X,
            "t": 0.5,
            "eps": 0.5 * X,
            "weighting": "edm",
            "conditions": {"label": torch.tensor([0, 1])},
        },
        kinds={
            "model": SCORE.but("a class"),
            "x0": OF_SET.but("none"),
            "t": TIME_BESIDE_X,
            "eps": OF_SET.but("none"),
            "weighting": WEIGHTING.but("a text"),
        },
    ),
    *(
        Call(weighting, lambda: {"sde": VP(), "t": 0.5})
        for weighting in (losses.simple, losses.likelihood, losses.x0, losses.truncated_snr)
    ),
    Call(losses.min_snr, lambda: {"gamma": 5.0}, kinds={"gamma": POSITIVE}, answer=lambda w: w(VP(), 0.5)),
    Call(losses.edm, lambda: {"sigma_data": 0.5}, answer=lambda w: w(VP(), 0.5)),
    Call(losses.min_snr(), lambda: {"sde": VP(), "t": 0.5}, name="min_snr()"),
    # -- times ---------------------------------------------------------------------------------------------------------
    Call(times.UniformTime, dict),
    Call(
        times.LogNormalSigma,
        lambda: {"mean": -1.2, "std": 1.2},
        kinds={"mean": NUMBER.but(infinite=lambda m: np.inf), "std": POSITIVE},
    ),
    Call(
        times.LogitNormalTime,
        lambda: {"mean": 0.5, "std": 1.2},
        kinds={"mean": NUMBER.but(infinite=lambda m: np.inf), "std": POSITIVE},
    ),
    Call(times.LogSNRTime, lambda: {"unbiased": True}),
    Call(times.LevelTime, lambda: {"chain": chain()}, kinds={"chain": SDE_KIND}),
    Call(
        times.Stratified,
        lambda: {"density": times.LogNormalSigma()},
        kinds={"density": FUNCTION.but(a_class=lambda d: times.UniformTime)},
    ),
    *densities(),
    # -- grids ---------------------------------------------------------------------------------------------------------
    *(
        Call(rule, lambda: {"sde": VP(), "steps": 3, "t_start": 0.9, "t_end": 0.1}, kinds=ENDS)
        for rule in (grids.uniform, grids.log_snr)
    ),
    Call(
        grids.karras,
        lambda: {"sde": VP(), "steps": 3, "rho": 7.0, "t_start": 0.9, "t_end": 0.1},
        kinds={"rho": POSITIVE, **ENDS},
    ),
    Call(
        grids.spectral,
        lambda: {"sde": VP(), "steps": 3, "spectrum": Spectrum(1.0, 2.0), "t_start": 0.9, "t_end": 0.1},
        kinds={"spectrum": SCORE.but("None"), **ENDS},
    ),
    Call(
        grids.by_loss,
        lambda: {
            "sde": VP(),
            "steps": 3,
            "curve": LossCurve((-3.0, -1.0, 1.0), (0.9, 0.5, 0.8), (0.1, 0.1, 0.1), (9, 9, 9), 0.7),
            "power": 0.5,
            "rest": 0.1,
            "t_start": 0.9,
            "t_end": 0.1,
        },
        kinds={"curve": SCORE, "power": NOT_NEGATIVE, "rest": POSITIVE, **ENDS},
    ),
    Call(
        grids.by_density,
        lambda: {
            "sde": VP(),
            "steps": 3,
            "density": lambda r: 1 / (1 + r),
            "bottom": 0.01,
            "top": 100.0,
            "t_start": 0.9,
            "t_end": 0.1,
        },
        kinds={"density": FUNCTION, "bottom": POSITIVE, "top": POSITIVE, **ENDS},
    ),
    # -- metrics -------------------------------------------------------------------------------------------------------
    Call(metrics.energy_distance, lambda: {"x": X, "y": X + 1}, kinds={"x": OF_SET, "y": OF_SET}),
    Call(
        metrics.sliced_wasserstein,
        lambda: {"x": X, "y": X + 1, "noise": 0, "slices": 4},
        kinds={"x": OF_SET, "y": OF_SET},
    ),
    Call(metrics.nearest_distance, lambda: {"x": X, "data": X + 1, "chunk": 3}, kinds={"x": OF_SET, "data": OF_SET}),
    Call(
        metrics.memorised_share,
        lambda: {"x": X, "train": X + 1, "held_out": X + 2, "quantile": 0.5},
        kinds={"x": OF_SET, "train": OF_SET, "held_out": OF_SET, "quantile": RATE},
    ),
    *(
        Call(
            function,
            lambda function=function: {
                "samples": torch.stack([X, X + 1], 1),
                "truth": X,
                **({"level": 0.9} if function is metrics.coverage else {}),
            },
            kinds={"samples": OF_SET.but(none=lambda s: s[:, :0]), "truth": OF_SET, "level": RATE},
        )
        for function in (metrics.rank, metrics.coverage, metrics.calibration_error)
    ),
    # -- problems, spectra, the reverse process ------------------------------------------------------------------------
    *problems(),
    Call(Spectrum, lambda: {"scale": 1.0, "largest": 2.0}, kinds={"scale": POSITIVE, "largest": POSITIVE}),
    Call(
        Spectrum.assumed,
        lambda: {"event": (3, 8, 8), "sigma_data": 0.5},
        kinds={"event": SHAPE.but("empty")},
        name="Spectrum.assumed",
    ),
    Call(Spectrum.of, lambda: {"x": X}, kinds={"x": TENSOR.but(alike=torch.ones_like)}, name="Spectrum.of"),
    Call(Reverse, lambda: {"score": GAUSSIAN.score(VP()), "eta": 1.0}, answer=lambda process: process.drift(X, 0.5)),
    Call(
        Reverse(GAUSSIAN.score(VP())).drift,
        lambda: {"x": X, "t": 0.5},
        kinds={"x": EVENT, "t": TIME_BESIDE_X},
        name="Reverse.drift",
    ),
    Call(Reverse(GAUSSIAN.score(VP())).diffusion, lambda: {"t": 0.5}, name="Reverse.diffusion"),
]
NOT_CALLED = {
    "scoresde.times.densities.TimeDensity": "a protocol",
    "scoresde.times.densities.Times": "a tuple of results",
}
