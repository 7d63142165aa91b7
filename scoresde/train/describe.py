"""A trained model in words: what config.json says of it, and how it is rebuilt from that.

Only classes of this library are rebuilt by name: the SDEs that ``scoresde.sde`` exports and whose fields are numbers,
and the networks of ``scoresde.nn`` that have a ``config``. Nothing in a file can name other code::

    described = describe_model(model)          # JSON: {"kind": "score", "sde": {...}, "net": {...}, ...}
    model = rebuild_model(described)           # with fresh weights
"""

from __future__ import annotations

import dataclasses
import inspect
import typing
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

import scoresde
import scoresde.nn
import scoresde.sde
from scoresde.models import PREDICTIONS, ClassifierModel, Prediction, ScoreModel
from scoresde.models.model import Transported
from scoresde.sde import SDE
from scoresde.spectrum import Spectrum
from scoresde.train.draws import seeded
from scoresde.train.folder import CheckpointError

Model = TypeVar("Model", ScoreModel, ClassifierModel)

SCORE, CLASSIFIER = "score", "classifier"
"""Kinds of models, and of training."""


def _public(package: Any, fits: Callable[[Any], bool]) -> dict[str, Any]:
    """The classes that a package of ours exports and that fit, by the name that files call them."""
    exported = (getattr(package, name) for name in package.__all__)
    return {f"{package.__name__}.{cls.__name__}": cls for cls in exported if isinstance(cls, type) and fits(cls)}


def _of_numbers(cls: type) -> bool:
    """Whether a class is an SDE that a file can hold: one that is made from numbers."""
    if not issubclass(cls, SDE) or inspect.isabstract(cls):
        return False
    kinds, arguments = typing.get_type_hints(cls), {field.name for field in dataclasses.fields(cls) if field.init}
    numbers = all(kinds[name] in (float, int, bool, str) for name in arguments)
    return numbers and inspect.signature(cls).parameters.keys() == arguments


def _configurable(cls: type) -> bool:
    """Whether a class is a network that tells the arguments it is rebuilt from."""
    return issubclass(cls, nn.Module) and hasattr(cls, "config")


SDES: Mapping[str, type[SDE]] = _public(scoresde.sde, _of_numbers)
NETS: Mapping[str, Callable[..., nn.Module]] = _public(scoresde.nn, _configurable)


class Unbuildable(CheckpointError):
    """A class of this library with arguments that it does not take."""


def check_described(model: Any) -> None:
    """Raise unless ``model``, from a file, is shaped like what ``describe_model`` returns.

    Raises:
        KeyError, TypeError, ValueError: it is not.
    """
    kind = model.get("kind", SCORE)  # files of before there were classifiers do not say
    if kind not in (SCORE, CLASSIFIER):
        raise ValueError(f"kind: expected {SCORE} or {CLASSIFIER}, got {kind!r}")
    for part, arguments in (("sde", "fields"), ("net", "config")):
        name, given = model[part]["class"], model[part][arguments]
        if not isinstance(name, str) or not isinstance(given, dict | None):
            raise TypeError(f"{part}: expected a class name and {arguments}, got {name!r} and {given!r}")
    predicts, sigma_data = model["predicts"] if kind == SCORE else None, model["sigma_data"]
    if predicts is not None and predicts not in PREDICTIONS:
        raise ValueError(f"predicts: expected one of {', '.join(PREDICTIONS)}, got {predicts!r}")
    if sigma_data is not None and not (isinstance(sigma_data, float | int) and 0 < sigma_data < float("inf")):
        raise ValueError(f"sigma_data: expected a positive number or null, got {sigma_data!r}")
    _spectrum(model)


def known_parts(model: Mapping[str, Any]) -> dict[str, Any]:
    """A description that ``check_described`` accepted, with its kind, and nothing that this version does not know."""
    kind = model.get("kind", SCORE)
    known = {key: model[key] for key in ("sde", "net", "sigma_data")}
    found = {"kind": kind, **known, "predicts": model["predicts"] if kind == SCORE else None}
    return found if model.get("spectrum") is None else {**found, "spectrum": model["spectrum"]}


def describe_model(model: nn.Module) -> dict[str, Any]:
    """``model`` as JSON: its kind, SDE and network by class name and arguments, what it predicts,
    sigma_data and spectrum.

    Raises:
        TypeError: neither a ScoreModel nor a ClassifierModel, or one seen under another schedule than it was trained
            under.
        ValueError: a compiled wrapper around a network.
    """
    if not isinstance(model, ScoreModel | ClassifierModel):
        raise TypeError(
            f"expected a ScoreModel or a ClassifierModel, got {type(model).__name__}; wrap the network: "
            "ScoreModel(net, sde)."
        )
    if isinstance(model, Transported):
        raise TypeError("this model is a view under another schedule: use the trained one, apply .under() later.")
    if any("_orig_mod" in name for name, _ in model.named_modules()):
        raise ValueError("torch.compile(net) renames the weights; compile in place, net.compile(), before or after.")
    predicts = model.predicts if isinstance(model, ScoreModel) else None
    spectrum = model.spectrum if isinstance(model, ScoreModel) else None
    described = {
        "kind": SCORE if isinstance(model, ScoreModel) else CLASSIFIER,
        "sde": _describe_sde(model.sde),
        "net": _describe_net(model.net),
        "predicts": predicts if isinstance(predicts, str) else None,
        "sigma_data": None if model.sigma_data is None else float(model.sigma_data),
    }
    return described if spectrum is None else {**described, "spectrum": dataclasses.asdict(spectrum)}


