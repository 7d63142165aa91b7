"""The small network whose last hidden layer :func:`~scoresde.metrics.train_features` makes a feature space of.

    net = FeatureNet((1, 28, 28), outputs=10, width=32, features=64)
    net(x)                                                  # (B, outputs): logits
    net.features(x)                                         # (B, 64)
    NetFeatures(net, "labels", {"accuracy": 0.98})          # as a feature space

Images, signals and volumes go through convolutions, vectors through linear layers; group normalisation, so that the
features of a sample do not depend on its batch.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from scoresde import checks
from scoresde.metrics.features import Features, fingerprint_of

MOST_CHANNELS = 4
"""Channels at the coarsest level, in units of ``width``."""
COARSEST = 4
"""Positions along the longest axis at which halving stops."""


class FeatureNet(nn.Module):
    """Convolutions that halve the resolution down to 4, the mean over positions, a linear layer for features, a head.

    Weights start from torch's default generator.

    Args:
        event: shape of a sample, (d,), (C, L), (C, H, W) or (C, D, H, W).
        outputs: numbers of the head; 0 for none, and the features are the answer.
        width: channels at the finest level, a multiple of 8; hidden numbers of vectors are 4 ``width``.
        features: numbers of the feature space.

    Raises:
        TypeError, ValueError: an argument of another kind.
    """

    def __init__(self, event: tuple[int, ...], outputs: int, *, width: int = 32, features: int = 64) -> None:
        super().__init__()
        self.event = checks.shape(event, name="event")
        if not 1 <= len(self.event) <= 4 or 0 in self.event:
            raise ValueError(f"event must be (d,), or channels and 1 to 3 axes of positions, got {event}.")
        self.outputs = checks.count(outputs, name="outputs", least=0)
        self.width, self.size = checks.count(width, name="width"), checks.count(features, name="features")
        if self.width % 8:
            raise ValueError(f"width must be a multiple of 8, the groups of normalisation, got {self.width}.")
        vectors = len(self.event) == 1
        self.body, top = (_vectors if vectors else _positions)(self.event, self.width)
        self.last = nn.Linear(top, self.size)
        self.head = nn.Sequential(nn.SiLU(), nn.Linear(self.size, self.outputs)) if self.outputs else nn.Identity()

    @property
    def config(self) -> dict[str, Any]:
        """The arguments of the constructor, ready for JSON."""
        return {"event": list(self.event), "outputs": self.outputs, "width": self.width, "features": self.size}

    def features(self, x: Tensor) -> Tensor:
        """The last hidden layer before its nonlinearity, (B, features), of x (B, *event)."""
        if tuple(x.shape[1:]) != self.event:
            raise ValueError(f"x must be (B, {', '.join(map(str, self.event))}) for this network, got {checks.got(x)}.")
        h = F.silu(self.body(x.to(self.last.weight.dtype)))
        return self.last(h.flatten(2).mean(2) if h.ndim > 2 else h)

    def forward(self, x: Tensor) -> Tensor:
        """The head on the features, (B, outputs); without one the features."""
        return self.head(self.features(x))


def _vectors(event: tuple[int, ...], width: int) -> tuple[nn.Sequential, int]:
    layers: list[nn.Module] = []
    for count in (event[0], 4 * width, 4 * width):
        layers += [nn.SiLU()] if layers else []
        layers += [nn.Linear(count, 4 * width), nn.GroupNorm(8, 4 * width)]
    return nn.Sequential(*layers), 4 * width


def _positions(event: tuple[int, ...], width: int) -> tuple[nn.Sequential, int]:
    conv = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[len(event) - 2]
    halvings = max(1, math.ceil(math.log2(max(event[1:]) / COARSEST)))
    widths = [min(2**level, MOST_CHANNELS) * width for level in range(halvings + 1)]
    layers: list[nn.Module] = [conv(event[0], width, 3, padding=1), nn.GroupNorm(8, width)]
    for before, after in itertools.pairwise(widths):
        layers += [nn.SiLU(), conv(before, after, 3, stride=2, padding=1), nn.GroupNorm(8, after)]
        layers += [nn.SiLU(), conv(after, after, 3, padding=1), nn.GroupNorm(8, after)]
    return nn.Sequential(*layers), widths[-1]


class NetFeatures(Features):
    """The features of a :class:`FeatureNet`, in evaluation mode.

    Args:
        net: trained; it is put into evaluation mode.
        kind: what it learned from, "labels" or "views"; part of the name.
        trained: how: plain figures for reports, such as steps and held-out accuracy.
    """

    def __init__(self, net: FeatureNet, kind: str, trained: Mapping[str, Any] | None = None) -> None:
        self.net = checks.instance(net, FeatureNet, name="net").eval()
        self.kind = checks.one_of(kind, KINDS, name="kind")
        self.trained = dict(trained or {})

    @property
    def name(self) -> str:
        return f"learned-{self.kind}"

    @property
    def fingerprint(self) -> str:
        """Of the architecture and of the weights that the features depend on: all but the head's."""
        held = {name: value for name, value in self.net.state_dict().items() if not name.startswith("head.")}
        return fingerprint_of(repr(sorted(self.net.config.items())), held.items())

    def compute(self, x: Tensor) -> Tensor:
        weight = self.net.last.weight
        return self.net.features(checks.sent(x, weight.device).to(weight.dtype))

    def to(self, device: torch.device | str) -> NetFeatures:
        """The same on a device."""
        self.net.to(checks.device(device))
        return self


KINDS = ("labels", "views")
"""What a feature space is learned from: the classes of the data, or two views of each sample."""
