"""The options of a training run: one object, whose fields are also the keywords of ``train`` and ``train_classifier``::

    run = train(model, dataset, steps=2000, batch_size=128, folder="run")

    options = TrainOptions(steps=2000, batch_size=128, ema=0.999)          # the same, to be kept and passed on
    run = train(model, dataset, options)
    run = train(model, dataset, options, seed=1, folder="other")           # all else as in options

A new option is one field of :class:`TrainOptions`, and the place where it acts. The field says all there is to say: the
type, the default, what it means (the string below it) and, in ``Annotated``, what a value must be and two marks:
``UNRECORDED`` for an option that does not change the numbers of a run, so that a checkpoint need not record it, and
``OnlyFor(SCORE)`` for one that a single kind of training has.
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import inspect
import linecache
import textwrap
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from os import PathLike
from pathlib import Path
from typing import Annotated, Any, NamedTuple, get_args

from scoresde import checks, losses
from scoresde.data import Augmentation, Scaling
from scoresde.data.columns import Names
from scoresde.losses import Coupling, Uncertainty, Weighting
from scoresde.models.conditions import Dropout
from scoresde.times import TimeDensity, UniformTime
from scoresde.train.batches import MapDataset
from scoresde.train.callbacks import Callback, are_callbacks
from scoresde.train.convergence import EarlyStopping
from scoresde.train.describe import SCORE
from scoresde.train.optimizer import Decay
from scoresde.train.option_checks import (
    Check,
    Precision,
    Sharding,
    are_betas,
    are_columns,
    are_decays,
    are_names,
    is_augmentation,
    is_coupling,
    is_density,
    is_dropout,
    is_held_out,
    is_number,
    is_optimizer,
    is_path,
    is_precision,
    is_scaling,
    is_sharding,
    is_snapshots,
    is_weighting,
    is_whole,
    words,
)
from scoresde.train.own_optimizer import OwnRule
from scoresde.train.posthoc import Snapshots

RENAMED: Mapping[str, str] = {"label_dropout": "condition_dropout"}
"""Today's names of options by those they had; checkpoints still say the old ones."""

UNRECORDED = object()
"""Marks an option that does not change the numbers of a run."""


class OnlyFor(NamedTuple):
    """Marks an option that one kind of training has."""

    kind: str


