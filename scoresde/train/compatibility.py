"""Whether model, data and machine go together: asked before training starts."""

from __future__ import annotations

import atexit
import gc
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from scoresde.data import Dataset
from scoresde.extras import needs
from scoresde.score import ScoreModel
from scoresde.train.batches import MapDataset
from scoresde.train.describe import describe_model

if TYPE_CHECKING:
    from accelerate import Accelerator


def check_model(model: ScoreModel) -> None:
    """Raise unless ``model`` can be trained and saved.

    Raises:
        TypeError, ValueError: not a ScoreModel, no parameters, parameters in half precision, a compiled wrapper.
    """
    describe_model(model)
    trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    if not trained:
        raise ValueError("the model has no parameters to train: ScoreModel.net must be an nn.Module with some.")
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


def check_conditions(
    dataset: MapDataset, conditions: Sequence[str], nulls: Mapping[str, Any], label_dropout: float | None
) -> None:
    """Raise unless the samples hold the network's conditions, within its range of classes.

    Raises:
        ValueError: a condition is missing, there are too many classes, or nothing that label_dropout could drop.
    """
    sample = dataset[0]
    missing = [name for name in conditions if name not in sample]
    if missing:
        raise ValueError(
            f"the network takes the conditions {list(conditions)}, but samples hold only {sorted(sample)}. "
            "Give the data set labels, or build the network without them (num_classes=None)."
        )
    if label_dropout and not any(name in nulls for name in conditions):
        raise ValueError(
            f"label_dropout={label_dropout} needs a null value for a condition: give the network an attribute "
            "null_conditions such as {'label': num_classes}, or leave label_dropout out."
        )
    classes, null = getattr(dataset, "num_classes", None), nulls.get("label")
    if "label" in conditions and isinstance(classes, int) and isinstance(null, int) and classes > null:
        raise ValueError(
            f"the data have {classes} classes but the network was built for {null}; give it num_classes={classes}."
        )


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


def accelerator(cpu: bool) -> Accelerator:
    """Accelerate's view of this process: its device, and the processes it works with.

    Raises:
        ValueError: Accelerate is configured for something else than data-parallel processes.
    """
    with needs("train"):
        from accelerate import Accelerator, DistributedType
    # Accelerate joins the processes of torchrun on the CPU only when told that it is to stay there. Other
    # accelerators than CUDA are left alone: schedules need float64.
    found = Accelerator(cpu=cpu or not torch.cuda.is_available())
    if found.distributed_type not in (DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU):
        raise ValueError(
            f"Accelerate is set to {found.distributed_type}; this loop knows one process, and data-parallel "
            "processes on CPUs or GPUs. Run `accelerate config` again, or use torchrun."
        )
    if found.distributed_type == DistributedType.MULTI_CPU:
        # Gloo's threads must end before the interpreter does, or a process now and then aborts when it is done.
        atexit.unregister(_leave)
        atexit.register(_leave)
    return found


def _leave() -> None:
    gc.collect()  # data-parallel wrappers that are out of use, but still hold the group
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
