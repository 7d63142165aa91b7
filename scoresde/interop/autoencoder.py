r"""An autoencoder as a map between pictures and the latents of a diffusion model::

    coding = Autoencoding(autoencoder)                  # factors from its config, as diffusers keeps them
    z = coding.encode(x)                                # the mean; encode(x, noise=0) draws
    x = coding.decode(z)
    coding.latent_shape((16, 3, 64, 64))                # (16, 4, 8, 8)

:class:`~scoresde.interop.Latent` joins it with a model of the latents. It is also what latents to train on are made by.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from scoresde import checks
from scoresde.models import Units, evaluating
from scoresde.models.modules import parameters_of
from scoresde.noise import Noise, as_noise
from scoresde.noise.base import Shape

Factor = float | Tensor
"""One number for all latents, or one for each channel (C,)."""


@dataclass(frozen=True, eq=False)
class Autoencoding:
    r"""encode and decode of an autoencoder, between data x and the latents z that a model is trained on::

        z = scaling_factor (E(x) - shift_factor)        x = D(z / scaling_factor + shift_factor)

    The factors are those of the config of diffusers' ``AutoencoderKL`` and its relatives, where they are not given:
    ``scaling_factor`` and ``shift_factor``, or ``latents_mean`` as the shift and ``scaling_factor / latents_std`` as
    the scale, per channel.

    The autoencoder runs in evaluation mode and in the dtype of its weights, to which values are brought, and back
    again; where it is in float16 and its config says ``force_upcast``, in float32. Nothing of it is changed. Gradients
    flow through both ways to whatever requires one, but not to its weights alone: without one, no graph is kept.

    It is the :attr:`~scoresde.models.Score.scaling` of a :class:`Latent`, so that ``Solution.data`` are decoded.

    Args:
        autoencoder: an object with ``encode`` and ``decode``, such as a module of diffusers. encode answers a tensor,
            or something that has one as ``latents`` or ``latent``, or a distribution as ``latent_dist`` or itself, with
            ``mean`` and ``std`` or ``stddev``; decode a tensor, or something that has one as ``sample``. Of a tuple the
            first is meant.
        scaling_factor: as above, not 0; a number or (C,).
        shift_factor: as above; a number or (C,).
        chunk: how many samples go through it at once; None for all.
        units: a further map between the latents as above and those of the model, for a model that was trained on
            standardised ones.

    Raises:
        TypeError: no encode or decode, or factors that are no numbers.
        ValueError: no factor is known, or two that contradict each other.
    """

    autoencoder: Any
    scaling_factor: Factor | None = None
    shift_factor: Factor | None = None
    chunk: int | None = None
    units: Units | None = None
    _shapes: dict[tuple[str, Shape], Shape] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        for name in ("encode", "decode"):
            if isinstance(self.autoencoder, type) or not callable(getattr(self.autoencoder, name, None)):
                raise TypeError(
                    f"autoencoder must be a module with encode(x) and decode(z), such as diffusers' AutoencoderKL; got "
                    f"{checks.got(self.autoencoder)}, without {name}."
                )
        told = _Told(self.autoencoder)
        scale = told.scale() if self.scaling_factor is None else _factor(self.scaling_factor, "scaling_factor")
        if scale is None:
            ours = " Measure it by standardise_latents(autoencoder, dataset), or write" if told.measured() else " Write"
            raise ValueError(
                f"scaling_factor must be given: {type(self.autoencoder).__name__} has no config that tells it.{ours} "
                "scaling_factor=1.0 where the model was trained on what encode answers."
            )
        if not bool((scale != 0).all()):
            raise ValueError(f"scaling_factor must not be 0, got {checks.got(self.scaling_factor)}.")
        shift = told.shift() if self.shift_factor is None else _factor(self.shift_factor, "shift_factor")
        object.__setattr__(self, "scaling_factor", scale)
        object.__setattr__(self, "shift_factor", shift)
        if self.chunk is not None:
            object.__setattr__(self, "chunk", checks.count(self.chunk, name="chunk"))

    # -- both ways ---------------------------------------------------------------------------------------------

    def encode(self, x: Tensor, noise: Noise | torch.Generator | int | None = None) -> Tensor:
        """The latents of x (B, *event), (B, *latent), in x's dtype.

        Args:
            x: in the units that the autoencoder takes; diffusers' take pictures in [-1, 1].
            noise: for a draw from its posterior, a seed or a source of normals (stream "encode"); None takes the mean.

        Raises:
            TypeError, ValueError: no floating x, sizes that do not come back from decode, or noise for an autoencoder
                that has no posterior.
        """
        checks.state(x, values=True)
        self._comes_back(tuple(x.shape))
        if noise is None:
            return self.to_units(self._in_chunks("encode", x, _mean))
        # one draw for the whole batch, whatever the chunks: sample i depends on (seed, i) alone
        mean, std = self.posterior(x)
        return self.to_units(mean + std * as_noise(noise, "encode").normal(mean))

    def posterior(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and deviation of what the autoencoder itself makes of x, before factors and units, (B, *latent) each.

        Its ``posterior(x)`` says so, where it has that method, as :class:`~scoresde.nn.Autoencoder` has; else what
        ``encode`` answers.

        Raises:
            TypeError, ValueError: as :meth:`encode`.
        """
        self._comes_back(tuple(checks.state(x, values=True).shape))
        method = "posterior" if callable(getattr(self.autoencoder, "posterior", None)) else "encode"
        mean, std = self._in_chunks(method, x, _mean_and_std).unbind(1)
        return mean, std

    def log_det(self, latents: Shape) -> float:
        """log |det| of the map from the autoencoder's own latents to the model's, for one sample (*latent): what a
        density of the former has beyond one of the latter, in nats.

        Raises:
            TypeError: the model's units do not tell theirs (``log_det``).
        """
        latents = checks.shape(latents, what="(*latent)", name="latents")
        scale = torch.as_tensor(self.scaling_factor, dtype=torch.float64)
        each = float(scale.abs().log().mean())  # of channels, which have as many positions each
        own = each * math.prod(latents)
        if self.units is None:
            return own
        told = getattr(self.units, "log_det", None)
        if not callable(told):
            raise TypeError(f"the model's scaling must tell its log_det, as a Scaling does; got {self.units!r}.")
        return own - float(told(latents))

    def decode(self, z: Tensor) -> Tensor:
        """The data of latents z (B, *latent), (B, *event), in z's dtype."""
        self._shape("decode", tuple(checks.state(z, name="z").shape))
        return self._in_chunks("decode", self._from_model(z), _decoded)

    def to_model(self, data: Tensor, /) -> Tensor:
        """:meth:`encode`, the mean."""
        return self.encode(data)

    def to_data(self, x: Tensor, /) -> Tensor:
        """:meth:`decode`."""
        return self.decode(x)

    # -- sizes -------------------------------------------------------------------------------------------------

    def latent_shape(self, shape: Shape) -> Shape:
        """That of the latents (B, *latent) of data ``shape`` (B, *event), found without computing where that can be.

        Raises:
            ValueError: decode answers other sizes than those.
        """
        return self._comes_back(checks.shape(shape))

    def data_shape(self, shape: Shape) -> Shape:
        """That of the data (B, *event) of latents ``shape`` (B, *latent)."""
        return self._shape("decode", checks.shape(shape))

    def _comes_back(self, shape: Shape) -> Shape:
        latents = self._shape("encode", shape)
        back = self._shape("decode", latents)
        if back != shape:
            raise ValueError(
                f"x, of shape {shape}, would come back from its latents {latents} as {back}: give sizes that the "
                f"autoencoder keeps, such as {back}."
            )
        return latents

    def _shape(self, method: str, shape: Shape) -> Shape:
        """Of the answer to ``shape``, from one sample without values; with zeros where it must be computed."""
        key = (method, shape[1:])
        if key not in self._shapes:
            read = _decoded if method == "decode" else _mean
            with torch.no_grad(), evaluating(self.autoencoder):
                try:
                    answer = read(self._called(method, torch.empty(1, *shape[1:], device="meta")))
                except Exception:  # not every module can; what is wrong with the shape is said below
                    answer = self._tried(method, (1, *shape[1:]), read)
            self._shapes[key] = tuple(answer.shape[1:])
        return (shape[0], *self._shapes[key])

    def _tried(self, method: str, shape: Shape, read: Callable[[Any], Tensor]) -> Tensor:
        """The answer to zeros."""
        own = parameters_of(self.autoencoder)
        try:
            return read(self._called(method, torch.zeros(shape, device=own[0].device if own else None)))
        except (RuntimeError, ValueError, IndexError) as error:
            raise ValueError(
                f"the autoencoder cannot {method} samples of shape {shape[1:]}; give what it was made for. It said: "
                f"{error}"
            ) from error

    # -- how it is called --------------------------------------------------------------------------------------

    def _in_chunks(self, method: str, value: Tensor, read: Callable[[Any], Tensor]) -> Tensor:
        """What is read of the method's answers, in the dtype of ``value``."""
        if not len(value):
            shape = self._shape("decode" if method == "decode" else "encode", tuple(value.shape))
            empty = value.new_zeros(shape)
            return torch.stack([empty, empty], 1) if read is _mean_and_std else empty
        graph = torch.is_grad_enabled() and checks.followed(value)
        with torch.set_grad_enabled(graph), evaluating(self.autoencoder):
            parts = [read(self._called(method, part)).to(value.dtype) for part in value.split(self.chunk or len(value))]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _called(self, method: str, value: Tensor) -> Any:
        """What the method answers, in the dtype of the weights; without values where ``value`` has none."""
        module = self.autoencoder
        own = next((p.dtype for p in parameters_of(module) if p.is_floating_point()), value.dtype)
        wide = own == torch.float16 and bool(_Told(module).get("force_upcast"))
        dtype = torch.float32 if wide else own
        if not isinstance(module, nn.Module) or not (wide or value.is_meta):
            return getattr(module, method)(value.to(dtype))
        device = value.device

        def changed(tensor: Tensor) -> Tensor:
            kind = dtype if tensor.is_floating_point() else tensor.dtype
            return torch.empty_like(tensor, device=device, dtype=kind) if value.is_meta else tensor.to(kind)

        inner = _Called(module)
        tensors = {name: changed(v) for name, v in (*inner.named_parameters(), *inner.named_buffers())}
        return functional_call(inner, tensors, (method, value.to(dtype)))

    def to_units(self, z: Tensor) -> Tensor:
        """Latents (B, *latent) of the autoencoder itself in the units of the model."""
        scale, shift = (_spread(factor, z) for factor in (self.scaling_factor, self.shift_factor))
        latents = (z - shift) * scale
        return latents if self.units is None else self.units.to_model(latents).to(z.dtype)

    def _from_model(self, z: Tensor) -> Tensor:
        latents = z if self.units is None else self.units.to_data(z).to(z.dtype)
        scale, shift = (_spread(factor, z) for factor in (self.scaling_factor, self.shift_factor))
        return latents / scale + shift