@dataclass(frozen=True, kw_only=True)
class TrainOptions:
    """What can be chosen about a training run; ``steps`` and ``batch_size`` must be.

    Raises:
        TypeError, ValueError: a value of the wrong kind or out of its range, or two that do not go together.
    """

    steps: Annotated[int, is_whole(1)]
    """Optimizer steps in all, earlier sessions of a resumed run included."""
    batch_size: Annotated[int, is_whole(1)]
    """Samples per step, over all processes and accumulated parts together."""

    lr: Annotated[float, is_number(above=0)] = 1e-3
    """AdamW's peak learning rate."""
    betas: Annotated[tuple[float, float], are_betas] = (0.9, 0.999)
    """AdamW's."""
    weight_decay: Annotated[float, is_number(least=0)] = 0.0
    """AdamW's."""
    warmup: Annotated[int, is_whole(0)] = 0
    """Steps of linear warm-up of the learning rate."""
    decay: Decay = "constant"
    """What the learning rate does after the warm-up, "constant" or "cosine": see ``learning_rate``."""
    clip: Annotated[float | None, is_number(above=0)] = 1.0
    """Largest norm of the gradient; None leaves it as it is."""
    ema: Annotated[float | Sequence[float], are_decays] = 0.9999
    """Decay of the average of the weights; 0 for none. A list, such as (0.999, 0.9999), for several averages: the first
    is used unless another is asked for, as by ``load_model(folder, ema=0.9999)``."""
    ema_warmup: bool = True
    """Forget faster at first, see ``average_decay``."""
    snapshots: Annotated[Snapshots | None, is_snapshots, OnlyFor(SCORE), UNRECORDED] = None
    """Follow averages with power profiles, too, and keep them in ``folder`` every so many steps, so that
    ``reconstruct_ema`` can put together one of any width afterwards: ``Snapshots(every=1000)``."""

    optimizer: Annotated[OwnRule | None, is_optimizer, UNRECORDED] = None
    """In place of AdamW: a ``torch.optim.Optimizer`` over the parameters of the model, or a function of them that makes
    one. Its learning rates, those of its groups, are its own: ``warmup`` and ``decay`` multiply them; without these
    they are left alone, and may be set by a callback. Its state is in checkpoints. lr, betas and weight_decay are
    AdamW's, and refused beside it."""

    weighting: Annotated[Weighting | str | Uncertainty, is_weighting, OnlyFor(SCORE)] = losses.simple
    """Of the loss over time, see ``scoresde.losses``; ``losses.Uncertainty()`` is learned along, and steps then report
    what is minimised with it, L e^{-u} + u, which may be negative."""
    times: Annotated[TimeDensity, is_density] = UniformTime()  # noqa: RUF009 - frozen
    """Density of training times, see ``scoresde.times``; its weights multiply the loss."""
    condition_dropout: Annotated[Dropout | None, is_dropout, OnlyFor(SCORE)] = None
    """Probability that a sample's conditions become null, for classifier-free guidance: 0.1 unless given, 0 for
    networks without ``null_conditions``. A number drops all conditions of a sample together, so that the network learns
    the joint conditional and the unconditional score. A mapping such as {"label": 0.1, "caption": 0.2} drops each one
    named on its own, for guidance by some of them, and never those that it does not name."""
    conditions: Annotated[Sequence[str] | None, are_names, OnlyFor(SCORE)] = None
    """Names of the entries of a batch that the network takes as keywords; those of its ``null_conditions`` unless
    given."""
    coupling: Annotated[Coupling | None, is_coupling, OnlyFor(SCORE)] = None
    """Which noise meets which sample of a batch, such as ``losses.OptimalTransport()``: straighter paths for solvers of
    the ODE, and no score any more; see ``scoresde.losses.coupling`` before using it. It couples the whole global batch,
    whatever the number of processes, among samples with the same conditions."""
    flip: bool = False
    """Mirror each sample along its last axis with probability 1/2, and with it those conditions that the network lists
    in ``image_conditions``."""
    augment: Annotated[Augmentation | None, is_augmentation, OnlyFor(SCORE)] = None
    """Move pictures about, ``scoresde.data.Augmentation(0.12)``, and those conditions that the network lists in
    ``image_conditions`` with them. The network is told how by its condition "augment", so that what it answers without
    it is of the data as they are; build it with vectors={"augment": Augmentation.size}."""
    dequantize: bool = False
    """Add uniform noise of one bin to data that are levels, so that they have a density and bits per dimension mean
    something (Theis et al. 2016, arXiv:1511.01844, section 3.1). The data set's ``scaling`` knows the bin."""
    columns: Annotated[Names | None, are_columns] = None
    """What is x, the label and each condition in samples that have other names for them, ours first: {"x": "image",
    "label": "y"}, or {"x": 0, "label": 1} for tuples. What is not named is left out. For all data but those of
    ``scoresde.data``."""
    scaling: Annotated[Scaling | None, is_scaling, UNRECORDED] = None
    """Of x, for data that come in units of their own and are no ``scoresde.data.Dataset``: x becomes (x - shift)/scale.
    Without it pictures and uint8 are 256 levels and become [-1, 1], and floating numbers are taken to be in the model's
    units; tables of Hugging Face's that are local are standardised as ``from_tensors`` does it."""
    seed: Annotated[int, is_whole()] = 0
    """Of everything random here. Initial weights come with the model."""

    held_out: Annotated[float | MapDataset | None, is_held_out, UNRECORDED] = None
    """Samples that are never trained on, at least 32: a share of the data set in (0, 1), chosen by the seed, or a data
    set of its own in the same units. Every so many steps the loss of the averaged model, by the first of several
    averages, is measured on them, at each noise level and in all, always with the same noise: see ``HeldOutLoss``.
    Training itself is not changed by it."""
    held_out_every: Annotated[int | None, is_whole(1), UNRECORDED] = None
    """Steps between such measurements; as many unless given that they take about 1/20 of the time. There is one at
    each checkpoint of ``save_every``, too, and at the end."""
    early_stopping: Annotated[EarlyStopping | None, UNRECORDED] = None
    """End the run, as if its steps were done, when its held-out loss has converged or rises: the rule is that of
    ``EarlyStopping``. Of a learning rate that decays only what was reached at its present value is known then."""

    folder: Annotated[str | PathLike[str] | None, is_path, UNRECORDED] = None
    """For checkpoints and log.jsonl; nothing is written without it."""
    resume: Annotated[bool, UNRECORDED] = False
    """Continue from the last checkpoint in ``folder``, if there is one. Without it, a folder that holds checkpoints is
    refused."""
    save_every: Annotated[int | None, is_whole(1), UNRECORDED] = None
    """Steps between checkpoints; one is written at the end in any case."""
    keep: Annotated[int, is_whole(1), UNRECORDED] = 2
    """How many checkpoints to leave."""
    log_every: Annotated[int, is_whole(1), UNRECORDED] = 50
    """Steps between lines of log.jsonl, which hold the mean loss since the line before."""
    max_seconds: Annotated[float | None, is_number(above=0), UNRECORDED] = None
    """Stop (and save) after so much wall time of this session. Iterating the run again, in a new ``for``, takes as long
    again."""

    mixed_precision: Annotated[Precision | None, is_precision] = None
    """With "bf16" the network runs in bfloat16, with float32 weights; with "no" it does not. What ``accelerate launch``
    says unless given."""
    sharding: Annotated[Sharding | None, is_sharding, UNRECORDED] = None
    """With "full" several processes divide weights, gradients, averages and the optimizer's state among them, and each
    writes its share of a checkpoint; with "no" each holds all of it. What ``accelerate launch`` says unless given."""
    accumulate: Annotated[int, is_whole(1)] = 1
    """Split each process's part of the batch into so many pieces, to save memory; ``batch_size`` is a multiple."""
    compile: bool = False
    """Compile the network by torch.compile, for training steps alone: the first step takes a minute, the others less.
    A compiled network rounds otherwise, and draws other masks of dropout; weights keep their names."""
    channels_last: bool | None = None
    """Keep weights and batches of pictures and volumes with the channels innermost in memory. What suits unless given:
    with compile and bfloat16 on CUDA. It changes rounding alone."""
    tf32: bool = False
    """On CUDA let float32 matrix products and convolutions round their factors to TF32, of 11 significant bits, as
    training goes on; without it they do what torch is set to. Nothing on other devices."""
    num_workers: Annotated[int, is_whole(0), UNRECORDED] = 0
    """Worker processes for data sets that compute their samples; 0 is best for data in memory."""
    prefetch: Annotated[int | None, is_whole(0), UNRECORDED] = None
    """Batches that are read ahead while a step is computed: by a thread, for data of ``scoresde.data``, or by each of
    ``num_workers``. What suits unless given: 2 on a GPU and of mapped files; none of a CPU's own memory."""
    cpu: Annotated[bool, UNRECORDED] = False
    """Stay on the CPU although there is a GPU."""
    progress: Annotated[bool, UNRECORDED] = True
    """Show a progress bar."""
    callbacks: Annotated[Sequence[Callback | Callable[..., object]], are_callbacks, UNRECORDED] = ()
    """Called as the run goes on: functions (run, record) after each step, or objects with some of the methods of
    ``Callback``, such as ``TensorBoard(folder)``."""

    def __post_init__(self) -> None:
        for option in option_fields().values():
            value = getattr(self, option.name)
            if value is None and type(None) in get_args(option.type):
                continue
            for check in option.checks:
                check(option.name, value)
        checks.fields(self)
        for name, plain in _plain_values(self).items():
            object.__setattr__(self, name, plain)
        if self.warmup > self.steps:
            raise ValueError(f"warmup={self.warmup} steps is longer than the whole run, steps={self.steps}.")
        if self.optimizer is not None:
            for name in ("lr", "betas", "weight_decay"):
                if getattr(self, name) != option_fields()[name].default:
                    raise ValueError(
                        f"{name}={getattr(self, name)} is AdamW's, and optimizer brings its own: say it there, and "
                        f"leave {name} out."
                    )
        axes = getattr(self.held_out, "ndim", None)
        if axes == 0 or isinstance(self.held_out, float):  # of NumPy or torch, which a checkpoint records as plain
            object.__setattr__(self, "held_out", checks.number(self.held_out, name="held_out"))
        if self.held_out is None:
            for name in ("held_out_every", "early_stopping"):
                if getattr(self, name) is not None:
                    raise ValueError(f"{name} needs samples that are held out; give held_out=0.05 or leave {name} out.")
        if self.prefetch == 0 and self.num_workers:
            raise ValueError(f"num_workers={self.num_workers} read ahead, and prefetch=0 says not to: leave one out.")
        if self.folder is None:
            for name in ("save_every", "resume", "snapshots"):
                if getattr(self, name):
                    raise ValueError(f"{name} needs a folder; give folder=... or leave {name} out.")

    @property
    def path(self) -> Path | None:
        """``folder`` as a path."""
        return None if self.folder is None else Path(self.folder)

    def recorded(self, kind: str) -> dict[str, Any]:
        """What changes the numbers of such a run, as JSON: a resumed run should have the same."""
        values = {
            option.name: _plain(getattr(self, option.name))
            for option in option_fields().values()
            if option.recorded and option.kind in (None, kind)
        }
        if self.decay == "constant":  # then the length of the run changes nothing
            del values["steps"]
        return values


