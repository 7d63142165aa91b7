"""Conditions that lie in files of their own beside the data, a row for each sample::

    dataset = load("theta.npy", conditions={"obs": "obs.npy"})      # train then tells the network of obs
    read_conditions({"obs": Path("obs.npy")})                       # {"obs": (N, ...)}, no NaN among them

What lies in files is in units of the world: floating vectors are standardised column by column, and the model keeps
the way there, so that it is asked in those units: ``model.bind(obs=measured)``. In an array (N, L, d) of sets, series
or embeddings, a member of NaN throughout is padding; :func:`of_members` is the scaling of such ones.
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
        if values.ndim == 3:  # a member of NaN throughout is padding: one observation fewer
            padding = values.isnan().all(2, keepdim=True)
            bad = (~values.isfinite() & ~padding).flatten(1).any(1)
        else:
            bad = (~values.isfinite()).reshape(len(values), -1).any(1) if values.ndim else ~values.isfinite()
        if bool(bad.any()):
            raise ValueError(
                f"condition {name!r} holds NaN or infinity in {int(bad.sum())} rows of {path}, the first of them "
                f"{bad.nonzero().flatten()[:5].tolist()}: leave those samples out. Where NaN is to say that a "
                "condition is not given, say so by from_tensors(..., conditions=...)."
            )
    return values


def of_members(values: Tensor) -> Scaling:
    """The scaling that standardises each column of all members of sets or series (N, L, d), padding left out."""
    members = values.flatten(0, 1)
    known = members[~members.isnan().any(1)].to(torch.float64)
    if not len(known) or bool((known == known[:1]).all()):  # nothing to measure
        return Scaling(0.0, 1.0)
    return Scaling.standardise(known, "coordinate")


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
