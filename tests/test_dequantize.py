"""Uniform dequantisation in training: what is added, that it is one bin wide, and who may ask for it."""

from __future__ import annotations

import pytest
import torch

from scoresde.data import Dataset, from_tensors
from scoresde.losses import dsm_loss
from scoresde.models import ScoreModel
from scoresde.nn import MLP
from scoresde.sde import VP
from scoresde.times import UniformTime
from scoresde.train import train
from scoresde.train.draws import DataOrder, Uniforms, step_noise


def levels() -> Dataset:
    return from_tensors(torch.randint(0, 5, (32, 3), generator=torch.Generator().manual_seed(0)), levels=5)


def model() -> ScoreModel:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return ScoreModel(MLP(3, width=16, depth=1), VP(), predicts="edm")


def test_a_step_sees_the_data_with_one_bin_of_uniform_noise() -> None:
    """Rebuild step 1 from the public pieces: u = ndtr(z) - 1/2 is uniform on a bin, z from a stream of its own."""
    data = levels()
    (step,) = list(train(model(), data, steps=1, batch_size=16, seed=3, dequantize=True, progress=False))
    fresh = model()
    x = data.batch(DataOrder(len(data), 16, 3).indices(0))["x"]
    u = torch.special.ndtr(step_noise(3, 0, 0, x, name="dequantize")) - 0.5
    assert data.scaling.bin_width == 0.5  # 5 levels over [-1, 1]
    t, _ = UniformTime().sample(fresh.sde, Uniforms.draw(3, 0, 16).time)
    expected = dsm_loss(fresh, x + 0.5 * u, t, step_noise(3, 0, 0, x)).mean() / 3  # per number of the event
    assert step.loss == pytest.approx(expected.item(), rel=1e-5)  # the same float32 operations in another order
    plain = dsm_loss(fresh, x, t, step_noise(3, 0, 0, x)).mean() / 3
    assert abs(step.loss - plain.item()) > 1e-3 * plain.item()


def test_the_noise_is_uniform_and_independent_of_epsilon() -> None:
    like = torch.empty(2000, 20, dtype=torch.float64)
    z, eps = step_noise(0, 7, 0, like, name="dequantize"), step_noise(0, 7, 0, like)
    u = torch.special.ndtr(z)
    n = u.numel()
    # means of n terms stay within 4 standard errors: 1/sqrt(12 n) for u, about 1/sqrt(180 n) for u², 1/sqrt(n) for a
    # correlation
    assert abs(u.mean().item() - 1 / 2) < 4 / (12 * n) ** 0.5
    assert abs(((u - 0.5) ** 2).mean().item() - 1 / 12) < 4 / (180 * n) ** 0.5
    assert abs((z * eps).mean().item()) < 4 / n**0.5


@pytest.mark.parametrize("data", [from_tensors(torch.randn(8, 3)), [{"x": torch.zeros(3)}] * 8])
def test_continuous_data_are_refused_before_training(data: object) -> None:
    with pytest.raises(ValueError, match="dequantize=True needs data that are levels"):
        train(model(), data, steps=1, batch_size=4, dequantize=True, progress=False)  # type: ignore[arg-type]
