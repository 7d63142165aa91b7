"""A network that is told the noise level: what models of scores and classifiers share.

:class:`NoiseLevelNetwork` holds a network and its SDE, checks x and t, scales the input and calls
``net(x, c, **conditions)`` with c = log(σ/α). A subclass says what the answer means::

    class Energy(NoiseLevelNetwork):
        def forward(self, x, t):
            return self.answer(x, *self.levels(x, t), {})   # α(t) and σ(t), then the network's output

:class:`~scoresde.models.ScoreModel` and :class:`~scoresde.models.ClassifierModel` derive from it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Self

import torch
from torch import Tensor, nn

from scoresde import checks
from scoresde.models.pretrained import Pretrained
from scoresde.sde import NO_SIGNAL, SDE, Time, has_signal, signal_left, spread


def _learned(part: Any, name: str = "") -> Iterator[tuple[str, nn.Module | nn.Parameter]]:
    """Modules and parameters in the fields of a dataclass, and in dataclasses there, by the names of the fields."""
    for field in dataclasses.fields(part):
        value, called = getattr(part, field.name), f"{name}{field.name.lstrip('_')}"
        if isinstance(value, nn.Module | nn.Parameter):
            yield called, value
        elif dataclasses.is_dataclass(value) and not isinstance(value, type):
            yield from _learned(value, f"{called}_")


class _Held(nn.Module):
    """What an SDE that is no module holds to be learned: the same objects, which the model moves and saves."""

    def __init__(self, held: Mapping[str, nn.Module | nn.Parameter]) -> None:
        super().__init__()
        for name, value in held.items():
            setattr(self, name, value)


class NoiseLevelNetwork(Pretrained):
    """A network and the SDE whose x_t it is shown, called as ``net(x, c, **conditions)``.

    c = log(σ/α), (B,), at least float32, held at log 1e8 where α is 0 to rounding. The network computes in the dtype of
    its weights: x is brought to it after scaling, in which no digits are lost.

    Args:
        net: an ``nn.Module`` or any function.
        sde: the SDE.
        sigma_data: standard deviation of the data. With it the network sees x / sqrt(α² σ_data² + σ²), of unit
            variance; without it, x itself.

    An SDE that is a module, or holds modules or parameters in its fields (a learned schedule), brings its parameters:
    they are among ``parameters()``, move by ``to`` and are kept in checkpoints.

    Raises:
        TypeError: not a network, or not an SDE.
        ValueError: a sigma_data that is not positive.
    """

    def __init__(self, net: Callable[..., Tensor], sde: SDE, sigma_data: float | None) -> None:
        super().__init__()
        checks.instance(sde, SDE, name="sde", hint=f"The order is {type(self).__name__}(net, sde).")
        checks.function(net, name="net", what="(x, c, **conditions), such as a module")
        if sigma_data is not None:
            checks.positive(sigma_data, name="sigma_data")
            sigma_data = checks.number(sigma_data, name="sigma_data")
        self.net, self.sde, self.sigma_data = net, sde, sigma_data
        learned = dict(_learned(sde)) if not isinstance(sde, nn.Module) else {}
        if learned:
            self.learned = _Held(learned)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """As torch's, but a learned schedule stays in float32 at least: in half precision it would be another one."""
        held = self.sde if isinstance(self.sde, nn.Module) else getattr(self, "learned", None)
        before = {} if held is None else {name: value.detach() for name, value in held.named_parameters()}
        super()._apply(fn, recurse)
        if held is not None:
            for name, value in held.named_parameters():
                if value.is_floating_point() and value.dtype.itemsize < 4:
                    value.data = before[name].to(value.device, torch.float32)
        return self

    def levels(self, x: Tensor, t: Time) -> tuple[Tensor, Tensor]:
        """α(t) and σ(t), () or (B,) float64, after all checks of x and t; α is exactly 0 where it is to rounding.

        Raises:
            ValueError: σ(t) = 0, where c is infinite and x is clean; a time out of range, or not one for each sample.
        """
        time = self.time(t, checks.state(x))
        alpha, sigma = self.sde.alpha(time), self.sde.sigma(time)
        number = checks.single(sigma)
        if number <= 0 if number is not None else checks.readable(sigma) and bool((sigma <= 0).any()):
            raise ValueError(
                f"there is no noise where σ(t) = 0, and nothing to ask a network; got t = {t} under "
                f"{type(self.sde).__name__}. Stop at t_min = {self.sde.t_min:g} and let solve(..., denoise=True) take "
                "the last step."
            )
        if number is not None and checks.readable(alpha):
            return alpha if has_signal(alpha, sigma) else 0 * alpha, sigma
        return torch.where(signal_left(alpha, sigma), alpha, 0 * alpha), sigma

    def answer(self, x: Tensor, alpha: Tensor, sigma: Tensor, conditions: Mapping[str, Any]) -> Any:
        """The network's output for x (B, *event) at noise levels that :meth:`levels` answered."""
        scaled = x
        if self.sigma_data is not None:
            scaled = x * spread((alpha**2 * self.sigma_data**2 + sigma**2).rsqrt(), x)
        dtype = self.dtype or x.dtype
        # where α is 0, σ/α is taken as 1e8
        level = (sigma / torch.maximum(alpha, NO_SIGNAL * sigma)).log()
        c = checks.sent(level, x.device, torch.promote_types(dtype, torch.float32))
        return self.net(checks.brought(scaled, dtype), c.expand(x.shape[0]) if c.ndim == 0 else c, **conditions)

    def time(self, t: Time, x: Tensor) -> Tensor:
        """t as a checked float64 tensor, beside x where there is one for each sample."""
        time = checks.time(t, self.sde.t_max, what=type(self.sde).__name__)
        checks.same_batch(time, x)
        return checks.time_beside(time, x) if time.ndim else time

    @property
    def dtype(self) -> torch.dtype | None:
        """That of the network's weights; None for a network without any."""
        parameters = self.net.parameters() if isinstance(self.net, nn.Module) else iter(())
        return next((p.dtype for p in parameters if p.is_floating_point()), None)