def _spectrum(description: Mapping[str, Any]) -> Spectrum | None:
    """Raises TypeError or ValueError where it is none."""
    given = description.get("spectrum")  # files of before there was one do not say
    if given is None:
        return None
    if not (isinstance(given, dict) and set(given) == {"scale", "largest"}):
        raise ValueError(f"spectrum: expected scale and largest or null, got {given!r}")
    if not all(isinstance(v, float | int) and not isinstance(v, bool) for v in given.values()):
        raise TypeError(f"spectrum: expected two numbers, got {given!r}")
    return Spectrum(**given)


def rebuild_model(
    description: Mapping[str, Any],
    net: Callable[..., Tensor] | None = None,
    sde: SDE | None = None,
    predicts: str | Prediction | None = None,
) -> ScoreModel:
    """The ScoreModel that ``describe_model`` described, with fresh weights.

    Args:
        description: from ``describe_model``.
        net, sde, predicts: what the description cannot rebuild, because it is a user's own.

    Raises:
        ValueError: a user's own part is not given, or a part that is given contradicts the description.
        Unbuildable: this version of the library cannot build what is described.
    """
    net, sde = _parts(description, net, sde)
    if predicts is None:
        predicts = description["predicts"]
        if predicts is None:
            raise ValueError("the model was trained with a prediction function of its own; pass it as predicts=....")
    elif description["predicts"] not in (None, predicts):
        raise ValueError(f"the model was trained to predict {description['predicts']!r}, got predicts={predicts!r}.")
    return ScoreModel(net, sde, predicts, description["sigma_data"], _spectrum(description))


def rebuild_classifier(
    description: Mapping[str, Any], net: Callable[..., Tensor] | None = None, sde: SDE | None = None
) -> ClassifierModel:
    """The ClassifierModel that ``describe_model`` described, with fresh weights; arguments and errors as above."""
    return ClassifierModel(*_parts(description, net, sde), sigma_data=description["sigma_data"])


def _parts(
    description: Mapping[str, Any], net: Callable[..., Tensor] | None, sde: SDE | None
) -> tuple[Callable[..., Tensor], SDE]:
    """The network and the SDE: a user's own, or those described."""
    if net is None:
        net = _rebuild_net(description["net"])
    known = description["sde"]
    if sde is None:
        sde = _rebuild_sde(known)
    elif _describe_sde(sde) != known:
        raise ValueError(
            f"the model was trained under {_words(known)}, got sde={_words(_describe_sde(sde))}. Load it as it was "
            "trained; model.under(sde) then gives its score under another schedule."
        )
    return net, sde


def _describe_sde(sde: SDE) -> dict[str, Any]:
    name = _name(type(sde), "scoresde.sde", SDES)
    if name not in SDES:
        return {"class": name, "fields": None}
    fields = {f.name: getattr(sde, f.name) for f in dataclasses.fields(sde) if f.init}
    return {"class": name, "fields": {key: _plain(value) for key, value in fields.items()}}


def _describe_net(net: Any) -> dict[str, Any]:
    name = _name(type(net), "scoresde.nn", NETS)
    return {"class": name, "config": dict(net.config) if name in NETS else None}


def _name(cls: type, package: str, table: Mapping[str, Any]) -> str:
    """The name in our table, or the full name of a user's class (a subclass of ours is the user's)."""
    ours = f"{package}.{cls.__name__}"
    return ours if table.get(ours) is cls else f"{cls.__module__}.{cls.__qualname__}"


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, Tensor) else value


def _rebuild_net(described: Mapping[str, Any]) -> nn.Module:
    name, config = described["class"], described["config"]
    if name not in NETS or config is None:
        raise ValueError(
            f"the model has a network of its own, {name}, which is not rebuilt from a file. "
            f"Build it and pass it: net={name.rpartition('.')[2]}(...)."
        )
    with seeded(torch.device("cpu"), 0):  # initial weights are overwritten; leave the caller's generator alone
        try:
            return NETS[name](**config)
        except (TypeError, ValueError, RuntimeError) as error:
            raise _unknown(name, error) from error


def _rebuild_sde(described: Mapping[str, Any]) -> SDE:
    name, fields = described["class"], described["fields"]
    if name not in SDES or fields is None:
        raise ValueError(
            f"the model has an SDE of its own, {name}, which is not rebuilt from a file. "
            f"Build it and pass it: sde={name.rpartition('.')[2]}(...)."
        )
    try:
        return SDES[name](**fields)
    except (TypeError, ValueError) as error:
        raise _unknown(name, error) from error


def _unknown(name: str, error: Exception) -> Unbuildable:
    return Unbuildable(
        f"scoresde {scoresde.__version__} cannot build the {name} of this checkpoint: {error} It may have been written "
        "by another version, or its config.json was changed."
    )


def _words(described: Mapping[str, Any]) -> str:
    fields = described["fields"] or {}
    return f"{described['class']}({', '.join(f'{key}={value}' for key, value in fields.items())})"
