"""A trained model in words: what config.json says of it, and how it is rebuilt from that.

Only classes of this library are rebuilt by name: the SDEs that ``scoresde.sde`` exports and whose fields are numbers or
tell themselves as JSON (a chain), and the networks of ``scoresde.nn`` that have a ``config``. Nothing in a file can
name other code::

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
from scoresde import checks
from scoresde.files import Fields
from scoresde.models import PREDICTIONS, ClassifierModel, ContrastiveModel, Prediction, ScoreModel
from scoresde.models.model import Transported
from scoresde.nn.attached import attach, attached
from scoresde.sde import SDE
from scoresde.spectrum import Spectrum
from scoresde.train.draws import seeded
from scoresde.train.folder import CheckpointError

Model = TypeVar("Model", ScoreModel, ClassifierModel, ContrastiveModel)

SCORE, CLASSIFIER, CONTRASTIVE = "score", "classifier", "contrastive"
"""Kinds of models, and of training."""

KINDS: Mapping[type[nn.Module], str] = {ScoreModel: SCORE, ClassifierModel: CLASSIFIER, ContrastiveModel: CONTRASTIVE}


def kind_of(model: object) -> str:
    """Of which kind a model is, a subclass of one of ours as well.

    Raises:
        TypeError: of none.
    """
    for cls, kind in KINDS.items():
        if isinstance(model, cls):
            return kind
    raise TypeError(f"model must be a ScoreModel, a ClassifierModel or a ContrastiveModel, got {checks.got(model)}.")


def _public(package: Any, fits: Callable[[Any], bool]) -> dict[str, Any]:
    """The classes that a package of ours exports and that fit, by the name that files call them."""
    exported = (getattr(package, name) for name in package.__all__)
    return {f"{package.__name__}.{cls.__name__}": cls for cls in exported if isinstance(cls, type) and fits(cls)}


def _holdable(cls: type) -> bool:
    """Whether a class is an SDE that a file can hold: one that is made from numbers, and from what JSON tells of."""
    if not issubclass(cls, SDE) or inspect.isabstract(cls):
        return False
    kinds = _kinds(cls)
    held = all(kind in (float, int, bool, str) or _told(kind) for kind in kinds.values())
    return held and inspect.signature(cls).parameters.keys() == kinds.keys()


def _kinds(cls: type) -> dict[str, Any]:
    """The arguments of a dataclass, and of which kind each is."""
    hints = typing.get_type_hints(cls)
    return {field.name: hints[field.name] for field in dataclasses.fields(cls) if field.init}


def _told(kind: object) -> bool:
    """Whether a class tells itself as JSON, and is made from that."""
    return hasattr(kind, "to_json") and hasattr(kind, "from_json")


def _configurable(cls: type) -> bool:
    """Whether a class is a network that tells the arguments it is rebuilt from."""
    return issubclass(cls, nn.Module) and hasattr(cls, "config")


SDES: Mapping[str, type[SDE]] = _public(scoresde.sde, _holdable)
NETS: Mapping[str, Callable[..., nn.Module]] = _public(scoresde.nn, _configurable)


class Unbuildable(CheckpointError):
    """A class of this library with arguments that it does not take."""


def read_described(given: Fields) -> dict[str, Any]:
    """What ``describe_model`` returned, from a file; nothing of it that this version does not know.

    Raises:
        Exception: what the fields make of one that is missing or of another kind.
    """
    kind = SCORE if given.null("kind") else given.one_of("kind", tuple(KINDS.values()))  # the first files do not say
    predicts = None
    if kind != SCORE and not given.null("predicts"):
        raise given.refused(
            "predicts", f"a {kind} model predicts no part of a score: the kind or this field was changed."
        )
    if kind == SCORE and given.value("predicts") is not None:
        predicts = given.one_of("predicts", tuple(PREDICTIONS))
    found: dict[str, Any] = {
        "kind": kind,
        "sde": _read_part(given.object("sde"), "fields"),
        "net": _read_net(given.object("net")),
        "predicts": predicts,
        "sigma_data": None if given.value("sigma_data") is None else given.number("sigma_data", above=0),
    }
    fields, learned = found["sde"]["fields"] or {}, given.object("sde")
    if not learned.null("learned"):  # only those of learned schedules have it
        found["sde"]["learned"] = list(learned.texts("learned", most_items=100))
        for name in found["sde"]["learned"]:
            if isinstance(fields.get(name), bool) or not isinstance(fields.get(name), (int, float)):
                raise learned.refused("learned", f"{name!r} is no number among the fields.")
    known = SDES.get(found["sde"]["class"])
    objects = [] if known is None else [name for name, kind in _kinds(known).items() if _told(kind)]
    for name, value in fields.items():
        if isinstance(value, (list, dict)) and name not in objects:
            raise given.object("sde").object("fields").refused(name, "a number or a text is expected.")
    if not given.null("spectrum"):  # the first files have none
        spectrum = given.object("spectrum")
        scale = spectrum.number("scale", above=0)
        found["spectrum"] = {"scale": scale, "largest": spectrum.number("largest", least=scale)}
    return found


def _read_part(given: Fields, arguments: str) -> dict[str, Any]:
    """A class name and its arguments by name, or null for those of a class of the user's own."""
    found = given.value(arguments)
    if found is not None:
        names = given.object(arguments).names(most=100)
        found = {name: found[name] for name in names}
    return {"class": given.text("class"), arguments: found}


