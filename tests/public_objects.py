"""One of each kind of public object, and questions that tell two of them apart: for laws that hold for all.

Everything is defined at the top of a module, functions too, so that whatever does not pickle is ours.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import math
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from scoresde import data, editing, grids, inverse, losses, particles, sample, solvers, times
from scoresde import nn as nets
from scoresde.certify import Floor, FloorCell
from scoresde.curve import LossCurve
from scoresde.editing.held import Held
from scoresde.fitting import fit
from scoresde.guidance import (
    autoguidance,
    calibration,
    cfg_plus_plus,
    classifier,
    classifier_free,
    clip,
    compose,
    projected,
    threshold,
)
from scoresde.interop import DPMSolver2M, Latent, from_denoiser, from_noise, from_score_sde, from_velocity
from scoresde.inverse import Measurement, dps, moment_matching, pigdm
from scoresde.metrics import (
    CosineKernel,
    DistanceKernel,
    FeatureNet,
    GaussianKernel,
    Kernel,
    ModuleFeatures,
    NetFeatures,
    PixelFeatures,
    PolynomialKernel,
    RunningMoments,
    reliability,
)
from scoresde.models import (
    PREDICTIONS,
    ClassifierModel,
    ContrastiveModel,
    Expectation,
    Linear,
    Score,
    ScoreModel,
    as_score,
    score_of_denoiser,
)
from scoresde.noise import BrownianNoise, IndependentNoise, Noise, PerSampleNoise
from scoresde.problems import Empirical, Gaussian, GaussianMixture
from scoresde.reverse import Reverse
from scoresde.sde import EDM, SDE, VE, VP, Chain, ChainSDE, Cosine, LinearSDE, RectifiedFlow, ScheduleSDE, SubVP
from scoresde.solvers import AdjustedLangevin, Langevin, PredictorCorrector, Solver
from scoresde.spectrum import Spectrum
from scoresde.train import (
    Adversary,
    AutoencoderOptions,
    Callback,
    EarlyStopping,
    Perceptual,
    Snapshots,
    TensorBoard,
)

F64 = torch.float64


def numbers(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    """N(0, 1)."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def cosine(t: Tensor) -> Tensor:
    return torch.cos(1.5 * t)


def sine(t: Tensor) -> Tensor:
    return torch.sin(1.5 * t)


def rate(t: Tensor) -> Tensor:
    return -0.5 - 4 * t


def growth(t: Tensor) -> Tensor:
    return (1 + 8 * t).sqrt()


def minus(x: Tensor, t: Tensor) -> Tensor:
    return -x


def half(x: Tensor, t: Tensor) -> Tensor:
    return 0.5 * x


def shrunk(x: Tensor, sigma: Tensor) -> Tensor:
    return x / (1 + sigma[:, None] ** 2)


