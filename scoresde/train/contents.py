"""What is in a checkpoint, read and checked before it is used: what it says of itself, tensors, counters.

::

    description = describe("run")                           # of the latest step
    read_layout_of(description, MODEL)                      # names, shapes and dtypes, without the values
    read_tensors(description, MODEL)                        # finite, and those that were written
    read_training(description)["ema_updates"]

Whatever is wrong is a :class:`~scoresde.train.CheckpointError` that names the file and the field or the tensor.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

import scoresde
from scoresde import checks
from scoresde.curve import LossCurve
from scoresde.data import Scaling
from scoresde.data.labels import MOST_CLASSES
from scoresde.files import Fail, Fields, PathName
from scoresde.models.conditions import TrainedWith
from scoresde.nn import BytePairs, Vocabulary
from scoresde.train import folder as folders
from scoresde.train.describe import read_described
from scoresde.train.folder import CheckpointError
from scoresde.train.tensors import Found, read_layout, read_rows, read_values
from scoresde.warning import warn_user

Noted = TypeVar("Noted")

FORMAT = 1
MODEL, AVERAGE = "model.safetensors", "ema.safetensors"
OPTIMIZER, TRAINING, HELD_OUT = "optimizer.safetensors", "training.json", "held-out.safetensors"
WEIGHTING = "weighting.safetensors"
"""The network of a weighting that is learned along, for going on."""

MOST_AVERAGES = 16
"""Of the weights, in one checkpoint."""

MOST_CONDITIONS, MOST_AXES, MOST_NUMBERS = 1000, 16, 2**31
"""Of a data set: conditions, and for a sample or a condition axes and numbers."""

MOST_WORDS, MOST_LETTERS = 200_000, 100
"""Of a vocabulary: words, and letters of one."""

MOST_FILES = 10_000
"""Of a checkpoint: several for each of the processes that wrote it."""

_PART = re.compile(r"(.+)-(\d{5})-of-(\d{5})(\.safetensors)")

FLOATING = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32, "float64": torch.float64}
"""In which weights are stored, by the names that files have for them."""


@dataclass(frozen=True)
class Description:
    """What a checkpoint says of itself.

    Attributes:
        path: the checkpoint's own folder, step-..., or the one that ``save_pretrained`` wrote.
        step: optimizer steps done; 0 for a saved model, which does not tell.
        version: the library that wrote it.
        model: kind ("score" or "classifier"), SDE, network, prediction and sigma_data, as JSON.
        event_shape: shape of one sample, where the data set told.
        class_names: names of the classes, where there are any.
        scaling: the map between data and model units, where the data set told.
        conditions: shape and dtype of each condition of the data set besides the label, where it told.
        condition_scalings: the map from conditions to the network's units, by name, for those that have one.
        files: size in bytes and SHA-256 of each file.
        trained_with: which conditions training gave the network and how often it left them out, where that is known.
        vocabularies: the words of its tokens, by the name of the condition, where the data set or the model told.
        merges: how they are put together, for those of a :class:`~scoresde.nn.BytePairs`.
        averaged: True where model.safetensors itself holds averaged weights, as after ``save_pretrained`` of an
            averaged model; None where it holds those of the last step, or does not tell.
        computes_in: the dtype of the network, where its weights are stored in another; None where they are not.
        decays: of the averages of the weights, by file; files of before several were kept do not tell that of theirs.
        widths: of those with a power profile, by file; see :class:`~scoresde.train.PowerEMA`.
        loss_curve: the held-out loss at each noise level, where it was measured.
    """

    path: Path
    step: int
    version: str
    model: Mapping[str, Any]
    event_shape: tuple[int, ...] | None
    class_names: tuple[str, ...] | None
    scaling: Scaling | None
    conditions: Mapping[str, Mapping[str, Any]]
    condition_scalings: Mapping[str, Scaling]
    files: Mapping[str, Mapping[str, Any]]
    trained_with: TrainedWith | None = None
    vocabularies: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    merges: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    averaged: bool | None = None
    computes_in: torch.dtype | None = None
    decays: Mapping[str, float] = field(default_factory=dict)
    widths: Mapping[str, float] = field(default_factory=dict)
    loss_curve: LossCurve | None = None


def describe(folder: PathName) -> Description:
    """What a checkpoint says of itself, without loading weights.

    Args:
        folder: a checkpoint (step-...), the folder of a run, of which the latest is taken, or one that
            ``save_pretrained`` wrote.

    Raises:
        CheckpointError: no checkpoint there, or its config.json is missing, damaged or of another format; or a run of
            several models, each in a folder of its own.
    """
    path = folders.find(checks.path(folder, name="folder"))
    config = folders.read_sealed(path, folders.CONFIG)
    version = config.text("version", most=100)
    if repr(config.value("format")) != repr(FORMAT):  # true is no 1
        raise CheckpointError(
            f"{path} has format {config.value('format')!r:.80}, written by scoresde {version}; this is scoresde "
            f"{scoresde.__version__}, which reads format {FORMAT}. Use the version that wrote it."
        )
    listed = config.objects("files", most=MOST_FILES)
    files = {name: {"bytes": one.whole("bytes"), "sha256": one.text("sha256", most=64)} for name, one in listed.items()}
    if not parts(files, MODEL):
        raise folders.damaged(path, folders.CONFIG)(f"the field files.{MODEL} is missing.")
    return Description(
        path=path,
        step=config.whole("step"),
        version=version,
        model=read_described(config.object("model")),
        files=files,
        trained_with=_read_told(config, "trained_with", TrainedWith.from_json),
        loss_curve=_read_told(config, "loss_curve", LossCurve.from_json),
        **_read_stored(config),
        **_read_averages(config, files),
        **_read_data(config.object("data")),
    )


def average_name(index: int) -> str:
    """The file of an average, in their order; that of the first is the one that is loaded unless another is wanted."""
    return AVERAGE if index == 0 else f"ema-{index + 1}.safetensors"


def _read_averages(config: Fields, files: Collection[str]) -> dict[str, Any]:
    """Of each file of averages its decay or its width."""
    found: dict[str, Any] = {"decays": {}, "widths": {}}
    if config.null("averages"):  # files of before do not say
        return found
    for file, one in config.objects("averages", most=MOST_AVERAGES).items():
        if not parts(files, file):
            raise config.object("averages").refused(file, "there is no such file of averages.")
        if one.null("width"):
            found["decays"][file] = one.number("decay", least=0, most=1)
        else:
            found["widths"][file] = one.number("width", above=0, most=1)
    return found


def number_in(name: str) -> str:
    """What error messages call a number in that file: a "weight" of the model or an average, or a "state"."""
    return "weight" if name == MODEL or name in map(average_name, range(MOST_AVERAGES)) else "state"


def part_name(name: str, rank: int, count: int) -> str:
    """The file of one of several processes that wrote a file of tensors together, counted from 0."""
    path = Path(name)
    return f"{path.stem}-{rank + 1:05d}-of-{count:05d}{path.suffix}"


def parts(files: Iterable[str], name: str) -> list[str]:
    """The files of a checkpoint that hold what ``name`` says: that one, or those of the processes that wrote it
    together; none where there is no such thing, or one of them is missing.
    """
    found = set(files)
    if name in found:
        return [name]
    counts = {int(match[3]) for one in found if (match := _PART.fullmatch(one)) and match[1] + match[4] == name}
    if len(counts) != 1 or not 1 <= (count := counts.pop()) <= MOST_FILES:
        return []
    wanted = [part_name(name, rank, count) for rank in range(count)]
    return wanted if found.issuperset(wanted) else []


def _read_stored(config: Fields) -> dict[str, Any]:
    """Which weights a saved model holds, and in which dtype the network computes."""
    if config.null("stored"):
        return {}
    stored = config.object("stored")
    dtype = None if stored.null("computes_in") else stored.one_of("computes_in", tuple(FLOATING))
    return {
        "averaged": None if stored.null("averaged") else stored.flag("averaged"),
        "computes_in": None if dtype is None else FLOATING[dtype],
    }


def _read_data(given: Fields) -> dict[str, Any]:
    """What ``describe_data`` returned, from a file."""
    shape = None if given.value("event_shape") is None else _read_shape(given, "event_shape")
    known = given.value("class_names") is not None
    found: dict[str, Any] = {
        "event_shape": shape,
        "class_names": given.texts("class_names", most_items=MOST_CLASSES) if known else None,
        "scaling": None if given.value("scaling") is None else _read_scaling(given, "scaling", shape),
        "conditions": {},
        "condition_scalings": {},
        "vocabularies": {},
        "merges": {},
    }
    if not given.null("vocabularies"):  # of tokens alone
        words = given.object("vocabularies")
        if not given.null("merges"):  # of byte pairs alone
            pairs = given.object("merges")
            for name in pairs.names(most=MOST_CONDITIONS):
                found["merges"][name] = pairs.texts(name, most_items=MOST_WORDS, most=MOST_LETTERS)
        for name in words.names(most=MOST_CONDITIONS):
            found["vocabularies"][name] = words.texts(name, most_items=MOST_WORDS, most=MOST_LETTERS)
            if name in found["merges"]:  # looked at by who needs them: it takes a package
                continue
            try:
                Vocabulary(found["vocabularies"][name])
            except (TypeError, ValueError) as error:
                raise words.refused(name, str(error)) from error
    if not given.null("conditions"):  # the first files do not say
        for name, one in given.objects("conditions", most=MOST_CONDITIONS).items():
            found["conditions"][name] = {"shape": list(_read_shape(one, "shape")), "dtype": one.text("dtype", most=20)}
    if not given.null("condition_scalings"):  # nor do they of these
        units = given.object("condition_scalings")
        for name in units.names(most=MOST_CONDITIONS):
            told = found["conditions"].get(name)
            found["condition_scalings"][name] = _read_scaling(units, name, None if told is None else told["shape"])
    return found


def _read_scaling(given: Fields, name: str, event: Sequence[int] | None) -> Scaling:
    """A scaling that fits what it scales, where that is told."""
    given.object(name)
    try:
        scaling = Scaling.from_json(given.value(name))
        if event is not None:
            scaling.check_event(tuple(event), name=name)
    except Exception as error:  # whatever it meets in the fields of a stranger
        raise given.refused(name, str(error)) from error
    return scaling


def _read_told(config: Fields, name: str, from_json: Callable[[Any], Noted]) -> Noted | None:
    if config.null(name):  # files of before it was noted do not say
        return None
    config.object(name)
    try:
        return from_json(config.value(name))
    except (TypeError, ValueError) as error:
        raise config.refused(name, str(error)) from error


def _read_shape(given: Fields, name: str) -> tuple[int, ...]:
    shape = given.wholes(name, most_items=MOST_AXES, least=1, most=MOST_NUMBERS)
    if math.prod(shape) > MOST_NUMBERS:
        raise given.refused(name, f"{shape} are {math.prod(shape)} numbers; the limit is {MOST_NUMBERS}.")
    return shape


def describe_data(dataset: object) -> dict[str, Any]:
    """What a data set tells of itself, as JSON: event_shape, class_names, scaling, and shapes and dtypes of its
    conditions; None, or no conditions, for what it does not.

    Raises:
        ValueError: what a checkpoint cannot hold: names that are no texts, or too many of them.
    """
    names, shape = getattr(dataset, "class_names", None), getattr(dataset, "event_shape", None)
    scaling, conditions = getattr(dataset, "scaling", None), getattr(dataset, "conditions", None)
    words = told_words(dataset)
    told = conditions.items() if isinstance(conditions, Mapping) else ()
    described = {
        "event_shape": None if shape is None else list(shape),
        "class_names": None if names is None else list(names),
        "scaling": scaling.to_json() if isinstance(scaling, Scaling) else None,
        "conditions": {
            str(name): {"shape": list(value.shape[1:]), "dtype": str(value.dtype).removeprefix("torch.")}
            for name, value in told
            if isinstance(value, Tensor)
        },
    }
    if words:  # files of before, and of data without words, are as they were
        described["vocabularies"] = words
    if merges := told_merges(dataset):
        described["merges"] = merges
    _read_data(Fields(described, lambda text: ValueError(f"a checkpoint cannot hold what the data set tells: {text}")))
    return described


def told_words(owner: object) -> dict[str, list[str]]:
    """The words of the tokens of a data set or a model, by the name of the condition: of its ``vocabularies``.

    Raises:
        TypeError: something that is neither a :class:`~scoresde.nn.Vocabulary` nor a :class:`~scoresde.nn.BytePairs`.
    """
    vocabularies = getattr(owner, "vocabularies", None)
    if not isinstance(vocabularies, Mapping):
        return {}
    for name, one in vocabularies.items():
        if not isinstance(one, BytePairs):
            checks.instance(one, Vocabulary, name=f"vocabularies[{name!r}]", hint="scoresde.nn.Vocabulary.of(texts)")
    return {str(name): list(one.words) for name, one in vocabularies.items()}


def told_merges(owner: object) -> dict[str, list[str]]:
    """The merges of those of its ``vocabularies`` that are byte pairs, by the name of the condition."""
    vocabularies = getattr(owner, "vocabularies", None)
    told = vocabularies.items() if isinstance(vocabularies, Mapping) else ()
    return {str(name): list(one.merges) for name, one in told if isinstance(one, BytePairs)}


def vocabularies_of(description: Description) -> dict[str, Vocabulary | BytePairs]:
    """What encodes the captions of a checkpoint's model, by the name of the condition.

    Byte pairs are left out, with a warning, where the package that makes tokens of text is not installed.

    Raises:
        CheckpointError: merges that do not belong to the words.
    """
    found: dict[str, Vocabulary | BytePairs] = {}
    for name, words in description.vocabularies.items():
        if name not in description.merges:
            found[name] = Vocabulary(words)
            continue
        try:
            found[name] = BytePairs(words, description.merges[name])
        except ModuleNotFoundError as error:
            warn_user(f"the captions {name} are told in byte pairs, which are left out: {error}.")
        except (TypeError, ValueError) as error:
            raise CheckpointError(f"{description.path}: the merges of {name} do not fit its words: {error}") from error
    return found


def with_units(data: Mapping[str, Any], model: object) -> dict[str, Any]:
    """A data set as :func:`describe_data` tells of it, with what the model knows: the units of its conditions, and all
    else that the data set does not tell.

    Raises:
        TypeError, ValueError: what the model says of its data is of another kind than a file can hold.
    """
    conditions: Mapping[str, Any] = getattr(model, "condition_scalings", {})
    known = {name: _units(one, f"condition_scalings[{name!r}]") for name, one in conditions.items()}
    shapes: Mapping[str, Mapping[str, Any]] = getattr(model, "condition_shapes", {})
    told: dict[str, Any] = {name: _listed(getattr(model, name, None), name) for name in ("event_shape", "class_names")}
    if data["scaling"] is None:
        scaling = getattr(model, "scaling", None)
        told["scaling"] = None if scaling is None else _units(scaling, "scaling")
    words = told_words(model) | data.get("vocabularies", {})
    others = {name: one for name, one in told_merges(model).items() if name not in data.get("vocabularies", {})}
    merges = others | data.get("merges", {})
    known_shapes = {name: dict(one) for name, one in shapes.items()} if not data.get("conditions") else {}
    found = {
        **data,
        **{name: value for name, value in told.items() if data[name] is None},
        "condition_scalings": known,
        **({"conditions": known_shapes} if known_shapes else {}),
        **({"vocabularies": words} if words else {}),
        **({"merges": merges} if merges else {}),
    }
    _read_data(
        Fields(found, lambda text: ValueError(f"a checkpoint cannot hold what the model tells of its data: {text}"))
    )
    return found


def _units(scaling: object, name: str) -> dict[str, Any]:
    """The units that a model has for x_0 or a condition, as JSON; those of another class would be lost in silence."""
    hint = "Units of another class are not kept in a file."
    return checks.instance(scaling, Scaling, name=f"the model's {name}", hint=hint).to_json()


def _listed(values: object, name: str) -> list[Any] | None:
    if values is None:
        return None
    if isinstance(values, str) or not isinstance(values, Sequence):
        raise TypeError(f"the model's {name} must be a tuple or None, got {checks.got(values)}.")
    return list(values)


def read_tensors(description: Description, name: str) -> dict[str, Tensor]:
    """The tensors of one file, after a check of its size and hash; all are finite.

    Raises:
        CheckpointError: the file is missing or is not the one that was written.
    """
    _check_listed(description, name)
    return _joined(description, name, lambda part, fail: read_values(_verified(description, part), fail))


def read_rows_of(
    description: Description, name: str, rows: Callable[[str, tuple[int, ...]], slice | None]
) -> dict[str, tuple[Tensor, tuple[int, ...]]]:
    """Some rows of the tensors of one file, each with the shape of the whole, see ``read_rows``; checked likewise.

    Raises:
        CheckpointError: the file is missing or is not the one that was written.
    """
    _check_listed(description, name)
    return _joined(description, name, lambda part, fail: read_rows(_verified(description, part), fail, rows))


def _joined(description: Description, name: str, read: Callable[[str, Fail], dict[str, Found]]) -> dict[str, Found]:
    """What is in a file, or in the files that processes wrote in its place."""
    joined: dict[str, Found] = {}
    for part in parts(description.files, name):
        fail = folders.damaged(description.path, part)
        found = read(part, fail)
        twice = joined.keys() & found.keys()
        if twice:
            raise fail(f"it holds {min(twice):.80}, which another of the files beside it holds, too.")
        joined.update(found)
    return joined


def _verified(description: Description, part: str) -> Path:
    listed = description.files[part]
    return folders.verified(description.path, part, listed["bytes"], listed["sha256"])


def read_training(description: Description) -> dict[str, Any]:
    """The counters and options of a checkpoint, for resuming.

    Raises:
        CheckpointError: the file is missing, is not the one that was written, or a field is out of its range.
    """
    _check_listed(description, TRAINING)
    listed, step = description.files[TRAINING], description.step
    folders.verified(description.path, TRAINING, listed["bytes"], listed["sha256"])
    fields = folders.read_json_fields(description.path, TRAINING)
    options = fields.object("options")
    return {
        "ema_updates": fields.whole("ema_updates", most=step),
        "seconds": fields.number("seconds", least=0, most=1e12),
        "loss_sum": fields.number("loss_sum"),
        "loss_steps": fields.whole("loss_steps", most=step),
        "held_out": None if fields.null("held_out") else fields.object("held_out"),
        "options": {name: options.value(name) for name in options.names()},
        "times": None if fields.null("times") else {n: fields.object("times").value(n) for n in ("learned", "since")},
    }


def read_layout_of(description: Description, name: str) -> dict[str, Tensor]:
    """The tensors of one file without their values, on the device "meta"; the size of the file is checked.

    Raises:
        CheckpointError: the file is missing, cut short or no file of tensors.
    """
    _check_listed(description, name)

    def layout(part: str, fail: Fail) -> dict[str, Tensor]:
        try:
            folders.check_size(description.path, part, description.files[part]["bytes"])
            return read_layout(description.path / part, fail)
        except FileNotFoundError as error:
            path = description.path / part
            raise CheckpointError(f"{path} is missing. {folders.instead(description.path)}") from error

    return _joined(description, name, layout)


def _check_listed(description: Description, name: str) -> None:
    if not parts(description.files, name):
        raise CheckpointError(
            f"{description.path} has no {name}: a model can be loaded from it, but only a checkpoint written by "
            "train() can be resumed."
        )


def ill_fitting(description: Description, name: str) -> Fail:
    """Errors about weights that are of another network."""
    return unless_damaged(
        description,
        name,
        lambda text: CheckpointError(
            f"the weights in {description.path / name} do not fit the network {text}. Build the network with the "
            "arguments it was trained with."
        ),
    )


def misplaced(description: Description, name: str) -> Fail:
    """Errors about a file that holds something else than is needed."""
    return unless_damaged(description, name, lambda text: CheckpointError(f"{description.path / name}: {text}"))


def unless_damaged(description: Description, name: str, fail: Fail) -> Fail:
    """Headers are compared before gigabytes are hashed; what does not fit may simply be damaged, and is told so."""

    def failed(text: str) -> Exception:
        for part in parts(description.files, name):
            if description.files[part]["bytes"] <= _HASHED:
                _verified(description, part)
        return fail(text)

    return failed


_HASHED = 10 << 30  # bytes of a file that is still read to tell one error from another
