"""Models of latents with their autoencoder: against loops written by hand, with diffusers' AutoencoderKL and others."""

from __future__ import annotations

import copy
import pickle
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from scoresde import (
    DDIM,
    RectifiedFlow,
    Reverse,
    ScoreModel,
    as_score,
    classifier_free,
    log_prob,
    sample,
)
from scoresde.data import Scaling
from scoresde.editing import sdedit
from scoresde.interop import Autoencoding, Latent, from_velocity
from scoresde.inverse import FunctionOperator, Mask, Measurement, dps, pigdm
from scoresde.noise import PerSampleNoise
from scoresde.sde import VP

EVENT, LATENT = (3, 8, 8), (4, 4, 4)


class Net(nn.Module):
    """A velocity of latents, with a class."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.rows = nn.Conv2d(4, 4, 3, padding=1), nn.Embedding(4, 4)
        self.null_conditions = {"label": 3}

    def forward(self, x: Tensor, t: Tensor, label: Tensor | None = None) -> Tensor:
        label = torch.full((len(x),), 3) if label is None else label
        return (self.conv(x) + (t.to(x.dtype)[:, None] + self.rows(label))[:, :, None, None]).tanh()


class Small(nn.Module):
    """The least that has encode and decode: a strided convolution and its transpose."""

    def __init__(self, **config: Any) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.down, self.up = nn.Conv2d(3, 4, 2, stride=2), nn.ConvTranspose2d(4, 3, 2, stride=2)
        self.drop = nn.Dropout(0.5)
        self.seen: list[tuple[int, torch.dtype]] = []
        if config:
            self.config = SimpleNamespace(**config)

    def encode(self, x: Tensor) -> Tensor:
        self.seen.append((len(x), x.dtype))
        return self.drop(self.down(x))

    def decode(self, z: Tensor) -> Tensor:
        self.seen.append((len(z), z.dtype))
        return self.up(z)


def pictures(n: int = 2) -> Tensor:
    return torch.rand(5, *EVENT, generator=torch.Generator().manual_seed(3))[:n] * 2 - 1


def latents(n: int = 2) -> Tensor:
    return torch.randn(n, *LATENT, generator=torch.Generator().manual_seed(4))


def kl(**config: Any) -> Any:
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    return diffusers.AutoencoderKL(
        block_out_channels=(4, 4),
        norm_num_groups=2,
        latent_channels=4,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        **config,
    )


@pytest.fixture(scope="module")
def autoencoder() -> Any:
    return kl(scaling_factor=0.7, shift_factor=0.2)


# -- AutoencoderKL, against loops by hand ---------------------------------------------------------------------------


def test_sampling_is_the_loop_by_hand(autoencoder: Any) -> None:
    """Euler's method for the velocity, then the decoder as pipelines call it."""
    net, steps = Net(), 5
    latent = Latent(from_velocity(net), autoencoder)
    y, z = torch.tensor([0, 2]), latents()
    with torch.no_grad():
        x = z
        for i in range(steps):
            t = torch.full((2,), i / steps)
            with_label, without = net(x, t, y), net(x, t)
            x = x + (without + 2 * (with_label - without)) / steps
        expected = autoencoder.decode(x / 0.7 + 0.2).sample
    score = classifier_free(latent, {"label": y}, scale=2.0)
    shape = latent.latent_shape((2, *EVENT))
    assert shape == (2, *LATENT) and latent.data_shape(shape) == (2, *EVENT)
    grid = torch.linspace(1, 0, steps + 1, dtype=torch.float64)
    got = sample(score, shape, solver=DDIM(), grid=grid, x=z)
    torch.testing.assert_close(got.data, expected, rtol=1e-5, atol=1e-5)  # float32 through five steps and a decoder
    assert not got.data.requires_grad


