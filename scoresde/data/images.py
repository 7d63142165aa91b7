"""Encoded images, all of one size and one mode, into a uint8 tensor.

:func:`read_images` decodes files or bytes, for any reader::

    read = read_images([("a.png", Path("a.png")), ("row 1", encoded)], count=2, mode="L")
    read.images, read.skipped                           # uint8 (2, 1, H, W); what could not be read

PNG, JPEG, WebP, BMP, GIF, TIFF and PPM are read, told apart by their content, whatever a file is called: no format that
starts a program or reads another file is ever tried. Images are never resized: mixed sizes, and mixed modes without
``mode``, are refused with the names of two that differ. Decoding needs Pillow, of the extra ``train``.
"""

from __future__ import annotations

import io
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from scoresde import checks
from scoresde.data.foreign import MOST_ENCODED, Unreadable, content
from scoresde.data.pixels import PixelRows
from scoresde.data.source import NAMED
from scoresde.extras import needs
from scoresde.warning import warn_user

Mode = Literal["L", "RGB"]
Frames = Literal["first"]

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
"""What is opened, in Pillow's names. PostScript (a program of its own), and all else that Pillow knows, is not."""
MOST_PIXELS = 2**26
"""Pixels of an image at most, 8192 x 8192: a file of a few bytes can tell of any number."""

# What Pillow turns into grey or RGB without changing the range of the values.
_CONVERTIBLE = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr")


@dataclass(frozen=True)
class Images:
    """What :func:`read_images` read.

    Attributes:
        images: uint8 (N, C, H, W).
        kept: the places of these among the sources.
        skipped: the others, as pairs of a name and a reason.
    """

    images: Tensor
    kept: list[int]
    skipped: tuple[tuple[str, str], ...]


def read_images(
    sources: Iterable[tuple[str, Path | bytes | Unreadable]],
    count: int,
    mode: Mode | None,
    *,
    frames: Frames | None = None,
    skip_bad: bool = False,
    into: Path | None = None,
) -> Images:
    """Images as uint8 (N, C, H, W), C = 1 for grey and 3 for RGB, turned as their EXIF orientation says.

    Args:
        sources: ``count`` pairs of a name for messages and a file, the encoded bytes, or why there are none.
        count: the number of images.
        mode: convert all to "L" or "RGB" (transparency is dropped); None takes them as they are.
        frames: "first" takes the first of the frames, pages or pictures that a file holds; None refuses such files.
        skip_bad: leave unreadable images out, and tell which.
        into: a new ``.npy`` file to decode into, which is then mapped into memory; memory itself unless given.

    Raises:
        ValueError: unreadable images, another size or mode than the first's, a mode other than L or RGB, more than fits
            into memory.
    """
    with needs("train"):
        from PIL import ImageFile
    if mode is not None:
        checks.one_of(mode, ("L", "RGB"), name="mode")
    if frames is not None:
        checks.one_of(frames, ("first",), name="frames")
    skip_bad = checks.flag(skip_bad, name="skip_bad")
    if ImageFile.LOAD_TRUNCATED_IMAGES:
        warn_user(
            "PIL.ImageFile.LOAD_TRUNCATED_IMAGES is set: images that are cut short are filled up with grey, and cannot "
            "be noticed here."
        )
    images: PixelRows | None = None
    shape: tuple[int, int, int, int] = (0, 0, 0, 0)
    first, first_mode = "", ""
    kept: list[int] = []
    bad: list[tuple[str, str]] = []
    for i, (name, source) in enumerate(sources):
        try:
            image = _decoded(source, frames)
        except Unreadable as error:
            bad.append((name, str(error)))
            if not skip_bad and len(bad) == NAMED:
                break
            continue
        image = _in_mode(image, mode, name)
        if images is None:
            first, first_mode = name, image.mode
            shape = (count, len(image.getbands()), image.height, image.width)
            images = PixelRows(shape, into)
        if image.mode != first_mode:
            raise ValueError(
                f"images of mixed modes: {first} is {first_mode}, {name} is {image.mode}. "
                "Pass mode='RGB' or mode='L' to convert all."
            )
        if (image.height, image.width) != shape[2:]:
            raise ValueError(
                f"images of mixed sizes: {first} is {shape[3]}x{shape[2]}, {name} is "
                f"{image.width}x{image.height} (width x height). Crop or resize them to one size first."
            )
        pixels = torch.from_numpy(np.array(image))
        images.add(pixels[None] if pixels.ndim == 2 else pixels.movedim(-1, 0))
        kept.append(i)
    if bad and (not skip_bad or images is None):
        raise ValueError(_told(bad, nothing=skip_bad))
    assert images is not None
    return Images(images.end(), kept, tuple(bad))