# -- what a field says of itself ---------------------------------------------------------------------------------------


class OptionField(NamedTuple):
    """A field of :class:`TrainOptions`.

    Attributes:
        name: of the field.
        type: of its values, without what ``Annotated`` adds.
        default: ``dataclasses.MISSING`` where it must be given.
        checks: what a value must pass.
        recorded: whether a resumed run should have the same value.
        kind: of the training that alone has it, else None.
        text: what it means; empty where the source is not at hand.
    """

    name: str
    type: Any
    default: Any
    checks: tuple[Check, ...]
    recorded: bool
    kind: str | None
    text: str

    @property
    def required(self) -> bool:
        """Whether it has no default."""
        return self.default is dataclasses.MISSING


@functools.cache
def option_fields() -> dict[str, OptionField]:
    """The options by name, in their order."""
    types, texts = typing.get_type_hints(TrainOptions), _texts()
    said = {
        name: getattr(hint, "__metadata__", ())
        for name, hint in typing.get_type_hints(TrainOptions, include_extras=True).items()
    }
    return {
        field.name: OptionField(
            name=field.name,
            type=types[field.name],
            default=field.default,
            checks=tuple(word for word in said[field.name] if callable(word)),
            recorded=UNRECORDED not in said[field.name],
            kind=next((word.kind for word in said[field.name] if isinstance(word, OnlyFor)), None),
            text=texts.get(field.name, ""),
        )
        for field in dataclasses.fields(TrainOptions)
    }


