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
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import scoresde
from scoresde import checks
from scoresde.files import PathName
from scoresde.models import ClassifierModel, Prediction, ScoreModel
from scoresde.sde import SDE
from scoresde.train import folder as folders
from scoresde.train.bounded import at_most, check_arguments
from scoresde.train.contents import (
    AVERAGE,
    FORMAT,
    MODEL,
    OPTIMIZER,
    TRAINING,
    Description,
    describe,
    describe_data,
    ill_fitting,
    misplaced,
    read_layout_of,
    read_tensors,
    read_training,
    unless_damaged,
    with_units,
)
from scoresde.train.describe import (
    CLASSIFIER,
    SCORE,
    Model,
    Unbuildable,
    check_schedule,
    describe_model,
    rebuild_classifier,
    rebuild_model,
)
from scoresde.train.ema import EMA
from scoresde.train.folder import CheckpointError
from scoresde.train.optimizer import Optimizer, check_state
from scoresde.train.owner import claimed
from scoresde.train.tensors import all_finite, check_equal, writer


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
        dataset: its event_shape, class_names, scaling and the shapes of its conditions are noted, where it has them;
            where it tells no scaling, that of the model.
        optimizer: tensors, and
        training: JSON for resuming, both written by ``train``.
        keep: how many checkpoints to leave, at least 1.

    Returns:
        The checkpoint's folder, ``folder``/step-.... A second checkpoint of a step gets a name of its own.

    Raises:
        CheckpointError: the folder cannot be written, or another process trains into it; earlier checkpoints are
            intact.
        FloatingPointError: a weight, or a number of the optimizer's, is not finite.
        ValueError: step negative or keep below 1, or the data set tells more than a checkpoint can hold.
    """
    folder, step, keep = (
        checks.path(folder, name="folder"),
        checks.count(step, name="step", least=0),
        checks.count(keep, name="keep"),
    )
    if not isinstance(model, (ScoreModel, ClassifierModel)):
        raise TypeError(f"model must be a ScoreModel or a ClassifierModel, got {checks.got(model)}.")
    if ema is not None:
        checks.instance(ema, EMA, name="ema")
    tensors: dict[str, Mapping[str, Tensor]] = {MODEL: model.state_dict()}
    if ema is not None:
        tensors[AVERAGE] = ema.state()
    if optimizer is not None:
        checks.instance(optimizer, Mapping, name="optimizer", hint="It maps names to tensors.")
        for name, value in optimizer.items():
            if not isinstance(name, str) or not isinstance(value, Tensor):
                raise TypeError(f"optimizer must map names to tensors, got {checks.got(value)} for {checks.got(name)}.")
        tensors[OPTIMIZER] = optimizer
    for file, values in tensors.items():
        _check_finite(values, step, "state" if file == OPTIMIZER else "weight")
    files = {name: writer(values) for name, values in tensors.items()}
    if training is not None:
        checks.instance(training, Mapping, name="training", hint="It is written as JSON.")
        try:
            files[TRAINING] = folders.json_writer(training)
        except (TypeError, ValueError) as error:
            raise type(error)(f"training must hold what JSON can, got {checks.got(training)}: {error}.") from error
    config = {
        "format": FORMAT,
        "version": scoresde.__version__,
        "step": step,
        "model": describe_model(model),
        "data": with_units(describe_data(dataset), model),
    }
    if isinstance(model, ScoreModel) and model.trained_with is not None:
        config["trained_with"] = model.trained_with.to_json()
    folders.prepare(folder)
    with claimed(folder):
        folders.sweep(folder)
        try:
            path = folders.write(folder, step, config, files)
            folders.prune(folder, keep, path)
        except OSError as error:
            raise CheckpointError(
                f"could not write the checkpoint of step {step} into {folder}: {error}. Earlier checkpoints are intact."
            ) from error
    return path


def load_model(
    folder: PathName,
    *,
    ema: bool = True,
    net: Callable[..., Tensor] | None = None,
    sde: SDE | None = None,
    predicts: str | Prediction | None = None,
) -> ScoreModel:
    """The model of a checkpoint, on the CPU, in evaluation mode, with the units of its data and its conditions.

    Args:
        folder: a checkpoint (step-...), or the folder of a run, of which the latest is taken.
        ema: the averaged weights; False for the weights of the last step.
        net, sde, predicts: a network, SDE or prediction function of your own, which a file does not rebuild.

    Raises:
        CheckpointError: no checkpoint, a file is missing, cut short or damaged, the weights do not fit; it holds a
            classifier, or a part of your own, which is not given.
        ValueError: a part that is given contradicts the checkpoint.
    """
    model, told = _load(folder, ema, net is None, SCORE, lambda d: rebuild_model(d, net, sde, predicts))
    model.scaling, model.condition_scalings = told.scaling, dict(told.condition_scalings)
    return model


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
        CheckpointError: no checkpoint, a file is missing, cut short or damaged, the weights do not fit; it holds a
            score model, or a part of your own, which is not given.
        ValueError: a part that is given contradicts the checkpoint.
    """
    return _load(folder, ema, net is None, CLASSIFIER, lambda d: rebuild_classifier(d, net, sde))[0]


