"""The options of a training run, checked before anything starts."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast, get_args

from scoresde import losses
from scoresde.losses import WEIGHTINGS, Weighting
from scoresde.times import TimeDensity
from scoresde.train.conditions import Dropout
from scoresde.train.schedule import Decay

Precision = Literal["no", "bf16"]


@dataclass(frozen=True)
class Options:
    """What every run has, see ``train`` and ``train_classifier``, whose keyword arguments these are.

    Raises:
        TypeError, ValueError: a value of the wrong kind or out of its range, or two that do not go together.
    """

    steps: int
    batch_size: int
    lr: float
    betas: tuple[float, float]
    weight_decay: float
    warmup: int
    decay: Decay
    clip: float | None
    ema: float
    ema_warmup: bool
    times: TimeDensity
    flip: bool
    dequantize: bool
    seed: int
    folder: Path | None
    resume: bool
    save_every: int | None
    keep: int
    log_every: int
    max_seconds: float | None
    mixed_precision: Precision | None
    accumulate: int
    num_workers: int
    cpu: bool
    progress: bool

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "keep", "log_every", "accumulate"):
            _whole(name, getattr(self, name), least=1)
        for name in ("warmup", "num_workers"):
            _whole(name, getattr(self, name), least=0)
        _whole("seed", self.seed, least=None)
        if self.save_every is not None:
            _whole("save_every", self.save_every, least=1)
        _number("lr", self.lr, above=0)
        _number("weight_decay", self.weight_decay, least=0)
        for name in ("clip", "max_seconds"):
            if getattr(self, name) is not None:
                _number(name, getattr(self, name), above=0)
        if len(self.betas) != 2 or not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas must be two numbers in [0, 1), got {self.betas}.")
        if not 0 <= self.ema < 1:
            raise ValueError(f"ema, the decay of the average, must lie in [0, 1), got {self.ema}.")
        _one_of("decay", self.decay, get_args(Decay))
        if self.mixed_precision is not None:
            hint = (
                " float16 needs loss scaling, which this loop does not do."
                if str(self.mixed_precision) == "fp16"
                else ""
            )
            _one_of("mixed_precision", self.mixed_precision, get_args(Precision), hint)
        if isinstance(self.times, type):
            raise TypeError(f"times must be a density, got the class {self.times.__name__}; add its parentheses.")
        if not callable(getattr(self.times, "sample", None)):
            raise TypeError(
                f"times must be a density of scoresde.times, such as UniformTime() or Stratified(LogNormalSigma()), "
                f"got {self.times!r}."
            )
        if self.warmup > self.steps:
            raise ValueError(f"warmup={self.warmup} steps is longer than the whole run, steps={self.steps}.")
        if self.folder is None:
            for name in ("save_every", "resume"):
                if getattr(self, name):
                    raise ValueError(f"{name} needs a folder; give folder=... or leave {name} out.")

    def numbers(self) -> dict[str, Any]:
        """The options that change the numbers of a run, as JSON: a resumed run should have the same."""
        leave_out = {
            "folder", "resume", "save_every", "keep", "log_every", "max_seconds", "num_workers", "cpu", "progress",
        }  # fmt: skip
        if self.decay == "constant":
            leave_out.add("steps")
        values = {name: value for name, value in vars(self).items() if name not in leave_out}
        values["betas"] = list(self.betas)
        values["times"] = _words(self.times)
        return values


@dataclass(frozen=True)
class ScoreOptions(Options):
    """What ``train`` has besides.

    Raises:
        TypeError, ValueError: a value of the wrong kind or out of its range.
    """

    weighting: Weighting | str
    label_dropout: Dropout | None
    conditions: Sequence[str] | None

    def __post_init__(self) -> None:
        super().__post_init__()
        dropout = self.label_dropout
        for name, value in (dropout if isinstance(dropout, Mapping) else {None: dropout}).items():
            called = "label_dropout" if name is None else f"label_dropout[{name!r}]"
            if value is None and name is None:
                continue
            if isinstance(value, bool) or not isinstance(value, (int, float)):
                raise TypeError(f"{called} must be a number, or numbers by the names of conditions, got {value!r}.")
            if not 0 <= value < 1:
                raise ValueError(f"{called} must be a probability in [0, 1), got {value}.")
        if isinstance(self.conditions, str):
            raise TypeError(
                f"conditions must be a list of names, got {self.conditions!r}; write [{self.conditions!r}]."
            )
        if isinstance(self.weighting, str):
            _one_of("weighting", self.weighting, tuple(WEIGHTINGS), " A function (sde, t) -> (B,) will do as well.")
        elif cast(object, self.weighting) in (losses.edm, losses.min_snr):
            name = _words(self.weighting)
            raise TypeError(f"losses.{name} makes a weighting: call it, weighting=losses.{name}(...).")
        elif not callable(self.weighting):
            raise TypeError(f"weighting must be a name or a function (sde, t) -> (B,), got {self.weighting!r}.")

    def numbers(self) -> dict[str, Any]:
        """With the weighting in words, and lists and dicts for sequences and mappings."""
        values = super().numbers()
        values["conditions"] = None if self.conditions is None else list(self.conditions)
        values["weighting"] = _words(self.weighting)
        if isinstance(self.label_dropout, Mapping):
            values["label_dropout"] = dict(self.label_dropout)
        return values


def _words(value: object) -> str:
    """A function by its name (its repr holds an address), anything else by its repr."""
    name = getattr(value, "__qualname__", None)
    return value if isinstance(value, str) else name if isinstance(name, str) else repr(value)


def _whole(name: str, value: object, *, least: int | None) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be a whole number, got {value!r}.")
    if least is not None and value < least:
        raise ValueError(f"{name} must be at least {least}, got {value}.")


def _number(name: str, value: float, *, above: float | None = None, least: float | None = None) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} must be a number, got {value!r}.")
    if not math.isfinite(value) or (above is not None and value <= above) or (least is not None and value < least):
        bound = f"above {above:g}" if above is not None else f"at least {least:g}"
        raise ValueError(f"{name} must be finite and {bound}, got {value:g}.")


def _one_of(name: str, value: str, choices: Sequence[str], hint: str = "") -> None:
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}, got {value!r}.{hint}")