class _Called(nn.Module):
    """A module whose forward is one of another's methods, for a call with other tensors in the place of its own."""

    def __init__(self, autoencoder: nn.Module) -> None:
        super().__init__()
        self.autoencoder = autoencoder

    def forward(self, method: str, value: Tensor) -> Any:
        return getattr(self.autoencoder, method)(value)


class _Told:
    """What an autoencoder says of itself, in its config or as attributes."""

    def __init__(self, autoencoder: object) -> None:
        self.autoencoder = autoencoder
        self.config = getattr(autoencoder, "config", None)

    def get(self, name: str) -> Any:
        """The value, None where it is not told."""
        if isinstance(self.config, Mapping):
            if name in self.config:
                return self.config[name]
        elif hasattr(self.config, name):
            return getattr(self.config, name)
        return getattr(self.autoencoder, name, None)

    def measured(self) -> bool:
        """Whether its config has a place for statistics of latents, as that of `scoresde.nn.Autoencoder`."""
        return isinstance(self.config, Mapping) and "latents_std" in self.config

    def scale(self) -> Tensor | None:
        """The scaling factor, over the deviations of the latents."""
        factor, deviation = self.get("scaling_factor"), self.get("latents_std")
        if factor is None and deviation is None:
            return None
        scale = _factor(1.0 if factor is None else factor, "scaling_factor")
        if deviation is None:
            return scale
        spread = _factor(deviation, "latents_std")
        if not bool((spread > 0).all()):
            raise ValueError(f"latents_std of the autoencoder must be positive, got {checks.got(deviation)}.")
        return scale / spread

    def shift(self) -> Tensor:
        """The shift factor, or the mean of the latents."""
        shift, mean = self.get("shift_factor"), self.get("latents_mean")
        if shift is not None and mean is not None:
            raise ValueError(
                "shift_factor must be given: the autoencoder tells a shift_factor and a latents_mean, "
                f"{checks.got(shift)} and {checks.got(mean)}, of which one is subtracted."
            )
        return _factor(next((v for v in (shift, mean) if v is not None), 0.0), "shift_factor")