def _decoded(source: Path | bytes | Unreadable, frames: Frames | None) -> Any:
    """The picture, a PIL.Image.

    Raises:
        Unreadable: not one of ``FORMATS``, damaged, too large, several frames, more than 8 bits.
    """
    from PIL import Image, ImageOps, UnidentifiedImageError

    if isinstance(source, Unreadable):
        raise source
    encoded = source if isinstance(source, bytes) else content(source, most=MOST_ENCODED)
    if not encoded:
        raise Unreadable("it is empty")
    try:
        with Image.open(io.BytesIO(encoded), formats=FORMATS) as opened:
            _check_header(opened, frames)
            opened.load()
            ImageOps.exif_transpose(opened, in_place=True)  # a camera's note of which way is up
            return opened
    except Unreadable:
        raise
    except UnidentifiedImageError as error:
        raise Unreadable(f"its content is none of {', '.join(FORMATS)}, or its header is damaged") from error
    except Exception as error:  # a damaged file can fail anywhere in a decoder, and by any exception
        raise Unreadable(f"{error}" or type(error).__name__) from error


def _check_header(opened: Any, frames: Frames | None) -> None:
    width, height = opened.size
    if width * height > MOST_PIXELS:
        raise Unreadable(f"it tells of {width}x{height} pixels; at most {MOST_PIXELS} are read")
    if frames is None and getattr(opened, "is_animated", False):
        raise Unreadable(f"it holds {opened.n_frames} frames; pass frames='first' to take the first of each file")
    deep = opened.format == "PPM" and any(isinstance(x, int) and x > 255 for tile in opened.tile for x in _args(tile))
    if opened.mode not in ("I", "I;16", "F") and (deep or any(";16" in str(tile[3]) for tile in opened.tile)):
        raise Unreadable(
            "it holds 16 bits per channel, of which 8 would be cut off; convert it, or load numbers as .npy"
        )


def _args(tile: Any) -> tuple[Any, ...]:
    return tile[3] if isinstance(tile[3], tuple) else (tile[3],)


def _in_mode(image: Any, mode: Mode | None, name: str) -> Any:
    if mode is not None and image.mode != mode:
        if image.mode not in _CONVERTIBLE:
            raise ValueError(
                f"{name} has mode {image.mode} and cannot become {mode} without losing its range; load "
                "the numbers as .npy instead."
            )
        return image.convert(mode)
    if image.mode not in ("L", "RGB"):
        if image.mode not in _CONVERTIBLE:
            raise ValueError(f"{name} has mode {image.mode}, of more than 8 bits; load the numbers as .npy instead.")
        raise ValueError(
            f"{name} has mode {image.mode}; expected L (grey) or RGB. Pass mode='RGB' or mode='L' to convert all."
        )
    return image


def _told(bad: list[tuple[str, str]], *, nothing: bool) -> str:
    parts = [f"cannot read the image {name}: {reason}" for name, reason in bad[:NAMED]]
    more = ["..."] if len(bad) >= NAMED else []
    end = (
        "No image can be read." if nothing else "Remove or replace it, or pass skip_bad=True to leave such images out."
    )
    return ".\n".join([*parts, *more]) + f". {end}"
