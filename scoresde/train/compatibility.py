"""Whether model, data and machine go together: asked before training starts."""

from __future__ import annotations

import atexit
import gc
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils.data import default_collate

from scoresde.data import Dataset
from scoresde.extras import needs
from scoresde.score import ScoreModel
from scoresde.times import TimeDensity
from scoresde.train.batches import MapDataset
from scoresde.train.describe import describe_model
from scoresde.train.draws import seeded
from scoresde.train.objective import Objective

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


@torch.no_grad()
def check_step(objective: Objective, dataset: MapDataset, conditions: Sequence[str], times: TimeDensity) -> None:
    """Raise unless the loss of the data set's first sample can be computed: before a folder is made, or a step done.

    The sample is taken twice, for a batch of one hides axes that do not line up. Nothing is learnt, and nothing of the
    model changes: it is in evaluation mode, not compiled, and gets its mode and its buffers back.

    Raises:
        TypeError, ValueError: the sample, the network, the weighting or the density of times do not fit together.
    """
    model, sample = objective.model, dataset[0]
    parameter = next(p for p in model.parameters() if p.requires_grad)
    batch = default_collate([{name: sample[name] for name in ("x", *conditions)}] * 2)
    drawn = times.sample(model.sde, torch.tensor([0.25, 0.75], dtype=torch.float64))
    for name, value in zip(("t", "weight"), drawn, strict=True):
        if not isinstance(value, Tensor) or value.shape != (2,):
            raise ValueError(f"times.sample must return t and weight shaped like u, (2,); {name} is {value!r}.")
    x0 = batch["x"].to(parameter.device, parameter.dtype)
    t, weight = (value.to(parameter.device) for value in drawn)
    given = {name: batch[name].to(parameter.device) for name in conditions}
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
            f"no loss for dataset[0], x {tuple(x0.shape[1:])} with conditions {list(given)}: {error}. Does the network "
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


def check_labels(labels: Tensor, null: object, step: int) -> None:
    """Raise unless labels on the CPU lie in the range of the network: on a GPU they would stop it without a word.

    Raises:
        ValueError: some do not.
    """
    if not isinstance(null, int) or labels.device.type != "cpu" or labels.is_floating_point() or not labels.numel():
        return
    low, high = (int(end) for end in labels.aminmax())
    if low < 0 or high > null:
        raise ValueError(
            f"the labels of step {step} run from {low} to {high}, but the network was built for {null} classes, 0 to "
            f"{null - 1}. Correct the data set, or build the network with num_classes={max(high, 0) + 1}."
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
        ValueError: Accelerate is configured for something else than data-parallel processes, or holds another device.
    """
    with needs("train"):
        from accelerate import Accelerator, DistributedType
        from accelerate.state import PartialState
        from accelerate.utils import parse_flag_from_env
    # Accelerate joins the processes of torchrun on the CPU only when told that it is to stay there. Other
    # accelerators than CUDA are left alone: schedules need float64.
    cpu = cpu or not torch.cuda.is_available() or parse_flag_from_env("ACCELERATE_USE_CPU")
    wanted = "cpu" if cpu else "cuda"
    if PartialState._shared_state and PartialState().device.type != wanted:
        raise ValueError(
            f"this run is to be on {wanted!r}, but Accelerate chose {PartialState().device.type!r} earlier in this "
            "process, and keeps to it. Pass the same cpu=... as before, or start a new process."
        )
    found = Accelerator(cpu=cpu)
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
