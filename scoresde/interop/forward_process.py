"""What every scheduler of diffusers says of the forward process, by the schedule of a network::

scheduler.add_noise(x0, noise, torch.tensor([10, 500]))        # α x_0 + σ ε
scheduler.scale_model_input(x, 500)                            # what the network is shown of x
scheduler.alphas_cumprod, scheduler.betas, scheduler.sde
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from scoresde import checks
from scoresde.interop.diffusers_schedules import Schedule
from scoresde.interop.times_of import time_of_timestep
from scoresde.sde import SDE, spread


class ForwardProcess:
    """The part of a scheduler that knows how noise is added; the class that has it sets ``_schedule`` and a config."""

    _schedule: Schedule
    _theirs: Any
    """The scheduler of theirs that says the schedule, if one does."""
    config: Any
    timesteps: Tensor

    @property
    def sde(self) -> SDE:
        """The schedule that the network was trained with."""
        return self._schedule.sde

    @property
    def alphas_cumprod(self) -> Tensor:
        """(N,) ᾱ of the chain that the network was trained on, float32."""
        return self._chain("alphas_cumprod", "alpha_bar")

    @property
    def betas(self) -> Tensor:
        """(N,) β of the chain that the network was trained on, float32."""
        return self._chain("betas", "beta")

    def _chain(self, theirs: str, name: str) -> Tensor:
        chain = getattr(self.sde, "chain", None)
        if chain is None:
            raise AttributeError(f"{type(self.sde).__name__} is no chain, and has no betas.")
        values: Tensor = getattr(chain, name) if self._theirs is None else getattr(self._theirs, theirs)
        return values.float()

    def scale_model_input(self, sample: Tensor, timestep: float | Tensor | None = None) -> Tensor:
        """What the network is shown of a state: the state itself; x / sqrt(α² σ_data² + σ²) for EDM's networks.

        Args:
            sample: (B, *event), or several copies of it.
            timestep: the one at hand.
        """
        if self._schedule.sigma_data is None:
            return sample
        if timestep is None:
            raise ValueError("timestep must be given: how the network is shown x depends on it; got None.")
        t = time_of_timestep(self._schedule, timestep, name="timestep")
        scale = (self.sde.alpha(t) * self._schedule.sigma_data) ** 2 + self.sde.sigma(t) ** 2
        return sample * scale.rsqrt()

    def add_noise(self, original_samples: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """α x_0 + σ ε at the timesteps, (B,) or (), any that the network was trained for."""
        return self._mixed(original_samples, noise, timesteps, self.sde.alpha, self.sde.sigma)

    def scale_noise(self, sample: Tensor, timestep: Tensor, noise: Tensor) -> Tensor:
        """:meth:`add_noise`, as pipelines of flow matching call it."""
        return self.add_noise(sample, noise, timestep)

    def get_velocity(self, sample: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """v = α ε - σ x_0 at the timesteps: what a network with "v_prediction" is trained on."""
        return self._mixed(sample, noise, timesteps, lambda t: -self.sde.sigma(t), self.sde.alpha)

    def _mixed(self, x0: Tensor, noise: Tensor, timesteps: Tensor, of_x0: Any, of_noise: Any) -> Tensor:
        check_together({"original_samples": x0, "noise": noise})
        checks.same_shape(x0, noise, names="original_samples and noise")
        t = time_of_timestep(self._schedule, timesteps)
        if t.numel() == 1:  # pipelines say one for all as (1,)
            t = t.reshape(())
        checks.same_batch(t, x0, name="timesteps")
        return spread(of_x0(t), x0) * x0 + spread(of_noise(t), x0) * noise

    def __len__(self) -> int:
        n = self.config.get("num_train_timesteps")
        return len(self.timesteps) if n is None else int(n)


def check_together(tensors: Mapping[str, Tensor]) -> None:
    """Raises unless all are states on one device that holds values."""
    first = next(iter(tensors))
    for name, tensor in tensors.items():
        checks.state(tensor, name=name)
        if tensor.device.type == "meta" or tensor.device != tensors[first].device:
            raise ValueError(
                f"{name} must hold values, on the device of {first}, {tensors[first].device}; got {checks.got(tensor)} "
                f"on {tensor.device}."
            )
