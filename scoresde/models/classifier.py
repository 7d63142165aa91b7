"""A noise-conditional classifier: a network and the SDE whose x_t it is shown.

:class:`ClassifierModel` turns a network that answers logits into log p(k | x_t), for classifier guidance::

    model = ClassifierModel(NoiseClassifier(3, num_classes), sde, sigma_data=0.5)
    model(x, t)                                             # log-probabilities (B, K); model.logits(x, t)
    guided = classifier(score, model, scale=2.0, label=3)   # a Score, of scoresde.guidance

:func:`scoresde.train.train_classifier` trains one.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from scoresde.models.network import NoiseLevelNetwork
from scoresde.sde import SDE, Time


class ClassifierModel(NoiseLevelNetwork):
    """log p(k | x_t = x) by a noise-conditional network: what :func:`scoresde.classifier` takes, with ``label``.

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
        super().__init__(net, sde, sigma_data)

    def logits(self, x: Tensor, t: Time) -> Tensor:
        """The network's answer (B, K); x (B, *event), t () or (B,), where σ(t) > 0."""
        logits: Tensor = self.answer(x, *self.levels(x, t), {})
        return logits.to(x.dtype) if self.dtype is not None else logits

    def forward(self, x: Tensor, t: Time) -> Tensor:
        """log p(k | x_t = x), (B, K)."""
        return self.logits(x, t).log_softmax(1)
