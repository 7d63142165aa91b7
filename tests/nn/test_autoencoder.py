"""The autoencoder: bottlenecks against closed forms and brute force, laws of errors, shapes and refusals."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Independent, Laplace, Normal, kl_divergence

from scoresde.nn import (
    Autoencoder,
    KLBottleneck,
    LaplaceErrors,
    LatentPosterior,
    NormalErrors,
    PatchDiscriminator,
    VQBottleneck,
)
from scoresde.nn.attention import SelfAttention

BOTTLENECKS = [KLBottleneck(), VQBottleneck(16)]


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def small(event_dims: int = 2, **options: Any) -> Autoencoder:
    torch.manual_seed(1)
    given: dict[str, Any] = {"width": 8, "multipliers": (1, 2), "latent_channels": 3, **options}
    net = Autoencoder(2, event_dims, **given)
    with torch.no_grad():  # convolutions that start at zero would hide what is before them
        for p in net.parameters():
            p.add_(0.05 * torch.randn_like(p))
    return net.eval()


# -- shapes and configs ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bottleneck", BOTTLENECKS, ids=["kl", "vq"])
@pytest.mark.parametrize("event_dims", [1, 2, 3])
def test_events_come_back_in_their_shape(event_dims: int, bottleneck: Any) -> None:
    net = small(event_dims, bottleneck=bottleneck, attention_levels=(-1,))
    x = normal(2, 2, *(4, 6, 8)[:event_dims])
    z = net.encode(x)
    assert tuple(z.shape) == net.latent_shape(tuple(x.shape)) == (2, 3, *(2, 3, 4)[:event_dims])
    assert net.decode(z).shape == x.shape and net.factor == 2
    decoded, penalty, _ = net(x, normal(*z.shape))
    assert decoded.shape == x.shape and penalty.shape == (2,)
    (penalty - net.log_likelihood(x, decoded)).sum().backward()
    assert all(p.grad is not None and bool(p.grad.abs().sum() > 0) for p in net.parameters())


@pytest.mark.parametrize("bottleneck", BOTTLENECKS, ids=["kl", "vq"])
@pytest.mark.parametrize("errors", [NormalErrors(), LaplaceErrors(0.2)])
def test_it_is_rebuilt_from_its_config(bottleneck: Any, errors: Any) -> None:
    net = small(bottleneck=bottleneck, errors=errors, blocks=(1, 2), attention_levels=(1,))
    net.describe_latents([0.1, -2.0, 1 / 3], torch.tensor([0.5, 1.0, 3.0]))
    twin = Autoencoder(**json.loads(json.dumps(net.config))).eval()
    assert twin.config == net.config and twin.config["latents_mean"] == [0.1, -2.0, 1 / 3]  # to the last bit
    twin.load_state_dict(net.state_dict())
    x = normal(2, 2, 8, 8)
    assert torch.equal(twin.encode(x), net.encode(x)) and torch.equal(twin.log_scale, net.log_scale)
    net.config["latents_mean"][0] = 5.0  # a copy
    assert net.config["latents_mean"][0] == 0.1


def test_the_decoder_mirrors_depths_and_attention() -> None:
    def attentions(part: nn.Module) -> int:
        return sum(isinstance(module, SelfAttention) for module in part.modules())

    net = small(multipliers=(1, 1, 2), blocks=(1, 2, 3), attention_levels=(1, 2))
    assert [len(level) for level in net.decoder.levels] == [3, 2, 1]  # type: ignore[arg-type]
    assert [attentions(level) for level in net.decoder.levels] == [3, 2, 0] and attentions(net.decoder.middle) == 1
    assert attentions(small(blocks=2).decoder) == 0


def test_its_halves_are_told_nothing() -> None:
    """No weight of a conditioning vector, and none that no gradient reaches (above)."""
    names = [name for name, _ in small().named_parameters()]
    assert names and not any("condition" in name for name in names)


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"bottleneck": "kl"}, TypeError, "KLBottleneck or a VQBottleneck"),
        ({"bottleneck": {"codes": 3}}, ValueError, "fields log_std_limit or codes, commitment"),
        ({"errors": KLBottleneck()}, TypeError, "NormalErrors or a LaplaceErrors"),
        ({"latent_channels": 0}, ValueError, "latent_channels"),
        ({"latents_mean": [0.0, 0.0, 0.0]}, TypeError, "latents_std"),
        ({"latents_mean": [0.0], "latents_std": [1.0]}, ValueError, "3 finite numbers"),
        ({"latents_mean": [0.0] * 3, "latents_std": [1.0, 0.0, 1.0]}, ValueError, "must be positive"),
        ({"multipliers": ()}, ValueError, "multipliers"),
    ],
)
def test_bad_arguments(options: dict[str, Any], error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        small(**options)


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: VQBottleneck(1), "codes"),
        (lambda: VQBottleneck(8, decay=1.0), "decay"),
        (lambda: VQBottleneck(8, revive=0.0), "revive"),
        (lambda: VQBottleneck(8, commitment=-1.0), "commitment"),
        (lambda: KLBottleneck(50.0), "log_std_limit"),
        (lambda: NormalErrors(0.0), "std"),
        (lambda: LaplaceErrors(-1.0), "scale"),
    ],
)
def test_bad_descriptions(make: Any, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        make()


def test_wrong_shapes_are_refused() -> None:
    net = small()
    for x, match in (
        (normal(2, 2, 7, 8), "multiple of 2"),
        (normal(2, 3, 8, 8), "channels"),
        (normal(2, 2, 8), "B, 2"),
    ):
        with pytest.raises(ValueError, match=match):
            net.encode(x)
    for z in (normal(2, 2, 4, 4), normal(2, 3, 4), normal(3, 4, 4)):
        with pytest.raises(ValueError, match=r"z must be latents \(B, 3, H, W\)"):
            net.decode(z)
    with pytest.raises(TypeError):
        net.decode(torch.zeros(2, 3, 4, 4, dtype=torch.long))
    with pytest.raises(ValueError, match="x and decoded"):
        net.log_likelihood(normal(2, 2, 8, 8), normal(2, 2, 8, 4))
    with pytest.raises(ValueError, match="codes have none"):
        small(bottleneck=VQBottleneck(4)).posterior(normal(1, 2, 8, 8))
    with pytest.raises(ValueError, match=r"eps must be \(2, 3, 4, 4\)"):  # not one draw for all positions
        net(normal(2, 2, 8, 8), normal(2, 3, 1, 1))


@pytest.mark.parametrize("bottleneck", BOTTLENECKS, ids=["kl", "vq"])
@pytest.mark.parametrize("errors", [NormalErrors(), LaplaceErrors()])
def test_an_empty_batch_has_empty_answers(bottleneck: Any, errors: Any) -> None:
    net, x = small(bottleneck=bottleneck, errors=errors), normal(0, 2, 8, 8)
    z = net.encode(x)
    assert z.shape == (0, 3, 4, 4) and net.decode(z).shape == x.shape
    decoded, penalty, _ = net(x, z)
    assert net.log_likelihood(x, decoded).shape == penalty.shape == (0,)


@pytest.mark.parametrize("bottleneck", BOTTLENECKS, ids=["kl", "vq"])
def test_what_is_no_number_stays_none_and_gradients_reach_x(bottleneck: Any) -> None:
    net, x = small(bottleneck=bottleneck), normal(1, 2, 8, 8)
    assert bool(net.encode(torch.full_like(x, torch.nan)).isnan().all())  # never some code
    leaf = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(net.encode(leaf).square().sum(), leaf)
    assert float(gradient.abs().max()) > 0


@pytest.mark.parametrize("bottleneck", BOTTLENECKS, ids=["kl", "vq"])
def test_it_computes_in_the_dtype_of_its_weights(bottleneck: Any) -> None:
    net, x = small(bottleneck=bottleneck), normal(2, 2, 8, 8)
    narrow, wide = copy.deepcopy(net).bfloat16(), copy.deepcopy(net).double()
    z = net.encode(x)
    for other in (narrow, wide):
        assert other.encode(x).dtype == other.decode(z).dtype == torch.float32
    torch.testing.assert_close(wide.decode(z), net.decode(z), rtol=1e-4, atol=1e-4)  # float32 through ten layers
    # bfloat16 keeps 8 bits, 2^-9 of each number in each of some twenty layers
    with torch.no_grad():
        exact = net.decode(z)
        assert float((narrow.decode(z) - exact).square().mean().sqrt()) < 0.05 * float(exact.std())
    if isinstance(bottleneck, KLBottleneck):
        assert narrow.posterior(x).std.dtype == torch.float32


# -- the Gaussian bottleneck -------------------------------------------------------------------------------------------


def test_kl_and_density_are_those_of_torch() -> None:
    mean, std = normal(5, 3, 4, 2, dtype=torch.float64), normal(5, 3, 4, 2, seed=1, dtype=torch.float64).exp()
    law, z = LatentPosterior(mean, std), normal(5, 3, 4, 2, seed=2, dtype=torch.float64)
    reference = Independent(Normal(mean, std), 3)
    prior = Independent(Normal(torch.zeros_like(mean), torch.ones_like(std)), 3)
    torch.testing.assert_close(law.kl(), kl_divergence(reference, prior), rtol=1e-12, atol=0)
    torch.testing.assert_close(law.log_prob(z), reference.log_prob(z), rtol=1e-12, atol=0)
    assert torch.equal(law.draw(z), mean + std * z)
    exact = LatentPosterior(torch.zeros(2, 3), torch.ones(2, 3)).kl()
    assert torch.equal(exact, torch.zeros(2))  # q is the prior


def test_what_is_trained_is_a_draw_of_the_posterior() -> None:
    net, x, eps = small(), normal(2, 2, 8, 8), normal(2, 3, 4, 4, seed=5)
    law = net.posterior(x)
    decoded, penalty, _ = net(x, eps)
    torch.testing.assert_close(decoded, net.decode(law.mean + law.std * eps))
    torch.testing.assert_close(penalty, law.kl())
    assert torch.equal(net.encode(x), law.mean)


def test_deviations_stay_within_the_limit() -> None:
    module = KLBottleneck(2.0).module(1)
    h = torch.tensor([[[0.0], [100.0]], [[0.0], [-100.0]]])
    torch.testing.assert_close(module.posterior(h).std.flatten(), torch.tensor([2.0, -2.0]).exp())


# -- codes -------------------------------------------------------------------------------------------------------------


def coded(codes: int = 7, channels: int = 3, **options: Any) -> Any:
    torch.manual_seed(3)
    return VQBottleneck(codes, **options).module(channels)


def test_codes_are_the_nearest_ones() -> None:
    module, h = coded(), normal(4, 3, 5, 6)
    rows = h.movedim(1, -1).reshape(-1, 3)
    distances = (rows[:, None] - module.codes[None]).square().sum(2)  # brute force
    assert torch.equal(module.nearest(rows), distances.argmin(1))
    expected = module.codes[distances.argmin(1)].reshape(4, 5, 6, 3).movedim(-1, 1)
    assert torch.equal(module.encoded(h), expected)
    assert torch.equal(module.settled(h), expected) and torch.equal(module.drawn(h, h)[0], expected)  # to the last bit
    assert torch.equal(module.encoded(expected), expected)


def test_the_nearest_ones_of_many_are_found_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    module, rows = coded(), normal(50, 3)
    whole = module.nearest(rows)
    other, uniforms = copy.deepcopy(module), torch.rand(7, generator=torch.Generator().manual_seed(0))
    module.learn(rows.T[None], uniforms)
    monkeypatch.setattr("scoresde.nn.bottlenecks._AT_ONCE", 30)
    assert torch.equal(other.nearest(rows), whole)
    other.learn(rows.T[None], uniforms)
    assert torch.equal(other.counts, module.counts)
    torch.testing.assert_close(other.codes, module.codes)  # sums in another order


def test_what_codes_have_in_common_costs_nothing() -> None:
    """Far from 0 the squares, 1e8, would leave nothing of distances of 1 in float32."""
    module, rows = coded(), normal(50, 3)
    whole = module.nearest(rows)
    module.codes.add_(1e4)
    # rounding to 1e-3 moves no row across a border between these codes
    assert torch.equal(module.nearest(rows + 1e4), whole)


def test_the_gradient_passes_straight_through() -> None:
    module, weights = coded(commitment=0.3), normal(2, 3, 4, seed=9)
    h = normal(2, 3, 4, dtype=torch.float64).requires_grad_()
    module.double()
    z, penalty = module.drawn(h, h)
    (gradient,) = torch.autograd.grad((z * weights).sum(), h, retain_graph=True)
    assert torch.equal(gradient, weights.double())
    (gradient,) = torch.autograd.grad(penalty.sum(), h)
    torch.testing.assert_close(gradient, 2 * 0.3 * (h - z).detach())
    torch.testing.assert_close(penalty, 0.3 * (h - z).square().flatten(1).sum(1))
    leaf = h.detach().requires_grad_()
    (gradient,) = torch.autograd.grad((module.settled(leaf) * weights).sum(), leaf)
    assert torch.equal(gradient, weights.double())


def test_codes_are_moving_averages_of_what_falls_to_them() -> None:
    module, uniforms = coded(2, 1, decay=0.75, revive=0.01), torch.tensor([0.0, 0.0])
    module.codes.copy_(torch.tensor([[-1.0], [1.0]]))
    module.counts.copy_(torch.tensor([4.0, 3.0]))
    module.sums.copy_(torch.tensor([[-4.0], [3.0]]))
    module.learn(torch.tensor([[[-3.0, -2.0, 4.0]]]), uniforms)
    # n <- 0.75 n + 0.25 count, sum <- 0.75 sum + 0.25 of the two and the one
    torch.testing.assert_close(module.counts, torch.tensor([3.5, 2.5]))
    torch.testing.assert_close(module.sums, torch.tensor([[-4.25], [3.25]]))
    torch.testing.assert_close(module.codes, torch.tensor([[-4.25 / 3.5], [1.3]]))


def test_dead_codes_take_the_place_of_a_position() -> None:
    module = coded(3, 2)
    h = normal(2, 2, 8)
    module.learn(h, torch.tensor([0.0, 0.51, 0.999999]))  # all are dead at first
    rows = h.movedim(1, -1).reshape(-1, 2)
    torch.testing.assert_close(module.codes, rows[[0, 8, 15]])
    far = torch.full_like(rows[0], 100.0)
    module.codes[1] = far
    module.counts[1], module.sums[1] = 1e-3, 1e-3 * far
    module.learn(h, torch.tensor([0.0, 0.99, 0.0]))
    torch.testing.assert_close(module.codes[1], rows[15])
    assert not torch.equal(module.codes[0], rows[0])  # alive: averaged, not put there again


def test_codes_find_what_is_there() -> None:
    """Four points, four codes: after a few batches each point has its own, and nothing is lost."""
    points = torch.tensor([[0.0, 0.0], [5.0, 0.0], [0.0, 5.0], [5.0, 5.0]])
    module = coded(4, 2, decay=0.5, revive=0.3)
    generator = torch.Generator().manual_seed(0)
    for _ in range(60):
        h = points[torch.randint(4, (64,), generator=generator)].T[None]
        module.learn(h, torch.rand(4, generator=generator))
    everything = points.T[None]
    torch.testing.assert_close(module.encoded(everything), everything, rtol=0, atol=1e-4)


def test_latents_of_anybody_are_brought_to_codes() -> None:
    net, z = small(bottleneck=VQBottleneck(5)), normal(2, 3, 4, 4)
    code = net.bottleneck.encoded(z)
    assert not torch.equal(code, z)
    torch.testing.assert_close(net.decode(z), net.decode(code), rtol=0, atol=0)


# -- errors ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("errors", "law"), [(NormalErrors(0.3), Normal), (LaplaceErrors(0.3), Laplace)])
def test_errors_have_the_density_of_torch(errors: Any, law: Any) -> None:
    net = small(errors=errors).double()
    x, decoded = normal(3, 2, 4, 4, dtype=torch.float64), normal(3, 2, 4, 4, seed=1, dtype=torch.float64)
    expected = law(decoded, 0.3).log_prob(x).flatten(1).sum(1)
    torch.testing.assert_close(net.log_likelihood(x, decoded), expected, rtol=1e-12, atol=0)
    assert net.log_scale_tenth is None


@pytest.mark.parametrize("errors", [NormalErrors(0.1), LaplaceErrors(0.1)])
def test_half_precision_does_not_move_the_density(errors: Any) -> None:
    """A scale that is given is kept in float32, and errors are those of the numbers, not rounded to 8 bits."""
    net = small(errors=errors)
    x, decoded = normal(3, 2, 4, 4).bfloat16(), normal(3, 2, 4, 4, seed=1).bfloat16()
    expected = net.log_likelihood(x.float(), decoded.float())
    torch.testing.assert_close(copy.deepcopy(net).bfloat16().log_likelihood(x, decoded), expected, rtol=1e-6, atol=0)


def test_a_learned_scale_is_best_at_the_size_of_the_errors() -> None:
    """The derivative by the log-scale vanishes where s is the root mean square, or b the mean absolute error."""
    x, decoded = normal(3, 2, 4, 4), normal(3, 2, 4, 4, seed=1)
    error = x - decoded
    for errors, best in ((NormalErrors(), error.square().mean().sqrt()), (LaplaceErrors(), error.abs().mean())):
        net = small(errors=errors)
        assert net.log_scale_tenth is not None
        with torch.no_grad():
            net.log_scale_tenth.copy_(best.log() / 10)
        net.log_likelihood(x, decoded).sum().backward()
        # 96 terms of size 1 that cancel, in float32, times the ten of the parameter
        assert abs(float(net.log_scale_tenth.grad)) < 1e-2  # type: ignore[arg-type]
        with torch.no_grad():
            value = float(net.log_likelihood(x, decoded).sum())
            net.log_scale_tenth.add_(0.01)
            assert float(net.log_likelihood(x, decoded).sum()) < value


# -- the judge of patches ----------------------------------------------------------------------------------------------


def test_each_logit_is_of_a_patch() -> None:
    torch.manual_seed(0)
    judge = PatchDiscriminator(1, 2, width=4, layers=1)  # no norm, which would see all of it
    x = normal(1, 1, 16, 16)
    assert judge(x).shape == (1, 1, 8, 8) and PatchDiscriminator(1, width=4)(x).shape == (1, 1, 2, 2)
    other = x.clone()
    other[..., 0, 0] += 1
    changed = (judge(x) != judge(other))[0, 0]
    assert bool(changed[0, 0]) and not bool(changed[3:].any()) and not bool(changed[:, 3:].any())
    assert PatchDiscriminator(**judge.config).config == judge.config
    with pytest.raises(ValueError, match="halved 3 times"):
        PatchDiscriminator(1)(normal(1, 1, 4, 16))
    assert isinstance(PatchDiscriminator(1, 3, width=4, layers=2).head, nn.Conv3d)