def _factor(value: Any, name: str) -> Tensor:
    """float64 on the CPU, () or (C,), finite."""
    factor = checks.real(list(value) if isinstance(value, tuple) else value, name=name).detach()
    if factor.ndim > 1 or not factor.numel():
        raise ValueError(f"{name} must be a number or one for each channel (C,), got {checks.got(value)}.")
    factor = factor if factor.is_meta else factor.cpu()
    if factor.is_meta or not bool(factor.isfinite().all()):
        raise ValueError(f"{name} must be finite, got {checks.got(value)}.")
    return factor


def _spread(factor: Any, z: Tensor) -> Tensor:
    """A factor ready to meet z (B, C, ...)."""
    if not factor.ndim:
        return factor
    if z.ndim < 2 or len(factor) not in (1, z.shape[1]):
        raise ValueError(
            f"z must have {len(factor)} channels, (B, {len(factor)}, ...), as the autoencoder's factors have; got "
            f"{tuple(z.shape)}."
        )
    return checks.sent(factor, z.device, z.dtype).reshape(-1, *[1] * (z.ndim - 2))


def _first(answer: Any, *names: str) -> Any:
    """What an answer holds under the first of these names that it has; of a tuple its first."""
    if isinstance(answer, Tensor):
        return answer
    for name in names:
        if (found := getattr(answer, name, None)) is not None:
            return found
    return _first(answer[0], *names) if isinstance(answer, (tuple, list)) and len(answer) else answer


