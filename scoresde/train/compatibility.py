"""Whether model, data and the checkpoint to go on from fit together: asked before training starts.

:class:`~scoresde.train.Run` calls these as it is made, so that what cannot work fails before a folder is touched, with
a message that says what to change (:mod:`~scoresde.train.trial` then tries a step)::

    check_model(model), check_dataset(dataset)              # can be trained and saved; holds samples
    description = continued(path, model, dataset, steps, optimizer)     # the checkpoint is of this model and these data

:func:`entries` brings the entries of a batch to the model's device and dtype; :func:`bin_width` is that of the data.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from scoresde import checks
from scoresde.data import Augmentation, Dataset
from scoresde.data.columns import no_sample
from scoresde.train import checkpoint, contents
from scoresde.train.batches import MapDataset
from scoresde.train.contents import Description
from scoresde.train.describe import describe_model, fixed
from scoresde.train.folder import CheckpointError
from scoresde.train.objective import Objective
from scoresde.train.optimizer import Optimizer
from scoresde.train.tensors import local_part


def check_model(model: nn.Module) -> None:
    """Raise unless ``model`` can be trained and saved.

    Raises:
        TypeError, ValueError: not a model of ours, no parameters, parameters in half precision, a compiled wrapper.
    """
    describe_model(model)
    for name, value in (*model.named_parameters(), *model.named_buffers()):
        if is_lazy(value):  # it gets its shape in the trial of a step
            continue
        if value.is_meta:
            raise ValueError(
                f"{name} is on the meta device and holds no numbers; build the network on the CPU or a GPU."
            )
        if local_part(value) is not value:
            raise ValueError(
                f"{name} is divided among processes, by an earlier run with sharding='full': train what "
                "run.ema_model() or load_model(folder) returns, or go on from the folder, resume=True."
            )
        if value.is_inference():
            raise ValueError(
                f"{name} was made under torch.inference_mode, and such a tensor cannot be trained. Build the network "
                "outside of it."
            )
    trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    if not trained:
        raise ValueError("the model has no parameters to train: its net must be an nn.Module with some.")
    for name, parameter in trained:
        if parameter.dtype not in (torch.float32, torch.float64):
            raise TypeError(
                f"parameter {name} is {parameter.dtype}; train in float32 (model.float()), and for speed pass "
                "mixed_precision='bf16', which keeps float32 weights."
            )


def check_dataset(dataset: MapDataset) -> None:
    """Raise unless ``dataset`` is not empty and its first sample looks like one.

    Raises:
        TypeError, ValueError: what is wrong with it.
    """
    if isinstance(dataset, Dataset) and len(dataset):
        contents.describe_data(dataset)
        return
    if isinstance(dataset, type) or not hasattr(dataset, "__len__") or not hasattr(dataset, "__getitem__"):
        raise TypeError(
            f"a data set needs len(dataset) and dataset[i], got {checks.got(dataset)}; "
            "see scoresde.data.from_tensors and scoresde.data.load."
        )
    contents.describe_data(dataset)
    if not len(dataset):
        raise ValueError("the data set is empty.")
    try:
        sample = dataset[0]
    except Exception as error:  # of whatever class of a user's own
        raise ValueError(
            f"dataset[0] must be a sample, but cannot be read from {checks.got(dataset)}: "
            f"{type(error).__name__}: {error}"
        ) from error
    if not isinstance(sample, Mapping) or not isinstance(sample.get("x"), Tensor):
        raise TypeError(no_sample(sample, "dataset[0]"))
    if not sample["x"].is_floating_point():
        raise TypeError(f"dataset[0]['x'] must be floating, in the model's units, got {sample['x'].dtype}.")


def check_mirrored(objective: Objective[Any], dataset: MapDataset, what: str = "flip=True mirrors x") -> None:
    """Raise where x is to be mirrored and nobody has said whether a condition of its shape's rank goes with it.

    Raises:
        ValueError: such a condition, and a network without ``image_conditions``.
    """
    if hasattr(objective.model.net, "image_conditions"):
        return
    sample = dataset[0]
    axes = sample["x"].ndim
    unsaid = [name for name in objective.names if axes > 1 and getattr(sample[name], "ndim", 0) == axes]
    if unsaid:
        raise ValueError(
            f"{what}, and the network does not say whether {', '.join(unsaid)} would have to be mirrored "
            f"with it: give it an attribute image_conditions = {tuple(unsaid)!r}, or () to leave them as they are."
        )


def check_augmented(objective: Objective[Any], dataset: MapDataset, augmentation: Augmentation) -> None:
    """Raise unless samples can be augmented, and the conditions that are pictures of them with them.

    Raises:
        ValueError: no pictures, or ones that do not go with the augmentation.
    """
    check_mirrored(objective, dataset, what="augment moves x")
    sample = dataset[0]
    event = tuple(sample["x"].shape)
    augmentation.check_event(event)
    for name in objective.mirrored if augmentation.whole_shift else ():
        if sample[name].shape[1:] != event[1:]:
            raise ValueError(
                f"whole_shift moves {name} {tuple(sample[name].shape)} with x {event}, by whole pixels of both: leave "
                f"it out (shift moves by fractions), or enlarge {name} to the sizes of x."
            )


def entries(batch: Mapping[str, Tensor], names: Sequence[str], like: Tensor) -> dict[str, Tensor]:
    """These entries of a batch, on the device of ``like``; floating ones in its dtype, which is that of x, too."""
    return {
        name: batch[name]
        .detach()
        .to(like.device, like.dtype if batch[name].is_floating_point() else None, non_blocking=True)
        for name in names
    }


def bin_width(dataset: MapDataset) -> float:
    """Distance between neighbouring levels of the data, in model units.

    Raises:
        ValueError: the data set does not say, or its data are continuous.
    """
    width = getattr(getattr(dataset, "scaling", None), "bin_width", None)
    if not isinstance(width, float):
        raise ValueError(
            "dequantize=True needs data that are levels, and a data set that knows their bin width "
            "(scoresde.data.from_tensors(x, levels=256)); continuous data have a density already."
        )
    return width


def continued(
    path: Path,
    model: nn.Module,
    dataset: object,
    steps: int,
    optimizer: Optimizer,
    companion: nn.Module | None = None,
) -> Description:
    """The description of the checkpoint at ``path``, from which this run goes on.

    Raises:
        CheckpointError: it is damaged, of another model or other data, or past ``steps``.
    """
    description = contents.describe(path)
    _compare(path, "model", fixed(description.model), json.loads(json.dumps(fixed(describe_model(model)))))
    saved = {
        "event_shape": None if description.event_shape is None else list(description.event_shape),
        "class_names": None if description.class_names is None else list(description.class_names),
        "scaling": None if description.scaling is None else description.scaling.to_json(),
        "conditions": {name: dict(value) for name, value in description.conditions.items()},
        "condition_scalings": {name: one.to_json() for name, one in description.condition_scalings.items()},
        "vocabularies": {name: list(words) for name, words in description.vocabularies.items()},
        "merges": {name: list(merges) for name, merges in description.merges.items()},
    }
    given = contents.with_units(contents.describe_data(dataset), model)
    if not description.vocabularies:  # of before they were noted
        given.pop("vocabularies", None)
        given.pop("merges", None)
    _compare(path, "data set", saved, given)
    if description.step > steps:
        raise CheckpointError(
            f"{path} is at step {description.step}, past steps={steps}; steps counts from the start of the run."
        )
    checkpoint.check_resumable(description, model, optimizer, companion)
    return description


def _compare(path: Path, what: str, saved: Mapping[str, Any], given: Mapping[str, Any]) -> None:
    differ = [key for key, value in given.items() if saved[key] != value]
    if differ:
        units = [f"{key}=describe({str(path)!r}).{key}" for key in differ if key in ("scaling", "condition_scalings")]
        keeps = f" from_tensors(..., {', '.join(units)}) keeps its units." if units else ""
        words = ", ".join(f"{key} (saved: {saved[key]}, given: {given[key]})" for key in differ)
        raise CheckpointError(
            f"{path} holds another {what}; they differ in {words}. Resume with the {what} as it was, or choose another "
            f"folder.{keeps}"
        )
