"""The loss of a micro-batch as a module, so that data-parallel wrappers see one forward call."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from scoresde.losses import Weighting, dsm_loss
from scoresde.score import ScoreModel


class Objective(nn.Module):
    """Denoising score matching, averaged over samples and over the numbers of an event.

    Dividing by the size of the event makes losses, and gradient norms for clipping, comparable between data.

    Args:
        model: in training.
        weighting: see ``dsm_loss``.
        autocast: compute the network in bfloat16.
    """

    def __init__(self, model: ScoreModel, weighting: Weighting | str, autocast: bool) -> None:
        super().__init__()
        self.model, self._weighting, self._autocast = model, weighting, autocast

    def forward(self, x0: Tensor, t: Tensor, eps: Tensor, weight: Tensor, conditions: Mapping[str, Tensor]) -> Tensor:
        """The loss, ().

        Args:
            x0: data (B, *event).
            t: times (B,).
            eps: N(0, I), shaped like x0.
            weight: factor of each sample (B,), from the density of t.
            conditions: keyword arguments of the network.
        """
        with torch.autocast(x0.device.type, dtype=torch.bfloat16, enabled=self._autocast):
            per_sample = dsm_loss(self.model, x0, t, eps, self._weighting, **conditions)
        return (per_sample * weight.to(per_sample.dtype)).mean() / math.prod(x0.shape[1:])


def drop_conditions(
    conditions: Mapping[str, Tensor], nulls: Mapping[str, int | Tensor], dropped: Tensor
) -> dict[str, Tensor]:
    """The conditions with null values in the rows where ``dropped`` (B,) is true: all conditions of a row together.

    Ho & Salimans 2022 (arXiv:2207.12598), algorithm 1: one network learns the conditional and the unconditional score.
    """
    return {
        name: torch.where(dropped.reshape(-1, *[1] * (value.ndim - 1)), nulls[name], value) if name in nulls else value
        for name, value in conditions.items()
    }
