"""Encoded images, all of one size and one mode, into a uint8 tensor; folders of them into data sets.

:func:`load_folder` is the reader that :func:`~scoresde.data.load` uses for a folder: sub-folders are classes, in the
order of their names. :func:`read_images` decodes files or bytes, for any reader::

    dataset = load_folder("pictures", mode="RGB")
    images = read_images([("a.png", Path("a.png")), ("row 1", encoded)], count=2, mode="L")      # uint8 (2, 1, H, W)

Images are never resized: mixed sizes, and mixed modes without ``mode``, are refused with the names of two that differ.
Decoding needs Pillow, of the extra ``train``.
"""

from __future__ import annotations

import io
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from scoresde.data.dataset import Dataset, from_tensors
from scoresde.data.readers import FOLDER, existing, reads
from scoresde.extras import needs
from scoresde.files import PathName

Mode = Literal["L", "RGB"]

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"})

# What Pillow turns into grey or RGB without changing the range of the values.
_CONVERTIBLE = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr")


def read_images(sources: Iterable[tuple[str, Path | bytes]], count: int, mode: Mode | None) -> Tensor:
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


@reads(FOLDER)
def load_folder(path: PathName, *, mode: Mode | None = None) -> Dataset:
    """A folder of images of one size: sub-folders are classes, sorted by name; without them, no labels.

    Args:
        path: the folder. Hidden files and folders, and files whose ending is not an image's, are passed over.
        mode: "L" (grey) or "RGB" converts all images; by default all must be the same of the two.

    Raises:
        FileNotFoundError: no such folder.
        ValueError: no images, an empty class, images beside class folders, an unreadable image, mixed sizes or
            modes.
    """
    path = existing(path)
    if not path.is_dir():
        raise ValueError(f"{path} is a file; expected a folder of images.")
    inside = sorted(p for p in path.iterdir() if not p.name.startswith("."))
    folders = [p for p in inside if p.is_dir()]
    top = [p for p in inside if _is_image(p)]
    if not folders:
        if not top:
            parquet = [p.name for p in inside if p.suffix.lower() == ".parquet"]
            hint = f" It holds Parquet files ({', '.join(parquet[:5])}): pass one of them." if parquet else ""
            raise ValueError(f"{path} holds no images (looked for {', '.join(sorted(SUFFIXES))}).{hint}")
        return from_tensors(read_images(((str(p), p) for p in top), len(top), mode))
    if top:
        raise ValueError(
            f"{path} holds images ({top[0].name}, ...) beside folders ({folders[0].name}, ...). "
            "Put every image into the folder of its class, or all into one folder without sub-folders."
        )
    files: list[Path] = []
    label: list[int] = []
    for i, folder in enumerate(folders):
        members = sorted(p for p in folder.rglob("*") if _is_image(p) and not _hidden(p.relative_to(folder)))
        if not members:
            raise ValueError(f"the class folder {folder} holds no images; remove it or fill it.")
        files += members
        label += [i] * len(members)
    images = read_images(((str(p), p) for p in files), len(files), mode)
    return from_tensors(images, torch.tensor(label), class_names=[p.name for p in folders])


def _hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES and path.is_file()
