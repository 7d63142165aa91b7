"""Encoded images into one uint8 tensor, all of one size and one mode."""

from __future__ import annotations

import io
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from scoresde.extras import needs

Mode = Literal["L", "RGB"]

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"})

# What Pillow turns into grey or RGB without changing the range of the values.
_CONVERTIBLE = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr")


def decode(sources: Iterable[tuple[str, Path | bytes]], count: int, mode: Mode | None) -> Tensor:
    """Images as uint8 (N, C, H, W), C = 1 for grey and 3 for RGB, turned as their EXIF orientation says.

    Args:
        sources: ``count`` pairs of a name for messages and a file or the encoded bytes.
        count: the number of images.
        mode: convert all to "L" or "RGB" (transparency is dropped); None takes them as they are.

    Raises:
        ValueError: an unreadable image, another size or mode than the first's, a mode other than L or RGB.
    """
    with needs("train"):
        from PIL import Image, ImageOps
    if mode not in (None, "L", "RGB"):
        raise ValueError(f"mode must be 'L' (grey), 'RGB' or None, got {mode!r}.")
    images: Tensor | None = None
    first, first_mode = "", ""
    for i, (name, source) in enumerate(sources):
        try:
            with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as opened:
                opened.load()
                ImageOps.exif_transpose(opened, in_place=True)  # a camera's note of which way is up
                image: Image.Image = opened
        # A damaged file can fail anywhere in a decoder: Pillow answers with any of these.
        except (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError) as error:
            raise ValueError(f"cannot read the image {name}: {error}. Remove or replace it.") from error
        if mode is not None and image.mode != mode:
            if image.mode not in _CONVERTIBLE:
                raise ValueError(
                    f"{name} has mode {image.mode} and cannot become {mode} without losing its range; load "
                    "the numbers as .npy instead."
                )
            image = image.convert(mode)
        elif image.mode not in ("L", "RGB"):
            raise ValueError(
                f"{name} has mode {image.mode}; expected L (grey) or RGB. Pass mode='RGB' or mode='L' to convert all."
            )
        if images is None:
            first, first_mode = name, image.mode
            images = torch.empty(count, len(image.getbands()), image.height, image.width, dtype=torch.uint8)
        if image.mode != first_mode:
            raise ValueError(
                f"images of mixed modes: {first} is {first_mode}, {name} is {image.mode}. "
                "Pass mode='RGB' or mode='L' to convert all."
            )
        if (image.height, image.width) != tuple(images.shape[2:]):
            raise ValueError(
                f"images of mixed sizes: {first} is {images.shape[3]}x{images.shape[2]}, {name} is "
                f"{image.width}x{image.height} (width x height). Crop or resize them to one size first."
            )
        pixels = torch.from_numpy(np.array(image))
        images[i] = pixels[None] if pixels.ndim == 2 else pixels.movedim(-1, 0)
    assert images is not None
    return images
