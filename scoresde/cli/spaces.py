"""The feature spaces that `scoresde evaluate` measures in, by what --features says.

space_of("pixels", ...)                 # the samples themselves, in units of the model
space_of("learned", ...)                # a small network trained on --training, kept in the folder of the results
space_of("runs/features", ...)          # one that was kept: figures of several runs compare
space_of("my_features:resnet", ...)     # a Features, a module, or a function without arguments that makes one
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import torch
from torch import nn

from scoresde.cli.outputs import say
from scoresde.data import Dataset
from scoresde.metrics import (
    Features,
    ModuleFeatures,
    NetFeatures,
    PixelFeatures,
    load_features,
    save_features,
    train_features,
)


def space_of(
    word: str, training: Dataset | None, out: Path, *, steps: int, seed: int, device: torch.device
) -> Features:
    """The feature space that a word of --features means.

    Args:
        word: see the top.
        training: what a space is learned from.
        out: the folder of the results, in which a learned space is kept.
        steps: of its training.
        seed: of its training.
        device: where it is trained and computed.

    Raises:
        ValueError: no such space; nothing to learn it from.
    """
    if word == "pixels":
        return PixelFeatures()
    if word == "learned":
        return _learned(training, out / "features", steps, seed, device)
    if Path(word).expanduser().is_dir():
        return load_features(Path(word).expanduser(), device=device)
    module, colon, name = word.partition(":")
    if not colon:
        raise ValueError(
            f"--features {word} must be pixels, learned, a folder of a kept feature space, or module:name of one in "
            "Python; there is no such folder."
        )
    return _imported(module, name, device)


def _learned(training: Dataset | None, place: Path, steps: int, seed: int, device: torch.device) -> NetFeatures:
    if place.is_dir() and any(place.iterdir()):
        found = load_features(place, device=device)
        say(f"{found}, kept in {place}")
        return found
    if training is None:
        raise ValueError(
            "--features learned is trained on --training, real data other than --data: give these, or the folder of a "
            "feature space that was kept."
        )
    say(f"a feature space is learned from {training}: {steps} steps")
    found = train_features(training, steps=steps, seed=seed, device=device)
    save_features(found, place)
    told = ", ".join(f"{name} {value:.4g}" for name, value in found.trained.items())
    say(f"{found}: {told}; kept in {place}")
    return found


def _imported(module: str, name: str, device: torch.device) -> Features:
    sys.path.insert(0, "")  # as `python -m` does: modules of the present folder
    try:
        value = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"--features {module}:{name} must name something that Python can import: {error}.") from error
    finally:
        sys.path.remove("")
    if not isinstance(value, (Features, nn.Module)) and callable(value):
        value = value()  # a function that makes one
    if isinstance(value, nn.Module):
        return ModuleFeatures(value.to(device).eval(), name)
    if not isinstance(value, Features):
        raise ValueError(
            f"--features {module}:{name} must be a scoresde.metrics.Features, a torch module, or a function without "
            f"arguments that makes one; got {type(value).__name__}."
        )
    return value
