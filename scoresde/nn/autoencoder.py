r"""The autoencoder of a latent diffusion model: events of 1, 2 or 3 spatial axes to smaller latents, and back::

    net = Autoencoder(3, latent_channels=4, width=32, multipliers=(1, 2, 2))         # 32x32 to 4 channels of 8x8
    net = Autoencoder(3, bottleneck=VQBottleneck(512), errors=LaplaceErrors())
    z = net.encode(x)                                       # the mean, or the nearest codes, (B, 4, 8, 8)
    x = net.decode(z)
    twin = Autoencoder(**net.config)                        # the same shape, with fresh weights

:func:`~scoresde.train.train_autoencoder` trains it, :class:`~scoresde.interop.Latent` joins it with a model of its
latents.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from typing import Any

import torch
from torch import Tensor, nn

from scoresde import checks
from scoresde.nn.attention import group_norm
from scoresde.nn.bottlenecks import KLBottleneck, LatentPosterior, VQBottleneck
from scoresde.nn.decoder import Decoder
from scoresde.nn.encoder import Architecture, Encoder
from scoresde.nn.errors import LaplaceErrors, NormalErrors
from scoresde.nn.norms import group_normed, in_fast_format
from scoresde.nn.shapes import check_event

_TENTHS = 10.0
"""A learned log-scale is this times its parameter: Adam moves each number by about the learning rate, and this one has
further to go than the weights."""


class Autoencoder(nn.Module):
    r"""Encoder E, bottleneck and decoder D: x (B, channels, \*spatial) to z (B, latent_channels, \*latent), and back.

    The encoder is the U-Net's, told no time, and the decoder its mirror image; each level but the first halves the
    sizes, which must be multiples of :attr:`factor`. Latents are what the bottleneck makes of E(x); p(x | z) is
    ``errors`` around D(z). It computes in the dtype of its weights and answers in that of x. Weights start from torch's
    default generator.

    ``latents_mean`` and ``latents_std`` are the mean and the spread of each latent channel over the data, as
    :func:`~scoresde.interop.standardise_latents` measures them; ``encode`` and ``decode`` leave them alone, and
    :class:`~scoresde.interop.Autoencoding` uses them.

    Args:
        channels: of the event.
        event_dims: number of spatial axes, 1, 2 or 3.
        latent_channels: of the latents.
        width: channels at the finest level, for multiplier 1. Multiples of 16 are fast.
        multipliers, blocks, attention_levels, head_width, dropout, checkpoint: of both halves, see `EncoderOptions`.
        bottleneck: a :class:`KLBottleneck` or a :class:`VQBottleneck`, or its fields by name as in ``config``.
        errors: :class:`NormalErrors` or :class:`LaplaceErrors`, or its fields by name.
        latents_mean, latents_std: a number for each latent channel, both or none.

    Attributes:
        scaling: the map between the data that it was trained on and x, where that is known.

    Raises:
        TypeError, ValueError: an argument of another kind, or out of its range.
    """

    def __init__(
        self,
        channels: int,
        event_dims: int = 2,
        *,
        latent_channels: int = 4,
        width: int = 32,
        multipliers: Sequence[int] = (1, 2, 2),
        blocks: int | Sequence[int] = 1,
        attention_levels: Sequence[int] = (),
        head_width: int = 64,
        dropout: float = 0.0,
        checkpoint: bool = False,
        bottleneck: KLBottleneck | VQBottleneck | Mapping[str, Any] = KLBottleneck(),  # noqa: B008 - frozen
        errors: NormalErrors | LaplaceErrors | Mapping[str, Any] = NormalErrors(),  # noqa: B008 - frozen
        latents_mean: Sequence[float] | None = None,
        latents_std: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        shape = Architecture(
            channels,
            event_dims,
            width,
            multipliers,
            blocks,
            attention_levels,
            head_width,
            dropout=dropout,
            checkpoint=checkpoint,
        )
        self.latent_channels = checks.count(latent_channels, name="latent_channels")
        told = _described(bottleneck, (KLBottleneck, VQBottleneck), "bottleneck")
        self.errors: NormalErrors | LaplaceErrors = _described(errors, (NormalErrors, LaplaceErrors), "errors")
        self.channels, self.event_dims, self.widths = shape.channels, shape.event_dims, shape.widths
        self.penalty = told.penalty
        self.scaling: Any = None
        self.bottleneck = told.module(self.latent_channels)
        self.encoder = Encoder(shape, told=False)
        self.norm = group_norm(self.widths[-1])
        style = shape.style()
        self.to_latents = style.conv(self.widths[-1], self.bottleneck.inputs)
        self.decoder = Decoder(shape, self.latent_channels)
        fixed = self.errors.fixed
        self.log_scale_tenth = nn.Parameter(torch.zeros(())) if fixed is None else None
        own = {name: value for name, value in shape.config.items() if name not in ("time_features", "conditioning")}
        self._config: dict[str, Any] = {
            **own,
            "latent_channels": self.latent_channels,
            "bottleneck": asdict(told),
            "errors": asdict(self.errors),
            "latents_mean": None,
            "latents_std": None,
        }
        if latents_mean is not None or latents_std is not None:
            self.describe_latents(latents_mean, latents_std)

    @property
    def config(self) -> dict[str, Any]:
        """The constructor's arguments, ready for JSON: ``Autoencoder(**net.config)`` has the same shape, and the same
        statistics of latents.
        """
        return copy.deepcopy(self._config)

    @property
    def factor(self) -> int:
        """By how much each size of an event is that of its latents."""
        return 2 ** (len(self.widths) - 1)

    @property
    def log_scale(self) -> Tensor:
        """The logarithm of the scale of the errors, (), float32 or wider."""
        own = self.norm.weight
        wide = torch.promote_types(own.dtype, torch.float32)
        if self.log_scale_tenth is None:
            return own.new_tensor(math.log(self.errors.fixed or 1.0), dtype=wide)
        return _TENTHS * self.log_scale_tenth.to(wide)

    def latent_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        """(B, latent_channels, *latent) for events ``shape`` (B, channels, *spatial).

        Raises:
            TypeError, ValueError: no shape of such events.
        """
        sizes = checks.shape(shape)
        if len(sizes) != self.event_dims + 2 or sizes[1] != self.channels:
            raise ValueError(
                f"shape must be (B, {self.channels}, ...) with {self.event_dims} spatial axes, got {sizes}: that is "
                "what this autoencoder was built for."
            )
        self._check_sizes(sizes, "shape is")
        return (sizes[0], self.latent_channels, *(size // self.factor for size in sizes[2:]))

    def encode(self, x: Tensor) -> Tensor:
        """The latents (B, latent_channels, *latent) of x (B, channels, *spatial): the mean, or the nearest codes.

        Raises:
            TypeError, ValueError: not such events, or sizes that are no multiples of :attr:`factor`.
        """
        return self.bottleneck.encoded(self._features(x)).to(x.dtype)

    def posterior(self, x: Tensor) -> LatentPosterior:
        """q(z | x), in float32 or wider.

        Raises:
            TypeError, ValueError: as :meth:`encode`; a bottleneck of codes, which has none.
        """
        return self.bottleneck.posterior(self._features(x))

    def decode(self, z: Tensor) -> Tensor:
        """D(z), (B, channels, *spatial), of latents z; those of codes are brought to the nearest codes first.

        Raises:
            TypeError, ValueError: not (B, latent_channels, *latent).
        """
        self._check_latents(z)
        return self.decoder(self.bottleneck.settled(z.to(self.norm.weight.dtype))).to(z.dtype)

    def log_likelihood(self, x: Tensor, decoded: Tensor) -> Tensor:
        """log p(x | z) in nats, (B,), for ``decoded`` = D(z): differentiable in both and in the scale.

        Raises:
            ValueError: of two shapes.
        """
        checks.same_shape(checks.state(x), checks.state(decoded, name="decoded"), names="x and decoded")
        wide = torch.promote_types(torch.promote_types(x.dtype, decoded.dtype), torch.float32)
        return self.errors.log_prob(x.to(wide) - decoded.to(wide), self.log_scale)

    def forward(self, x: Tensor, eps: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """In training: D of drawn latents, the penalty (B,), and what the bottleneck was given.

        Args:
            x: (B, channels, *spatial).
            eps: N(0, I), (B, latent_channels, *latent); codes draw nothing.

        Raises:
            TypeError, ValueError: as :meth:`encode`; an eps of another shape.
        """
        h = self._features(x)
        expected = (len(h), self.latent_channels, *h.shape[2:])
        if tuple(checks.state(eps, name="eps").shape) != expected:  # fewer would be shared
            raise ValueError(f"eps must be {expected}, a number for each of the latents, got {tuple(eps.shape)}.")
        z, penalty = self.bottleneck.drawn(h, eps)
        return self.decoder(z).to(x.dtype), penalty, h

    def describe_latents(self, mean: Sequence[float] | Tensor | None, std: Sequence[float] | Tensor | None) -> None:
        """Note the mean and the spread of each latent channel over the data, as float64 in ``config``.

        Raises:
            TypeError, ValueError: not a finite number for each channel, or a spread that is not positive.
        """
        found = {}
        for name, value in (("latents_mean", mean), ("latents_std", std)):
            given = value.tolist() if isinstance(value, Tensor) else value
            numbers = checks.numbers(given, name=name, what=f"{self.latent_channels} numbers, one for each channel")
            if len(numbers) != self.latent_channels or not all(map(math.isfinite, numbers)):
                raise ValueError(
                    f"{name} must be {self.latent_channels} finite numbers, one for each latent channel, got "
                    f"{checks.got(value)}."
                )
            found[name] = list(numbers)
        if min(found["latents_std"]) <= 0:
            raise ValueError(f"latents_std must be positive, got {found['latents_std']}: a channel that is constant.")
        self._config.update(found)

    def check_x(self, x: Tensor) -> None:
        """Raise unless x is (B, channels, *spatial) with sizes that come back."""
        check_event(x, self.channels, self.event_dims)
        self._check_sizes(tuple(x.shape), "x has shape")

    def _check_sizes(self, shape: Sequence[int], what: str) -> None:
        if any(size % self.factor or not size for size in shape[2:]):
            raise ValueError(
                f"{what} {tuple(shape)}, and this autoencoder halves spatial sizes {len(self.widths) - 1} times: each "
                f"must be a multiple of {self.factor}. Pad x, or give fewer multipliers."
            )

    def _features(self, x: Tensor) -> Tensor:
        self.check_x(x)
        dtype = self.norm.weight.dtype
        h, _ = self.encoder(in_fast_format(x.to(dtype)), x.new_zeros(len(x), 0, dtype=dtype))
        return self.to_latents(group_normed(self.norm, h, silu=True))

    def _check_latents(self, z: Tensor) -> None:
        checks.state(z, name="z")
        if z.ndim != self.event_dims + 2 or z.shape[1] != self.latent_channels:
            axes = ["L", "H, W", "D, H, W"][self.event_dims - 1]
            raise ValueError(
                f"z must be latents (B, {self.latent_channels}, {axes}), got shape {tuple(z.shape)}: encode(x) makes "
                "them, and latent_shape tells their shape."
            )


def _described(given: Any, kinds: tuple[type[Any], ...], name: str) -> Any:
    """One of these descriptions, given as such or by all its fields, which no two of them share."""
    if isinstance(given, kinds):
        return given
    names = [[field.name for field in fields(kind)] for kind in kinds]
    if isinstance(given, Mapping):
        for kind, own in zip(kinds, names, strict=True):
            if set(given) == set(own):
                return kind(**given)
        words = " or ".join(", ".join(own) for own in names)
        raise ValueError(f"{name} must have the fields {words}, got {checks.got(given)}.")
    words = " or a ".join(kind.__name__ for kind in kinds)
    raise TypeError(f"{name} must be a {words}, got {checks.got(given)}.")
