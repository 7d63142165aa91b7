"""Conditions that lie in files of their own beside the data, a row for each sample::

    dataset = load("theta.npy", conditions={"obs": "obs.npy"})      # train then tells the network of obs
    read_conditions({"obs": Path("obs.npy")})                       # {"obs": (N, ...)}, no NaN among them

What lies in files is in units of the world: floating vectors are standardised column by column, and the model keeps
the way there, so that it is asked in those units: ``model.bind(obs=measured)``.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from scoresde.data.numpy_files import as_tensor, read_arrays
from scoresde.data.scaling import Scaling


def read_conditions(files: Mapping[str, Path]) -> dict[str, Tensor]:
    """The arrays of ``.npy`` files, or those of the conditions' names in ``.npz`` archives.

    Raises:
        TypeError, ValueError: no numbers, a damaged file, no such array; NaN or infinity.
    """
    return {name: _read(name, path) for name, path in files.items()}


def _read(name: str, path: Path) -> Tensor:
    if path.suffix.lower() not in (".npy", ".npz"):
        raise ValueError(f"condition {name!r} must be an .npy or .npz file, got {path}.")
    found, names = read_arrays(path, (name,))
    if isinstance(found, dict):
        if name not in found:
            raise ValueError(
                f"condition {name!r} must be an array of that name in {path}, which holds {sorted(names)[:20]}."
            )
        found = found[name]
    values = as_tensor(found, path)
    if values.is_floating_point():
        bad = (~values.isfinite()).reshape(len(values), -1).any(1) if values.ndim else ~values.isfinite()
        if bool(bad.any()):
            raise ValueError(
                f"condition {name!r} holds NaN or infinity in {int(bad.sum())} rows of {path}, the first of them "
                f"{bad.nonzero().flatten()[:5].tolist()}: leave those samples out. Where NaN is to say that a "
                "condition is not given, say so by from_tensors(..., conditions=...)."
            )
    return values


def standardised(
    values: Mapping[str, Tensor], found: Mapping[str, Scaling], asked: Mapping[str, Any] | None
) -> dict[str, Scaling]:
    """The scalings of conditions from files: those found already, and one for each other floating vector.

    Args:
        values: (N, ...) float32 or int64, by name.
        found: what the rules for conditions in memory, or the user, said.
        asked: the user's own, None for those that are to be left as they are.
    """
    made = dict(found)
    for name, value in values.items():
        if name in made or name in (asked or {}) or not value.is_floating_point() or value.ndim > 2:
            continue
        if bool((value == value[:1]).all()):  # one row for all: no scale, and nothing to learn from it
            continue
        made[name] = Scaling.standardise(value.to(torch.float64), "tensor" if value.ndim == 1 else "coordinate")
    return made