_LOADERS = {SCORE: "a score model; load it with load_model", CLASSIFIER: "a classifier; load it with load_classifier"}


def _load(
    folder: PathName, ema: bool, own_net: bool, kind: str, rebuild: Callable[[Mapping[str, Any]], Model]
) -> tuple[Model, Description]:
    ema, description = checks.flag(ema, name="ema"), describe(folder)
    found = description.model["kind"]
    if found != kind:
        raise CheckpointError(f"{description.path} holds {_LOADERS[found]}.")
    if ema and AVERAGE not in description.files:
        raise CheckpointError(f"{description.path} holds no averaged weights; pass ema=False for those it has.")
    config = unless_damaged(description, MODEL, folders.damaged(description.path, folders.CONFIG))
    layout = read_layout_of(description, MODEL)
    try:
        check_schedule(description.model)
        if own_net:  # shapes alone: a changed config must take neither memory nor time
            check_arguments(description.model["net"]["config"] or {}, layout, config)
            with torch.device("meta"), at_most(layout, config):
                described = rebuild(description.model)
            _check_layouts(described, layout, ema, description)
        model = rebuild(description.model)
    except Unbuildable as error:
        raise CheckpointError(f"{description.path / folders.CONFIG}: {error}") from error
    if not own_net:
        _check_layouts(model, layout, ema, description)
    load_weights(model, read_tensors(description, MODEL), description)
    if isinstance(model, ScoreModel):
        model.trained_with = description.trained_with
    if ema:
        # Into the parameters by name: a tied parameter has one name here, but several in the state of a model.
        load_parameters(model, read_tensors(description, AVERAGE), description)
    return model.eval(), description


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
        CheckpointError: names, shapes or dtypes differ.
    """
    own = dict(model.named_parameters())
    check_equal(state, own, ill_fitting(description, AVERAGE), dtypes=True)
    for name, parameter in own.items():
        parameter.copy_(state[name])


def load_optimizer(optimizer: Optimizer, description: Description) -> None:
    """Go on with the saved state.

    Raises:
        CheckpointError: the file is missing, is not the one that was written, or not of these parameters.
    """
    optimizer.load_state(read_tensors(description, OPTIMIZER), description.step, misplaced(description, OPTIMIZER))


def check_fit(model: nn.Module, state: Mapping[str, Tensor], description: Description) -> None:
    """Raise unless ``state`` holds the parameters and buffers of ``model``; floating ones may differ in precision.

    Raises:
        CheckpointError: names, shapes or kinds of dtypes differ.
    """
    check_equal(state, model.state_dict(), ill_fitting(description, MODEL), dtypes=False)


def check_resumable(description: Description, model: nn.Module) -> None:
    """Raise unless all that training goes on with is there, and is of ``model``; the values are not read yet.

    Raises:
        CheckpointError: a file is missing or damaged, or names, shapes or dtypes differ.
    """
    read_training(description)
    layout = read_layout_of(description, MODEL)
    check_fit(model, layout, description)
    trained = {name: layout.get(name, p) for name, p in model.named_parameters() if p.requires_grad}
    for name, value in trained.items():
        if value.dtype not in (torch.float32, torch.float64):
            raise misplaced(description, MODEL)(f"{name} is {value.dtype}; only float32 and float64 are trained.")
    _check_averages(dict(model.named_parameters()), layout, description)
    check_state(trained, read_layout_of(description, OPTIMIZER), description.step, misplaced(description, OPTIMIZER))


def _check_layouts(model: nn.Module, layout: Mapping[str, Tensor], ema: bool, description: Description) -> None:
    """Raise unless the files hold what this model needs, and nothing else; before a byte of the values is read."""
    check_fit(model, layout, description)
    if ema:
        _check_averages(dict(model.named_parameters()), layout, description)


def _check_averages(parameters: Mapping[str, Tensor], layout: Mapping[str, Tensor], description: Description) -> None:
    """Raise unless the averages are those of these parameters, in the dtypes of the weights."""
    wanted = {name: layout.get(name, value) for name, value in parameters.items()}
    check_equal(read_layout_of(description, AVERAGE), wanted, ill_fitting(description, AVERAGE), dtypes=True)


def _check_finite(tensors: Mapping[str, Tensor], step: int, what: str) -> None:
    for name, value in tensors.items():
        if not all_finite(value):
            raise FloatingPointError(f"the {what} {name} is not finite after step {step}; it is not saved.")
