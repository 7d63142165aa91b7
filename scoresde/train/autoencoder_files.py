"""Autoencoders in folders: checkpoints of their training, and saved ones; safetensors and JSON, no pickle::

    save_autoencoder("ae", net)                             # into a new or empty folder
    net = load_autoencoder("ae")                            # or the folder of a training, of which the last step

config.json says what the network is, with the statistics of its latents and the scaling of its data, and has SHA-256 of
itself and of the other files.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import scoresde
from scoresde import checks
from scoresde.data import Scaling
from scoresde.files import PARTIAL, Fields, PathName, make_writable
from scoresde.nn import Autoencoder
from scoresde.train import folder as folders
from scoresde.train.bounded import at_most, check_arguments
from scoresde.train.contents import AVERAGE, MODEL
from scoresde.train.draws import seeded
from scoresde.train.folder import CheckpointError
from scoresde.train.tensors import check_equal, check_finite, read_layout, read_values, writer

FORMAT = "scoresde autoencoder"
VERSION = 1


def autoencoder_config(net: Autoencoder, scaling: object = None) -> dict[str, Any]:
    """What config.json says of an autoencoder, but for its files."""
    scaling = net.scaling if scaling is None else scaling
    return {
        "format": FORMAT,
        "layout": VERSION,
        "version": scoresde.__version__,
        "net": net.config,
        "scaling": scaling.to_json() if isinstance(scaling, Scaling) else None,
    }


def save_autoencoder(folder: PathName, net: Autoencoder) -> Path:
    """Write an autoencoder, with the statistics of its latents, into a new or empty folder.

    Args:
        folder: made with those above it.
        net: the autoencoder.

    Returns:
        The folder.

    Raises:
        TypeError: no autoencoder. ValueError: a folder without a name, such as "."; it cannot be written.
        CheckpointError: it holds something already. FloatingPointError: a weight is not finite.
    """
    checks.instance(net, Autoencoder, name="net")
    state = net.state_dict()
    check_finite(state, "weight", "in this autoencoder")
    place = checks.path(folder, name="folder")
    if place.name in ("", ".."):  # it is made beside its place, and moved there whole
        raise ValueError(f"folder must have a name of its own, got {str(folder)!r}: give a new folder in it.")
    place = make_writable(place)
    if any(place.iterdir()):
        raise CheckpointError(f"folder {place} holds something already: give a new or an empty one.")
    partial = place.with_name(f"{PARTIAL}{os.getpid()}-{place.name}")  # a kill leaves no half of it under its name
    try:
        partial.mkdir()
        folders.fill(partial, autoencoder_config(net), {MODEL: writer(state)})
        place.rmdir()
        partial.rename(place)
    except OSError as error:
        raise CheckpointError(f"could not write the autoencoder into {place}: {error}.") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return place


@dataclass(frozen=True)
class Saved:
    """A saved autoencoder or a checkpoint of its training, of which the values are not read yet.

    Attributes:
        path: its folder.
        fields: of its config.json.
    """

    path: Path
    fields: Fields

    @classmethod
    def at(cls, folder: Path) -> Saved:
        """The one in a folder, the latest where there are several.

        Raises:
            CheckpointError: none, or something else.
        """
        path = folders.find(folder)
        fields = folders.read_sealed(path, folders.CONFIG)
        if fields.value("format") != FORMAT or fields.whole("layout") != VERSION:
            raise CheckpointError(
                f"{path} must hold an autoencoder, of the format {FORMAT!r} {VERSION}, as train_autoencoder and "
                f"save_autoencoder write it; its format is {fields.value('format')!r:.80}. Models are read by "
                "scoresde.train.load_model."
            )
        return cls(path, fields)

    def has(self, name: str) -> bool:
        """Whether there is such a file of tensors."""
        return name in self.fields.object("files").names(most=20)

    def file(self, name: str) -> Path:
        """The path of a file that is the one that was written.

        Raises:
            CheckpointError: it is missing or another.
        """
        if not self.has(name):
            raise CheckpointError(f"{self.path} has no {name}: {folders.instead(self.path)}")
        told = self.fields.object("files").object(name)
        return folders.verified(self.path, name, told.whole("bytes"), told.text("sha256", most=64))

    def tensors(self, name: str) -> dict[str, Tensor]:
        """Those of a file, finite."""
        return read_values(self.file(name), folders.damaged(self.path, name))

    def autoencoder(self) -> Autoencoder:
        """The network, with the weights of the last step.

        Raises:
            CheckpointError: a file is missing or damaged, or the weights are of another network.
        """
        fail, path = folders.damaged(self.path, folders.CONFIG), self.file(MODEL)
        layout = read_layout(path, folders.damaged(self.path, MODEL))
        told = self.fields.object("net")
        config: Mapping[str, Any] = {name: told.value(name) for name in told.names(most=100)}
        check_arguments(config, layout, fail)
        try:
            with torch.device("meta"), at_most(layout, fail):  # a changed config must take neither memory nor time
                check_equal(layout, Autoencoder(**config).state_dict(), fail, dtypes=False)
            with seeded(torch.device("cpu"), 0):
                net = Autoencoder(**config)
            scaling = None if self.fields.null("scaling") else Scaling.from_json(self.fields.value("scaling"))
        except (TypeError, ValueError) as error:
            raise fail(str(error)) from error
        state = self.tensors(MODEL)
        for name, value in (*net.named_parameters(), *net.named_buffers()):
            value.data = value.data.to(state[name].dtype)
        net.load_state_dict(state)
        net.scaling = scaling
        return net


def load_autoencoder(folder: PathName, *, ema: bool | None = None) -> Autoencoder:
    """An autoencoder from a folder, on the CPU, in evaluation mode.

    Args:
        folder: that ``save_autoencoder`` wrote, or that of a training, or one of its step-... folders.
        ema: True for averaged weights, False for those of the last step; by default the averaged ones where there are
            any.

    Raises:
        CheckpointError: none, damaged, something else, or without averages that are asked for.
    """
    wanted = None if ema is None else checks.flag(ema, name="ema")
    saved = Saved.at(checks.path(folder, name="folder"))
    net = saved.autoencoder()
    if wanted and not saved.has(AVERAGE):
        raise CheckpointError(f"{saved.path} holds no averaged weights; pass ema=False for those it has.")
    if wanted is not False and saved.has(AVERAGE):
        averages, own = saved.tensors(AVERAGE), dict(net.named_parameters())
        check_equal(averages, own, folders.damaged(saved.path, AVERAGE), dtypes=True)
        with torch.no_grad():
            for name, parameter in own.items():
                parameter.copy_(averages[name])
    return net.eval()
