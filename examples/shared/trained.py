"""A checkpoint folder opened for use: its model on the right device, and what it says of its data.

    trained = open_checkpoint(Path("runs/my-images"), ema=True, cpu=False)
    trained.model, trained.event, trained.scaling, trained.classes

A command line can say a class and no other condition, so a model that takes others is refused.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

import scoresde as ss
from scoresde.data import Scaling
from scoresde.models.conditions import nulls_of
from scoresde.train import Description, describe, load_model


@dataclass(frozen=True)
class Trained:
    """A model and its data.

    Attributes:
        model: in evaluation mode, on ``device``.
        device: where it is.
        description: what the checkpoint says of itself.
        event: shape of one sample.
        scaling: the map between data and model units.
        classes: their names; None for a model without classes.
    """

    model: ss.ScoreModel
    device: torch.device
    description: Description
    event: tuple[int, ...]
    scaling: Scaling
    classes: tuple[str, ...] | None

    @property
    def null(self) -> int:
        """The label that means: of no class in particular."""
        return len(self.classes or ())

    def index(self, name: str) -> int:
        """The number of a class, given by its name or number.

        Raises:
            ValueError: there is no such class.
        """
        if self.classes is None:
            raise ValueError(f"the model in {self.description.path} knows no classes, so there is no {name!r}.")
        if name in self.classes:
            return self.classes.index(name)
        if name.isascii() and name.isdigit() and int(name) < len(self.classes):
            return int(name)
        shown = ", ".join(self.classes[:20]) + (", ..." if len(self.classes) > 20 else "")
        raise ValueError(
            f"there is no class {name!r}; the model knows {len(self.classes)}: {shown} (or their numbers 0 to "
            f"{len(self.classes) - 1})."
        )

    def indices(self, names: Sequence[str]) -> list[int]:
        """The numbers of some classes."""
        return [self.index(name) for name in names]

    def told(self) -> dict[str, Any]:
        """What report.json says of it."""
        return {"checkpoint": self.description.path, "step": self.description.step, "device": str(self.device)}


def in_batches(total: int, size: int) -> Iterator[slice]:
    """Rows 0 ... total - 1 in slices of at most ``size``, under a progress bar."""
    with tqdm(total=total, unit="sample") as bar:
        for first in range(0, total, size):
            rows = slice(first, min(first + size, total))
            yield rows
            bar.update(rows.stop - rows.start)


def checkpoints_in(folder: Path, *names: str) -> Path:
    """Where the checkpoints of a run are: the first of its folders of these names, or the folder itself."""
    inside = (folder.expanduser() / name for name in names)
    return next((path for path in inside if path.is_dir()), folder)


def device_for(*, cpu: bool) -> torch.device:
    """The GPU where there is one, unless told to stay on the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() and not cpu else "cpu")


def open_checkpoint(folder: Path, *, ema: bool, cpu: bool) -> Trained:
    """Load the latest checkpoint in ``folder``, or the one that it is; onto the GPU where there is one.

    Args:
        folder: a run's folder, or one of its step-... folders.
        ema: the averaged weights, or those of the last step.
        cpu: stay on the CPU.

    Raises:
        CheckpointError: no checkpoint, or a damaged one, or one that does not tell the shape and units of its data.
        ValueError: it was trained with parts of the user's own, which a file does not rebuild; or it takes other
            conditions than a class, which no flag can give.
    """
    description = describe(folder.expanduser())
    event, scaling = description.event_shape, description.scaling
    if event is None or scaling is None:
        raise ValueError(
            f"{description.path} does not tell the shape and units of its data: it was trained on a data set of your "
            "own. Load it with scoresde.train.load_model and use scoresde.sample."
        )
    model = load_model(description.path, ema=ema)
    device = device_for(cpu=cpu)
    conditions = nulls_of(model.net)
    others = [name for name in conditions if name != "label"]
    if others:
        given = ", ".join(f"{name}=..." for name in conditions)
        raise ValueError(
            f"the model in {description.path} takes the conditions {', '.join(conditions)}, and the command line can "
            f"give no {' or '.join(others)}. Sample in Python: model = scoresde.train.load_model(folder), then "
            f"scoresde.sample(scoresde.classifier_free(model, dict({given}), scale=2.0), shape)."
        )
    classes = description.class_names if conditions else None
    return Trained(model.to(device), device, description, event, scaling, classes)
