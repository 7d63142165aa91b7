"""Whether a run may continue from a checkpoint: the model, the data and the number of steps must be the same."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from scoresde.train import checkpoint
from scoresde.train.checkpoint import Description
from scoresde.train.describe import describe_model
from scoresde.train.folder import CheckpointError


def continued(path: Path, model: nn.Module, dataset: object, steps: int) -> Description:
    """The description of the checkpoint at ``path``, from which this run goes on.

    Raises:
        CheckpointError: it is damaged, of another model or other data, or past ``steps``.
    """
    description = checkpoint.describe(path)
    _compare(path, "model", description.model, json.loads(json.dumps(describe_model(model))))
    saved = {
        "event_shape": None if description.event_shape is None else list(description.event_shape),
        "class_names": None if description.class_names is None else list(description.class_names),
        "scaling": None if description.scaling is None else description.scaling.to_json(),
        "conditions": {name: dict(value) for name, value in description.conditions.items()},
    }
    _compare(path, "data set", saved, checkpoint.describe_data(dataset))
    if description.step > steps:
        raise CheckpointError(
            f"{path} is at step {description.step}, past steps={steps}; steps counts from the start of the run."
        )
    return description


def _compare(path: Path, what: str, saved: Mapping[str, Any], given: Mapping[str, Any]) -> None:
    differ = [key for key, value in given.items() if saved[key] != value]
    if differ:
        words = ", ".join(f"{key} (saved: {saved[key]}, given: {given[key]})" for key in differ)
        raise CheckpointError(
            f"{path} holds another {what}; they differ in {words}. Resume with the {what} as it was, or choose another "
            "folder."
        )