def _texts() -> dict[str, str]:
    """The string below each field, from the source of this file; none in a program that comes without it."""
    tree = ast.parse("".join(linecache.getlines(__file__, globals())))
    body = next((n.body for n in tree.body if isinstance(n, ast.ClassDef) and n.name == TrainOptions.__name__), [])
    return {
        field.target.id: " ".join(below.value.value.split())
        for field, below in pairwise(body)
        if isinstance(field, ast.AnnAssign)
        and isinstance(field.target, ast.Name)
        and isinstance(below, ast.Expr)
        and isinstance(below.value, ast.Constant)
        and isinstance(below.value.value, str)
    }


def documented(docstring: str | None, kind: str | None = None) -> str | None:
    """A docstring with the options at the end of its Args: those of one kind of training, or all."""
    if docstring is None:  # python -OO
        return None
    fill = textwrap.TextWrapper(116, initial_indent=" " * 4, subsequent_indent=" " * 8, break_on_hyphens=False).fill
    lines = [fill(f"{o.name}: {o.text}") for o in option_fields().values() if kind is None or o.kind in (None, kind)]
    before, *after = inspect.cleandoc(docstring).partition("\n\nRaises:")
    header = [] if "\nArgs:" in before else ["", "Args:"]
    return "\n".join([before, *header, *lines]) + "".join(after)


