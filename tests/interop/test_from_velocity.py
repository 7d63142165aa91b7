"""Networks of flow matching: Euler's method for their velocity, with the data at either end."""

from __future__ import annotations

import copy
import itertools
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from scoresde import DDIM, EDM, Gaussian, ScoreModel, classifier_free, sample
from scoresde.interop import from_velocity
from scoresde.sde import RectifiedFlow

F64 = torch.float64
SHAPE = (3, 5)


class Velocity(nn.Module):
    """v(x, t, y): writes down the times that it is told."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(6, 5)
        self.told: list[Tensor] = []

    def forward(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        self.told.append(t)
        h = self.layer(torch.cat([x, t.to(x.dtype)[:, None]], 1))
        return h.tanh() if y is None else (h + y[:, None]).tanh()


class TimeFirst(Velocity):
    def forward(self, t: Tensor, x: Tensor, y: Tensor | None = None) -> Tensor:  # type: ignore[override]
        return super().forward(x, t, y)


def normal(seed: int = 0, dtype: torch.dtype = F64) -> Tensor:
    return torch.randn(SHAPE, dtype=F64, generator=torch.Generator().manual_seed(seed)).to(dtype)


@pytest.mark.parametrize("scale", [1.0, 1000.0])
@pytest.mark.parametrize("kind", [Velocity, TimeFirst])
@pytest.mark.parametrize("data_at", [0, 1])
@pytest.mark.parametrize("steps", [1, 20])
def test_ddim_is_eulers_method(data_at: Any, kind: Any, scale: float, steps: int) -> None:
    """Along the network's own time, from noise to data, every step of the same length and on an uneven grid."""
    v, z = kind().double(), normal()
    model = from_velocity(v, data_at=data_at, time_scale=scale, time_first=kind is TimeFirst)
    for power in (1, 2):
        grid = torch.linspace(1, 0, steps + 1, dtype=F64) ** power
        x, times = z, 1 - grid if data_at else grid
        with torch.no_grad():
            for s, following in itertools.pairwise(times):
                told = (scale * s).expand(3)
                x = x + (following - s) * (v(told, x) if kind is TimeFirst else v(x, told))
        v.told.clear()
        got = sample(model, SHAPE, solver=DDIM(), grid=grid, x=z, dtype=F64, denoise=False)
        # v is worked out of x̂_0 and ε̂, in float64: some eps a step, and a change of t by eps is told as 1000 of it
        torch.testing.assert_close(got.x, x, rtol=1e-12, atol=1e-11)
        torch.testing.assert_close(torch.stack(v.told)[:, 0], scale * times[:-1], rtol=1e-14, atol=1e-12)
        assert v.told[0][0] == scale * times[0]  # the end itself is exact, where α = 0


def test_the_default_solver_ends_at_the_data() -> None:
    """A velocity known in closed form: of N(0, s² I), whose flow carries z to s z."""
    s = 0.5

    def v(x: Tensor, t: Tensor) -> Tensor:  # d/dt log sqrt((t s)² + (1 - t)²) of x, at the data for t = 1
        t = t[:, None]
        return x * (t * s**2 - (1 - t)) / ((t * s) ** 2 + (1 - t) ** 2)

    z = normal()
    got = sample(from_velocity(v, sigma_data=s), SHAPE, steps=100, x=z, dtype=F64)
    torch.testing.assert_close(
        got.x, s * z, rtol=1e-3, atol=1e-3
    )  # the error of 100 steps, of which SNR bounds the rest
    exact = Gaussian(torch.zeros(5, dtype=F64), s**2 * torch.eye(5, dtype=F64)).score(RectifiedFlow())
    torch.testing.assert_close(from_velocity(v)(z, 0.3), exact(z, 0.3), rtol=1e-12, atol=1e-12)


def test_both_ends_are_one_model() -> None:
    """A network with the data at 1, and the same written with the data at 0."""
    v, x = Velocity().double(), normal()
    forward, backward = from_velocity(v, 1), from_velocity(lambda x, t, y=None: -v(x, 1 - t, y), 0)
    for t in (1e-3, 0.3, 1.0):
        torch.testing.assert_close(forward.denoise(x, t), backward.denoise(x, t), rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(forward.denoise(x, 0.3), x + 0.3 * v(x, torch.full((3,), 0.7, dtype=F64)))


def test_times_near_the_data_keep_their_digits() -> None:
    v = Velocity().double()
    model = from_velocity(v, 0)
    model.noise(normal(), torch.tensor([1e-9, 1e-6, 1.0], dtype=F64))
    torch.testing.assert_close(v.told[-1], torch.tensor([1e-9, 1e-6, 1.0], dtype=F64), rtol=1e-13, atol=0)


def test_a_network_in_half_precision_is_told_times_in_float32() -> None:
    v = Velocity().bfloat16()
    model = from_velocity(v, 0)
    assert sample(model, SHAPE, steps=4).x.dtype == torch.float32
    assert {t.dtype for t in v.told} == {torch.float32}


def test_it_is_a_model_like_any_other() -> None:
    v = Velocity().double()
    model, x = from_velocity(v, null_conditions={"y": 0.0}), normal()
    assert isinstance(model, ScoreModel) and model.sde == RectifiedFlow(T=1.0)
    y, half = torch.tensor([1.0, -1.0, 0.5], dtype=F64), torch.full((3,), 0.5, dtype=F64)
    guided = classifier_free(model, {"y": y}, scale=2.0)
    expected = x + 0.5 * torch.lerp(v(x, half, 0 * y), v(x, half, y), 2.0)
    torch.testing.assert_close(guided.denoise(x, 0.5), expected, rtol=1e-12, atol=1e-12)
    edm = model.under(EDM(T=80.0, t_min=0.01))  # t = 0.5 is σ/α = 1, and x/α = 2 x
    torch.testing.assert_close(edm.denoise(2 * x, 1.0), model.denoise(x, 0.5), rtol=1e-12, atol=1e-12)
    copied = copy.deepcopy(model)
    torch.testing.assert_close(copied.denoise(x, 0.5), model.denoise(x, 0.5), rtol=0, atol=0)
    assert not {id(p) for p in copied.parameters()} & {id(p) for p in v.parameters()}


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"data_at": 2}, "data_at must be one of 0, 1"),
        ({"data_at": True}, "data_at must be one of"),
        ({"time_scale": 0.0}, "time_scale must be positive"),
        ({"time_first": 1}, "time_first must be True or False"),
    ],
)
def test_what_is_wrong_is_refused(options: dict[str, Any], match: str) -> None:
    with pytest.raises((TypeError, ValueError), match=match):
        from_velocity(Velocity(), **options)
    with pytest.raises(TypeError, match="v must be a function"):
        from_velocity(Velocity)
