"""Latents of our own autoencoders: standardised, as a data set, in a Latent, and the bound on the likelihood."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import MultivariateNormal

from scoresde import VP, Gaussian, ScoreModel, classifier_free, log_prob, sample
from scoresde.data import Dataset, Scaling, from_tensors
from scoresde.editing import sdedit
from scoresde.interop import Autoencoding, Latent, evidence_bound, latent_dataset, standardise_latents
from scoresde.inverse import Mask, Measurement, dps
from scoresde.nn import Autoencoder, KLBottleneck, UNet, VQBottleneck
from scoresde.noise import PerSampleNoise
from scoresde.solvers import ProbabilityFlow

F64 = torch.float64


def pictures(count: int = 13) -> Dataset:
    x = torch.randint(0, 256, (count, 1, 8, 8), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    label = torch.arange(count) % 3
    return from_tensors(x, label, levels=256, conditions={"size": torch.arange(count).float()[:, None]})


def small(**options: Any) -> Autoencoder:
    torch.manual_seed(1)
    net = Autoencoder(1, **{"width": 8, "multipliers": (1, 2), "latent_channels": 2, **options}).eval()
    with torch.no_grad():
        net.to_latents.bias.add_(3.0)  # type: ignore[union-attr, operator]
    return net


def network() -> ScoreModel:
    torch.manual_seed(2)
    net = UNet(2, width=8, multipliers=(1,), blocks=1, attention_levels=()).eval()
    with torch.no_grad():
        for p in net.head.parameters():
            p.add_(0.1 * torch.randn_like(p))
    return ScoreModel(net, VP(), "edm", sigma_data=1.0)


# -- standardised ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [KLBottleneck(), VQBottleneck(5)], ids=["kl", "vq"])
def test_latents_have_mean_0_and_spread_1(kind: Any) -> None:
    net, data = small(bottleneck=kind), pictures()
    standardise_latents(net, data, batch_size=5)  # 13 samples in three unequal parts
    with torch.no_grad():
        z = net.encode(data[:]["x"]).double()
    assert net.config["latents_mean"] == pytest.approx(z.mean((0, 2, 3)).tolist(), rel=1e-6)  # of float32 latents
    assert net.config["latents_std"] == pytest.approx(z.std((0, 2, 3), correction=0).tolist(), rel=1e-5)
    whole = latent_dataset(net, data, batch_size=4)[:]["x"]
    torch.testing.assert_close(whole.mean((0, 2, 3)), torch.zeros(2), rtol=0, atol=1e-5)
    torch.testing.assert_close(whole.std((0, 2, 3), correction=0), torch.ones(2), rtol=1e-5, atol=0)


def test_a_mean_far_from_0_costs_nothing() -> None:
    """Sums of squares would lose a spread of 1e-3 around 3e3 in float32, and twelve digits of it in float64."""

    class Far(Autoencoder):
        def encode(self, x: Tensor) -> Tensor:
            return 3e3 + 1e-3 * x[:, :, ::2, ::2].double().expand(-1, 2, -1, -1)

    torch.manual_seed(0)
    net, data = Far(1, width=8, multipliers=(1, 2), latent_channels=2), pictures()
    standardise_latents(net, data, batch_size=3)
    spread = 1e-3 * float(data[:]["x"][:, :, ::2, ::2].double().std(correction=0))
    assert net.config["latents_std"] == pytest.approx([spread] * 2, rel=1e-8)  # 3e3 / 1e-3 * 2^-52


def test_a_constant_channel_is_refused() -> None:
    net = small()
    with torch.no_grad():
        net.to_latents.weight.zero_()  # type: ignore[union-attr, operator]
    with pytest.raises(ValueError, match="channel that is constant"):
        standardise_latents(net, pictures())
    assert net.config["latents_std"] is None
    with pytest.raises(TypeError, match="net must be"):
        standardise_latents(nn.Identity(), pictures())  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="dataset"):
        standardise_latents(small(), torch.zeros(2, 1, 8, 8))  # type: ignore[arg-type]


# -- as a data set -----------------------------------------------------------------------------------------------------


def test_labels_and_conditions_come_along(tmp_path: Path) -> None:
    net, data = small(), pictures()
    standardise_latents(net, data)
    for made in (latent_dataset(net, data, batch_size=4), latent_dataset(net, data, file=tmp_path / "z.npy")):
        batch = made[:]
        assert torch.equal(batch["label"], data[:]["label"]) and torch.equal(batch["size"], data[:]["size"])
        torch.testing.assert_close(batch["x"], Autoencoding(net).encode(data[:]["x"]), rtol=1e-5, atol=1e-5)
        assert made.class_names == data.class_names and made.condition_scalings == data.condition_scalings
        assert made.scaling == Scaling(0.0, 1.0) and made.event_shape == (2, 4, 4)


def test_a_file_is_encoded_once(tmp_path: Path) -> None:
    net, data, file = small(), pictures(), tmp_path / "new" / "z.npy"
    standardise_latents(net, data)
    made = latent_dataset(net, data, file=file)
    assert made.mapped
    written = file.stat().st_mtime_ns
    again = latent_dataset(net, data, file=file)
    assert file.stat().st_mtime_ns == written and torch.equal(again[:]["x"], made[:]["x"])
    with pytest.raises(ValueError, match="other data or by another autoencoder"):
        latent_dataset(net, data.subset(slice(0, 12)), file=file)
    net.describe_latents([0.0, 0.0], [1.0, 2.0])
    with pytest.raises(ValueError, match="other data or by another autoencoder"):
        latent_dataset(net, data, file=file)
    file.with_suffix(".json").unlink()
    with pytest.raises(ValueError, match="is there already"):
        latent_dataset(net, data, file=file)
    with pytest.raises(ValueError, match=r"\.npy file"):
        latent_dataset(net, data, file=tmp_path / "z.bin")


def test_an_autoencoder_without_statistics_is_refused() -> None:
    with pytest.raises(ValueError, match=r"scaling_factor must be given.* Measure it by standardise_latents"):
        latent_dataset(small(), pictures())
    with pytest.warns(UserWarning, match="would be lost"):  # of raw latents with a mean of 3
        raw = latent_dataset(Autoencoding(small(), 1.0, 0.0), pictures())
    with torch.no_grad():
        torch.testing.assert_close(raw[:]["x"], small().encode(pictures()[:]["x"]), rtol=1e-5, atol=1e-5)


# -- in a Latent -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [KLBottleneck(), VQBottleneck(5)], ids=["kl", "vq"])
def test_samples_are_decoded_with_the_statistics(kind: Any) -> None:
    net = small(bottleneck=kind)
    net.describe_latents([0.5, -1.0], [2.0, 0.25])
    latent = Latent(network(), net)
    assert latent.latent_shape((3, 1, 8, 8)) == (3, 2, 4, 4) and latent.data_shape((3, 2, 4, 4)) == (3, 1, 8, 8)
    solution = sample(latent, (3, 2, 4, 4), steps=3, seed=0)
    raw = solution.x * torch.tensor([2.0, 0.25])[:, None, None] + torch.tensor([0.5, -1.0])[:, None, None]
    with torch.no_grad():
        torch.testing.assert_close(solution.data, net.decode(raw), rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match=r"multiple of 2"):
        latent.encode(torch.zeros(1, 1, 7, 8))
    with pytest.raises(ValueError, match=r"z must be latents \(B, 2, H, W\)"):
        latent.decode(torch.zeros(1, 3, 4, 4))


def test_draws_are_of_the_posterior() -> None:
    net, x = small(), pictures()[:2]["x"]
    net.describe_latents([0.5, -1.0], [2.0, 0.25])
    latent = Latent(network(), net)
    law = net.posterior(x)
    eps = PerSampleNoise(5).stream("encode").normal(law.mean)
    raw = law.draw(eps).detach()
    expected = (raw - torch.tensor([0.5, -1.0])[:, None, None]) / torch.tensor([2.0, 0.25])[:, None, None]
    torch.testing.assert_close(latent.encode(x, noise=5), expected, rtol=1e-5, atol=1e-5)
    codes = small(bottleneck=VQBottleneck(5))
    codes.describe_latents([0.0, 0.0], [1.0, 1.0])
    with pytest.raises(ValueError, match="codes have none"):
        Latent(network(), codes).encode(x, noise=5)


@pytest.mark.parametrize("kind", [KLBottleneck(), VQBottleneck(5)], ids=["kl", "vq"])
def test_edits_and_measurements_go_through_the_decoder(kind: Any) -> None:
    net, x = small(bottleneck=kind), pictures()[:2]["x"]
    standardise_latents(net, pictures())
    with torch.no_grad():  # a decoder that starts at zero inside says little of its latents
        for p in net.decoder.parameters():
            p.add_(0.1 * torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel())))
    latent = Latent(network(), net)
    z = latent.encode(x)
    assert sdedit(latent, z, t=0.5, steps=3).data.shape == x.shape
    mask = Mask(torch.rand(1, 8, 8, generator=torch.Generator().manual_seed(0)) > 0.5)
    measurement = Measurement(mask(x[:1])[0], latent.through(mask), noise_std=0.5)
    pulled = dps(latent, measurement)(z, 0.4) - latent(z, 0.4)
    assert bool(pulled.isfinite().all()) and float(pulled.detach().abs().max()) > 1e-4
    assert all(p.grad is None for p in net.parameters())


# -- the bound ---------------------------------------------------------------------------------------------------------


class Linear(nn.Module):
    """x = W z + s e, z ~ N(m, diag v), e ~ N(0, I): W has orthogonal columns, so that q(z | x) is diagonal."""

    def __init__(self, widen: float = 1.0) -> None:
        super().__init__()
        self.m, self.v, self.s, self.widen = torch.tensor([0.3, -1.0], dtype=F64), torch.tensor([4.0, 0.5]), 0.5, widen
        self.v = self.v.double()
        self.w = torch.tensor([[1.0, 2.0], [2.0, -1.0], [0.0, 0.0]], dtype=F64)
        self.weight = nn.Parameter(torch.zeros((), dtype=F64))
        self.config = {"latents_mean": self.m.tolist(), "latents_std": self.v.sqrt().tolist()}

    def encode(self, x: Tensor) -> Tensor:
        precision = (self.w**2).sum(0) / self.s**2 + 1 / self.v
        return (x @ self.w / self.s**2 + self.m / self.v) / precision

    def posterior(self, x: Tensor) -> Any:
        precision = (self.w**2).sum(0) / self.s**2 + 1 / self.v
        std = (self.widen * precision.rsqrt()).expand(len(x), 2)
        return torch.distributions.Normal(self.encode(x), std)

    def decode(self, z: Tensor) -> Tensor:
        return z @ self.w.T

    def log_likelihood(self, x: Tensor, decoded: Tensor) -> Tensor:
        return torch.distributions.Normal(decoded, self.s).log_prob(x).sum(1)

    def evidence(self, x: Tensor) -> Tensor:
        cov = self.w @ torch.diag(self.v) @ self.w.T + self.s**2 * torch.eye(3, dtype=F64)
        return MultivariateNormal(self.decode(self.m), cov).log_prob(x)


EXACT: dict[str, Any] = {"divergence": "exact", "solver": ProbabilityFlow(rtol=1e-8, atol=1e-8)}


def test_the_bound_is_the_evidence_where_the_posterior_is_exact() -> None:
    """Then each single draw gives log p(x): standardised latents are N(0, I), whose ODE under VP is exact."""
    autoencoder = Linear()
    latent = Latent(Gaussian(torch.zeros(2, dtype=F64), torch.ones(2, dtype=F64)).score(VP()), autoencoder)
    x = torch.randn(6, 3, generator=torch.Generator().manual_seed(0), dtype=F64)
    # VP keeps N(0, I) at all times; log_prob ends with N(0, σ_T² I), σ_T² = 1 - 4e-5, off by 2e-5 |z|² at most
    torch.testing.assert_close(evidence_bound(latent, x, **EXACT), autoencoder.evidence(x), rtol=0, atol=4e-4)


def test_a_wider_posterior_loses_its_divergence() -> None:
    """On average by KL(q ‖ p(z | x)) = Σ ½ (w² - 1) - log w for deviations w times the true ones."""
    autoencoder = Linear(widen=1.5)
    latent = Latent(Gaussian(torch.zeros(2, dtype=F64), torch.ones(2, dtype=F64)).score(VP()), autoencoder)
    x = torch.zeros(4000, 3, dtype=F64)
    bound = evidence_bound(latent, x, **EXACT)
    lost = 2 * (0.5 * (1.5**2 - 1) - math.log(1.5))
    short = autoencoder.evidence(x) - bound
    error = float(short.std()) / math.sqrt(len(x))
    assert abs(float(short.mean()) - lost) < 4 * error and error < 0.05
    several = evidence_bound(latent, x[:50], draws=8, **EXACT)
    assert float(several.std()) < 0.6 * float(bound[:50].std())  # 8^-½ = 0.35


def test_units_count() -> None:
    """A model in units of its own, z = 3 u + 1, of the same law of latents, gives the same bound."""
    autoencoder, x = Linear(), torch.randn(4, 3, generator=torch.Generator().manual_seed(1), dtype=F64)
    net = Gaussian(torch.full((2,), -1 / 3, dtype=F64), torch.full((2,), 1 / 9, dtype=F64)).score(VP())
    model = ScoreModel(lambda u, c: net.noise(u, VP().t_of_log_snr(-2 * c.double())), VP(), "noise")
    model.scaling = Scaling(1.0, 3.0)
    latent = Latent(model, autoencoder)
    # at t_min the model's law is α u + σ e, of which log_prob tells: σ² = 1e-4 beside 1/9 is 5e-4 |z|², |z|² < 40;
    # the determinant the wrong way round would be 4 log 3
    torch.testing.assert_close(evidence_bound(latent, x, **EXACT), autoencoder.evidence(x), rtol=0, atol=2e-2)


def test_log_det_is_that_of_the_jacobian() -> None:
    net = small()
    net.describe_latents([0.5, -1.0], [2.0, 0.25])
    units = Scaling(torch.tensor([1.0, 2.0])[:, None, None], torch.tensor([3.0, 0.5])[:, None, None])
    coding = Autoencoding(net, units=units)
    jacobian = torch.func.jacrev(coding.to_units)(torch.zeros(1, 2, 3, 3, dtype=F64)).reshape(18, 18)
    assert coding.log_det((2, 3, 3)) == pytest.approx(float(jacobian.det().abs().log()), rel=1e-9)
    assert Autoencoding(net, -2.0, 0.0).log_det((2, 3, 3)) == pytest.approx(18 * math.log(2))


def test_the_bound_of_an_autoencoder_of_ours() -> None:
    """By hand of the same draw: log p(x | z) + log p(z) - log q(z | x)."""
    net, x = small(), pictures()[:2]["x"]
    net.describe_latents([3.0, 3.0], [2.0, 0.25])
    latent = Latent(Gaussian(torch.zeros(2, 4, 4), 1.0).score(VP()), net)
    law = net.posterior(x)
    z = law.draw(PerSampleNoise(4).stream("encode").normal(law.mean))
    with torch.no_grad():
        u = (z - 3) / torch.tensor([2.0, 0.25])[:, None, None]
        prior = log_prob(latent, u, noise=4) - 16 * (math.log(2.0) + math.log(0.25))
        expected = net.log_likelihood(x, net.decode(z)) + prior - law.log_prob(z)
    torch.testing.assert_close(evidence_bound(latent, x, noise=4), expected, rtol=1e-4, atol=1e-2)  # nats, float32


def test_the_bound_is_worked_out_in_float32_at_least() -> None:
    net, x = small(), pictures()[:2]["x"].bfloat16()
    net.describe_latents([3.0, 3.0], [2.0, 0.25])
    latent = Latent(Gaussian(torch.zeros(2, 4, 4), 1.0).score(VP()), net)
    bound = evidence_bound(latent, x, noise=4)
    assert bound.dtype == torch.float32
    torch.testing.assert_close(bound, evidence_bound(latent, x.float(), noise=4))
    assert evidence_bound(latent, x[:0]).shape == (0,)


def test_a_bound_or_guided_latent_has_a_bound() -> None:
    net, x = small(), pictures()[:2]["x"]
    net.describe_latents([3.0, 3.0], [2.0, 0.25])
    torch.manual_seed(2)
    unet = UNet(2, width=8, multipliers=(1,), blocks=1, attention_levels=(), num_classes=2).eval()
    latent = Latent(ScoreModel(unet, VP(), "edm", sigma_data=1.0), net)
    solver = ProbabilityFlow(rtol=1e-2, atol=1e-2)
    bound = evidence_bound(latent.bind(label=1), x, solver=solver)
    guided = evidence_bound(classifier_free(latent, {"label": torch.tensor([1, 1])}, scale=1.0), x, solver=solver)
    torch.testing.assert_close(bound, guided, rtol=1e-3, atol=1e-1)  # nats of 64 numbers, the same path in float32


def test_what_has_no_bound_is_refused() -> None:
    x, codes = pictures()[:2]["x"], small(bottleneck=VQBottleneck(5))
    codes.describe_latents([0.0, 0.0], [1.0, 1.0])
    with pytest.raises(ValueError, match="codes have none"):
        evidence_bound(Latent(network(), codes), x)
    with pytest.raises(TypeError, match="latent must be a Latent"):
        evidence_bound(network(), x)

    class Plain(nn.Module):
        config = {"scaling_factor": 1.0}  # noqa: RUF012

        def encode(self, x: Tensor) -> Tensor:
            return x

        decode = encode

    with pytest.raises(TypeError, match="log_likelihood"):
        evidence_bound(Latent(network(), Plain()), torch.zeros(1, 2, 4, 4))
