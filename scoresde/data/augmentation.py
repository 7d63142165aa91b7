"""Augmentation that does not leak: pictures are moved about in training, and the network is told how.

    augmentation = Augmentation(0.12)
    net = UNet(3, vectors={"augment": augmentation.size})
    run = train(model, dataset, steps=..., batch_size=..., augment=augmentation)
    sample(model, shape)                                  # is told nothing: pictures as they are in the data

    x, augment = augmentation(x, u)                       # in a loop of your own; u (B, augmentation.draws) uniforms
    loss = dsm_loss(model, x, t, eps, conditions={"augment": augment})

Karras et al. 2022 (arXiv:2206.00364, appendix F.2). What was done to a picture is a row of numbers, of which all that
is done is a function; a picture to which nothing was done has a row of NaN, "not given". So the network learns the law
of the data under "not given" from untouched samples alone, and from all others what pictures are like.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from scoresde import checks
from scoresde.data.warping import moved, octaves, rotation, stretching, warped

NAME = "augment"
"""Of the condition by which a network is told."""

_QUARTERS = ((1.0, 0.0), (0.0, 1.0), (-1.0, 0.0), (0.0, -1.0))  # cosine and sine of quarter turns, exactly


@dataclass(frozen=True)
class Augmentation:
    """Each kind of transformation with a probability of its own draw, for pictures (B, C, H, W).

    Row by row the condition (B, 13) says, in this order, what was done, from 0 for nothing:

    ====================  =====================================================================================
    1, 2                  1 where mirrored left to right; top to bottom
    3, 4                  cos q - 1, sin q of a turn by quarters q
    5, 6                  shift to the right and down by whole pixels, in parts of the width and height
    7                     a: enlarged 2^(scale a) times
    8, 9                  cos r - 1, sin r of a turn by the angle r, clockwise
    10, 11                a cos 2b, a sin 2b: stretched 2^(stretch a) times along the angle b, and shrunk across it
    12, 13                a, b: shift to the right and down by shift a, shift b parts of the width and height
    ====================  =====================================================================================

    They are done in this order; the last four as one map, of pixels that are low-passed (see
    `scoresde.data.warping.warped`), the others exactly. a and b are N(0, 1) but for the angle. 2b in place of the b of
    the paper makes of one stretch one pair of numbers, and of two of them two.

    Args:
        probability: of each kind, in [0, 1]. Karras et al. take 0.12 for CIFAR-10 and 0.15 for larger pictures.
        x_flip, y_flip: mirror left to right, top to bottom, with half the probability.
        quarter_turns: turn by 0 to 3 quarters; for square pictures.
        whole_shift: largest shift by whole pixels, in parts of the size.
        scale: standard deviation of the logarithm to base 2 of the enlargement.
        rotation: largest angle, in parts of half a turn.
        stretch: standard deviation of the logarithm to base 2 of a stretch.
        shift: standard deviation of a shift by fractions of pixels, in parts of the size.

    Raises:
        TypeError, ValueError: no probability; a negative strength, or one that is no number.
    """

    probability: float = 0.12
    x_flip: bool = True
    y_flip: bool = True
    quarter_turns: bool = False
    whole_shift: float = 0.0
    scale: float = 0.2
    rotation: float = 1.0
    stretch: float = 0.2
    shift: float = 0.125

    size: ClassVar[int] = 13
    """Of the condition: a network has vectors={"augment": Augmentation.size}."""
    draws: ClassVar[int] = 19
    """Uniforms that a sample takes."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "probability", checks.fraction(self.probability, name="probability"))
        for name in ("x_flip", "y_flip", "quarter_turns"):
            checks.flag(getattr(self, name), name=name)
        for name, most in (("whole_shift", 1.0), ("scale", 2.0), ("rotation", 1.0), ("stretch", 2.0), ("shift", 1.0)):
            value = checks.number(getattr(self, name), name=name)
            if not 0 <= value <= most:
                raise ValueError(f"{name}={value:g}: expected 0, for none of it, to {most:g}.")
            object.__setattr__(self, name, value)

    @property
    def untouched(self) -> float:
        """The probability that nothing is done to a sample."""
        p = self.probability
        strengths = (self.whole_shift, self.scale, self.rotation, self.stretch, self.shift)
        alone = math.prod(1 - p for strength in strengths if strength)
        return alone * (1 - p / 2) ** (self.x_flip + self.y_flip) * (1 - 3 * p / 4 * self.quarter_turns)

    def __call__(self, x: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
        """Transformed pictures, and the condition that says how.

        Args:
            x: (B, C, H, W).
            u: (B, draws) uniforms in [0, 1): the randomness is an argument.
        """
        condition = self.draw(u, checks.state(x).shape[1:])
        return self.apply(x, condition), condition.to(x.device, x.dtype)

    def draw(self, u: Tensor, event_shape: Sequence[int]) -> Tensor:
        """The condition (B, size) for uniforms (B, draws), of the dtype of u; rows of NaN where nothing is done."""
        if not isinstance(u, Tensor) or not u.is_floating_point() or u.ndim != 2 or u.shape[1] != self.draws:
            raise ValueError(f"u must be uniforms (B, {self.draws}), floating, got {checks.got(u)}.")
        height, width = self.check_event(event_shape)
        on, free = u[:, :8] < self.probability, u[:, 8:]
        # a uniform of 0 would be an infinite normal: it stands for those that torch.rand rounds to it
        normal = torch.special.ndtri(free.clamp(torch.finfo(u.dtype).eps / 4, 1 - torch.finfo(u.dtype).eps / 2))
        quarter = torch.tensor(_QUARTERS, dtype=u.dtype, device=u.device)[(4 * free[:, 2]).long().clamp(max=3)]
        angle = math.pi * self.rotation * (2 * free[:, 6] - 1)
        toward = 2 * math.pi * free[:, 7]
        whole = 2 * free[:, 3:5] - 1
        sizes = torch.tensor([width, height], dtype=u.dtype, device=u.device)
        done = [
            (free[:, 0] < 0.5)[:, None] & on[:, 0:1] & self.x_flip,
            (free[:, 1] < 0.5)[:, None] & on[:, 1:2] & self.y_flip,
            torch.stack([quarter[:, 0] - 1, quarter[:, 1]], 1) * (on[:, 2:3] & self.quarter_turns),
            (whole * self.whole_shift * sizes).round() / sizes * on[:, 3:4],
            normal[:, 5:6] * (on[:, 4:5] & (self.scale > 0)),
            torch.stack([angle.cos() - 1, angle.sin()], 1) * on[:, 5:6],
            normal[:, 8:9] * torch.stack([toward.cos(), toward.sin()], 1) * (on[:, 6:7] & (self.stretch > 0)),
            normal[:, 9:11] * (on[:, 7:8] & (self.shift > 0)),
        ]
        condition = torch.cat([one.to(u.dtype) for one in done], 1)
        return condition.masked_fill(~condition.any(1, keepdim=True), torch.nan)

    def apply(self, x: Tensor, condition: Tensor) -> Tensor:
        """x as the condition says; the very same numbers where its row is NaN, or 0.

        On a condition in main memory it is seen which rows there are to warp, and the others are left alone.

        Args:
            x: (B, C, H, W), or a picture of other channels, or whole parts of the size, that goes with it.
            condition: (B, size).
        """
        height, width = self.check_event(checks.state(x).shape[1:])
        if not isinstance(condition, Tensor) or condition.shape != (len(x), self.size):
            raise ValueError(
                f"condition must be ({len(x)}, {self.size}), as draw() answers, got {checks.got(condition)}."
            )
        told = condition.nan_to_num(0.0)
        x = self._permuted(x, told, height, width)
        touched = (told[:, 6:] != 0).any(1)
        if told.device.type == "cpu":
            rows = touched.nonzero().flatten()
            places = rows.to(x.device)
            return x.index_copy(0, places, self._warped(x[places], told[rows])) if len(rows) else x
        return torch.where(touched.to(x.device)[:, None, None, None], self._warped(x, told), x)

    def _permuted(self, x: Tensor, told: Tensor, height: int, width: int) -> Tensor:
        """What only changes the places of pixels."""
        on = checks.sent(told[:, :6], x.device)

        def where(rows: Tensor, yes: Tensor, no: Tensor) -> Tensor:
            return torch.where(rows[:, None, None, None], yes, no)

        if self.x_flip:
            x = where(on[:, 0] > 0.5, x.flip(3), x)
        if self.y_flip:
            x = where(on[:, 1] > 0.5, x.flip(2), x)
        if self.quarter_turns:
            x = where(on[:, 2] < -1.5, x.flip(2, 3), x)
            turn = x.transpose(2, 3)  # clockwise is transpose, then left to right
            x = where(on[:, 3] > 0.5, turn.flip(3), where(on[:, 3] < -0.5, turn.flip(2), x))
        if self.whole_shift:
            x = moved(x, (on[:, 4] * width).round().long(), (on[:, 5] * height).round().long())
        return x

    def _warped(self, x: Tensor, told: Tensor) -> Tensor:
        told = checks.sent(told, x.device)
        enlarged = torch.exp(octaves(self.scale) * told[:, 6])[:, None, None]
        turned = rotation(1 + told[:, 7], told[:, 8])
        matrix = stretching(told[:, 9], told[:, 10], octaves(self.stretch)) @ turned * enlarged
        shift = told[:, 11:] * self.shift
        return warped(x, matrix, torch.stack([shift[:, 0] * x.shape[3], shift[:, 1] * x.shape[2]], 1))

    def check_event(self, event_shape: Sequence[int]) -> tuple[int, int]:
        """Height and width of pictures.

        Raises:
            ValueError: no pictures, or quarter turns of some that are not square.
        """
        event = tuple(event_shape)
        if len(event) != 3:
            raise ValueError(f"augmentation is of pictures (C, H, W); got samples of shape {event}.")
        if self.quarter_turns and event[1] != event[2]:
            raise ValueError(f"quarter_turns=True needs square pictures; these are {event[1:]}. Leave it out.")
        return event[1], event[2]