def _read_net(given: Fields) -> dict[str, Any]:
    """A network, and what was put into it."""
    found = _read_part(given, "config")
    if not given.null("attached"):  # only networks with adapters or learned words have it
        parts = given.value("attached")
        if not isinstance(parts, list) or not all(isinstance(one, dict) for one in parts):
            raise given.refused("attached", "a list of objects is expected.")
        found["attached"] = parts
    return found


def describe_model(model: nn.Module) -> dict[str, Any]:
    """``model`` as JSON: its kind, SDE and network by class name and arguments, what it predicts,
    sigma_data and spectrum.

    Raises:
        TypeError: no ScoreModel, ClassifierModel or ContrastiveModel, or one seen under another schedule than it was
            trained under.
        ValueError: a compiled wrapper around a network.
    """
    if not isinstance(model, ScoreModel | ClassifierModel | ContrastiveModel):
        raise TypeError(
            f"expected a ScoreModel, a ClassifierModel or a ContrastiveModel, got {type(model).__name__}; wrap the "
            "network: ScoreModel(net, sde)."
        )
    if isinstance(model, Transported):
        raise TypeError("this model is a view under another schedule: use the trained one, apply .under() later.")
    if any("_orig_mod" in name for name, _ in model.named_modules()):
        raise ValueError("torch.compile(net) renames the weights; compile in place, net.compile(), before or after.")
    predicts = model.predicts if isinstance(model, ScoreModel) else None
    spectrum = model.spectrum if isinstance(model, ScoreModel) else None
    described = {
        "kind": kind_of(model),
        "sde": _describe_sde(model.sde),
        "net": _describe_net(model.net),
        "predicts": predicts if isinstance(predicts, str) else None,
        "sigma_data": None if model.sigma_data is None else float(model.sigma_data),
    }
    return described if spectrum is None else {**described, "spectrum": dataclasses.asdict(spectrum)}


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
            raise CheckpointError(
                "the model was trained with a prediction function of its own; pass it as predicts=...."
            )
    elif description["predicts"] not in (None, predicts):
        raise ValueError(f"the model was trained to predict {description['predicts']!r}, got predicts={predicts!r}.")
    spectrum = description.get("spectrum")
    return ScoreModel(net, sde, predicts, description["sigma_data"], None if spectrum is None else Spectrum(**spectrum))


def rebuild_classifier(
    description: Mapping[str, Any], net: Callable[..., Tensor] | None = None, sde: SDE | None = None
) -> ClassifierModel:
    """The ClassifierModel that ``describe_model`` described, with fresh weights; arguments and errors as above."""
    return ClassifierModel(*_parts(description, net, sde), sigma_data=description["sigma_data"])


def rebuild_contrastive(
    description: Mapping[str, Any], net: Callable[..., Tensor] | None = None, sde: SDE | None = None
) -> ContrastiveModel:
    """The ContrastiveModel that ``describe_model`` described, with fresh weights; arguments and errors as above."""
    return ContrastiveModel(*_parts(description, net, sde), sigma_data=description["sigma_data"])


def _parts(
    description: Mapping[str, Any], net: Callable[..., Tensor] | None, sde: SDE | None
) -> tuple[Callable[..., Tensor], SDE]:
    """The network and the SDE: a user's own, or those described."""
    _ask_for_own({name: description[name] for name, given in (("net", net), ("sde", sde)) if given is None})
    if net is None:
        net = _rebuild_net(description["net"])
    known = description["sde"]
    if sde is None:
        sde = _rebuild_sde(known)
    elif not _agrees(_describe_sde(sde), known):
        raise ValueError(
            f"the model was trained under {_words(known)}, got sde={_words(_describe_sde(sde))}. Load it as it was "
            "trained; model.under(sde) then gives its score under another schedule."
        )
    return net, sde


def _ask_for_own(parts: Mapping[str, Mapping[str, Any]]) -> None:
    """Raise unless all these parts, as described, can be rebuilt from a file; names those that cannot, all at once."""
    own = {}
    for name, part in parts.items():
        known, arguments = (NETS, "config") if name == "net" else (SDES, "fields")
        if part["class"] not in known or part[arguments] is None:
            own[name] = part["class"]
    if own:
        words = {"net": "a network of its own", "sde": "an SDE of its own"}
        told = " and ".join(f"{words[name]}, {cls}," for name, cls in own.items())
        pass_it = ", ".join(f"{name}={cls.rpartition('.')[2]}(...)" for name, cls in own.items())
        are, them = ("is", "it") if len(own) == 1 else ("are", "them")
        raise CheckpointError(
            f"the model has {told} which {are} not rebuilt from a file. Build {them} and pass {them}: {pass_it}."
        )


