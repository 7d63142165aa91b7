"""Denoisers of EDM, EDM2 and k-diffusion: their range, labels and precision, and the samplers of the paper."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from published import Listed, edm_sampler, edm_times
from torch import Tensor, nn

from scoresde import DDIM, EDM, VP, Heun, ScoreModel, classifier_free, sample
from scoresde.interop import from_denoiser
from scoresde.models import BoundScore

F64 = torch.float64
SHAPE = (3, 2, 4, 4)


def normals(n: int, shape: tuple[int, ...] = SHAPE) -> list[Tensor]:
    return list(torch.randn(n, *shape, dtype=F64, generator=torch.Generator().manual_seed(1)))


class Inner(nn.Module):
    """A raw network F(x, c_noise, class_labels)."""

    def __init__(self, classes: int = 0, width: int = 2) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.time = nn.Conv2d(2, width, 3, padding=1), nn.Linear(1, width)
        self.labels = nn.Linear(classes, width) if classes else None

    def forward(self, x: Tensor, noise: Tensor, labels: Tensor | None = None) -> Tensor:
        h = self.conv(x) + self.time(noise.to(x.dtype)[:, None])[:, :, None, None]
        if self.labels is not None and labels is not None:
            h = h + self.labels(labels.to(x.dtype))[:, :, None, None]
        return h.sin()


class Precond(nn.Module):
    """EDM's calling convention and preconditioning (Karras et al. 2022, eq. 7 and table 1), written from the paper."""

    def __init__(self, label_dim: int = 0, use_fp16: bool = False, wide: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.label_dim, self.use_fp16, self.wide = label_dim, use_fp16, wide
        self.sigma_min, self.sigma_max, self.sigma_data = 0, float("inf"), 0.5
        self.model = Inner(label_dim)
        self.asked: list[Any] = []

    def forward(self, x: Tensor, sigma: Tensor, class_labels: Tensor | None = None, force_fp32: bool = False) -> Tensor:
        self.asked.append((x.dtype, sigma.dtype, force_fp32))
        x, sigma = x.to(self.wide), sigma.to(self.wide).reshape(-1, 1, 1, 1)
        if self.label_dim:
            zeros = torch.zeros(1, self.label_dim)
            class_labels = zeros if class_labels is None else class_labels.to(self.wide).reshape(-1, self.label_dim)
            class_labels = class_labels.to(self.wide).expand(len(x), -1)
        else:
            class_labels = None
        inside = torch.bfloat16 if self.use_fp16 and not force_fp32 else self.wide
        total = sigma**2 + self.sigma_data**2
        weights = {name: p.to(inside) for name, p in self.model.named_parameters()}
        scaled = (x / total.sqrt()).to(inside)
        answer = torch.func.functional_call(self.model, weights, (scaled, sigma.flatten().log() / 4, class_labels))
        skip, out = self.sigma_data**2 / total, sigma * self.sigma_data / total.sqrt()
        return skip * x + out * answer.to(self.wide)


@pytest.mark.parametrize(
    "churn",
    [{}, {"churn": 3.0}, {"churn": 1e3, "churn_noise": 1.007}, {"churn": 3.0, "churn_min": 0.05, "churn_max": 30.0}],
    ids=str,
)
def test_heun_is_edms_sampler(churn: dict[str, float]) -> None:
    D, z = Precond(label_dim=3, wide=F64).double(), normals(9)
    one_hot, times = torch.eye(3, dtype=F64)[[0, 2, 1]], edm_times(8)
    with torch.no_grad():
        expected = edm_sampler(
            lambda x, sigma: D(x, sigma.expand(3), class_labels=one_hot),
            times,
            80 * z[0],
            Listed(z[1:]),
            *(churn.get(key, default) for key, default in _OPTIONS.items()),
        )
    model = from_denoiser(D, sigma_max=200.0)  # room for the churn of the first step
    score = model.bind(label=torch.tensor([0, 2, 1]))
    got = sample(score, SHAPE, solver=Heun(**churn), grid=times, noise=Listed(z), dtype=F64, denoise=False)
    # σ comes back from log σ within some 1e-15, and slopes are of order 1/σ_min at most
    torch.testing.assert_close(got.x, expected, rtol=1e-10, atol=1e-10)


_OPTIONS = {"churn": 0.0, "churn_min": 0.0, "churn_max": math.inf, "churn_noise": 1.0}


def test_a_module_that_computes_in_float32_gives_edms_samples_to_its_rounding() -> None:
    """With the states in float64 on both sides, as in EDM's code."""
    D, z, times = Precond(), normals(1), edm_times(18)
    with torch.no_grad():
        expected = edm_sampler(lambda x, s: D(x, s.expand(3)).double(), times, 80 * z[0], Listed([]))
    got = sample(from_denoiser(D), SHAPE, solver=Heun(), grid=times, noise=Listed(z), dtype=F64, denoise=False)
    # eps of float32, 1.2e-7, of a few evaluations near σ_min
    torch.testing.assert_close(got.x, expected, rtol=2e-6, atol=2e-6)


def test_its_answer_is_the_denoised_sample() -> None:
    D = Precond().double()
    D.wide = F64
    model, x = from_denoiser(D), normals(1)[0]
    for t in (0.002, 1.0, 80.0):
        expected = D(x, torch.full((3,), t, dtype=F64))
        torch.testing.assert_close(model.denoise(x, t), expected, rtol=1e-13, atol=1e-13)  # σ to a few eps
        torch.testing.assert_close(model(x, t), (expected - x) / t**2, rtol=1e-9, atol=1e-9)  # eps/σ at σ = 0.002
    each = torch.tensor([0.1, 1.0, 10.0], dtype=F64)
    torch.testing.assert_close(model.denoise(x, each), D(x, each), rtol=1e-13, atol=1e-13)


# -- range, scale, labels ------------------------------------------------------------------------------------------


def test_the_range_is_what_the_module_tells() -> None:
    D = Precond()
    model = from_denoiser(D)
    assert isinstance(model, ScoreModel) and model.sde == EDM() and model.sigma_data == 0.5
    D.sigma_min, D.sigma_max = 0.02, 100.0  # type: ignore[assignment]
    assert from_denoiser(D).sde == EDM(T=100.0, t_min=0.02)
    assert from_denoiser(D, sigma_min=0.5, sigma_max=2, sigma_data=2.0).sde == EDM(T=2.0, t_min=0.5)
    assert from_denoiser(D, sigma_data=2.0).sigma_data == 2.0
    assert from_denoiser(lambda x, sigma: x).sde == EDM()


def test_labels_are_classes_or_one_hot_vectors() -> None:
    D = Precond(label_dim=4)
    model, x = from_denoiser(D), normals(1)[0].float()
    y = torch.tensor([3, 0, 1])
    by_name = model.bind(label=y).denoise(x, 2.0)
    torch.testing.assert_close(by_name, model.bind(class_labels=torch.eye(4)[y]).denoise(x, 2.0), rtol=0, atol=0)
    torch.testing.assert_close(by_name[:1], model.bind(label=3).denoise(x[:1], 2.0))
    none = model.denoise(x, 2.0)
    for absent in (4, torch.tensor([4, 4, 4])):
        torch.testing.assert_close(model.bind(label=absent).denoise(x, 2.0), none, rtol=0, atol=0)
    guided = classifier_free(model, {"label": y}, scale=3.0).denoise(x, 2.0)
    torch.testing.assert_close(guided, none + 3 * (by_name - none), rtol=1e-5, atol=1e-5)  # float32
    of_vectors = classifier_free(model, {"class_labels": torch.eye(4)[y]}, scale=3.0).denoise(x, 2.0)
    torch.testing.assert_close(guided, of_vectors)


def test_labels_that_do_not_fit_are_refused() -> None:
    model, x = from_denoiser(Precond(label_dim=4)), normals(1)[0].float()
    with pytest.raises(ValueError, match="run from 5 to 5; expected 0 to 3"):
        model.bind(label=torch.tensor([5]))
    with pytest.raises(ValueError, match="takes no condition labels"):
        model.bind(labels=1)
    with pytest.raises(ValueError, match="label and class_labels say the same"):
        model.denoise(x, 1.0, {"label": torch.tensor([1, 1, 1]), "class_labels": torch.eye(4)[:3]})
    with pytest.raises(TypeError, match="label must be classes"):
        model.denoise(x, 1.0, {"label": torch.ones(3)})
    # EDM's modules would reshape these to rows of four numbers without a word
    for wrong in (torch.eye(3), torch.ones(6, 2), torch.ones(4), torch.tensor([1, 2, 3, 0, 1, 2, 3, 0, 1, 2, 3, 0])):
        with pytest.raises(ValueError, match=r"class_labels must be one-hot vectors \(3, 4\), or \(1, 4\) for all"):
            model.denoise(x, 1.0, {"class_labels": wrong})
    with pytest.raises(ValueError, match="class_labels must be one-hot"):
        model.denoise(x, 1.0, {"label": torch.tensor([1, 2])})
    # EDM's unconditional modules leave class_labels aside without a word
    with pytest.raises(ValueError, match="takes no condition class_labels; it takes none"):
        from_denoiser(Precond()).bind(class_labels=torch.eye(4)[:3])


# -- precision -----------------------------------------------------------------------------------------------------


def test_half_precision_inside_the_module_costs_x_no_digits() -> None:
    D, x = Precond(use_fp16=True), normals(1)[0].float()
    model = from_denoiser(D)
    rough, exact = model.noise(x, 0.002), from_denoiser(D, keywords={"force_fp32": True}).noise(x, 0.002)
    assert D.asked == [(torch.float32, torch.float32, False), (torch.float32, torch.float32, True)]
    # ε̂ = x σ/(σ² + σ_d²) - F σ_d/sqrt(σ² + σ_d²), and F alone is rounded: inputs up to 8 and a preactivation of 18
    # terms of up to 0.24, by 2^-9 each. Had x been rounded it would be 2^-9 |x|/σ = 3.
    assert 0 < float((rough - exact).detach().abs().max()) < 8 * 18 * 0.24 * 2.0**-9


def test_weights_in_half_precision_do_not_round_x() -> None:
    D = Precond().bfloat16()
    x = normals(1)[0].float()
    from_denoiser(D).denoise(x, 0.002)
    assert D.asked[0][:2] == (torch.float32, torch.float32)
    from_denoiser(D, dtype=torch.float64).denoise(x, 0.002)
    assert D.asked[1][:2] == (torch.float64, torch.float64)


# -- k-diffusion ---------------------------------------------------------------------------------------------------


class KDenoiser(nn.Module):
    """k-diffusion's convention: D(input, sigma, **extra) around an ``inner_model``, all in the dtype of x."""

    def __init__(self, inner_model: nn.Module, sigma_data: float = 1.0) -> None:
        super().__init__()
        self.inner_model, self.sigma_data = inner_model, sigma_data

    def forward(self, input: Tensor, sigma: Tensor, **extra: Any) -> Tensor:
        wide = sigma[(...,) + (None,) * (input.ndim - 1)]
        total = wide**2 + self.sigma_data**2
        answer = self.inner_model(input / total.sqrt(), sigma, **extra)
        return answer * wide * self.sigma_data / total.sqrt() + input * self.sigma_data**2 / total


class Guided(nn.Module):
    """A wrapper around a denoiser that tells nothing by itself."""

    def __init__(self, inner_model: nn.Module) -> None:
        super().__init__()
        self.inner_model = inner_model

    def forward(self, x: Tensor, sigma: Tensor, cond: Tensor) -> Tensor:
        return self.inner_model(x, sigma, labels=cond)


class Discrete(KDenoiser):
    """Tells its range by properties of tensors, as k-diffusion's wrappers of discrete models do."""

    @property
    def sigma_min(self) -> Tensor:
        return torch.tensor(0.03)

    @property
    def sigma_max(self) -> Tensor:
        return torch.tensor(14.6)


def test_euler_is_that_of_k_diffusion() -> None:
    D, z = Guided(Discrete(Inner(2))).double(), normals(1)[0]
    cond, sigmas = (
        torch.linspace(0, 1, 6, dtype=F64).reshape(3, 2),
        torch.cat([torch.linspace(14.0, 0.1, 9), torch.zeros(1)]).double(),
    )
    model = from_denoiser(D)
    assert (model.sde.t_min, model.sde.T, model.sigma_data) == pytest.approx((0.03, 14.6, 1.0))  # told in float32
    x = z * sigmas[0]
    with torch.no_grad():
        for a, b in itertools.pairwise(sigmas):
            x = x + (x - D(x, a.expand(3), cond=cond)) / a * (b - a)
    got = sample(model.bind(cond=cond), SHAPE, solver=DDIM(), grid=sigmas, noise=Listed([z]), dtype=F64, denoise=False)
    torch.testing.assert_close(got.x, x, rtol=1e-11, atol=1e-11)  # rounding of nine steps
    zero = torch.zeros(2, dtype=F64)
    guided = classifier_free(model, {"cond": cond}, scale=2.0, null=zero)
    x0, x1 = (D(x, torch.ones(3, dtype=F64), cond=c) for c in (zero.expand(3, 2), cond))
    torch.testing.assert_close(guided.denoise(x, 1.0), x0 + 2 * (x1 - x0), rtol=1e-11, atol=1e-11)


def test_a_module_of_k_diffusion_in_half_precision_is_asked_in_it() -> None:
    D, x = KDenoiser(Inner()).bfloat16(), normals(1)[0].float()
    model = from_denoiser(D, dtype=torch.bfloat16)
    got = model.denoise(x, 2.0)
    expected = D(x.bfloat16(), torch.full((3,), 2.0, dtype=torch.bfloat16))
    assert expected.dtype == torch.bfloat16 and got.dtype == torch.float32
    torch.testing.assert_close(got, expected.float(), rtol=0, atol=0)


# -- as a model ----------------------------------------------------------------------------------------------------


def test_it_is_a_model_like_any_other() -> None:
    D = Precond(label_dim=3)
    model = from_denoiser(D)
    assert {id(p) for p in model.parameters()} == {id(p) for p in D.parameters()}
    assert isinstance(model.bind(label=1), BoundScore)
    vp = VP()
    narrow = model.under(VP(t_min=float(vp.t_of_log_snr(12.0)), T=float(vp.t_of_log_snr(-8.7))))
    x, t = normals(1)[0].float(), 0.5
    ratio = float((vp.sigma(t) / vp.alpha(t)).item())
    expected = model.denoise(x / vp.alpha(t), ratio)
    torch.testing.assert_close(narrow.denoise(x, t), expected, rtol=1e-5, atol=1e-5)  # float32
    leaf = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(model.denoise(leaf, 1.0).sum(), leaf)
    assert gradient.abs().sum() > 0
    model.eval()
    assert not D.model.training


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"sigma_min": 3.0, "sigma_max": 2.0}, "sigma_min must lie below sigma_max, got 3 and 2"),
        ({"sigma_min": -1.0}, "sigma_min must be positive"),
        ({"dtype": torch.int64}, "dtype must be a floating dtype"),
        ({"keywords": 3}, "keywords must be a mapping"),
        ({"null_conditions": {"x": 0}}, "must not be 'x'"),
    ],
)
def test_what_is_wrong_is_refused_before_any_work(options: dict[str, Any], match: str) -> None:
    with pytest.raises((TypeError, ValueError), match=match):
        from_denoiser(Precond(), **options)


def test_an_answer_that_is_no_tensor_is_refused_in_words() -> None:
    with pytest.raises(TypeError, match=r"net must answer a tensor shaped like x, got tuple from function"):
        from_denoiser(lambda x, sigma: (x, sigma))(normals(1)[0], 1.0)
