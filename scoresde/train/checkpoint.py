"""Checkpoints of models and training runs: safetensors and JSON, no pickle::

    save("run", model, step=2000, dataset=dataset)          # train() does it
    model = load_model("run")                               # of the latest step; load_classifier, load_contrastive
    describe("run").class_names                             # what a checkpoint says of itself

What is in the folder of a run::

    run/log.jsonl
    run/step-00002000/config.json              what it is; SHA-256 of itself and of the other files
                      model.safetensors        parameters and buffers
                      ema.safetensors          averaged parameters; of further averages ema-2.safetensors, ...
                      optimizer.safetensors    state of AdamW
                      weighting.safetensors    of a weighting that is learned along
                      training.json            counters and options, for resuming
                      held-out.safetensors     losses of held-out draws, for resuming, where some are held out
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import scoresde
from scoresde import checks
from scoresde.files import PathName
from scoresde.models import ClassifierModel, ContrastiveModel, Prediction, ScoreModel
from scoresde.sde import SDE
from scoresde.train import folder as folders
from scoresde.train.bounded import at_most, check_arguments
from scoresde.train.contents import (
    AVERAGE,
    FORMAT,
    HELD_OUT,
    MODEL,
    MOST_AVERAGES,
    OPTIMIZER,
    TRAINING,
    WEIGHTING,
    Description,
    average_name,
    describe,
    describe_data,
    ill_fitting,
    misplaced,
    parts,
    read_layout_of,
    read_tensors,
    read_training,
    unless_damaged,
    vocabularies_of,
    with_units,
)
from scoresde.train.describe import (
    CLASSIFIER,
    CONTRASTIVE,
    SCORE,
    Model,
    Unbuildable,
    check_schedule,
    describe_model,
    kind_of,
    rebuild_classifier,
    rebuild_contrastive,
    rebuild_model,
)
from scoresde.train.ema import EMA, PowerEMA
from scoresde.train.folder import CheckpointError, Writer
from scoresde.train.optimizer import Optimizer, trained_parameters
from scoresde.train.tensors import all_finite, check_equal
from scoresde.train.writing import Content, write_whole


def save(
    folder: PathName,
    model: ScoreModel | ClassifierModel | ContrastiveModel,
    *,
    step: int,
    ema: EMA | Sequence[EMA] | None = None,
    dataset: object = None,
    optimizer: Mapping[str, Tensor] | None = None,
    training: Mapping[str, Any] | None = None,
    weighting: nn.Module | None = None,
    held_out: Mapping[str, Tensor] | None = None,
    keep: int = 2,
    spare: Collection[str] = (),
) -> Path:
    """Write a checkpoint into ``folder``, then remove all but the last ``keep``.

    Args:
        folder: made where it is missing.
        model: the model; of its own code only names are written.
        step: optimizer steps done.
        ema: averaged weights, or several averages, of which ``load_model`` and ``load_classifier`` prefer the first.
        dataset: its event_shape, class_names, scaling and the shapes of its conditions are noted, where it has them;
            where it tells no scaling, that of the model.
        optimizer: tensors, and
        training: JSON for resuming, and
        weighting: the network of a weighting that is learned along, and
        held_out: tensors by which later held-out losses are judged, all four written by ``train``.
        keep: how many checkpoints to leave, at least 1.
        spare: names of checkpoints in the folder that are left besides.

    Returns:
        The checkpoint's folder, ``folder``/step-.... A second checkpoint of a step gets a name of its own.

    Raises:
        CheckpointError: the folder cannot be written, or another process trains into it; earlier checkpoints are
            intact.
        FloatingPointError: a weight, or a number of the optimizer's, is not finite.
        ValueError: step negative or keep below 1, or the data set tells more than a checkpoint can hold.
    """
    return save_by(
        write_whole,
        folder,
        model,
        step=step,
        ema=ema,
        dataset=dataset,
        optimizer=optimizer,
        training=training,
        weighting=weighting,
        held_out=held_out,
        keep=keep,
        spare=spare,
    )


def save_by(
    write: Callable[[Path, Content], Path],
    folder: PathName,
    model: ScoreModel | ClassifierModel | ContrastiveModel,
    *,
    step: int,
    ema: EMA | Sequence[EMA] | None = None,
    dataset: object = None,
    optimizer: Mapping[str, Tensor] | None = None,
    training: Mapping[str, Any] | None = None,
    weighting: nn.Module | None = None,
    held_out: Mapping[str, Tensor] | None = None,
    keep: int = 2,
    spare: Collection[str] = (),
) -> Path:
    """The same as ``save``, by a function that writes."""
    folder, step, keep = (
        checks.path(folder, name="folder"),
        checks.count(step, name="step", least=0),
        checks.count(keep, name="keep"),
    )
    kind_of(model)  # which it must have
    averages = _averages(ema)
    tensors: dict[str, Mapping[str, Tensor]] = {MODEL: model.state_dict()}
    tensors.update({file: one.state() for file, one in averages.items()})
    if weighting is not None:
        tensors[WEIGHTING] = checks.instance(weighting, nn.Module, name="weighting").state_dict()
    names: object = spare
    if isinstance(names, str) or not (isinstance(names, Collection) and all(isinstance(name, str) for name in names)):
        raise TypeError(f"spare must be a list of names of checkpoints, got {checks.got(spare)}.")
    for argument, file, given in (("optimizer", OPTIMIZER, optimizer), ("held_out", HELD_OUT, held_out)):
        if given is not None:
            _check_named(argument, given)
            tensors[file] = given
    others: dict[str, Writer] = {}
    if training is not None:
        checks.instance(training, Mapping, name="training", hint="It is written as JSON.")
        try:
            others[TRAINING] = folders.json_writer(training)
        except (TypeError, ValueError) as error:
            raise type(error)(f"training must hold what JSON can, got {checks.got(training)}: {error}.") from error
    config = config_of(model, step, dataset)
    if averages:
        config["averages"] = {
            file: {"width": one.width} if isinstance(one, PowerEMA) else {"decay": one.decay}
            for file, one in averages.items()
        }
    return write(folder, Content(step, config, tensors, others, keep, spare))


def _averages(ema: EMA | Sequence[EMA] | None) -> dict[str, EMA]:
    """The averages to be saved, by file."""
    if ema is None:
        return {}
    several = list(ema) if isinstance(ema, Sequence) and not isinstance(ema, str) else [ema]
    for one in several:
        checks.instance(one, EMA, name="ema", hint="Or a list of them.")
    if len(several) > MOST_AVERAGES:
        raise ValueError(f"ema must be at most {MOST_AVERAGES} averages, got {len(several)}.")
    return {average_name(i): one for i, one in enumerate(several)}


def _check_named(argument: str, given: object) -> None:
    """Raise unless it maps names to tensors."""
    found: Mapping[Any, Any] = checks.instance(given, Mapping, name=argument, hint="It maps names to tensors.")
    for name, value in found.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise TypeError(f"{argument} must map names to tensors, got {checks.got(value)} for {checks.got(name)}.")


def config_of(
    model: ScoreModel | ClassifierModel | ContrastiveModel, step: int, dataset: object = None
) -> dict[str, Any]:
    """What config.json says of a model, but for its files.

    Raises:
        TypeError, ValueError: a model that cannot be described, or a data set that tells more than a file can hold.
    """
    config = {
        "format": FORMAT,
        "version": scoresde.__version__,
        "step": step,
        "model": describe_model(model),
        "data": with_units(describe_data(dataset), model),
    }
    if isinstance(model, ScoreModel) and model.trained_with is not None:
        config["trained_with"] = model.trained_with.to_json()
    if model.loss_curve is not None:
        config["loss_curve"] = model.loss_curve.to_json()
    return config


def load_model(
    folder: PathName,
    *,
    ema: bool | float | None = None,
    net: Callable[..., Tensor] | None = None,
    sde: SDE | None = None,
    predicts: str | Prediction | None = None,
) -> ScoreModel:
    """The model of a checkpoint, on the CPU, in evaluation mode, with what is known of its data: shape, names of the
    classes, vocabularies, and the units of x and of the conditions.

    Args:
        folder: the folder of a run, of which the latest checkpoint is taken; one of its step-... folders; or a folder
            that ``save_pretrained`` wrote.
        ema: True for the averaged weights, the first where there are several; a number for those of this decay; False
            for those of the last step; by default the averaged ones where there are any, and else those there are.
        net, sde, predicts: a network, SDE or prediction function of your own, which a file does not rebuild.

    Raises:
        CheckpointError: no checkpoint, a file is missing, cut short or damaged, the weights do not fit; it holds a
            classifier, or a part of your own, which is not given.
        ValueError: a part that is given contradicts the checkpoint.
    """
    return _load(folder, ema, net is None, SCORE, lambda d: rebuild_model(d, net, sde, predicts))


def load_classifier(
    folder: PathName,
    *,
    ema: bool | float | None = None,
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
    return _load(folder, ema, net is None, CLASSIFIER, lambda d: rebuild_classifier(d, net, sde))


def load_contrastive(
    folder: PathName,
    *,
    ema: bool | float | None = None,
    net: Callable[..., Tensor] | None = None,
    sde: SDE | None = None,
) -> ContrastiveModel:
    """The contrastive model of a checkpoint that ``train_contrastive`` wrote, on the CPU, in evaluation mode.

    Args:
        folder, ema, net, sde: as for ``load_model``.

    Raises:
        CheckpointError: no checkpoint, a file is missing, cut short or damaged, the weights do not fit; it holds
            another kind of model, or a part of your own, which is not given.
        ValueError: a part that is given contradicts the checkpoint.
    """
    return _load(folder, ema, net is None, CONTRASTIVE, lambda d: rebuild_contrastive(d, net, sde))


NARROWED = "net."
"""What the names of those weights begin with that may be stored in another dtype than the network computes in."""

_LOADERS = {
    SCORE: "a score model; load it with load_model",
    CLASSIFIER: "a classifier; load it with load_classifier",
    CONTRASTIVE: "a contrastive model; load it with load_contrastive",
}


_TRIES = 5
"""How often a folder is read that another process replaces meanwhile."""


def _load(
    folder: PathName, ema: bool | float | None, own_net: bool, kind: str, rebuild: Callable[[Mapping[str, Any]], Model]
) -> Model:
    wanted, description = wanted_average(ema), describe(folder)
    for _ in range(_TRIES):
        try:
            return _read(description, wanted, own_net, kind, rebuild)
        except CheckpointError:
            # Training removes old checkpoints, and a saved folder may be replaced: then the next one is as good.
            before, description = description, describe(folder)
            if (description.path, description.files) == (before.path, before.files):
                raise
    return _read(description, wanted, own_net, kind, rebuild)


def wanted_average(ema: object) -> bool | float | None:
    """What is said of averages: whether they are wanted, or the one of this decay.

    Raises:
        TypeError, ValueError: neither a flag nor a decay in [0, 1).
    """
    if ema is None or isinstance(ema, str):
        return None if ema is None else checks.flag(ema, name="ema")
    try:
        decay = checks.number(ema, name="ema")
    except TypeError:
        return checks.flag(ema, name="ema")
    if not 0 <= decay < 1:
        raise ValueError(f"ema must be True, False or the decay of an average, in [0, 1), got {decay:g}.")
    return decay


def _read(
    description: Description,
    wanted: bool | float | None,
    own_net: bool,
    kind: str,
    rebuild: Callable[[Mapping[str, Any]], Model],
) -> Model:
    found = description.model["kind"]
    if found != kind:
        raise CheckpointError(f"{description.path} holds {_LOADERS[found]}.")
    averages = average_file(description, wanted)
    config = unless_damaged(description, MODEL, folders.damaged(description.path, folders.CONFIG))
    layout = read_layout_of(description, MODEL)
    try:
        check_schedule(description.model)
        if own_net:  # shapes alone: a changed config must take neither memory nor time
            check_arguments(description.model["net"]["config"] or {}, layout, config)
            with torch.device("meta"), at_most(layout, config):
                described = rebuild(description.model)
            _check_layouts(described, layout, averages, description)
        model = rebuild(description.model)
    except Unbuildable as error:
        raise CheckpointError(f"{description.path / folders.CONFIG}: {error}") from error
    if not own_net:
        _check_layouts(model, layout, averages, description)
    load_weights(model, as_computed(model, read_tensors(description, MODEL), description), description)
    if averages is not None:
        # Into the parameters by name: a tied parameter has one name here, but several in the state of a model.
        load_parameters(
            model, as_computed(model, read_tensors(description, averages), description), description, averages
        )
    model.averaged = True if averages is not None or description.averaged else None
    if isinstance(model, ScoreModel):
        model.trained_with = description.trained_with
    model.loss_curve = description.loss_curve
    model.scaling, model.condition_scalings = description.scaling, dict(description.condition_scalings)
    model.event_shape, model.class_names = description.event_shape, description.class_names
    model.condition_shapes = dict(description.conditions)
    model.vocabularies = vocabularies_of(description)
    return model.eval()


def average_file(description: Description, wanted: bool | float | None) -> str | None:
    """The file of the averages that are wanted; None for the weights of the last step.

    Raises:
        CheckpointError: the checkpoint does not hold what is wanted.
    """
    if wanted is None or isinstance(wanted, bool):
        return AVERAGE if uses_averages(description, wanted) else None
    for file, decay in description.decays.items():
        if math.isclose(1 - decay, 1 - wanted, rel_tol=1e-6):
            return file
    held = ", ".join(f"{decay:g}" for decay in description.decays.values())
    told = f"ema must be one of {held}" if held else "it does not tell of any decay; pass ema=True or ema=False"
    raise CheckpointError(f"{description.path} holds no averages of decay {wanted:g}: {told}.")


def uses_averages(description: Description, wanted: bool | None) -> bool:
    """Whether what is wanted of a checkpoint, averaged weights or those of the last step, is in its file of averages.

    Raises:
        CheckpointError: it does not hold what is wanted.
    """
    if parts(description.files, AVERAGE):
        return wanted is not False
    if wanted and not description.averaged:
        raise CheckpointError(f"{description.path} holds no averaged weights; pass ema=False for those it has.")
    if wanted is False and description.averaged:
        raise CheckpointError(
            f"{description.path} holds averaged weights only, and not those of the last step; pass ema=True."
        )
    return False


def as_computed(model: nn.Module, state: Mapping[str, Tensor], description: Description) -> dict[str, Tensor]:
    """Weights in the dtype in which the network computes, where they are stored in another."""
    dtype = description.computes_in
    if dtype is None:
        return dict(state)
    names = {name for name, _ in model.named_parameters(remove_duplicate=False) if name.startswith(NARROWED)}
    return {
        name: value.to(dtype) if name in names and value.is_floating_point() else value for name, value in state.items()
    }


def stored_in(model: nn.Module, state: Mapping[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    """Weights to be stored in another dtype: those of the network, and neither its buffers, which may be frequencies
    that rounding would spoil, nor a schedule's.

    Raises:
        ValueError: a number that is beyond this dtype.
    """
    names = {name for name, _ in model.named_parameters(remove_duplicate=False) if name.startswith(NARROWED)}
    stored = {
        name: value.to(dtype) if name in names and value.is_floating_point() else value for name, value in state.items()
    }
    for name, value in stored.items():
        if all_finite(state[name]) and not all_finite(value):
            raise ValueError(
                f"the weight {name} holds {state[name].abs().max().item():g}, and dtype={dtype} ends at "
                f"{torch.finfo(dtype).max:g}; take torch.bfloat16 or torch.float32."
            )
    return stored


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
def load_parameters(
    model: nn.Module, state: Mapping[str, Tensor], description: Description, file: str = AVERAGE
) -> None:
    """Overwrite the parameters of ``model``, tied ones once, with those of a file.

    Raises:
        CheckpointError: names, shapes or dtypes differ.
    """
    own = dict(model.named_parameters())
    check_equal(state, own, ill_fitting(description, file), dtypes=True)
    for name, parameter in own.items():
        parameter.copy_(state[name])


def load_optimizer(optimizer: Optimizer, description: Description, state: Mapping[str, Tensor]) -> None:
    """Go on with the saved state.

    Raises:
        CheckpointError: it is not of these parameters.
    """
    optimizer.load_state(state, description.step, misplaced(description, OPTIMIZER))


def check_fit(model: nn.Module, state: Mapping[str, Tensor], description: Description) -> None:
    """Raise unless ``state`` holds the parameters and buffers of ``model``; floating ones may differ in precision.

    Raises:
        CheckpointError: names, shapes or kinds of dtypes differ.
    """
    check_equal(state, model.state_dict(), ill_fitting(description, MODEL), dtypes=False)


def check_resumable(
    description: Description, model: nn.Module, optimizer: Optimizer, companion: nn.Module | None = None
) -> None:
    """Raise unless all that training goes on with is there, and is of ``model``, what is trained along with it, and
    ``optimizer``; the values are not read yet.

    Raises:
        CheckpointError: a file is missing or damaged, or names, shapes or dtypes differ.
    """
    options = read_training(description)["options"]
    layout = read_layout_of(description, MODEL)
    check_fit(model, layout, description)
    trained = {name: layout.get(name, p) for name, p in trained_parameters(model, companion).items()}
    if companion is not None and parts(description.files, WEIGHTING):
        along = read_layout_of(description, WEIGHTING)
        check_equal(along, companion.state_dict(), misplaced(description, WEIGHTING), dtypes=True)
    for name, value in trained.items():
        if value.dtype not in (torch.float32, torch.float64):
            raise misplaced(description, MODEL)(f"{name} is {value.dtype}; only float32 and float64 are trained.")
    for file in description.decays or (AVERAGE,):
        _check_averages(dict(model.named_parameters()), layout, description, file)
    layout = read_layout_of(description, OPTIMIZER)
    fail, before = misplaced(description, OPTIMIZER), options.get("optimizer")
    if companion is None and parts(description.files, WEIGHTING):
        raise fail(
            "a part of the state is that of a weighting that was learned along: give weighting=losses.Uncertainty(...) "
            "as before, or train anew."
        )
    if before != optimizer.name:
        words = (
            f"the state is that of {before or 'AdamW, the default'}, and optimizer is {optimizer.name or 'AdamW'} now"
        )
        optimizer.check_saved(trained, layout, description.step, lambda text: fail(f"{words}: {text}"))
    else:
        optimizer.check_saved(trained, layout, description.step, fail)


def _check_layouts(
    model: nn.Module, layout: Mapping[str, Tensor], averages: str | None, description: Description
) -> None:
    """Raise unless the files hold what this model needs, and nothing else; before a byte of the values is read."""
    check_fit(model, layout, description)
    if averages is not None:
        _check_averages(dict(model.named_parameters()), layout, description, averages)


def _check_averages(
    parameters: Mapping[str, Tensor], layout: Mapping[str, Tensor], description: Description, file: str
) -> None:
    """Raise unless the averages of a file are those of these parameters, in the dtypes of the weights."""
    wanted = {name: layout.get(name, value) for name, value in parameters.items()}
    check_equal(read_layout_of(description, file), wanted, ill_fitting(description, file), dtypes=True)
