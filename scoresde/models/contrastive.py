"""A contrastive model: which caption belongs to which x_t, for retrieval, zero-shot classification and guidance.

:class:`ContrastiveModel` is a network with an encoder of events and one of captions, and its SDE::

    model = ContrastiveModel(DualEncoder(3, captions={"caption": {...}}), sde, sigma_data=0.5)
    model.image(x), model.image(x_t, t), model.caption(tokens)       # unit vectors (B, d), (B, d), (K, d)
    model(x_t, t, tokens)                                            # (B, K): scale times their cosines
    guided = classifier(score, model.similarity(tokens), scale=2.0)  # towards captions, one each or one for all
    guided = classifier(score, model.zero_shot(prompts), scale=2.0, label=3)    # towards the third of some prompts

:func:`scoresde.train.train_contrastive` trains one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from scoresde import checks
from scoresde.models.evaluation import evaluating
from scoresde.models.network import NoiseLevelNetwork
from scoresde.sde import SDE, Time


class ContrastiveModel(NoiseLevelNetwork):
    r"""How well x_t and a caption y belong together, s(x, t, y) = e^τ ⟨u(x, t), v(y)⟩.

    Trained to its best on independent pairs, s(x, t, y) = log p(y | x_t = x) / p(y) up to a constant, see
    :func:`scoresde.losses.contrastive_loss`: what classifier guidance asks for. Clean events are states at t_min.

    Args:
        net: a :class:`scoresde.nn.DualEncoder`, or a module that has what that has: ``net(x, c)`` -> unit vectors
            (B, d), ``net(x, c, name=tokens)`` -> logits (B, B), ``caption(tokens)`` -> unit vectors (K, d), ``scale``,
            and ``caption_name``.
        sde: the SDE whose x_t it is shown.
        sigma_data: standard deviation of the data: the network sees x / sqrt(α² σ_data² + σ²). None for x itself.

    Raises:
        TypeError: no such network, or not an SDE.
        ValueError: a sigma_data that is not positive.
    """

    def __init__(self, net: Callable[..., Tensor], sde: SDE, sigma_data: float | None = None) -> None:
        parts = [name for name in ("caption", "scale", "caption_name") if not hasattr(net, name)]
        if parts:
            raise TypeError(
                f"net must be a network of two encoders, such as scoresde.nn.DualEncoder, got {checks.got(net)}, "
                f"without {', '.join(parts)}."
            )
        super().__init__(net, sde, sigma_data)

    @property
    def caption_name(self) -> str:
        """What the network, and the data set, call the caption."""
        return str(self._own.caption_name)

    @property
    def scale(self) -> Tensor:
        """e^τ, what cosines are multiplied with, ()."""
        scale: Tensor = self._own.scale
        return scale

    @property
    def _own(self) -> Any:
        return self.net

    def image(self, x: Tensor, t: Time | None = None) -> Tensor:
        """Unit vectors (B, d) of x (B, *event) as x_t; t () or (B,), t_min for clean events."""
        u: Tensor = self.answer(x, *self.levels(x, self.sde.t_min if t is None else t), {})
        return u.to(x.dtype)

    def caption(self, tokens: Tensor) -> Tensor:
        """Unit vectors (K, d) of captions, tokens (K, L)."""
        v: Tensor = self._own.caption(tokens)
        return v

    def pairs(self, x: Tensor, t: Time, tokens: Tensor) -> Tensor:
        """The logits (B, B) of each event with each caption of a batch, by one call of the network: for the loss."""
        logits: Tensor = self.answer(x, *self.levels(x, t), {self.caption_name: tokens})
        return logits

    def forward(self, x: Tensor, t: Time | None, tokens: Tensor) -> Tensor:
        """s(x, t, y) of each x with each caption, (B, K); x (B, *event), t as for :meth:`image`, tokens (K, L)."""
        u = self.image(x, t)
        return self.scale.to(u.dtype) * _cosines(u, self.caption(tokens))

    def similarity(self, tokens: Tensor) -> Similarity:
        """s(x, t, y) of each x with its own caption, as a function of x and t, for guidance.

        Args:
            tokens: (B, L), a caption for each sample, or (1, L), one for all.
        """
        return Similarity(self, self._vectors(tokens))

    def zero_shot(self, prompts: Tensor) -> ZeroShot:
        """A classifier of x_t whose classes are prompts, as a function of x and t, for guidance and calibration.

        Args:
            prompts: tokens (K, L), one prompt for each class; or (K, M, L), M of each, whose vectors are averaged
                (Radford et al. 2021, arXiv:2103.00020, section 3.1.4).
        """
        if not isinstance(prompts, Tensor):
            raise TypeError(f"prompts must be tokens (K, L) or (K, M, L), got {checks.got(prompts)}.")
        if prompts.ndim != 3:
            return ZeroShot(self, self._vectors(prompts, "prompts"))
        if not prompts.shape[0] or not prompts.shape[1]:
            raise ValueError(f"prompts must hold at least one for each class, (K, M, L), got {checks.got(prompts)}.")
        each = self._vectors(prompts.flatten(0, 1), "prompts").unflatten(0, prompts.shape[:2])
        return ZeroShot(self, F.normalize(each.mean(1), dim=1))

    def _vectors(self, tokens: Tensor, name: str = "tokens") -> Tensor:
        """Vectors of captions that are held: without dropout, and without a graph."""
        if not isinstance(tokens, Tensor) or tokens.ndim != 2 or not len(tokens):
            raise ValueError(f"{name} must be tokens of at least one caption, (K, L), got {checks.got(tokens)}.")
        with torch.no_grad(), evaluating(self.net):
            return self.caption(tokens)


@dataclass(frozen=True, eq=False)
class Similarity:
    """(x, t) -> s(x, t, y) (B,), made by :meth:`ContrastiveModel.similarity`: a ``log_prob`` of classifier guidance.

    Attributes:
        model: of which it is.
        vectors: of the captions, (B, d) or (1, d).
    """

    model: ContrastiveModel
    vectors: Tensor

    @property
    def sde(self) -> SDE:
        """Whose x_t are read."""
        return self.model.sde

    def __call__(self, x: Tensor, t: Time | None = None) -> Tensor:
        """s of each sample with its caption, (B,); for clean events without t.

        Raises:
            ValueError: neither as many captions as samples nor one.
        """
        if len(self.vectors) not in (1, len(checks.state(x))):
            raise ValueError(
                f"x has {len(x)} samples and there are {len(self.vectors)} captions: expected one for each, or one."
            )
        u = self.model.image(x, t)
        return self.model.scale.to(u.dtype) * (u * self.vectors.to(u)).sum(1)


@dataclass(frozen=True, eq=False)
class ZeroShot:
    """(x, t) -> log-probabilities (B, K), made by :meth:`ContrastiveModel.zero_shot`: softmax_k s(x, t, y_k).

    Attributes:
        model: of which it is.
        vectors: of the classes, (K, d).
    """

    model: ContrastiveModel
    vectors: Tensor

    @property
    def sde(self) -> SDE:
        """Whose x_t are read."""
        return self.model.sde

    def __call__(self, x: Tensor, t: Time | None = None) -> Tensor:
        """log p(k | x_t = x), (B, K); for clean events without t."""
        u = self.model.image(x, t)
        return (self.model.scale.to(u.dtype) * _cosines(u, self.vectors)).log_softmax(1)


def _cosines(u: Tensor, v: Tensor) -> Tensor:
    """Of unit vectors (B, d) and (K, d), (B, K) in u's dtype: autocast would round them to 8 bits."""
    with torch.autocast(u.device.type, enabled=False):
        return u @ v.to(u).T