def _agrees(given: Mapping[str, Any], known: Mapping[str, Any]) -> bool:
    """Whether an SDE, as described, is the one that a file tells of."""
    if known["fields"] is None and given["fields"] is not None:  # files of before have the name of a ChainSDE alone
        return known["class"] == f"{SDES[given['class']].__module__}.{given['class'].rpartition('.')[2]}"
    return _fixed(given) == _fixed(known)


COMPUTING = ("checkpoint",)
"""Arguments of networks that change no weight and no answer: a run may go on with others."""


def fixed(described: Mapping[str, Any]) -> dict[str, Any]:
    """A model as ``describe_model`` told of it, without what training found and what only says how it computes."""
    net = described["net"]
    config = {key: value for key, value in (net["config"] or {}).items() if key not in COMPUTING}
    return {**described, "net": {**net, "config": config}, "sde": _fixed(described["sde"])}


def _fixed(described: Mapping[str, Any]) -> Mapping[str, Any]:
    """An SDE as described, without the values that training found."""
    learned = described.get("learned", ())
    fields = described["fields"]
    return described if not learned else {**described, "fields": {**fields, **dict.fromkeys(learned)}}


def _describe_sde(sde: SDE) -> dict[str, Any]:
    name = _name(type(sde), "scoresde.sde", SDES)
    if name not in SDES:
        return {"class": name, "fields": None}
    fields = {f.name: getattr(sde, f.name) for f in dataclasses.fields(sde) if f.init}
    described = {"class": name, "fields": {key: _plain(value) for key, value in fields.items()}}
    learned = [key for key, value in fields.items() if isinstance(value, nn.Parameter)]
    return {**described, "learned": learned} if learned else described


def _describe_net(net: Any) -> dict[str, Any]:
    cls = type(net)
    if cls.__bases__[0].__module__.startswith("torch.distributed"):  # torch's, for a network divided among processes
        cls = cls.__bases__[1]
    name = _name(cls, "scoresde.nn", NETS)
    described: dict[str, Any] = {"class": name, "config": dict(net.config) if name in NETS else None}
    parts = [one.describe() for one in attached(net).values()] if isinstance(net, nn.Module) else []
    return {**described, "attached": parts} if parts else described


def _name(cls: type, package: str, table: Mapping[str, Any]) -> str:
    """The name in our table, or the full name of a user's class (a subclass of ours is the user's)."""
    ours = f"{package}.{cls.__name__}"
    return ours if table.get(ours) is cls else f"{cls.__module__}.{cls.__qualname__}"


def _plain(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach().item()
    return value.to_json() if _told(value) else value


def _rebuild_net(described: Mapping[str, Any]) -> nn.Module:
    name, config = described["class"], described["config"]
    with seeded(torch.device("cpu"), 0):  # initial weights are overwritten; leave the caller's generator alone
        try:
            net = NETS[name](**config)
            for told in described.get("attached", ()):
                attach(net, told)
            return net
        except Exception as error:  # whatever a constructor meets in the arguments of a stranger
            raise _unknown(name, error) from error


def _rebuild_sde(described: Mapping[str, Any]) -> SDE:
    name = described["class"]
    try:
        return SDES[name](**_values(described))
    except Exception as error:
        raise _unknown(name, error) from error


def _values(described: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of an SDE, as its class takes them."""
    fields, learned = described["fields"] or {}, described.get("learned", ())
    kinds = _kinds(SDES[described["class"]]) if fields else {}
    with torch.device("cpu"):  # also where a network is built of shapes alone
        return {
            key: kinds[key].from_json(value)
            if key in kinds and _told(kinds[key])
            else (nn.Parameter(torch.tensor(float(value))) if key in learned else value)
            for key, value in fields.items()
        }


def check_schedule(description: Mapping[str, Any]) -> None:
    """Raise unless the SDE described, where it is one of ours, has a finite α and σ from its first time to its last.

    Raises:
        Unbuildable: it has not, or cannot be built.
    """
    name = description["sde"]["class"]
    if name not in SDES or description["sde"]["fields"] is None:
        return
    sde = _rebuild_sde(description["sde"])
    try:
        times = torch.linspace(float(sde.t_min), float(sde.T), 5, dtype=torch.float64)
        sound = all(bool(part(times).isfinite().all()) for part in (sde.alpha, sde.sigma))
    except Exception as error:
        raise _unknown(name, error) from error
    if not sound:
        raise _unknown(name, ValueError("its α or σ is not finite."))


def _unknown(name: str, error: Exception) -> Unbuildable:
    return Unbuildable(
        f"scoresde {scoresde.__version__} cannot build the {name} of this checkpoint: {error} It may have been written "
        "by another version, or its config.json was changed."
    )


def _words(described: Mapping[str, Any]) -> str:
    values = _values({**described, "learned": ()}) if described["class"] in SDES else {}
    return f"{described['class']}({', '.join(f'{key}={value}' for key, value in values.items())})"