def _law(answer: Any) -> Any:
    """What encode answered, as latents or as a distribution of them."""
    return _first(answer, "latent_dist", "latents", "latent")


def _mean(answer: Any) -> Tensor:
    law = _law(answer)
    mean = law if isinstance(law, Tensor) else getattr(law, "mean", None)
    if not isinstance(mean, Tensor):
        raise TypeError(
            "encode of the autoencoder must answer a tensor, or a distribution with mean and std; it answered "
            f"{type(answer).__name__}."
        )
    return mean


def _mean_and_std(answer: Any) -> Tensor:
    """Both, (B, 2, *latent)."""
    mean, law = _mean(answer), _law(answer)
    if isinstance(law, Tensor):
        raise ValueError(
            "noise must be left out: this autoencoder's encode answers latents, not a distribution to draw from."
        )
    std = next((s for s in (getattr(law, name, None) for name in ("std", "stddev")) if isinstance(s, Tensor)), None)
    if std is None:
        raise ValueError(f"noise must be left out: {type(law).__name__}, which encode answered, has no std.")
    return torch.stack([mean, std], 1)


def _decoded(answer: Any) -> Tensor:
    found = _first(answer, "sample")
    if not isinstance(found, Tensor):
        raise TypeError(
            "decode of the autoencoder must answer a tensor, or something that has one as sample; it answered "
            f"{type(answer).__name__}."
        )
    return found
