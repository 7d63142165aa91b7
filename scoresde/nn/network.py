"""What all networks here share: the call ``net(x, c, **conditions)``, its checks, and a ``config`` to rebuild from.

A network of your own needs none of this: any function (x, c, **conditions) -> tensor will do. One that wants its
conditions checked, dropped in training and found by guidance derives from :class:`ConditionalNetwork`::

    class Net(ConditionalNetwork):
        def __init__(self, dim: int, vectors: dict[str, int]) -> None:
            super().__init__({"dim": dim}, Conditions.joined(Vector.named(vectors)))
            ...
        def check_x(self, x): ...                  # raise unless x is (B, dim)
        def compute(self, x, c, given): ...        # given["size"] is (B, 2), or None where it is left out
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from scoresde import checks
from scoresde.models.conditions import Conditions, Image

_TIME = "one number per sample, c = log(sigma/alpha); for one common time pass c.expand(len(x))"


class ConditionalNetwork(nn.Module, ABC):
    """A network net(x, c, **conditions) that knows no SDE, only c = log(sigma/alpha).

    It computes in the dtype of its weights and answers in the dtype of x. Weights start from torch's default generator,
    as for any nn.Module; seed it with torch.manual_seed.

    Args:
        arguments: those of the constructor but for what describes the conditions, ready for JSON.
        conditions: what it can be told of x.
    """

    def __init__(self, arguments: Mapping[str, Any], conditions: Conditions) -> None:
        super().__init__()
        self.conditions = conditions
        self._config: dict[str, Any] = {**arguments, **conditions.config}

    @property
    def config(self) -> dict[str, Any]:
        """The constructor's arguments, ready for JSON: ``type(net)(**net.config)`` has the same shape."""
        return copy.deepcopy(self._config)

    @property
    def null_conditions(self) -> dict[str, float]:
        """What means "not given", by name: the number of classes for a label, 0 for tokens, NaN for all others."""
        return self.conditions.nulls

    @property
    def image_conditions(self) -> tuple[str, ...]:
        """The conditions that share the positions of x: what flips or crops x must do the same to them."""
        return tuple(self.conditions.of_kind(Image))

    def forward(self, x: Tensor, c: Tensor, **conditions: Tensor | None) -> Tensor:
        """Evaluate the network.

        Args:
            x: events (B, *event).
            c: log(sigma/alpha) of each sample's noise level, (B,).
            conditions: by name, with a row for each sample; left out or None, a condition is not given for anybody.

        Returns:
            (B, ...), of x's dtype.

        Raises:
            ValueError, TypeError: a shape, dtype or value does not fit, or a condition is unknown, see the messages.
        """
        self.check_x(x)
        if not isinstance(c, Tensor) or not c.is_floating_point() or c.layout is not torch.strided:
            what = f"dtype {c.dtype} and layout {c.layout}" if isinstance(c, Tensor) else f"the value {checks.got(c)}"
            raise TypeError(f"c has {what}; expected a dense floating-point tensor: {_TIME}.")
        if c.shape != (len(x),):
            raise ValueError(f"c has shape {tuple(c.shape)}; expected ({len(x)},): {_TIME}.")
        return self.compute(x, c, self.conditions.read(conditions, x)).to(x.dtype)

    @abstractmethod
    def check_x(self, x: Tensor) -> None:
        """Raise unless x is what the network was built for."""

    @abstractmethod
    def compute(self, x: Tensor, c: Tensor, given: Mapping[str, Tensor | None]) -> Tensor:
        """The output, of any dtype, for checked input; ``given`` holds every condition, None where it is left out."""


def check_dropout(dropout: float) -> float:
    """The probability, if 0 <= dropout < 1; else ValueError."""
    given = checks.number(dropout, name="dropout")
    if not 0 <= given < 1:
        raise ValueError(f"dropout={given:g}: expected a probability, 0 <= dropout < 1.")
    return given
