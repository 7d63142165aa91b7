r"""Networks of flow matching, with the data at time 1 or at time 0::

    model = from_velocity(v)                                     # x_s = (1 - s) ε + s x_0, v = x_0 - ε   (data_at=1)
    model = from_velocity(v, data_at=0, time_scale=1000.0)       # x_t = (1 - t) x_0 + t ε, v = ε - x_0, told 1000 t
    sample(model, shape, solver=DDIM(), grid=torch.linspace(1, 0, 51))        # 50 steps of Euler's method

The straight path is :class:`~scoresde.RectifiedFlow`: its t is 0 at the data, whatever the network's time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

from torch import Tensor

from scoresde import checks
from scoresde.interop.foreign import ForeignModel, ForeignNetwork, network_times
from scoresde.interop.timesteps import StraightTimesteps
from scoresde.models import ScoreModel
from scoresde.sde import RectifiedFlow


class VelocityNetwork(ForeignNetwork):
    """v(x, time) as net(x, c): with σ/α = t/(1 - t) the time is t = 1/(1 + e^-c), or 1 - t. Answers ε - x_0.

    Args:
        net: the velocity.
        data_at: see :func:`from_velocity`.
        time_scale: see :func:`from_velocity`.
        time_first: see :func:`from_velocity`.
        null_conditions: see :func:`from_velocity`.
        keywords: see :func:`from_velocity`.
    """

    def __init__(
        self,
        net: Callable[..., Tensor],
        *,
        data_at: Literal[0, 1] = 1,
        time_scale: float = 1.0,
        time_first: bool = False,
        null_conditions: Mapping[str, Any] | None = None,
        keywords: Mapping[str, Any] | None = None,
    ) -> None:
        what = "(x, time, **conditions)"
        super().__init__(net, name="v", what=what, null_conditions=null_conditions, keywords=keywords)
        self.data_at = checks.one_of(data_at, (0, 1), name="data_at")
        self.timesteps = StraightTimesteps(checks.positive(time_scale, name="time_scale"), bool(data_at))
        self.time_first = checks.flag(time_first, name="time_first")

    def forward(self, x: Tensor, c: Tensor, **conditions: Any) -> Tensor:
        """The velocity ε - x_0 at c, (B, *event)."""
        time = network_times(self.timesteps(c.double()), x)
        answer = self.ask(*((time, x) if self.time_first else (x, time)), **conditions)
        return -answer if self.data_at else answer


def from_velocity(
    v: Callable[..., Tensor],
    data_at: Literal[0, 1] = 1,
    *,
    time_scale: float = 1.0,
    time_first: bool = False,
    sigma_data: float | None = None,
    null_conditions: Mapping[str, Any] | None = None,
    keywords: Mapping[str, Any] | None = None,
) -> ScoreModel:
    r"""A network trained by flow matching on straight paths, as a ScoreModel under ``RectifiedFlow(T=1.0)``.

    ======== ===================================== =============================================================
    data_at  path and velocity                     as in
    ======== ===================================== =============================================================
    1        x_s = (1 - s) ε + s x_0, v = x_0 - ε  Lipman et al. 2023 (arXiv:2210.02747, eq. 20-23, σ_min = 0)
    0        x_t = (1 - t) x_0 + t ε, v = ε - x_0  Esser et al. 2024 (arXiv:2403.03206, eq. 13), Stable Diffusion 3
    ======== ===================================== =============================================================

    In both v is dx along the network's own time. The solver ``DDIM()`` is Euler's method for it, at any times: a grid
    of RectifiedFlow runs from t = 1 (noise) down to 0 (data), s = 1 - t. A path that keeps σ_min > 0 at the data
    differs by as much.

    Args:
        v: called as ``v(x, time, **conditions)`` with x (B, *event) and time (B,); answers a velocity like x.
        data_at: at which of its times the data are.
        time_scale: what time is multiplied with for the network: 1000 for Stable Diffusion 3.
        time_first: whether it is called as ``v(time, x, **conditions)``.
        sigma_data: standard deviation of the data, for samplers, if known.
        null_conditions: what stands for "not given", by name, where the network does not tell by itself.
        keywords: options that go along with every call.

    Raises:
        TypeError, ValueError: v cannot be called, data_at is neither 0 nor 1, or a scale that is not positive.
    """
    adapter = VelocityNetwork(
        v,
        data_at=data_at,
        time_scale=time_scale,
        time_first=time_first,
        null_conditions=null_conditions,
        keywords=keywords,
    )
    return ForeignModel(adapter, RectifiedFlow(T=1.0), "velocity", sigma_data=sigma_data)