def test_encoding_is_that_by_hand(autoencoder: Any) -> None:
    latent, x = Latent(from_velocity(Net()), autoencoder), pictures()
    with torch.no_grad():
        law = autoencoder.encode(x).latent_dist
    torch.testing.assert_close(latent.encode(x), 0.7 * (law.mean - 0.2), rtol=1e-5, atol=1e-6)
    eps = PerSampleNoise(5).stream("encode").normal(law.mean)
    drawn = latent.encode(x, noise=5)
    torch.testing.assert_close(drawn, 0.7 * (law.mean + law.std * eps - 0.2), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(latent.encode(x[:1], noise=5), drawn[:1], rtol=1e-5, atol=1e-6)  # of (seed, i) alone
    assert float((drawn - latent.encode(x)).abs().mean()) > 0.1


@pytest.mark.parametrize(
    ("config", "scale", "shift"),
    [
        ({}, 0.18215, 0.0),
        ({"scaling_factor": 0.5, "shift_factor": -0.1}, 0.5, -0.1),
        (
            {"scaling_factor": 0.5, "latents_mean": (0.1, 0.2, 0.3, 0.4), "latents_std": (1.0, 2.0, 4.0, 5.0)},
            [0.5, 0.25, 0.125, 0.1],
            [0.1, 0.2, 0.3, 0.4],
        ),
    ],
    ids=["scale", "scale and shift", "mean and deviation"],
)
def test_factors_are_those_of_the_config(config: dict[str, Any], scale: Any, shift: Any) -> None:
    """z = scale (E - shift); with mean and deviation as in diffusers' pipelines, D(z std/scaling_factor + mean)."""
    module = kl(**config)
    coding = Autoencoding(module)
    by_channel = [torch.tensor(value, dtype=torch.float64) for value in (scale, shift)]
    torch.testing.assert_close(coding.scaling_factor, by_channel[0])
    torch.testing.assert_close(coding.shift_factor, by_channel[1])
    z = latents()
    a, b = (value.float().reshape(-1, 1, 1) for value in by_channel)
    with torch.no_grad():
        torch.testing.assert_close(coding.decode(z), module.decode(z / a + b).sample)
    torch.testing.assert_close(coding.encode(pictures()), a * (Autoencoding(module, 1.0, 0.0).encode(pictures()) - b))


def test_pictures_whose_sizes_do_not_come_back_are_refused(autoencoder: Any) -> None:
    coding = Autoencoding(autoencoder)
    with pytest.raises(ValueError, match=r"x, of shape \(2, 3, 9, 8\), would come back .* as \(2, 3, 8, 8\)"):
        coding.encode(torch.zeros(2, 3, 9, 8))
    with pytest.raises(ValueError, match=r"latent_shape|would come back"):
        coding.latent_shape((2, 3, 9, 8))
    with pytest.raises(ValueError, match="autoencoder cannot encode samples of shape"):
        coding.latent_shape((2, 5, 8, 8))
    with pytest.raises(ValueError, match="autoencoder cannot decode samples of shape"):
        coding.decode(torch.zeros(2, 3, 4, 4))


def test_float16_is_decoded_in_float32_where_the_config_says_so() -> None:
    module, z, x = kl(), latents(), pictures()
    exact = Autoencoding(module).decode(z)
    module.half()
    rounded = {name: p.float() for name, p in module.state_dict().items()}
    half = Autoencoding(module)
    upcast, encoded = half.decode(z), half.encode(x)
    assert {p.dtype for p in module.parameters()} == {torch.float16}  # as it was
    assert upcast.dtype == torch.float32
    wide = kl()
    wide.load_state_dict(rounded)
    torch.testing.assert_close(upcast, Autoencoding(wide).decode(z))
    torch.testing.assert_close(encoded, Autoencoding(wide).encode(x))
    assert float((upcast - exact).abs().max()) < 0.05  # weights alone are rounded, by 2^-11 each
    stays = kl(force_upcast=False).half()
    told: list[torch.dtype] = []
    stays.decoder.register_forward_pre_hook(lambda module, given: told.append(given[0].dtype))
    Autoencoding(stays).decode(z)
    assert told.pop() == torch.float16
    module.decoder.register_forward_pre_hook(lambda module, given: told.append(given[0].dtype))
    half.decode(z)
    assert told.pop() == torch.float32


def test_measurements_through_the_decoder(autoencoder: Any) -> None:
    """The gradient of log N(y; A(decode(x̂_0)), σ_y² I), by hand; and samples that are nearer to y for it."""
    net = Net()
    latent = Latent(from_velocity(net), autoencoder)
    mask = Mask(torch.rand(EVENT, generator=torch.Generator().manual_seed(0)) > 0.5)
    y = mask(latent.decode(latents(1)))[0]
    measurement = Measurement(y, latent.through(mask), noise_std=0.5)
    score = dps(latent, measurement)
    assert measurement.event == LATENT
    z, t = latents(), 0.4
    leaf = z.clone().requires_grad_()
    x0 = leaf + t * net(leaf, torch.full((2,), 1 - t))
    residual = y - mask(autoencoder.decode(x0 / 0.7 + 0.2).sample)
    (gradient,) = torch.autograd.grad(-residual.square().sum() / (2 * 0.25), leaf)
    torch.testing.assert_close(score(z, t), latent(z, t).detach() + gradient, rtol=1e-3, atol=1e-3)  # float32
    shape, grid = (4, *LATENT), torch.linspace(0.99, 0.05, 31, dtype=torch.float64)
    # the measured pictures are a decoded prior sample; far from it without a measurement
    prior, posterior = (sample(s, shape, grid=grid, seed=1, solver=DDIM()) for s in (latent, score))
    misfit = [(y - mask(solution.data)).square().mean() for solution in (prior, posterior)]
    assert misfit[1] < 0.75 * misfit[0]  # 0.60 of it; independent draws would differ by a few percent
    assert all(p.grad is None for p in autoencoder.parameters())
    with pytest.raises(TypeError, match="linear operator"):
        pigdm(latent, measurement)(z, t)


def test_any_function_of_pictures_measures_latents(autoencoder: Any) -> None:
    latent, z = Latent(from_velocity(Net()), autoencoder), latents()
    through = latent.through(lambda x: x.square().flatten(1).mean(1, keepdim=True))
    assert through.event is None and through.measured is None
    torch.testing.assert_close(through(z), latent.decode(z).square().flatten(1).mean(1, keepdim=True))
    measurement = Measurement(torch.tensor([0.3]), through, 0.1)
    assert bool(dps(latent, measurement)(z, 0.5).isfinite().all())
    linear = FunctionOperator(lambda x: x.cumsum(-1)[..., ::2], event=EVENT)
    assert latent.through(linear).event == LATENT and latent.through(linear).measured == (3, 8, 4)
    with pytest.raises(TypeError, match="operator must be a function"):
        latent.through(3)  # type: ignore[arg-type]


def test_an_edit_and_a_likelihood_of_latents(autoencoder: Any) -> None:
    latent, x = Latent(from_velocity(Net()), autoencoder), pictures()
    z = latent.encode(x)
    edited = sdedit(latent.bind(label=1), z, t=0.5, steps=4)
    assert edited.data.shape == x.shape
    plain = log_prob(from_velocity(Net()), z, divergence="exact")
    torch.testing.assert_close(log_prob(latent, z, divergence="exact"), plain)


# -- any other autoencoder -------------------------------------------------------------------------------------------


class Answers:
    """An autoencoder whose methods answer what they are told to."""

    def __init__(self, encoded: Any, decoded: Any = lambda z: z) -> None:
        self.encoded, self.decoded = encoded, decoded

    def encode(self, x: Tensor) -> Any:
        return self.encoded(x)

    def decode(self, z: Tensor) -> Any:
        return self.decoded(z)


@pytest.mark.parametrize(
    "encoded",
    [
        lambda x: 2 * x,
        lambda x: (2 * x, "more"),
        lambda x: SimpleNamespace(latents=2 * x),
        lambda x: SimpleNamespace(latent=2 * x),
        lambda x: SimpleNamespace(latent_dist=SimpleNamespace(mean=2 * x, std=x.abs())),
        lambda x: torch.distributions.Normal(2 * x, x.abs() + 1),
    ],
    ids=["tensor", "tuple", "latents", "latent", "latent_dist", "distribution"],
)
@pytest.mark.parametrize("decoded", [lambda z: z / 2, lambda z: (z / 2,), lambda z: SimpleNamespace(sample=z / 2)])
def test_what_encode_and_decode_may_answer(encoded: Any, decoded: Any) -> None:
    coding, x = Autoencoding(Answers(encoded, decoded), 3.0, 0.5), pictures()
    z = coding.encode(x)
    torch.testing.assert_close(z, 3 * (2 * x - 0.5))
    torch.testing.assert_close(coding.decode(z), x)
    torch.testing.assert_close(coding.to_data(coding.to_model(x)), x)


def test_a_draw_needs_a_posterior() -> None:
    x = pictures()
    with pytest.raises(ValueError, match="noise must be left out: this autoencoder's encode answers latents"):
        Autoencoding(Small(), 1.0).encode(x, noise=0)
    without = Answers(lambda x: SimpleNamespace(latent_dist=SimpleNamespace(mean=x)))
    with pytest.raises(ValueError, match="has no std"):
        Autoencoding(without, 1.0).encode(x, noise=0)
    with pytest.raises(TypeError, match="encode of the autoencoder must answer a tensor"):
        Autoencoding(Answers(lambda x: "latents"), 1.0).encode(x)
    with pytest.raises(TypeError, match="decode of the autoencoder must answer a tensor"):
        Autoencoding(Answers(lambda x: x, lambda z: {}), 1.0).decode(x)


@pytest.mark.parametrize("n", [0, 1, 5])
def test_draws_do_not_depend_on_chunks(n: int) -> None:
    module = Answers(lambda x: SimpleNamespace(latent_dist=SimpleNamespace(mean=2 * x, std=x.abs())))
    whole, chunked = (Autoencoding(module, 1.0, chunk=chunk).encode(pictures(n), noise=7) for chunk in (None, 2))
    torch.testing.assert_close(chunked, whole, rtol=0, atol=0)
    torch.testing.assert_close(whole, Autoencoding(module, 1.0).encode(pictures(5), noise=7)[:n], rtol=0, atol=0)


def test_in_chunks_in_its_dtype_in_evaluation_mode() -> None:
    module = Small()
    coding, x = Autoencoding(module, 1.0, chunk=2), pictures(5)
    coding.latent_shape((5, *EVENT))
    module.seen.clear()
    z = coding.encode(x)
    assert [n for n, _ in module.seen] == [2, 2, 1] and module.training
    torch.testing.assert_close(z, Autoencoding(module, 1.0).encode(x))  # no dropout in either
    assert coding.encode(x[:0]).shape == (0, *LATENT) and coding.decode(z[:0]).shape == (0, *EVENT)
    module.bfloat16()
    module.seen.clear()
    assert coding.decode(z).dtype == torch.float32 and coding.decode(z.bfloat16()).dtype == torch.bfloat16
    assert {dtype for _, dtype in module.seen} == {torch.bfloat16}
    assert coding.decode(z.double()).dtype == torch.float64


def test_gradients_flow_through_both_ways_where_they_are_asked_for() -> None:
    coding = Autoencoding(Small(), 2.0)
    z, x = latents().requires_grad_(), pictures().requires_grad_()
    torch.autograd.gradcheck(
        Autoencoding(Small().double(), 2.0).decode, latents(1).double()[:, :, :1, :1].requires_grad_()
    )
    assert torch.autograd.grad(coding.decode(z).sum(), z)[0].abs().sum() > 0
    assert torch.autograd.grad(coding.encode(x).sum(), x)[0].abs().sum() > 0
    assert not coding.decode(z.detach()).requires_grad
    with torch.no_grad():
        assert not coding.decode(z).requires_grad
    tangent = torch.func.jvp(coding.decode, (z.detach(),), (torch.ones_like(z),))[1]
    torch.testing.assert_close(tangent, coding.decode(z.detach() + 1) - coding.decode(z.detach()), rtol=1e-4, atol=1e-5)


def test_of_a_model_it_is_a_model() -> None:
    model, module = from_velocity(Net()), Small()
    latent = Latent(model, module, scaling_factor=2.0, shift_factor=0.1)
    assert isinstance(latent, Latent) and isinstance(latent, ScoreModel)
    assert {id(p) for p in latent.parameters()} == {id(p) for m in (model, module) for p in m.parameters()}
    z = latents()
    torch.testing.assert_close(latent.bind(label=1)(z, 0.5), model.bind(label=1)(z, 0.5), rtol=0, atol=0)
    vp = VP(T=0.9)
    under = latent.under(vp)
    assert isinstance(under, Latent)
    torch.testing.assert_close(under(z, 0.5), model.under(vp)(z, 0.5), rtol=0, atol=0)
    torch.testing.assert_close(under.decode(z), latent.decode(z), rtol=0, atol=0)
    latent.double()
    assert module.down.weight.dtype == torch.float64
    for other in (copy.deepcopy(latent), pickle.loads(pickle.dumps(latent))):
        assert type(other) is type(latent)
        torch.testing.assert_close(other.decode(z), latent.decode(z), rtol=0, atol=0)
        torch.testing.assert_close(other(z, 0.5), latent(z, 0.5), rtol=0, atol=0)
        # one autoencoder, found by the module and by what decodes
        assert other.autoencoding.autoencoder is other.autoencoder is not module
    latent.eval()
    assert not module.training and not model.net.net.training


def test_of_another_score_it_is_a_score() -> None:
    model, module = from_velocity(Net()), Small(scaling_factor=2.0)
    z = latents()
    for score in (model.bind(label=1), classifier_free(model, {"label": 1}, scale=2.0), as_score(_minus, VP())):
        latent = Latent(score, module)
        assert isinstance(latent, Latent) and not isinstance(latent, ScoreModel)
        torch.testing.assert_close(latent(z, 0.5), score(z, 0.5), rtol=0, atol=0)
        solution = sample(latent, latent.latent_shape((2, *EVENT)), steps=3, solver=DDIM())
        torch.testing.assert_close(solution.data, latent.decode(solution.x), rtol=0, atol=0)
        assert solution.data.shape == (2, *EVENT) and module.training
        back = pickle.loads(pickle.dumps(latent)) if score.sde != VP() else copy.deepcopy(latent)
        torch.testing.assert_close(back(z, 0.5), latent(z, 0.5), rtol=0, atol=0)


def _minus(x: Tensor, t: Tensor) -> Tensor:
    return -x


def test_gradients_flow_from_pictures_through_the_solver() -> None:
    """What guidance through the decoder and fitting ask for."""
    latent = Latent(from_velocity(Net()), Small(), scaling_factor=1.0)
    z = latents().requires_grad_()
    grid = torch.linspace(1, 0, 4, dtype=torch.float64)
    solution = DDIM().solve(Reverse(latent, 0.0), z, grid, 0)
    (gradient,) = torch.autograd.grad(solution.data.sum(), z)
    assert float(gradient.abs().sum()) > 0


def test_a_model_of_standardised_latents_is_decoded_through_them() -> None:
    """A model that was trained on Scaling's units of the latents."""
    model, module, z = from_velocity(Net()), Small(scaling_factor=2.0), latents()
    model.scaling = Scaling(0.5, 3.0)
    latent = Latent(model, module)
    torch.testing.assert_close(latent.decode(z), module.decode((3 * z + 0.5) / 2))
    torch.testing.assert_close(latent.encode(latent.decode(z)), (2 * module.eval().encode(latent.decode(z)) - 0.5) / 3)
    torch.testing.assert_close(latent.under(RectifiedFlow()).decode(z), latent.decode(z), rtol=0, atol=0)


# -- what is refused ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("module", "options", "match"),
    [
        (Small(), {}, "scaling_factor must be given: Small has no config"),
        (Small(scaling_factor=0.0), {}, "scaling_factor must not be 0"),
        (Small(scaling_factor=1.0, shift_factor=0.1, latents_mean=[0.1]), {}, "shift_factor must be given"),
        (Small(latents_std=[1.0, 0.0, 1.0, 1.0]), {}, "latents_std of the autoencoder must be positive"),
        (Small(), {"scaling_factor": "0.2"}, "scaling_factor must be a real number"),
        (Small(), {"scaling_factor": float("nan")}, "scaling_factor must be finite"),
        (Small(), {"scaling_factor": torch.ones(2, 2)}, "scaling_factor must be a number or one for each channel"),
        (Small(), {"scaling_factor": 1.0, "chunk": 0}, "chunk must be a whole number of at least 1"),
        (nn.Linear(2, 2), {}, "autoencoder must be a module with encode"),
        (Small, {}, "autoencoder must be a module with encode"),
        (None, {}, "autoencoder must be a module with encode"),
    ],
    ids=str,
)
def test_what_is_wrong_is_refused(module: Any, options: dict[str, Any], match: str) -> None:
    for make in (Autoencoding, lambda *given, **more: Latent(from_velocity(Net()), *given, **more)):
        with pytest.raises((TypeError, ValueError), match=match):
            make(module, **options)


def test_pictures_in_the_place_of_latents_are_told_apart() -> None:
    latent = Latent(from_velocity(Net()), Small(scaling_factor=1.0))
    with pytest.raises(RuntimeError) as caught:  # torch's own, of the first layer
        sample(latent, (2, *EVENT), steps=2)
    assert "latent_shape" in caught.value.__notes__[0]


def test_factors_of_another_number_of_channels_are_refused() -> None:
    coding = Autoencoding(Small(), [1.0, 2.0])  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="z must have 2 channels"):
        coding.decode(latents())


def test_a_latent_of_a_latent_and_of_no_score_is_refused() -> None:
    latent = Latent(from_velocity(Net()), Small(scaling_factor=1.0))
    for again in (latent, latent.bind(label=1)):
        with pytest.raises(ValueError, match="has an autoencoder already"):
            Latent(again, Small(scaling_factor=1.0))
    with pytest.raises(TypeError, match="model must be a Score"):
        Latent(Net(), Small(scaling_factor=1.0))  # type: ignore[call-overload]
