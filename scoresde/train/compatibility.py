"""Whether model, data and the checkpoint to go on from fit together: asked before training starts.

:class:`~scoresde.train.Run` calls these as it is made, so that what cannot work fails before a folder is touched, with
a message that says what to change::

    check_model(model), check_dataset(dataset)              # can be trained and saved; holds samples
    check_step(objective, dataset, times)                   # the loss of the first sample can be computed
    description = continued(path, model, dataset, steps)    # the checkpoint is of this model and these data

:func:`entries` brings the entries of a batch to the model's device and dtype; :func:`bin_width` is that of the data.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import default_collate

from scoresde.data import Dataset
from scoresde.models.conditions import drop_conditions
from scoresde.times import TimeDensity
from scoresde.train import checkpoint
from scoresde.train.batches import MapDataset
from scoresde.train.checkpoint import Description
from scoresde.train.describe import describe_model
from scoresde.train.draws import seeded
from scoresde.train.folder import CheckpointError
from scoresde.train.objective import Objective


def check_model(model: nn.Module) -> None:
    """Raise unless ``model`` can be trained and saved.

    Raises:
        TypeError, ValueError: not a model of ours, no parameters, parameters in half precision, a compiled wrapper.
    """
    describe_model(model)
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
    if isinstance(dataset, Dataset):
        return
    if not hasattr(dataset, "__len__") or not hasattr(dataset, "__getitem__"):
        raise TypeError(
            f"a data set needs len(dataset) and dataset[i], got {type(dataset).__name__}; "
            "see scoresde.data.from_tensors and scoresde.data.load."
        )
    if not len(dataset):
        raise ValueError("the data set is empty.")
    sample = dataset[0]
    if not isinstance(sample, Mapping) or not isinstance(sample.get("x"), Tensor):
        raise TypeError(
            f"dataset[0] must be a dict with a tensor 'x' (and conditions such as 'label'), got "
            f"{type(sample).__name__}. scoresde.data.from_tensors(x, label) makes such a data set."
        )
    if not sample["x"].is_floating_point():
        raise TypeError(f"dataset[0]['x'] must be floating, in the model's units, got {sample['x'].dtype}.")


@torch.no_grad()
def check_step(objective: Objective[Any], dataset: MapDataset, times: TimeDensity) -> None:
    """Raise unless the loss of the data set's first sample can be computed: before a folder is made, or a step done.

    The sample is taken twice, for a batch of one hides axes that do not line up. Nothing is learnt, and nothing of the
    model changes: it is in evaluation mode, not compiled, and gets its mode and its buffers back.

    Raises:
        TypeError, ValueError: the sample, the network, the weighting or the density of times do not fit together.
    """
    model, sample = objective.model, dataset[0]
    parameter = next(p for p in model.parameters() if p.requires_grad)
    batch = default_collate([{name: sample[name] for name in ("x", *objective.names)}] * 2)
    drawn = times.sample(model.sde, torch.tensor([0.25, 0.75], dtype=torch.float64))
    for name, value in zip(("t", "weight"), drawn, strict=True):
        if not isinstance(value, Tensor) or value.shape != (2,):
            raise ValueError(f"times.sample must return t and weight shaped like u, (2,); {name} is {value!r}.")
    x0 = batch["x"].to(parameter.device, parameter.dtype)
    t, weight = (value.to(parameter.device) for value in drawn)
    given = entries(batch, objective.names, parameter)
    second = torch.tensor([False, True], device=parameter.device)
    given = drop_conditions(given, objective.nulls, dict.fromkeys(objective.droppable, second))
    modes = [(module, module.training, module._compiled_call_impl) for module in objective.modules()]
    buffers = [(buffer, buffer.clone()) for buffer in objective.buffers()]
    objective.eval()
    for module, _, _ in modes:
        module._compiled_call_impl = None
    try:
        with seeded(parameter.device, 0):
            objective(x0, t, torch.zeros_like(x0), weight, given)
    except RuntimeError as error:
        raise ValueError(
            f"no loss for dataset[0], x {tuple(x0.shape[1:])} with {_shapes(given)}: {error}. Does the network "
            "take such a sample?"
        ) from error
    finally:
        for module, training, compiled in modes:
            module.training = training
            if compiled is not None:
                module._compiled_call_impl = compiled
            else:
                module.__dict__.pop("_compiled_call_impl", None)
        for buffer, value in buffers:
            buffer.copy_(value)


def check_mirrored(objective: Objective[Any], dataset: MapDataset) -> None:
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
            f"flip=True mirrors x, and the network does not say whether {', '.join(unsaid)} would have to be mirrored "
            f"with it: give it an attribute image_conditions = {tuple(unsaid)!r}, or () to leave them as they are."
        )


def entries(batch: Mapping[str, Tensor], names: Sequence[str], like: Tensor) -> dict[str, Tensor]:
    """These entries of a batch, on the device of ``like``; floating ones in its dtype, which is that of x, too."""
    return {
        name: batch[name].to(like.device, like.dtype if batch[name].is_floating_point() else None, non_blocking=True)
        for name in names
    }


def _shapes(given: Mapping[str, Tensor]) -> str:
    return ", ".join(f"{name} {tuple(value.shape[1:])}" for name, value in given.items()) or "no conditions"


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
