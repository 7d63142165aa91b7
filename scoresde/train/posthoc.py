"""Averages of any width, after training: two are followed and kept now and then, all others are put together of them::

    run = train(model, dataset, steps=100_000, batch_size=128, folder="run", snapshots=Snapshots(every=1000))
    for step in run:
        ...
    model = reconstruct_ema("run", width=0.15)              # of the last snapshot
    model = reconstruct_ema("run", width=0.07, step=60_000)

Post-hoc EMA of Karras et al. 2024 (arXiv:2312.02696, section 3.2 and appendix C). The best length of an average cannot
be known before, and trying one more costs a training; here it costs the reading of files. Snapshots are in the folder
of the run, each whole or not there::

    run/snapshots/snapshot-00001000/config.json              what it is; SHA-256 of itself and of the other files
                                    width-1.safetensors      averaged parameters, of each width followed
                                    width-2.safetensors
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from scoresde import checks
from scoresde.files import PARTIAL, PathName, flush, make_writable
from scoresde.models import Prediction, ScoreModel
from scoresde.sde import SDE
from scoresde.train import folder as folders
from scoresde.train.checkpoint import as_computed, load_model, load_parameters
from scoresde.train.contents import Description, describe
from scoresde.train.ema import PowerEMA, exponent_of
from scoresde.train.folder import CheckpointError
from scoresde.train.profiles import fit_profile
from scoresde.train.tensors import all_finite, check_equal, local_part, read_layout, read_values, writer
from scoresde.warning import warn_user

SNAPSHOTS = "snapshots"
"""The folder of the snapshots in that of a run."""

_FORMAT = "snapshot 1"
_NAME = re.compile(r"snapshot-(\d+)")
_DTYPES = {"float16": torch.float16, "float32": torch.float32}
_MOST_WIDTHS = 8
_POOR = 0.1  # of the norm of a profile: more than is missed with eight snapshots of the usual widths


@dataclass(frozen=True)
class Snapshots:
    """Which averages a run follows for later, and when it keeps them.

    Args:
        every: steps between snapshots, and one at the end. The error of a reconstruction falls with the square of their
            number: with 100, averages of width 0.05 to 0.15 are met to 2.4e-4 of their profile.
        widths: of the averages that are followed, as parts of the run; two are enough.
        dtype: in which they are kept: torch.float32, or torch.float16, half as large and rounded to 5e-4 of a weight.

    Raises:
        TypeError, ValueError: a step below 1; no widths, or equal ones, or one out of range; another dtype.
    """

    every: int
    widths: tuple[float, ...] = (0.05, 0.10)
    dtype: torch.dtype = torch.float32

    def __post_init__(self) -> None:
        object.__setattr__(self, "every", checks.count(self.every, name="every"))
        widths = checks.numbers(self.widths, name="widths")
        for width in widths:
            exponent_of(width)
        if not 1 <= len(set(widths)) == len(widths) <= _MOST_WIDTHS:
            raise ValueError(f"widths must be 1 to {_MOST_WIDTHS} different numbers, got {self.widths}.")
        object.__setattr__(self, "widths", widths)
        if checks.dtype(self.dtype) not in _DTYPES.values():
            raise ValueError(f"dtype must be torch.float32 or torch.float16, got {self.dtype}.")


def save_snapshot(
    folder: PathName, averages: Sequence[PowerEMA], *, step: int, dtype: torch.dtype = torch.float32
) -> Path:
    """Keep these averages in the folder of a run; one that is there already stays as it is.

    ``train`` does it; a loop of your own calls it now and then, and :func:`~scoresde.train.save` once, for the network.

    Args:
        folder: of the run.
        averages: of one model.
        step: optimizer steps done, which is the number of updates of each.
        dtype: as for :class:`Snapshots`.

    Raises:
        TypeError, ValueError: other averages, a step that is not their number of updates, another dtype, a weight that
            it cannot hold.
        CheckpointError: the folder cannot be written.
    """
    step = checks.count(step, name="step")
    if isinstance(averages, str) or not isinstance(averages, Sequence):
        raise TypeError(f"averages must be a list of PowerEMA(model, width), got {checks.got(averages)}.")
    for one in averages:
        checks.instance(one, PowerEMA, name="averages", hint="A list of PowerEMA(model, width).")
        if one.updates != step:
            raise ValueError(f"step must be the number of updates of each average, {one.updates}, got {step}.")
        if any(local_part(value) is not value for value in one.state().values()):
            raise ValueError(
                "a file holds averages whole, and these are divided: train(..., snapshots=...) keeps them."
            )
    kept = Snapshots(every=1, widths=tuple(one.width for one in averages), dtype=dtype)
    return write_snapshot(folder, {one.width: one.state() for one in averages}, step=step, dtype=kept.dtype)


def write_snapshot(
    folder: PathName, averages: Mapping[float, Mapping[str, Tensor]], *, step: int, dtype: torch.dtype
) -> Path:
    """What :func:`save_snapshot` writes, of averages that are whole tensors, by width and name."""
    place = checks.path(folder, name="folder") / SNAPSHOTS
    path = place / f"snapshot-{step:08d}"
    if path.is_dir():
        return path
    files, widths = {}, {}
    for i, (width, values) in enumerate(averages.items()):
        state = {name: value.to(dtype) for name, value in values.items()}
        for name, value in state.items():
            if not all_finite(value):
                raise ValueError(f"the average of {name} is beyond {dtype}; take Snapshots(dtype=torch.float32).")
        file = f"width-{i + 1}.safetensors"
        files[file], widths[file] = writer(state), width
    config = {"format": _FORMAT, "step": step, "widths": widths}
    partial = place / f"{PARTIAL}{path.name}"
    try:
        make_writable(place)
        shutil.rmtree(partial, ignore_errors=True)  # of a process that was killed
        try:
            partial.mkdir()
            folders.fill(partial, config, files)
            partial.rename(path)
            flush(place)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
    except (OSError, ValueError) as error:
        raise CheckpointError(f"could not write the snapshot of step {step} into {place}: {error}.") from error
    return path


def snapshot_steps(folder: PathName) -> list[int]:
    """The steps of which the folder of a run holds snapshots, increasing; none where it holds none."""
    return list(_snapshots(checks.path(folder, name="folder")))


def drop_snapshots(folder: Path, after: int) -> None:
    """Remove the snapshots of later steps, which a resumed run will write anew, and what a killed process left.

    Raises:
        CheckpointError: one cannot be removed.
    """
    place = folder / SNAPSHOTS
    doomed = [path for step, path in _snapshots(folder).items() if step > after]
    try:
        for path in (*doomed, *place.glob(f"{PARTIAL}snapshot-*")):
            hidden = path if path.name.startswith(PARTIAL) else place / f"{PARTIAL}{path.name}"
            if hidden != path:
                shutil.rmtree(hidden, ignore_errors=True)
                path.rename(hidden)  # out of sight first: a kill in the middle leaves no half of it
            shutil.rmtree(hidden)
    except OSError as error:
        raise CheckpointError(f"snapshots of steps after {after} in {place} cannot be removed: {error}.") from error


def reconstruct_ema(
    folder: PathName,
    width: float = 0.15,
    step: int | None = None,
    *,
    net: Callable[..., Tensor] | None = None,
    sde: SDE | None = None,
    predicts: str | Prediction | None = None,
) -> ScoreModel:
    """The model with averaged weights of this width, put together of the snapshots of a run.

    The least squares of its power profile by those of all averages kept up to the first snapshot at or after ``step``
    (Karras et al. 2024, arXiv:2312.02696, section 3.2), added up in float64; see :func:`fit_profile` for its error.

    Args:
        folder: of a run with ``snapshots``; its latest checkpoint has the network and its buffers.
        width: σ_rel, the deviation of the steps that are averaged as a part of ``step``; below 12^-½.
        step: after which step; that of the last snapshot unless given.
        net, sde, predicts: parts of your own, as for :func:`~scoresde.train.load_model`.

    Raises:
        TypeError, ValueError: a width out of range, a step below 1.
        CheckpointError: no snapshots, or none up to this step; no checkpoint; a file is missing, cut short or damaged,
            or of another network.
    """
    home, width = _home(checks.path(folder, name="folder")), checks.positive(width, name="width")
    exponent_of(width)
    found = _snapshots(home)
    if not found:
        raise CheckpointError(
            f"no snapshots in {home}: averages of a width of one's choice are put together of those that "
            "train(..., snapshots=Snapshots(every=...)) keeps."
        )
    last = max(found)
    end = last if step is None else checks.count(step, name="step")
    if not min(found) <= end <= last:
        raise CheckpointError(
            f"{home} holds snapshots of steps {min(found)} to {last}; step must lie among them, got {end}."
        )
    beyond = min(one for one in found if one >= end)
    kept = [_Snapshot.read(path) for one, path in found.items() if one <= beyond]
    files = [(one, file, one_width) for one in kept for file, one_width in one.widths.items()]
    fit = fit_profile(
        steps=[one.step for one, _, _ in files], widths=[each for _, _, each in files], step=end, width=width
    )
    if fit.error > _POOR:
        between = f"take the step of a snapshot, {max(one for one in found if one <= end)} or {beyond}"
        nearer = f"a width nearer to {', '.join(f'{one:g}' for one in sorted({each for _, _, each in files}))}"
        warn_user(
            f"the average of width {width:g} after step {end} is put together of {len(kept)} snapshots, which miss "
            f"{fit.error:.0%} of its profile: {nearer if end in found else between}, or more snapshots "
            "(Snapshots(every=...)), would do better."
        )
    model, description = load_model(home, net=net, sde=sde, predicts=predicts), describe(home)
    weights = _summed(files, fit.coefficients, dict(model.named_parameters()))
    load_parameters(model, as_computed(model, weights, description), description)
    model.averaged = True
    return model


def _summed(
    files: Sequence[tuple[_Snapshot, str, float]], coefficients: Tensor, parameters: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Σ a_i θ̂_i in float64, then in the dtypes of the parameters."""
    total = {name: torch.zeros(value.shape, dtype=torch.float64) for name, value in parameters.items()}
    for (snapshot, file, _), a in zip(files, coefficients.tolist(), strict=True):
        for name, value in snapshot.tensors(file, parameters).items():
            total[name].add_(value.double(), alpha=a)
    return {name: total[name].to(value.dtype) for name, value in parameters.items()}


