"""Trained networks as problems, by the name of their folder and what is to be made of them.

    learned("runs/digits/checkpoints")                        # conditional, where the network knows classes
    learned("runs/digits/checkpoints@guided2")                # classifier-free guidance of scale 2
    learned("runs/digits/checkpoints@unconditional,float32")

The folder is one that ``train`` has left, or one of {config.json, weights.safetensors}, see :func:`from_weights`.
After the @, separated by commas, in any order: ``unconditional`` or ``guidedW``; ``float32`` or ``float64``, in which
the network computes (the state is in float64 in any case; default: float64 for what ``train`` has left, float32 for
weights, which are slow otherwise); the shape of a sample, as ``3x32x32``, where the folder does not tell it.
"""

from __future__ import annotations

import ast
import functools
import json
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

import scoresde as ss
import scoresde.nn as networks
from contest.problems import Problem
from contest.reference import DOUBLE, SINGLE, Accuracy
from scoresde.models.combination import Combination, combine
from scoresde.models.conditions import nulls_of
from scoresde.models.score import DerivedScore
from scoresde.train import describe, load_model

SIDE = 32
"""Pixels along each side of a picture, where neither the folder nor the name tells."""


@dataclass(frozen=True)
class Learned(Problem):
    """A trained network; where it knows classes, sample i is of class i modulo their number.

    Attributes:
        model: the network, in float32 or float64.
        event: shape of a sample.
        classes: how many it is asked about; 0 for the unconditional score.
        scale: of classifier-free guidance; 1 for the conditional score.
    """

    model: ss.ScoreModel
    event: tuple[int, ...]
    classes: int
    scale: float = 1.0

    @property
    def dimension(self) -> int:
        return math.prod(self.event)

    @property
    def score(self) -> ss.Score:
        return Flat(self.model, self.event, self.classes, self.scale)

    def denoise(self, y: Tensor, ratio: float | Tensor) -> Tensor:
        t = self.sde.t_of_log_snr(-2 * torch.as_tensor(ratio, dtype=torch.float64).log())
        t = t.clamp(self.sde.t_min, self.sde.T)  # of a rounding's breadth
        return self.score.denoise(self.sde.alpha(t).reshape(-1, 1) * y, t)

    def fingerprint(self) -> bytes:
        told = f"{self.event} {self.classes} {self.scale}".encode()
        return told + b"".join(p.detach().numpy().tobytes() for p in self.model.parameters())

    @property
    def period(self) -> int:
        return max(1, self.classes)

    @property
    def accuracy(self) -> Accuracy:
        return SINGLE if _dtype(self.model) == torch.float32 else DOUBLE


@dataclass(frozen=True, eq=False)
class Flat(DerivedScore):
    """The score of samples flattened to (n, D), in float64 whatever the network computes in."""

    score: ss.ScoreModel
    event: tuple[int, ...]
    classes: int
    scale: float = 1.0

    def evaluate(self, x: Tensor, t: Tensor, wanted: Combination) -> Tensor:
        label = torch.arange(len(x)) % max(1, self.classes)
        bound: ss.Score = self.score.bind(**({"label": label} if self.classes else {}))
        if self.scale != 1.0:
            bound = ss.classifier_free(self.score, {"label": label}, self.scale)
        pictures = x.reshape(-1, *self.event)
        if _dtype(self.score) == torch.float64:
            return bound.evaluate(pictures, t, wanted).flatten(1)
        of_x, of_x0 = wanted.of_x0(self.sde.alpha(t), self.sde.sigma(t))
        return combine((of_x, x), (of_x0, bound.denoise(pictures.float(), t).flatten(1).double()))


@functools.cache
def learned(name: str) -> Learned:
    """The network of that name: see the head of this file.

    Raises:
        ValueError: a word after the @ that is not known, guidance of a network without classes, or a folder that does
            not tell what is needed.
    """
    place, _, words = name.partition("@")
    options = _options(words, name)
    folder = Path(place)
    if (folder / "weights.safetensors").exists():
        model, event = from_weights(folder)
        dtype = torch.float32
    else:
        model, event, dtype = load_model(folder), describe(folder).event_shape, torch.float64
    event = options.get("event", event)
    if event is None:
        raise ValueError(f"{place} does not tell the shape of its data; say {place}@3x32x32, or what it is.")
    model = model.to(options.get("dtype", dtype)).eval().requires_grad_(False)
    classes = 0 if "unconditional" in options else int(nulls_of(model.net).get("label", 0))
    if "scale" in options and not classes:
        raise ValueError(f"{name}: there is nothing to guide by, the network knows no classes.")
    return Learned(name, model.sde, model, tuple(event), classes, options.get("scale", 1.0))


