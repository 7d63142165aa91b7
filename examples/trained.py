"""A checkpoint folder opened for use: its model on the right device, and what it says of its data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

import scoresde as ss
from scoresde.data import Scaling
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
    device = torch.device("cuda" if torch.cuda.is_available() and not cpu else "cpu")
    conditions = dict(getattr(model.net, "null_conditions", None) or {})
    others = [name for name in conditions if name != "label"]
    if others:
        keywords = ", ".join(f"{name}=..." for name in conditions)
        raise ValueError(
            f"the model in {description.path} takes the conditions {', '.join(conditions)}, and the command line can "
            f"give no {' or '.join(others)}. Sample in Python: model = scoresde.train.load_model(folder), then "
            f"scoresde.sample(model.sde, scoresde.classifier_free(model, scale=2.0, {keywords}), shape)."
        )
    classes = description.class_names if conditions else None
    return Trained(model.to(device), device, description, event, scaling, classes)
