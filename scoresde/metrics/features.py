"""Feature spaces: from samples (n, *event) to rows (n, d) that measures compare.

    features = PixelFeatures()                              # samples as they are, flattened
    features = ModuleFeatures(resnet, "resnet18", size=224, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
    features = train_features(dataset)                      # a small network of the library's own, in minutes
    a, b = features(samples), features(data)                # (n, d) float64
    features.name, features.fingerprint                     # beside each figure: those of other spaces do not compare

Figures of one space say nothing of those of another: a fingerprint, a hash of weights and preprocessing, tells spaces
apart that have one name.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from scoresde import checks


class Features(ABC):
    """A map from samples to vectors. A space of one's own has a name, a fingerprint and ``compute``."""

    @property
    @abstractmethod
    def name(self) -> str:
        """What reports call it."""

    @property
    @abstractmethod
    def fingerprint(self) -> str:
        """Twelve hexadecimal digits of a hash of all that the features depend on."""

    @abstractmethod
    def compute(self, x: Tensor) -> Tensor:
        """Features (B, d) of a batch (B, *event), of any floating dtype and device."""

    def __call__(self, x: Tensor, *, batch_size: int = 256) -> Tensor:
        """Features (n, d), float64 on the device of x (on the CPU where that has no float64), batch by batch.

        Args:
            x: samples (n, *event) in model units.
            batch_size: samples that go through at a time.

        Raises:
            TypeError, ValueError: no finite samples, or features that are not (B, d) floating and finite.
        """
        checks.state(x, name="x", values=True)
        size = checks.count(batch_size, name="batch_size")
        if not len(x):
            raise ValueError(f"x must hold samples, or there are no features; got {checks.got(x)}.")
        with torch.no_grad():
            return torch.cat([self._checked(self.compute(rows), rows) for rows in x.split(size)])

    def _checked(self, found: object, rows: Tensor) -> Tensor:
        if not isinstance(found, Tensor) or found.ndim != 2 or len(found) != len(rows) or not found.is_floating_point():
            raise ValueError(
                f"features {self.name} must be floating (B, d), here ({len(rows)}, d); got {checks.got(found)}. A map "
                "(B, d, H, W) becomes one by .flatten(1), or by its mean over H and W; a classifier without its head: "
                "model.fc = torch.nn.Identity()."
            )
        if not bool(found.isfinite().all()):
            raise ValueError(f"features {self.name} must be finite; got NaN or infinity for {checks.got(rows)}.")
        wide = checks.brought(found, torch.float64)
        return wide.to(rows.device) if checks.has_float64(rows.device) else wide

    def __str__(self) -> str:
        return f"{self.name} ({self.fingerprint})"


class PixelFeatures(Features):
    """The samples themselves, flattened, in the units of the model."""

    @property
    def name(self) -> str:
        return "pixels"

    @property
    def fingerprint(self) -> str:
        return fingerprint_of("pixels", ())

    def compute(self, x: Tensor) -> Tensor:
        return x.reshape(len(x), -1)