def from_weights(folder: Path) -> tuple[ss.ScoreModel, tuple[int, ...] | None]:
    """The model in a folder of {config.json, weights.safetensors}, and the shape of a sample as far as it is known.

    config.json tells ``network``, the name of a class of ``scoresde.nn``, and ``config``, its arguments; ``sde``, as
    "VP(beta_max=20.0)"; ``predicts``; and if need be ``sigma_data`` and ``event_shape``. A network for pictures that
    tells channels and no shape is asked for :data:`SIDE` pixels along each side. weights.safetensors is the state of
    the ScoreModel, in any dtype; buffers of constants may be missing.

    Raises:
        ValueError: config.json does not tell what is needed, or the weights are not those of the network.
    """
    about: dict[str, Any] = json.loads((folder / "config.json").read_text("utf-8"))
    missing = {"network", "config", "sde", "predicts"} - set(about)
    if missing:
        raise ValueError(f"{folder}/config.json does not tell {', '.join(sorted(missing))}.")
    make = getattr(networks, about["network"], None)
    if not (isinstance(make, type) and issubclass(make, nn.Module)):
        raise ValueError(f"{folder}/config.json: scoresde.nn has no network {about['network']!r}.")
    net = make(**about["config"])
    model = ss.ScoreModel(net, _sde(about["sde"]), about["predicts"], about.get("sigma_data"))
    state = {key: value.float() for key, value in load_file(folder / "weights.safetensors").items()}
    told = model.load_state_dict(state, strict=False)
    parameters = dict(model.named_parameters())
    wrong = [*told.unexpected_keys, *(key for key in told.missing_keys if key in parameters)]
    if wrong:
        raise ValueError(f"{folder}/weights.safetensors are not those of its network: see {', '.join(wrong[:3])}.")
    if about.get("event_shape"):
        return model, tuple(about["event_shape"])
    sides = about["config"].get("event_dims")
    return model, (about["config"]["channels"], *[SIDE] * sides) if sides else None


def _options(words: str, name: str) -> dict[str, Any]:
    """What the words after the @ say, by name: scale, unconditional, dtype, event."""
    found: dict[str, Any] = {}
    for word in filter(None, words.split(",")):
        if guided := re.fullmatch(r"guided(\d+(?:\.\d+)?)", word):
            found["scale"] = float(guided[1])
        elif word == "unconditional":
            found[word] = True
        elif word in ("float32", "float64"):
            found["dtype"] = getattr(torch, word)
        elif re.fullmatch(r"\d+(x\d+)*", word):
            found["event"] = tuple(map(int, word.split("x")))
        else:
            raise ValueError(
                f"{name}: after the @ go guidedW, unconditional, float32, float64 and 3x32x32, not {word!r}."
            )
    if "scale" in found and "unconditional" in found:
        raise ValueError(f"{name}: guided or unconditional, not both.")
    return found


def _sde(text: str) -> ss.SDE:
    """ "VP(beta_min=0.1)" as an SDE.

    Raises:
        ValueError: no SDE of the library with numbers for arguments.
    """
    call = ast.parse(text.strip(), mode="eval").body
    if not (isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and not call.args):
        raise ValueError(f"an SDE is written as VP(beta_min=0.1), got {text!r}.")
    kind = getattr(ss, call.func.id, None)
    if not (isinstance(kind, type) and issubclass(kind, ss.SDE)):
        raise ValueError(f"scoresde has no SDE {call.func.id!r}.")
    made: ss.SDE = kind(**{k.arg: ast.literal_eval(k.value) for k in call.keywords if k.arg})
    return made


def _dtype(model: ss.ScoreModel) -> torch.dtype:
    return next(model.parameters()).dtype