@dataclass(frozen=True)
class _Snapshot:
    """One of them, as its config.json says."""

    path: Path
    step: int
    widths: Mapping[str, float]
    listed: Mapping[str, tuple[int, str]]

    @classmethod
    def read(cls, path: Path) -> _Snapshot:
        config = folders.read_sealed(path, folders.CONFIG)
        config.one_of("format", (_FORMAT,))
        files = config.objects("files", most=_MOST_WIDTHS)
        widths = config.object("widths")
        found = {name: widths.number(name, above=0, most=1) for name in widths.names(most=_MOST_WIDTHS)}
        if set(found) != set(files) or not found:
            raise config.refused("widths", f"one width for each of the files {', '.join(sorted(files))} is expected.")
        listed = {name: (one.whole("bytes"), one.text("sha256", most=64)) for name, one in files.items()}
        return cls(path, config.whole("step", least=1), found, listed)

    def tensors(self, file: str, parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The averages in one of its files, if they are those of these parameters."""
        size, digest = self.listed[file]
        path, fail = folders.verified(self.path, file, size, digest), folders.damaged(self.path, file)
        check_equal(read_layout(path, fail), parameters, fail, dtypes=False)
        return read_values(path, fail)


def _home(folder: Path) -> Path:
    """The folder of the run that is meant by it, by its checkpoints folder, or by a step in it."""
    for place in (folder, folder / folders.RUN, folder.parent):
        if _snapshots(place):
            return place
    return folder


def _snapshots(folder: Path) -> dict[int, Path]:
    place = folder / SNAPSHOTS
    if not place.is_dir():
        return {}
    found = {int(match[1]): Path(one.path) for one in os.scandir(place) if (match := _NAME.fullmatch(one.name))}
    return {step: found[step] for step in sorted(found)}


def check_power_averages(description: Description, snapshots: Snapshots | None) -> None:
    """Raise where averages with power profiles are to be followed and the checkpoint to go on from has not those.

    Raises:
        CheckpointError: so it is: they would not know of the steps before.
    """
    if snapshots is None:
        return
    held = sorted(description.widths.values())
    if held != sorted(snapshots.widths):
        told = f"averages of widths {', '.join(f'{one:g}' for one in held)}" if held else "none"
        raise CheckpointError(
            f"{description.path} cannot be resumed with snapshots of widths {snapshots.widths}: it holds {told}, and "
            "an average that begins in the middle of a run would not know of the steps before. Give the same widths, "
            "leave snapshots out, or train anew."
        )
