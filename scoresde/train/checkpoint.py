"""Checkpoints of models and training runs: safetensors and JSON, no pickle::

    save("run", model, step=2000, dataset=dataset)          # train() does it
    model = load_model("run")                               # of the latest step; load_classifier for classifiers
    describe("run").class_names                             # what a checkpoint says of itself

What is in the folder of a run::

    run/log.jsonl
    run/step-00002000/config.json              what it is; SHA-256 of itself and of the other files
                      model.safetensors        parameters and buffers
                      ema.safetensors          averaged parameters
                      optimizer.safetensors    state of AdamW
                      training.json            counters and options, for resuming
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import scoresde
from scoresde.data import Scaling
from scoresde.extras import needs
from scoresde.files import PathName
from scoresde.models import ClassifierModel, Prediction, ScoreModel
from scoresde.sde import SDE
from scoresde.train import folder as folders
from scoresde.train.describe import (
    CLASSIFIER,
    SCORE,
    Model,
    Unbuildable,
    check_described,
    describe_model,
    known_parts,
    rebuild_classifier,
    rebuild_model,
)
from scoresde.train.ema import EMA
from scoresde.train.folder import CheckpointError
from scoresde.train.owner import refuse_if_owned

FORMAT = 1
MODEL, AVERAGE = "model.safetensors", "ema.safetensors"
OPTIMIZER, TRAINING = "optimizer.safetensors", "training.json"


@dataclass(frozen=True)
class Description:
    """What a checkpoint says of itself.

    Attributes:
        path: the checkpoint's own folder, step-....
        step: optimizer steps done.
        version: the library that wrote it.
        model: kind ("score" or "classifier"), SDE, network, prediction and sigma_data, as JSON.
        event_shape: shape of one sample, where the data set told.
        class_names: names of the classes, where there are any.
        scaling: the map between data and model units, where the data set told.
        conditions: shape and dtype of each condition of the data set besides the label, where it told.
        files: size in bytes and SHA-256 of each file.
    """

    path: Path
    step: int
    version: str
    model: Mapping[str, Any]
    event_shape: tuple[int, ...] | None
    class_names: tuple[str, ...] | None
    scaling: Scaling | None
    conditions: Mapping[str, Mapping[str, Any]]
    files: Mapping[str, Mapping[str, Any]]


def save(
    folder: PathName,
    model: ScoreModel | ClassifierModel,
    *,
    step: int,
    ema: EMA | None = None,
    dataset: object = None,
    optimizer: Mapping[str, Tensor] | None = None,
    training: Mapping[str, Any] | None = None,
    keep: int = 2,
) -> Path:
    """Write a checkpoint into ``folder``, then remove all but the last ``keep``.

    Args:
        folder: made where it is missing.
        model: the model; of its own code only names are written.
        step: optimizer steps done.
        ema: averaged weights, which ``load_model`` and ``load_classifier`` then prefer.
        dataset: its event_shape, class_names, scaling and the shapes of its conditions are noted, where it has them.
        optimizer: tensors, and
        training: JSON for resuming, both written by ``train``.
        keep: how many checkpoints to leave, at least 1.

    Returns:
        The checkpoint's folder, ``folder``/step-.... A second checkpoint of a step gets a name of its own.

    Raises:
        CheckpointError: the folder cannot be written, or another process trains into it; earlier checkpoints are
            intact.
        FloatingPointError: a weight is not finite.
        ValueError: step negative or keep below 1.
    """
    if step < 0 or keep < 1:
        raise ValueError(f"a checkpoint needs step >= 0 and keep >= 1, got step={step}, keep={keep}.")
    folder = Path(folder)
    tensors: dict[str, Mapping[str, Tensor]] = {MODEL: model.state_dict()}
    if ema is not None:
        tensors[AVERAGE] = ema.state()
    for values in tensors.values():
        _check_finite(values, step)
    if optimizer is not None:
        tensors[OPTIMIZER] = optimizer
    files = {name: _tensor_writer(values) for name, values in tensors.items()}
    if training is not None:
        files[TRAINING] = folders.json_writer(training)
    config = {
        "format": FORMAT,
        "version": scoresde.__version__,
        "step": step,
        "model": describe_model(model),
        "data": describe_data(dataset),
    }
    folders.prepare(folder)
    refuse_if_owned(folder)
    folders.sweep(folder)
    try:
        path = folders.write(folder, step, config, files)
        folders.prune(folder, keep)
    except OSError as error:
        raise CheckpointError(
            f"could not write the checkpoint of step {step} into {folder}: {error}. Earlier checkpoints are intact."
        ) from error
    return path


def describe_data(dataset: object) -> dict[str, Any]:
    """What a data set tells of itself, as JSON: event_shape, class_names, scaling, and shapes and dtypes of its
    conditions; None, or no conditions, for what it does not.
    """
    names, shape = getattr(dataset, "class_names", None), getattr(dataset, "event_shape", None)
    scaling, conditions = getattr(dataset, "scaling", None), getattr(dataset, "conditions", None)
    told = conditions.items() if isinstance(conditions, Mapping) else ()
    return {
        "event_shape": None if shape is None else list(shape),
        "class_names": None if names is None else list(names),
        "scaling": scaling.to_json() if isinstance(scaling, Scaling) else None,
        "conditions": {
            str(name): {"shape": list(value.shape[1:]), "dtype": str(value.dtype).removeprefix("torch.")}
            for name, value in told
            if isinstance(value, Tensor)
        },
    }


def load_model(
    folder: PathName,
    *,
    ema: bool = True,
    net: Callable[..., Tensor] | None = None,
    sde: SDE | None = None,
    predicts: str | Prediction | None = None,
) -> ScoreModel:
    """The model of a checkpoint, on the CPU, in evaluation mode.

    Args:
        folder: a checkpoint (step-...), or the folder of a run, of which the latest is taken.
        ema: the averaged weights; False for the weights of the last step.
        net, sde, predicts: a network, SDE or prediction function of your own, which a file does not rebuild.

    Raises:
        CheckpointError: no checkpoint, a file is missing, cut short or damaged, the weights do not fit.
        ValueError: a part of your own is not given, or contradicts the checkpoint; it holds a classifier.
    """
    return _load(folder, ema, net is None, SCORE, lambda d: rebuild_model(d, net, sde, predicts))


def load_classifier(
    folder: PathName,
    *,
    ema: bool = True,
    net: Callable[..., Tensor] | None = None,
    sde: SDE | None = None,
) -> ClassifierModel:
    """The classifier of a checkpoint that ``train_classifier`` wrote, on the CPU, in evaluation mode.

    Args:
        folder, ema, net, sde: as for ``load_model``.

    Raises:
        CheckpointError: no checkpoint, a file is missing, cut short or damaged, the weights do not fit.
        ValueError: a part of your own is not given, or contradicts the checkpoint; it holds a score model.
    """
    return _load(folder, ema, net is None, CLASSIFIER, lambda d: rebuild_classifier(d, net, sde))


_LOADERS = {SCORE: "a score model; load it with load_model", CLASSIFIER: "a classifier; load it with load_classifier"}


def _load(
    folder: PathName, ema: bool, own_net: bool, kind: str, rebuild: Callable[[Mapping[str, Any]], Model]
) -> Model:
    description = describe(folder)
    found = description.model["kind"]
    if found != kind:
        raise ValueError(f"{description.path} holds {_LOADERS[found]}.")
    if ema and AVERAGE not in description.files:
        raise CheckpointError(f"{description.path} holds no averaged weights; pass ema=False for those it has.")
    state = read_tensors(description, MODEL)
    try:
        if own_net:
            with torch.device("meta"):  # shapes alone: a changed config must not fill the memory
                check_fit(rebuild(description.model), state, description)
        model = rebuild(description.model)
    except Unbuildable as error:
        raise CheckpointError(f"{description.path / folders.CONFIG}: {error}") from error
    load_weights(model, state, description)
    if ema:
        # Into the parameters by name: a tied parameter has one name here, but several in the state of a model.
        load_parameters(model, read_tensors(description, AVERAGE), description)
    return model.eval()


def describe(folder: PathName) -> Description:
    """What a checkpoint says of itself, without loading weights.

    Args:
        folder: a checkpoint (step-...), or the folder of a run, of which the latest is taken.

    Raises:
        CheckpointError: no checkpoint there, or its config.json is missing, damaged or of another format.
    """
    path = folders.find(Path(folder))
    config = folders.read_sealed(path, folders.CONFIG)
    if config.get("format") != FORMAT:
        raise CheckpointError(
            f"{path} has format {config.get('format')}, written by scoresde {config.get('version')}; this is scoresde "
            f"{scoresde.__version__}, which reads format {FORMAT}. Use the version that wrote it."
        )
    try:
        check_described(config["model"])
        data, model = config["data"], config["model"]
        shape, names, scaling = data["event_shape"], data["class_names"], data["scaling"]
        return Description(
            path=path,
            step=int(config["step"]),
            version=config["version"],
            model=known_parts(model),
            event_shape=None if shape is None else tuple(shape),
            class_names=None if names is None else tuple(names),
            scaling=None if scaling is None else Scaling.from_json(scaling),
            conditions={
                name: {"shape": list(value["shape"]), "dtype": str(value["dtype"])}
                for name, value in data.get("conditions", {}).items()
            },
            files={k: {"bytes": v["bytes"], "sha256": v["sha256"]} for k, v in config["files"].items()},
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(f"{path / folders.CONFIG} is damaged ({error!r}). {folders.instead(path)}") from error


def load_weights(model: nn.Module, state: Mapping[str, Tensor], description: Description) -> None:
    """Overwrite the parameters and buffers of ``model``; each takes the dtype it was saved in.

    Raises:
        CheckpointError: names or shapes differ.
    """
    check_fit(model, state, description)
    dtypes = {value.dtype for value in state.values() if value.is_floating_point()}
    if len(dtypes) == 1:
        model.to(dtypes.pop())  # buffers that are not saved, too
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if name in state:
            tensor.data = tensor.data.to(state[name].dtype)
    model.load_state_dict(dict(state))


@torch.no_grad()
def load_parameters(model: nn.Module, state: Mapping[str, Tensor], description: Description) -> None:
    """Overwrite the parameters of ``model``, tied ones once.

    Raises:
        CheckpointError: names or shapes differ.
    """
    own = dict(model.named_parameters())
    _check_names(own, state, description)
    for name, parameter in own.items():
        parameter.copy_(state[name])


def check_fit(model: nn.Module, state: Mapping[str, Tensor], description: Description) -> None:
    """Raise unless ``state`` holds the parameters and buffers of ``model``.

    Raises:
        CheckpointError: names or shapes differ.
    """
    _check_names(model.state_dict(), state, description)


def _check_names(model: Mapping[str, Tensor], state: Mapping[str, Tensor], description: Description) -> None:
    own = {name: tuple(value.shape) for name, value in model.items()}
    saved = {name: tuple(value.shape) for name, value in state.items()}
    differ = sorted(name for name in own.keys() | saved.keys() if own.get(name) != saved.get(name))
    if differ:
        first = "; ".join(f"{n}: saved {saved.get(n, 'nowhere')}, model {own.get(n, 'nowhere')}" for n in differ[:3])
        raise CheckpointError(
            f"the weights in {description.path} do not fit the network ({len(differ)} differ: {first}). "
            "Build the network with the arguments it was trained with."
        )


def read_tensors(description: Description, name: str) -> dict[str, Tensor]:
    """The tensors of one file, after a check of its size and hash.

    Raises:
        CheckpointError: the file is missing or is not the one that was written.
    """
    with needs("train"):
        from safetensors.torch import load_file
    return load_file(_listed(description, name))


def read_training(description: Description) -> dict[str, Any]:
    """The counters and options of a checkpoint, for resuming.

    Raises:
        CheckpointError: the file is missing or is not the one that was written.
    """
    _listed(description, TRAINING)
    return folders.read_json(description.path, TRAINING)


def _listed(description: Description, name: str) -> Path:
    if name not in description.files:
        raise CheckpointError(
            f"{description.path} has no {name}: a model can be loaded from it, but only a checkpoint written by "
            "train() can be resumed."
        )
    return folders.verified(description.path, name, description.files[name])


def _check_finite(tensors: Mapping[str, Tensor], step: int) -> None:
    for name, value in tensors.items():
        if value.is_floating_point() and not bool(value.isfinite().all()):
            raise FloatingPointError(f"the weight {name} is not finite after step {step}; it is not saved.")


def _tensor_writer(tensors: Mapping[str, Tensor]) -> folders.Writer:
    with needs("train"):
        from safetensors.torch import save_file

    def write(path: Path) -> None:
        # Copies: safetensors takes no tensors that share memory (tied weights) or are not contiguous.
        contiguous = torch.contiguous_format
        save_file({k: v.detach().cpu().clone(memory_format=contiguous) for k, v in tensors.items()}, path)

    return write
