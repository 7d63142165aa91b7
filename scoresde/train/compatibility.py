"""Whether model, data and machine go together: asked before training starts."""

from __future__ import annotations

import atexit
import gc
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils.data import default_collate

from scoresde.data import Dataset
from scoresde.extras import needs
from scoresde.times import TimeDensity
from scoresde.train.batches import MapDataset
from scoresde.train.conditions import drop_conditions
from scoresde.train.describe import describe_model
from scoresde.train.draws import seeded
from scoresde.train.objective import Objective

if TYPE_CHECKING:
    from accelerate import Accelerator


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
