"""A noise-conditional classifier: a network and the SDE whose x_t it is shown."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from scoresde import checks
from scoresde.sde import SDE, Time, spread


class ClassifierModel(nn.Module):
    """log p(k | x_t = x) by a noise-conditional network: what :func:`classifier` takes, with ``label``.

    The network is called as a ScoreModel calls its own, ``net(x, c)`` with c = log(σ/α) (B,), and answers logits
    (B, K): a :class:`scoresde.nn.NoiseClassifier`, or an ``MLP(dim, out_dim=K)`` for vectors.

    Args:
        net: an ``nn.Module`` or any function ``(x, c) -> logits`` (B, K).
        sde: the SDE whose x_t it is shown.
        sigma_data: standard deviation of the data: the network sees x / sqrt(α² σ_data² + σ²). None for x itself.

    Raises:
        TypeError: not a network, or not an SDE.
        ValueError: a sigma_data that is not positive.
    """

    def __init__(self, net: Callable[[Tensor, Tensor], Tensor], sde: SDE, sigma_data: float | None = None) -> None:
        super().__init__()
        if not isinstance(sde, SDE):
            raise TypeError(f"sde must be an SDE, got {type(sde).__name__}; the order is ClassifierModel(net, sde).")
        if not callable(net):
            raise TypeError(f"net must be a module or a function, got {type(net).__name__}.")
        if sigma_data is not None:
            checks.positive(sigma_data, name="sigma_data")
        self.net, self.sde, self.sigma_data = net, sde, sigma_data

    def logits(self, x: Tensor, t: Time) -> Tensor:
        """The network's answer (B, K); x (B, *event), t () or (B,), where α(t) > 0 and σ(t) > 0."""
        time = checks.time(t, self.sde.t_max, what=type(self.sde).__name__)
        checks.same_batch(time, checks.state(x))
        if time.ndim and time.device != x.device:
            time = time.to(x.device)
        alpha, sigma = self.sde.alpha(time), self.sde.sigma(time)
        if checks.readable(alpha) and not bool(((alpha > 0) & (sigma > 0)).all()):
            raise ValueError(
                f"the network is told log(σ/α), which is infinite where α(t) or σ(t) is 0; got t = {t} under "
                f"{type(self.sde).__name__}. Stay within t_min = {self.sde.t_min:g} and T = {self.sde.T:g}."
            )
        if self.sigma_data is not None:
            x = x * spread((alpha**2 * self.sigma_data**2 + sigma**2).rsqrt(), x)
        c = (sigma / alpha).log().to(device=x.device, dtype=torch.promote_types(x.dtype, torch.float32))
        return self.net(x, c.expand(x.shape[0]) if c.ndim == 0 else c)

    def forward(self, x: Tensor, t: Time) -> Tensor:
        """log p(k | x_t = x), (B, K)."""
        return self.logits(x, t).log_softmax(1)