# -- from keywords, and from the files of earlier runs -----------------------------------------------------------------


def chosen_options(caller: str, kind: str, options: TrainOptions | None, changes: Mapping[str, Any]) -> TrainOptions:
    """The options of a call: those of ``options``, where it is given, with ``changes``.

    Args:
        caller: who was called, for messages.
        kind: of training.
        options: an object, or None.
        changes: values by name.

    Raises:
        TypeError: no TrainOptions, an unknown name, one that this kind of training does not have, or one missing.
        ValueError: see :class:`TrainOptions`.
    """
    known = option_fields()
    if options is not None and not isinstance(options, TrainOptions):
        raise TypeError(f"{caller} takes TrainOptions(...) or options by keyword, got {type(options).__name__}.")
    for name in changes:
        if name not in known:
            hint = f"it is called {RENAMED[name]} now" if name in RENAMED else f"it has {', '.join(known)}"
            raise TypeError(f"{caller} has no option {name!r}; {hint}.")
    missing = [o.name for o in known.values() if o.required and o.name not in changes]
    if options is None and missing:
        raise TypeError(f"{caller} needs {' and '.join(f'{name}=...' for name in missing)}.")
    chosen = TrainOptions(**changes) if options is None else dataclasses.replace(options, **changes)
    for option in known.values():
        foreign = option.kind not in (None, kind)
        if foreign and (option.name in changes or getattr(chosen, option.name) != option.default):
            raise TypeError(f"{option.name} is an option of training a {option.kind} model; leave it out of {caller}.")
    return chosen


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """In words, what was recorded otherwise in an earlier session than now.

    Args:
        before: from a checkpoint of any age: options by the names they had then, and none of those added since, which
            have their defaults.
        now: the same of this session.
    """
    defaults = {o.name: _plain(o.default) for o in option_fields().values() if not o.required}
    known = {**defaults, **{RENAMED.get(name, name): value for name, value in before.items()}}
    changed = {name: (known.get(name), value) for name, value in now.items() if known.get(name) != value}
    return [f"{name}: {old!r:.200} -> {new!r}" for name, (old, new) in changed.items() if not _was_called(old, new)]


def _was_called(old: Any, new: Any) -> bool:
    """Whether ``edm(sigma_data=0.5)`` was once recorded without its arguments, by the name of a function inside."""
    maker, inside, _ = old.partition(".<locals>.") if isinstance(old, str) else ("", "", "")
    return bool(inside) and isinstance(new, str) and new.startswith(f"{maker}(")


def _plain(value: Any) -> Any:
    """As JSON; a function is told by its name (its repr holds an address), all else that is no data by its repr."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, Mapping):
        return {name: _plain(one) for name, one in value.items()}
    if isinstance(value, Sequence):
        return [_plain(one) for one in value]
    return words(value)


def _plain_values(options: TrainOptions) -> dict[str, Any]:
    """Numbers that NumPy or torch hold, and sequences of any kind, as Python's: what a checkpoint records of them."""
    found: dict[str, Any] = {
        option.name: checks.number(value, name=option.name)
        for option in option_fields().values()
        if option.type in (float, float | None) and (value := getattr(options, option.name)) is not None
    }
    decays = options.ema
    several = [checks.number(one) for one in decays] if isinstance(decays, Sequence) else [checks.number(decays)]
    found["ema"] = several[0] if len(several) == 1 else tuple(several)
    found["betas"] = tuple(checks.number(beta, name="each of betas") for beta in options.betas)
    dropout, names = options.condition_dropout, options.conditions
    if isinstance(dropout, Mapping):
        found["condition_dropout"] = {name: checks.number(p) for name, p in dropout.items()}
    elif dropout is not None:
        found["condition_dropout"] = checks.number(dropout)
    if names is not None:
        found["conditions"] = tuple(names)
    return found


TrainOptions.__doc__ = documented(TrainOptions.__doc__)
