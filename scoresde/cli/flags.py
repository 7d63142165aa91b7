"""Flags that several commands have, as fields of classes; a command inherits those it takes.

    @dataclass(frozen=True, kw_only=True)
    class Config(MachineFlags):
        steps: int = 100
        \"""Its help.\"""

    command(main, Config)                     # scoresde.cli.command

Each is frozen: what a run was asked for does not change while it runs, and is written beside it.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import torch

from scoresde.cli.choices import SDEName
from scoresde.data import Dataset, load, reader_of
from scoresde.extras import needs
from scoresde.files import make_writable

with needs("cli"):
    from tyro.conf import UseAppendAction


if TYPE_CHECKING:
    Repeated = tuple[str, ...]
else:
    Repeated = Annotated[tuple[str, ...], UseAppendAction]
"""A flag that is given once for each of its values."""


def use_threads(threads: int) -> None:
    """Torch's threads; 0 leaves its default.

    Raises:
        ValueError: fewer than none.
    """
    if threads < 0:
        raise ValueError(f"--threads must be at least 0 (0: torch's default), got {threads}.")
    if threads:
        torch.set_num_threads(threads)


def as_flag(name: str) -> str:
    """A field as it is written on the command line: sde_steps as --sde-steps."""
    return f"--{name.replace('_', '-')}"


def at_least(config: object, **least: int) -> None:
    """Raises ValueError for a field of ``config`` below its least value; None is left out."""
    for name, value in least.items():
        given = getattr(config, name)
        if given is not None and given < value:
            raise ValueError(f"{as_flag(name)} must be at least {value}, got {given}.")


@dataclass(frozen=True, kw_only=True)
class ScriptFlags:
    """What every command takes."""

    threads: int = 0
    """Threads of torch; 0 leaves its default."""

    def check(self) -> None:
        """Raises ValueError for flags that make no sense, alone or together, before any work is done."""

    def ready(self) -> None:
        """Check the flags and set the threads.

        Raises:
            ValueError: a bad flag.
        """
        self.check()
        use_threads(self.threads)

    def begin(self, out: Path) -> Path:
        """The same, and make the folder ``out``.

        Raises:
            ValueError: a bad flag, or a folder that cannot be written.
        """
        self.ready()
        return make_writable(out)


@dataclass(frozen=True, kw_only=True)
class MachineFlags(ScriptFlags):
    """What every command takes that can use a GPU."""

    cpu: bool = False
    """Stay on the CPU although there is a GPU."""


@dataclass(frozen=True, kw_only=True)
class CheckpointFlags(MachineFlags):
    """What opens a checkpoint."""

    checkpoint: str
    """A run's folder, its checkpoints folder or one of the steps there, a saved folder, the name of a model that comes
    with the package (digits), the id of one on a hub, or the folder of a pipeline of diffusers."""
    ema: bool = True
    """Use the averaged weights, not those of the last step."""
    ema_decay: float | None = None
    """Those of the average of this decay, where training kept several (--ema 0.999 0.9999)."""
    ema_width: float | None = None
    """Those of an average of this width, put together of the snapshots of training (--snapshot-every): the deviation of
    the steps that are averaged, as a part of the run; 0.05 to 0.2 are usual."""


@dataclass(frozen=True, kw_only=True)
class PictureFlags(MachineFlags):
    """How a small network of pictures is trained."""

    sde: SDEName = "vp"
    """The SDE that turns pictures into noise."""
    resume: bool = False
    """Go on from the last checkpoints in the folder; a finished training goes straight to generating."""
    lr: float = 2e-3
    """Peak learning rate of AdamW; it falls to 0 by a cosine."""
    width: int = 32
    """Channels of the U-Net at its finest level."""
    dropout: float = 0.1
    """Dropout inside the U-Net."""


@dataclass(frozen=True, kw_only=True)
class ReaderFlags:
    """How pictures in files are read, where that is not plain."""

    mode: Literal["L", "RGB"] | None = None
    """Convert images of a folder or Parquet file to grey (L) or RGB; as they are unless told."""
    image_column: str | None = None
    """The column of a Parquet file that holds the images; image or img unless told."""
    frames: Literal["first"] | None = None
    """Take the first frame of images with several (GIF, TIFF, ...); they are refused unless told."""
    skip_bad: bool = False
    """Leave out images that cannot be read, and say which; they are refused unless told."""

    def read(self, path: Path, **options: Any) -> Dataset:
        """The data at ``path``; flags and ``options`` that are not None or False go to their reader.

        Raises:
            FileNotFoundError, TypeError, ValueError: see ``scoresde.data.load``; a flag of another kind of data.
        """
        flags = {f.name: getattr(self, f.name, None) for f in fields(DataFlags) if f.name != "data"}
        given = {
            name: value for name, value in {**flags, **options}.items() if value is not None and value is not False
        }
        reader = reader_of(path)
        wrong = [name for name in given if name not in inspect.signature(reader).parameters]
        if wrong:
            raise ValueError(
                f"{as_flag(wrong[0])} says nothing about {path}, which is read by {reader.__name__}; leave it out."
            )
        return load(path, **given)


@dataclass(frozen=True, kw_only=True)
class DataFlags(ReaderFlags):
    """Where the data are, and how they are read: beside ``data``, each flag is an option of a reader."""

    data: Path
    """Folder of images (sub-folders are classes), Parquet of images, CIFAR's binary folder or one of its .bin files, or
    .npy/.npz: (N, C, ...), or vectors (N, d)."""
    label: Path | None = None
    """An .npy file of integer labels (N,), for data in an .npy file; all other kinds bring their own."""
    channels: Literal["first", "last", "none"] | None = None
    """Channel axis of .npy/.npz: first (N, C, ...), last (N, ..., C), or none: (N, L) signals; first unless told, and
    refused where the shape has another likely meaning."""
    label_column: str | None = None
    """The column of a Parquet file that holds the labels; label, labels or y unless told."""
    classes: Literal["folders", "none"] | None = None
    """Whether the sub-folders of a folder of images are classes; they are, where there are any, unless told."""
    labels: Literal["fine", "coarse"] | None = None
    """The labels of CIFAR-100: the 100 fine classes unless told, or the 20 coarse ones."""
    num_classes: int | None = None
    """Number of classes of the labels in .npy, .npz or Parquet; unless told, the values that occur are the classes."""
    mapped: bool = False
    """Leave the numbers of an .npy file in it, and map it into memory: for more than memory holds."""
    decoded: Path | None = None
    """An .npy file into which the images of a folder or Parquet file are decoded the first time, and which is mapped
    into memory then and later: for more than memory holds, and to begin at once."""
    follow_links: bool = False
    """Follow symbolic links out of a folder of images, too; they are refused unless told."""

    def load(self, **options: Any) -> Dataset:
        """The data; see :meth:`read`."""
        return self.read(self.data, **options)
