"""What the scripts have in common on the command line: data to read, and how errors are told."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
import tyro

from scoresde.data import Dataset, load, reader_of

Config = TypeVar("Config")


def command(main: Callable[[Config], object], config: type[Config]) -> None:
    """Run ``main`` on the command line's ``config``. Bad input ends in its message alone, with exit code 1."""
    try:
        main(tyro.cli(config, description=inspect.getdoc(inspect.getmodule(main))))
    except (ValueError, TypeError, OSError, ModuleNotFoundError, FloatingPointError) as error:
        told = str(error).replace("Pass resume=True", "Add --resume")  # the library's words are Python's
        raise SystemExit(f"error: {told}") from error


def use_threads(threads: int) -> None:
    """Torch's threads; 0 leaves its default.

    Raises:
        ValueError: fewer than none.
    """
    if threads < 0:
        raise ValueError(f"--threads must be at least 0 (0: torch's default), got {threads}.")
    if threads:
        torch.set_num_threads(threads)


@dataclass(kw_only=True)
class DataFlags:
    """Where the data are, and how they are read."""

    data: Path
    """Folder of images (sub-folders are classes), Parquet of images, or .npy/.npz: (N, C, ...), or vectors (N, d)."""
    label: Path | None = None
    """An .npy file of integer labels (N,), for data in an .npy file; all other kinds bring their own."""
    channels: Literal["first", "last", "none"] | None = None
    """Channel axis of .npy/.npz: first (N, C, ...), last (N, ..., C), or none: (N, L) signals; first unless told."""
    mode: Literal["L", "RGB"] | None = None
    """Convert images of a folder or Parquet file to grey (L) or RGB; as they are unless told."""
    image_column: str | None = None
    """The column of a Parquet file that holds the images; image or img unless told."""
    label_column: str | None = None
    """The column of a Parquet file that holds the labels; label, labels or y unless told."""

    def load(self, **options: Any) -> Dataset:
        """The data; ``options`` that are not None go to their reader beside the flags.

        Raises:
            FileNotFoundError, TypeError, ValueError: see ``scoresde.data.load``; a flag of another kind of data.
        """
        flags = ("label", "channels", "mode", "image_column", "label_column")
        given = {name: value for name in flags if (value := getattr(self, name)) is not None}
        given.update({name: value for name, value in options.items() if value is not None})
        reader = reader_of(self.data)
        wrong = [name for name in given if name not in inspect.signature(reader).parameters]
        if wrong:
            raise ValueError(
                f"--{wrong[0].replace('_', '-')} says nothing about {self.data}, which is read by {reader.__name__}; "
                "leave it out."
            )
        return load(self.data, **given)