class ModuleFeatures(Features):
    """Features of any module or function from images to (B, d), with the preprocessing that it was trained with.

    x is brought from ``range`` to [0, 1], from one channel to three where ``channels`` says so, to ``size``, and then
    (x - mean)/std. A module of torchvision: ``size=224`` (299 for Inception), ImageNet's mean and std, its head
    replaced by ``nn.Identity()``; of timm: ``timm.create_model(name, pretrained=True, num_classes=0)`` with mean, std
    and size of ``timm.data.resolve_model_data_config(model)``.

    Args:
        module: a module in evaluation mode, or a function, from (B, C, H, W) to (B, d).
        name: what reports call the space.
        size: height and width of the images it takes, one number for both; as they are unless told. Bilinear, with
            antialiasing where it shrinks.
        channels: of the images it takes: 3 repeats one channel of grey.
        range: the values that black and white have in x: (-1, 1) in model units.
        mean: of each channel, in [0, 1], taken off.
        std: of each channel, divided by.

    Raises:
        TypeError, ValueError: an argument of another kind; a module in training mode, whose features would depend on
            the batch or on chance.
    """

    def __init__(
        self,
        module: Callable[[Tensor], Tensor],
        name: str,
        *,
        size: int | tuple[int, int] | None = None,
        channels: int | None = None,
        range: tuple[float, float] = (-1.0, 1.0),
        mean: Iterable[float] | None = None,
        std: Iterable[float] | None = None,
    ) -> None:
        checks.function(module, name="module", what="from images (B, C, H, W) to features (B, d)")
        if not isinstance(name, str) or not name:
            raise TypeError(f"name must be a text that tells the feature space, got {checks.got(name)}.")
        if isinstance(module, nn.Module) and any(part.training for part in module.modules()):
            raise ValueError(
                f"module must be in evaluation mode, got a {type(module).__name__} in training: call .eval() first, or "
                "its features depend on the batch (batch normalisation) and on chance (dropout)."
            )
        self._module, self._name = module, name
        self._size = None if size is None else _size(size)
        self._channels = None if channels is None else checks.count(channels, name="channels")
        low, high = _two(range, "range")
        if not low < high:
            raise ValueError(f"range must be (black, white), the lower first, got {range}.")
        self._range = low, high
        self._mean = None if mean is None else checks.numbers(mean, name="mean")
        self._std = None if std is None else checks.numbers(std, name="std")
        if self._std is not None and min(self._std, default=0.0) <= 0:
            raise ValueError(f"std must be positive numbers, one for each channel, got {self._std}.")
        self._device, self._dtype = torch.device("cpu"), torch.float32
        for value in module.parameters() if isinstance(module, nn.Module) else ():
            if value.is_floating_point():
                self._device, self._dtype = value.device, value.dtype
                break

    @property
    def name(self) -> str:
        return self._name

    @property
    def fingerprint(self) -> str:
        """Of the weights and buffers, the class, and the preprocessing; of a function, of its name."""
        module = self._module
        kind = module if not isinstance(module, nn.Module) else type(module)
        label = f"{getattr(kind, '__module__', '')}.{getattr(kind, '__qualname__', type(kind).__name__)}"
        told = (label, self._size, self._channels, self._range, self._mean, self._std)
        return fingerprint_of(repr(told), module.state_dict().items() if isinstance(module, nn.Module) else ())

    def compute(self, x: Tensor) -> Tensor:
        if x.ndim != 4:
            raise ValueError(f"x must be images (B, C, H, W) for the features {self.name}, got {checks.got(x)}.")
        low, high = self._range
        wide = torch.promote_types(self._dtype, torch.float32)
        images = (checks.sent(x, self._device).to(wide) - low) / (high - low)
        if self._channels is not None and images.shape[1] != self._channels:
            if images.shape[1] != 1:
                raise ValueError(f"x must have 1 or {self._channels} channels, got {images.shape[1]}.")
            images = images.expand(-1, self._channels, -1, -1)
        if self._size is not None and tuple(images.shape[2:]) != self._size:
            images = F.interpolate(images, self._size, mode="bilinear", align_corners=False, antialias=True)
        images = self._each(images, self._mean, "mean", torch.sub)
        images = self._each(images, self._std, "std", torch.div)
        return self._module(images.to(self._dtype))

    def _each(self, images: Tensor, values: tuple[float, ...] | None, name: str, apply: Any) -> Tensor:
        if values is None:
            return images
        if len(values) not in (1, images.shape[1]):
            raise ValueError(f"{name} must hold one number for each of {images.shape[1]} channels, got {len(values)}.")
        return apply(images, images.new_tensor(values)[:, None, None])


def fingerprint_of(told: str, tensors: Iterable[tuple[str, Tensor]]) -> str:
    """Twelve hexadecimal digits of the SHA-256 of a description and of tensors, with names, shapes and dtypes."""
    digest = hashlib.sha256(told.encode())
    for name, value in tensors:
        plain = value.detach().cpu().contiguous()
        digest.update(f"{name} {tuple(plain.shape)} {plain.dtype}".encode())
        digest.update(plain.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:12]


def _size(size: Any) -> tuple[int, int]:
    if isinstance(size, (tuple, list)):
        if len(size) != 2:
            raise ValueError(f"size must be one number, or height and width, got {checks.got(size)}.")
        return checks.count(size[0], name="size"), checks.count(size[1], name="size")
    one = checks.count(size, name="size")
    return one, one


def _two(values: Any, name: str) -> tuple[float, float]:
    found = checks.numbers(values, name=name, what="two numbers")
    if len(found) != 2:
        raise ValueError(f"{name} must be two numbers, got {checks.got(values)}.")
    return found[0], found[1]