class Told(nn.Module):
    """A network of another library: of x and a number for each sample."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2)
        with torch.no_grad():
            for p in self.layer.parameters():
                p.copy_(0.4 * numbers(*p.shape))

    def forward(self, x: Tensor, told: Tensor) -> Tensor:
        return self.layer(torch.cat([x, told.to(x.dtype)[:, None]], 1)).tanh()


class Coder(nn.Module):
    """An autoencoder of vectors (B, 2)."""

    def __init__(self) -> None:
        super().__init__()
        self.size = nn.Parameter(torch.tensor([2.0, 0.5]))

    def encode(self, x: Tensor) -> Tensor:
        return x * self.size

    def decode(self, z: Tensor) -> Tensor:
        return z / self.size


def scale_of(t: Tensor) -> Tensor:
    return 1 + 2 * t


def squared(x: Tensor) -> Tensor:
    return x**2


def every_other(x: Tensor) -> Tensor:
    return x.cumsum(-1)[..., ::2]


def near_one(x: Tensor, t: Tensor) -> Tensor:
    return -((x - 1) ** 2).flatten(1).sum(1)


def weight(sde: SDE, t: Tensor) -> Tensor:
    return sde.sigma(t) ** 2


def _net(seed: int = 0, **options: Any) -> nets.MLP:
    net = nets.MLP(2, width=8, depth=1, **options)
    with torch.no_grad():
        for i, p in enumerate(net.parameters()):
            p.copy_(0.4 * numbers(*p.shape, seed=100 * seed + i))
    return net.eval()


@functools.cache
def model(seed: int = 0) -> ScoreModel:
    """Of vectors (B, 2), conditional on a label of three."""
    return ScoreModel(_net(seed, num_classes=3), VP(), predicts="edm")


@functools.cache
def captioned() -> ScoreModel:
    """Of images (B, 1, 4, 4), conditional on a caption."""
    net = nets.UNet(
        1, width=4, multipliers=(1, 2), blocks=1, attention_levels=(-1,),
        captions={"caption": {"vocabulary": 5, "length": 3, "width": 8, "layers": 1}},
    )  # fmt: skip
    with torch.no_grad():
        for i, p in enumerate(net.parameters()):
            p.copy_(0.2 * numbers(*p.shape, seed=i))
    return ScoreModel(net.eval(), VP(), predicts="v", sigma_data=1.0)


@functools.cache
def mixture() -> GaussianMixture:
    """Two components in the plane."""
    return GaussianMixture(torch.ones(2), torch.tensor([[-1.0, 0.0], [1.0, 0.5]]), torch.tensor([0.1, 0.3]))


def correlated() -> GaussianMixture:
    covariance = torch.tensor([[1.0, 0.4], [0.4, 0.5]], dtype=F64)
    return GaussianMixture(torch.ones(2), torch.tensor([[-1.0, 0.0], [1.0, 0.5]]), torch.stack([covariance] * 2))


def exact() -> Score:
    return mixture().score(VP())


@functools.cache
def contrastive() -> ContrastiveModel:
    """Of images (B, 1, 4, 4) and captions."""
    caption = {"vocabulary": 5, "length": 3, "width": 8, "layers": 1}
    net = nets.DualEncoder(1, captions={"caption": caption}, size=3, width=4, multipliers=(1,), blocks=1)
    with torch.no_grad():
        for i, p in enumerate(net.parameters()):
            p.copy_(0.2 * numbers(*p.shape, seed=i))
    return ContrastiveModel(net.eval(), VP(), sigma_data=1.0)


def noisy_classifier() -> ClassifierModel:
    return ClassifierModel(_net(3, out_dim=3), VP(), sigma_data=1.0)


X = numbers(3, 2)
T = 0.4
TIMES = torch.tensor([0.2, 0.5, 0.9], dtype=F64)
MASK = torch.tensor([True, False])


def measured(operator: Any = None) -> Measurement:
    operator = inverse.Mask(MASK) if operator is None else operator
    return Measurement.simulate(X, operator, 0.2, noise=0)


def through_decoder() -> Measurement:
    return measured(Latent(exact(), Coder(), scaling_factor=2.0).through(inverse.Mask(MASK)))


# -- questions ---------------------------------------------------------------------------------------------------------


def of_sde(sde: SDE) -> list[Any]:
    at = [getattr(sde, name)(TIMES) for name in ("alpha", "sigma", "f", "g", "log_snr")]
    return [*at, sde.t_of_log_snr(at[-1]), *sde.marginal(X, 0.3), sde.prior_log_prob(X)]


def of_chain(chain: Chain) -> list[Any]:
    return [chain.alpha, chain.sigma, chain.posterior_variance, chain.posterior_mean(X, X, 3)]


def of_score(score: Score) -> list[Any]:
    return [score(X, T), score.denoise(X, T), score.linear(X, TIMES, 0.5, 0.1), score.sigma_data, score.spectrum]


def of_image_score(score: Score) -> list[Any]:
    return [score(numbers(2, 1, 4, 4), T)]


def of_noise(noise: Noise) -> list[Any]:
    drawn = [noise.initial((2, 3), dtype=torch.float32, device=torch.device("cpu")), noise.normal(X)]
    t, s = torch.tensor(0.5, dtype=F64), torch.tensor(0.4, dtype=F64)
    return [*drawn, noise.between(X, t, s), noise.stream("other").normal(X), noise.normal(X), noise.path_key()]


def of_solver(solver: Solver) -> list[Any]:
    return [sample(exact(), (4, 2), solver=solver, steps=6, seed=3).x]


def of_measured_solver(solver: Solver) -> list[Any]:
    return [sample(exact(), (3, 2), solver=solver, steps=6, seed=3).x]


def of_operator(operator: inverse.LinearOperator) -> list[Any]:
    x = numbers(2, *operator.event)
    y = operator(x)
    return [y, operator.adjoint(y), operator.solve(y, 1.0, 0.3), operator.pseudo_inverse(y)]


def of_rule(rule: Any) -> list[Any]:
    return [rule(VP(), 5)]


def of_weighting(weighting: Any) -> list[Any]:
    return [weighting(VP(), TIMES)]


def of_density(density: Any) -> list[Any]:
    return list(density.sample(VP(), torch.tensor([0.1, 0.6, 0.9], dtype=F64)))


def of_function(function: Any) -> list[Any]:
    return [function(X, torch.tensor(T, dtype=F64))]


def of_problem(problem: Any) -> list[Any]:
    return [problem.sample(5, 0), problem.log_prob(X, VP(), T), problem.score(VP())(X, T)]


def of_itself(it: Any) -> list[Any]:
    return [it]


def of_kernel(kernel: Kernel) -> list[Any]:
    return [kernel, kernel.matrix(X, X[:2])]


def of_features(features: Any) -> list[Any]:
    return [features.name, features.fingerprint, features(X)]


def _moments() -> RunningMoments:
    moments = RunningMoments()
    moments.update(X)
    return moments


def of_corrector(corrector: Any) -> list[Any]:
    return [corrector.correct(Reverse(exact(), 1.0), X, torch.tensor(T, dtype=F64), PerSampleNoise(0))]


def of_moved(noise: Noise) -> Noise:
    """The same in mid-stream."""
    noise.normal(X)
    noise.stream("other").normal(X)
    noise.initial((2, 2), dtype=torch.float32, device=torch.device("cpu"))
    return noise


class Entry(NamedTuple):
    """How to make one, and what to ask it."""

    make: Callable[[], Any]
    ask: Callable[[Any], list[Any]]


def _solution(**options: Any) -> Any:
    return sample(exact(), (3, 2), steps=4, seed=0, **options)


def _way() -> dict[str, Any]:
    return {"steps": 3, "iterations": 2}


def _adapted() -> nets.LoRA:
    return nets.lora(_net(), 2, name="style")


def _taught() -> nets.LearnedWords:
    words = nets.Vocabulary(["a", "red", "three"])
    captions = {"text": {"vocabulary": 3, "length": 3, "width": 8, "layers": 1}}
    net = nets.UNet(1, 1, width=4, multipliers=(1,), blocks=1, attention_levels=(), captions=captions)
    return nets.learn_words(net, "sks", words)


def _maps() -> nets.AttentionMaps:
    maps = nets.AttentionMaps()
    with maps.recording(captioned()), torch.no_grad():
        captioned().bind(caption=torch.tensor([[1, 2, 0]]))(numbers(1, 1, 4, 4), T)
    return maps


def _caption_edit() -> Any:
    source, target = ({"caption": torch.tensor([[1, k, 0]])} for k in (2, 3))
    return editing.prompt_to_prompt(captioned(), numbers(1, 1, 4, 4), source, target, steps=2)


def _null_text() -> Any:
    label = torch.tensor([0, 1, 2])
    found = editing.invert(model().bind(label=label), X, trajectory=True, **_way())
    return editing.null_text(model(), found, {"label": label}, 2.0, iterations=2)


def _held() -> Held:
    return Held(solvers.DDIM(), torch.tensor([[1.0, 0.0]]), zeros)


def zeros(done: int, t: Tensor, noise: Noise) -> Tensor:
    return torch.zeros(4, 2)


def _dataset() -> data.Dataset:
    return data.from_tensors(numbers(6, 2), torch.tensor([0, 1, 2, 0, 1, 2]), conditions={"size": numbers(6, 2)})


def _plain_solvers() -> dict[str, Entry]:
    found = {}
    for name in solvers.__all__:
        kind = getattr(solvers, name)
        concrete = isinstance(kind, type) and issubclass(kind, Solver) and not inspect.isabstract(kind)
        if concrete and name not in ("Fitted", "AnnealedLangevin"):
            found[f"solver {name}"] = Entry(kind, of_solver)
    return found


SDES: dict[str, Entry] = {
    name: Entry(make, of_sde)
    for name, make in {
        "VP": functools.partial(VP, beta_max=15.0),
        "SubVP": SubVP,
        "VE": functools.partial(VE, 0.02, 20.0),
        "EDM": EDM,
        "Cosine": Cosine,
        "RectifiedFlow": RectifiedFlow,
        "ScheduleSDE": functools.partial(ScheduleSDE, cosine, sine, T=1.0),
        "LinearSDE": functools.partial(LinearSDE, rate, growth),
        "ChainSDE": lambda: ChainSDE(VP().discretize(50)),
    }.items()
}

SCORES: dict[str, Entry] = {
    name: Entry(make, of_score)
    for name, make in {
        "exact": exact,
        "exact of a label": lambda: mixture().score(VP(), label=1),
        "exact of labels": lambda: mixture().score(VP(), label=torch.tensor([1, 0, 1])),
        "exact, correlated": lambda: correlated().score(SubVP()),
        "exact, of a schedule": lambda: mixture().score(ScheduleSDE(cosine, sine)),
        "exact, of a chain": lambda: mixture().score(ChainSDE(VP().discretize(50))),
        "from_denoiser": lambda: from_denoiser(shrunk, sigma_max=2.0, sigma_min=0.1),
        "from_noise": lambda: from_noise(Told(), torch.linspace(0.01, 0.3, 20)),
        "from_score_sde": lambda: from_score_sde(Told(), VP(), time_scale=1.0),
        "from_score_sde, discrete": lambda: from_score_sde(Told(), VP(), continuous=False, n=30),
        "from_score_sde of VE": lambda: from_score_sde(Told(), VE(0.1, 2.0), continuous=False, n=30),
        "from_velocity": lambda: from_velocity(Told()),
        "latent": lambda: Latent(from_velocity(Told()), Coder(), scaling_factor=2.0),
        "latent of a score": lambda: Latent(exact(), Coder(), scaling_factor=2.0),
        "dps through a decoder": lambda: dps(exact(), through_decoder()),
        "exact, of f and g": lambda: mixture().score(LinearSDE(rate, growth)),
        "Gaussian": lambda: Gaussian(torch.tensor([1.0, 2.0]), 0.5).score(VP()),
        "empirical": lambda: Empirical(numbers(5, 2)).score(VP()),
        "as_score": lambda: as_score(minus, VP(), sigma_data=1.0),
        "denoiser": lambda: score_of_denoiser(half, VP()),
        "bound": lambda: model().bind(label=torch.tensor([0, 1, 2])),
        "transported": lambda: model().under(VP(beta_max=15.0, T=0.9)).bind(label=1),
        "classifier_free": lambda: classifier_free(model(), {"label": 1}, 3.0),
        "classifier_free in an interval": lambda: classifier_free(
            model(), {"label": 1}, 3.0, interval=(0.1, 5.0), rescale=0.5
        ),
        "classifier_free by time": lambda: classifier_free(model(), {"label": 1}, scale_of),
        "cfg++": lambda: classifier_free(model(), {"label": 1}, cfg_plus_plus(VP(), grids.log_snr(VP(), 50), 0.5)),
        "projected": lambda: projected(model(), {"label": 1}, 3.0),
        "clip": lambda: clip(exact(), (-0.5, 1.0)),
        "threshold": lambda: threshold(exact(), 0.5, limit=0.5),
        "autoguidance": lambda: autoguidance(model().bind(label=1), model(1).bind(label=1), 2.0),
        "compose": lambda: compose(model(), [(2.0, {"label": 0}), (-1.0, {"label": 2})]),
        "classifier": lambda: classifier(exact(), mixture().label_log_prob(VP()), 2.0, label=1),
        "classifier by a function": lambda: classifier(exact(), near_one, 0.5),
        "classifier by a network": lambda: classifier(model().bind(label=0), noisy_classifier(), 2.0, label=1),
        "dps": lambda: dps(exact(), measured()),
        "dps of a function": lambda: dps(exact(), measured(squared)),
        "pigdm": lambda: pigdm(exact(), measured()),
        "moment_matching": lambda: moment_matching(exact(), measured()),
        "pigdm of a matrix": lambda: pigdm(exact(), measured(inverse.Matrix.gaussian(1, (2,), 0))),
        "pigdm of a function": lambda: pigdm(exact(), measured(inverse.FunctionOperator(every_other, event=(2,)))),
    }.items()
}

OPERATORS: dict[str, Entry] = {
    name: Entry(make, of_operator)
    for name, make in {
        "Identity": lambda: inverse.Identity((1, 4, 4)),
        "Mask": lambda: inverse.Mask(numbers(1, 4, 4) > 0),
        "Downsample": lambda: inverse.Downsample(2, (1, 4, 4)),
        "Blur": lambda: inverse.Blur(inverse.gaussian_kernel(3, 1.0), (1, 4, 4)),
        "Grayscale": lambda: inverse.Grayscale((3, 4, 4)),
        "Matrix": lambda: inverse.Matrix.gaussian(3, (1, 2, 2), 0),
        "composition": lambda: (
            inverse.Mask(numbers(1, 4, 4) > 0) @ inverse.Blur(inverse.gaussian_kernel(3, 1.0), (1, 4, 4))
        ),
        "FunctionOperator": lambda: inverse.FunctionOperator(every_other, event=(1, 4)),
    }.items()
}

NOISES: dict[str, Entry] = {
    name: Entry(make, of_noise)
    for name, make in {
        "IndependentNoise": lambda: IndependentNoise(1),
        "IndependentNoise, moved": lambda: of_moved(IndependentNoise(1)),
        "IndependentNoise of a generator": lambda: of_moved(IndependentNoise(torch.Generator().manual_seed(3))),
        "PerSampleNoise": lambda: PerSampleNoise(1, first=2),
        "PerSampleNoise, moved": lambda: of_moved(PerSampleNoise(1)),
        "BrownianNoise": lambda: BrownianNoise(1, 1.0),
        "BrownianNoise, moved": lambda: of_moved(BrownianNoise(1, 1.0)),
    }.items()
}

OTHERS: dict[str, Entry] = {
    "Chain": Entry(lambda: VP().discretize(50), of_chain),
    "mixture": Entry(mixture, of_problem),
    "Gaussian problem": Entry(lambda: Gaussian(torch.zeros(2), torch.tensor([1.0, 2.0])), of_problem),
    "Empirical problem": Entry(lambda: Empirical(numbers(4, 2), torch.tensor([1.0, 2.0, 1.0, 1.0])), of_problem),
    "posterior problem": Entry(lambda: mixture().posterior(torch.ones(1, 2), torch.ones(1), 0.3), of_problem),
    "label_log_prob": Entry(lambda: mixture().label_log_prob(VP()), of_function),
    "model": Entry(model, lambda m: of_score(m.bind(label=1))),
    "model of captions": Entry(captioned, lambda m: of_image_score(m.bind(caption=torch.tensor([[1, 2, 0]])))),
    "ClassifierModel": Entry(noisy_classifier, of_function),
    "ContrastiveModel": Entry(contrastive, lambda m: [m(numbers(2, 1, 4, 4), T, torch.tensor([[1, 2]]))]),
    "Similarity": Entry(
        lambda: contrastive().similarity(torch.tensor([[1, 2, 0]])), lambda s: [s(numbers(2, 1, 4, 4), T)]
    ),
    "ZeroShot": Entry(
        lambda: contrastive().zero_shot(torch.tensor([[1, 0], [2, 3]])), lambda z: [z(numbers(2, 1, 4, 4), T)]
    ),
    "DualEncoder": Entry(lambda: contrastive().net, lambda net: [net(numbers(2, 1, 4, 4), torch.zeros(2))]),
    "NoiseClassifier": Entry(
        lambda: nets.NoiseClassifier(1, 3, width=4, multipliers=(1, 2), blocks=1).eval(),
        lambda net: [net(numbers(2, 1, 4, 4), torch.zeros(2))],
    ),
    "MLP of vectors": Entry(
        lambda: _net(time_features="fourier", vectors={"size": 2}),
        lambda net: [net(X, X[:, 0], size=X), net(X, X[:, 0])],
    ),
    "UNet of embeddings": Entry(
        lambda: nets.UNet(1, width=4, multipliers=(1, 2), blocks=1, embeddings={"clip": 3}).eval(),
        lambda net: [net(numbers(2, 1, 4, 4), torch.zeros(2), clip=numbers(2, 2, 3))],
    ),
    "MLP of sets and series": Entry(
        lambda: _net(sets={"obs": {"size": 2, "width": 8, "layers": 1}}, series={"path": 1}),
        lambda net: [net(X, X[:, 0], obs=numbers(len(X), 3, 2), path=numbers(len(X), 4, 1)), net(X, X[:, 0])],
    ),
    "MagnitudeUNet": Entry(
        lambda: nets.MagnitudeUNet(1, width=4, multipliers=(1, 2), blocks=1, head_width=4).eval(),
        lambda net: [net.stem.weight, net.embedding(torch.zeros(2), {})],
    ),
    "DiT": Entry(
        lambda: nets.DiT(1, width=8, depth=1, num_classes=2).eval(),
        lambda net: [net.stem.weight, net.embedding(torch.zeros(2), {"label": torch.tensor([0, 2])})],
    ),
    "Autoencoder": Entry(
        lambda: nets.Autoencoder(1, width=4, multipliers=(1, 2), latent_channels=2).eval(),
        lambda net: [net.encode(numbers(2, 1, 4, 4)), net.decode(numbers(2, 2, 2, 2)), net.config],
    ),
    "Autoencoder of codes": Entry(
        lambda: nets.Autoencoder(1, width=4, bottleneck=nets.VQBottleneck(5), errors=nets.LaplaceErrors()).eval(),
        lambda net: [net.encode(numbers(2, 1, 4, 4)), net.bottleneck.codes, net.log_scale],
    ),
    "KLBottleneck": Entry(nets.KLBottleneck, of_itself),
    "VQBottleneck": Entry(nets.VQBottleneck, of_itself),
    "LatentPosterior": Entry(lambda: nets.LatentPosterior(X, X.exp()), lambda q: [q.kl(), q.log_prob(X), q.draw(X)]),
    "PatchDiscriminator": Entry(
        lambda: nets.PatchDiscriminator(1, width=4, layers=1), lambda d: [d(numbers(2, 1, 4, 4))]
    ),
    "Perceptual": Entry(lambda: Perceptual(squared), lambda p: [p.distance(X, -X), p.weight]),
    "Adversary": Entry(lambda: Adversary(start=3), of_itself),
    "AutoencoderOptions": Entry(lambda: AutoencoderOptions(steps=3, adversary=Adversary()), of_itself),
    "Augmentation": Entry(
        lambda: data.Augmentation(0.5),
        lambda a: list(a(numbers(2, 1, 4, 4), torch.linspace(0.1, 0.9, 38).reshape(2, 19))),
    ),
    "Reverse": Entry(lambda: Reverse(exact(), 0.5), lambda p: [p.drift(X, T), p.diffusion(T)]),
    "Measurement": Entry(measured, lambda m: [m.residual(X), m.log_prob(X)]),
    "PhaseRetrieval": Entry(lambda: inverse.PhaseRetrieval((1, 4, 4)), lambda a: [a(numbers(2, 1, 4, 4))]),
    "Linear": Entry(lambda: Linear(1.0, torch.tensor(2.0, dtype=F64)), of_itself),
    "Expectation": Entry(lambda: Expectation(1.0, 0.5), of_itself),
    "LossCurve": Entry(
        lambda: LossCurve((-1.0, 1.0), (0.5, 0.7), (0.1, 0.2), (3, 4), 0.5, 7), lambda c: [c.at(X), c.to_json()]
    ),
    "EarlyStopping": Entry(lambda: EarlyStopping(0.02, patience=4), of_itself),
    "Spectrum": Entry(lambda: Spectrum.of(numbers(20, 1, 4, 4)), of_itself),
    "solver DPMSolver2M": Entry(lambda: DPMSolver2M("heun"), of_solver),
    "solver DiffPIR": Entry(lambda: inverse.DiffPIR(measured()), of_measured_solver),
    "solver RePaint": Entry(lambda: inverse.RePaint(measured()), of_measured_solver),
    "solver Replacement": Entry(lambda: inverse.Replacement(measured()), of_measured_solver),
    "solver Held": Entry(_held, of_solver),
    "solver AnnealedLangevin": Entry(lambda: solvers.AnnealedLangevin(), of_solver),
    "solver PredictorCorrector": Entry(
        lambda: PredictorCorrector(solvers.EulerMaruyama(), AdjustedLangevin(near_one)), of_solver
    ),
    "Langevin": Entry(Langevin, of_corrector),
    "AdjustedLangevin": Entry(lambda: AdjustedLangevin(nodes=2), of_corrector),
    "fitted": Entry(
        lambda: fit(as_score(minus, VP()), 2, shape=(30, 2), batch=10, iterations=1, solver=solvers.DDIM()),
        lambda f: [f, sample(as_score(minus, VP()), (3, 2), solver=f).x],
    ),
    "adapted": Entry(
        lambda: grids.adapted(as_score(minus, VP()), (64, 2), solver=solvers.DDIM(), evaluations=3000), of_rule
    ),
    "Solution": Entry(lambda: _solution(trajectory=True), of_itself),
    "adaptive Solution": Entry(lambda: _solution(solver=solvers.AdaptiveODE()), of_itself),
    "Calibration": Entry(
        lambda: calibration(noisy_classifier(), VP(), X, torch.tensor([0, 1, 2]), [0.2, 0.6], 0),
        lambda c: [c.ece, c.temperature_at(TIMES)],
    ),
    "Particles": Entry(
        lambda: particles.tilted(classifier_free(model(), {"label": 1}, 1.5), (8, 2), steps=5),
        lambda p: [p.x, p.log_weights, p.draw(5, 0)],
    ),
    "twisted Particles": Entry(
        lambda: particles.twisted(pigdm(exact(), Measurement(torch.ones(1), inverse.Mask(MASK), 0.5)), (8, 2), steps=5),
        lambda p: [p.x, p.log_weights, p.draw(5, 0)],
    ),
    "Inversion": Entry(
        lambda: editing.invert(model().bind(label=1), X, trajectory=True, **_way()),
        lambda i: [i.x, i.residual, i.decoded(model().bind(label=2)).x],
    ),
    "Counterfactual": Entry(
        lambda: editing.counterfactual(model().bind(label=1), model().bind(label=2), X, **_way()),
        lambda c: [c.x, c.difference, c.inversion],
    ),
    "DiffEdit": Entry(
        lambda: editing.diffedit(model().bind(label=1), model().bind(label=2), X, t=0.5, **_way()),
        lambda d: [d.x, d.mask, d.inversion],
    ),
    "PromptToPrompt": Entry(_caption_edit, of_itself),
    "NullText": Entry(
        _null_text, lambda n: [n.reconstruction, n.nulls, n.decoded({"label": torch.tensor([1, 2, 0])}).x]
    ),
    "Anomaly": Entry(lambda: editing.anomaly_map(model().bind(label=1), X, samples=2, steps=2), of_itself),
    "Reliability": Entry(lambda: reliability(X.sigmoid(), X > 0), of_itself),
    "AttentionMaps": Entry(_maps, lambda m: [m.layers]),
    "LoRA": Entry(_adapted, lambda a: [a.state(), a.net(X, TIMES[:3]), repr(a)]),
    "LearnedWords": Entry(_taught, lambda w: [w.state(), w.vocabulary, repr(w)]),
    "BytePairs": Entry(lambda: nets.BytePairs.of(["a red three"] * 2, 260), lambda b: [b.encode(["a three"], 9)]),
    "Vocabulary": Entry(lambda: nets.Vocabulary(["a", "red", "three"]), lambda v: [v.encode(["a three"], 4)]),
    "GaussianKernel": Entry(lambda: GaussianKernel(1.5), of_kernel),
    "PolynomialKernel": Entry(PolynomialKernel, of_kernel),
    "DistanceKernel": Entry(DistanceKernel, of_kernel),
    "CosineKernel": Entry(CosineKernel, of_kernel),
    "PixelFeatures": Entry(PixelFeatures, of_features),
    "ModuleFeatures": Entry(
        lambda: ModuleFeatures(nn.Sequential(nn.Flatten(), nn.Linear(16, 3)).eval(), "linear", mean=(0.5,)),
        lambda f: [f.name, f.fingerprint, f(numbers(2, 1, 4, 4))],
    ),
    "NetFeatures": Entry(lambda: NetFeatures(FeatureNet((2,), 3, width=8, features=4), "labels"), of_features),
    "RunningMoments": Entry(_moments, lambda m: [m.count, m.mean, m.covariance]),
    "Dataset": Entry(_dataset, lambda d: [d[[3, 1]], d[:], d.class_names, d.scaling]),
    "Scaling": Entry(data.Scaling.to_unit_range, lambda s: [s.to_model(numbers(3).abs().round())]),
    "Callback": Entry(Callback, lambda c: [c.begin(None), c.end(None)]),
    "TensorBoard": Entry(
        lambda: TensorBoard(Path(tempfile.gettempdir()), every=3, pictures=of_itself, pictures_every=5),
        lambda b: [str(b.folder), b.every, b.pictures_every],
    ),
    "Floor": Entry(lambda: Floor(torch.float32, 1e-3, (FloorCell("VP", 1e-5, (1.0, 1.0)),)), of_itself),
    "min_snr": Entry(lambda: losses.min_snr(3.0), of_weighting),
    "edm": Entry(lambda: losses.edm(0.7), of_weighting),
    **{f"weighting {name}": Entry(lambda w=w: w, of_weighting) for name, w in losses.WEIGHTINGS.items()},  # type: ignore[misc]
    "UniformTime": Entry(times.UniformTime, of_density),
    "LogNormalSigma": Entry(times.LogNormalSigma, of_density),
    "LogitNormalTime": Entry(times.LogitNormalTime, of_density),
    "LogSNRTime": Entry(times.LogSNRTime, of_density),
    "LevelTime": Entry(lambda: times.LevelTime(VP().discretize(100)), of_density),
    "AdaptiveTimes": Entry(
        lambda: times.AdaptiveTimes(times.LogSNRTime(), cells=2, squares=(1.0, 9.0), counts=(2.0, 2.0)), of_density
    ),
    "OptimalTransport": Entry(losses.OptimalTransport, lambda c: [c(X, -X.flip(0)), c.name]),
    "Uncertainty": Entry(lambda: losses.Uncertainty(weight, 4), lambda u: [u.network()(X), repr(u), u.base]),
    "UncertaintyNetwork": Entry(lambda: losses.UncertaintyNetwork(4, seed=1), lambda u: [u(X), u.frequency, u.phase]),
    "Snapshots": Entry(lambda: Snapshots(every=3), lambda s: [s.every, s.widths, str(s.dtype)]),
    "Stratified": Entry(lambda: times.Stratified(times.LogSNRTime()), of_density),
    **{
        f"rule {name}": Entry(lambda rule=rule: rule, of_rule)  # type: ignore[misc]
        for name, rule in {
            "uniform": grids.uniform,
            "log_snr": grids.log_snr,
            "karras": functools.partial(grids.karras, rho=5.0),
            "spectral": grids.spectral,
            "of a solver": solvers.SpectralMultistep().default_grid(exact()),
        }.items()
    },
    **{
        f"predicts {name}": Entry(lambda p=p: p, lambda p: list(p(TIMES, 1 - TIMES, 0.5)))  # type: ignore[misc]
        for name, p in PREDICTIONS.items()
    },
    "conditions of a network": Entry(
        lambda: model().net.conditions,  # type: ignore[union-attr]
        lambda c: [c.nulls, c.config, c.read({"label": torch.tensor([1, 2, 0])}, X)],
    ),
}

ALL: dict[str, Entry] = {**SDES, **SCORES, **OPERATORS, **NOISES, **_plain_solvers(), **OTHERS}


def same(a: Any, b: Any) -> bool:
    """Equal to the last bit, whatever it is made of."""
    if isinstance(a, Tensor):
        both = isinstance(b, Tensor) and a.dtype == b.dtype and a.shape == b.shape
        return both and torch.equal(a.detach().nan_to_num(1.5), b.detach().nan_to_num(1.5))
    if type(a) is not type(b):
        return False
    if isinstance(a, np.ndarray):
        return bool(np.array_equal(a, b))
    if isinstance(a, Mapping):
        return list(a) == list(b) and all(same(a[name], b[name]) for name in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, nn.Module):
        return same(a.state_dict(), b.state_dict())
    if dataclasses.is_dataclass(a):
        return all(same(getattr(a, f.name), getattr(b, f.name)) for f in dataclasses.fields(a))
    return bool(a == b) or (isinstance(a, float) and math.isnan(a) and math.isnan(b))
