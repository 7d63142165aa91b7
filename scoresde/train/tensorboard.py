"""A run in TensorBoard: losses, learning rate, norm of the gradient, steps per second, and pictures of samples::

    pictures = lambda run: sample(run.ema_model(), (16, 1, 8, 8), steps=10)
    train(model, dataset, steps=2000, batch_size=128, callbacks=[TensorBoard("logs", pictures=pictures)])

Needs the package ``tensorboard``; ``tensorboard --logdir logs`` shows what is written.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from scoresde import checks
from scoresde.curve import LossCurve
from scoresde.data import Scaling
from scoresde.extras import needs
from scoresde.files import PathName, make_writable
from scoresde.train.callbacks import Callback
from scoresde.train.record import StepRecord


class TensorBoard(Callback):
    """Writes scalars every so many steps, and pictures at checkpoints or every so many steps.

    A resumed run goes on where it was: events of steps past its checkpoint are hidden.

    Args:
        folder: for the events.
        every: steps between scalars. On a GPU, writing them waits for the step to finish.
        pictures: a function of the run that answers images (B, C, H, W), C 1 or 3, in model units or uint8, or a
            ``Solution``: those of :func:`scoresde.sample`, say.
        pictures_every: steps between them; by default they are made at each checkpoint and at the end.

    Raises:
        ModuleNotFoundError: when a run begins, where ``tensorboard`` is not installed.
        TypeError, ValueError: an argument is not as described, or the folder cannot be written.
    """

    def __init__(
        self,
        folder: PathName,
        *,
        every: int = 10,
        pictures: Callable[[Any], Any] | None = None,
        pictures_every: int | None = None,
    ) -> None:
        self.folder = checks.path(folder, name="folder")
        self.every = checks.count(every, name="every")
        if pictures is not None:
            checks.function(pictures, name="pictures", what="of the run that returns images (B, C, H, W)")
        elif pictures_every is not None:
            raise ValueError(
                "pictures_every needs pictures, a function of the run that returns images (B, C, H, W); got None."
            )
        self.pictures = pictures
        self.pictures_every = None if pictures_every is None else checks.count(pictures_every, name="pictures_every")
        self._writer: Any = None
        self._before: tuple[int, float] | None = None
        self._shown = -1
        make_writable(self.folder)

    def begin(self, run: Any) -> None:
        with needs("tensorboard"):
            from torch.utils.tensorboard import SummaryWriter
        self._writer = SummaryWriter(str(self.folder), purge_step=run.step + 1 if run.step else None)
        self._before, self._shown = None, -1

    def step(self, run: Any, record: StepRecord) -> None:
        if self._before is None:
            self._before = record.step, record.seconds
        if record.step % self.every == 0 or record.step == run.options.steps:
            values = {"loss": record.loss, "grad_norm": record.grad_norm, "lr": record.lr}
            steps, seconds = record.step - self._before[0], record.seconds - self._before[1]
            if steps and seconds > 0:
                values["steps_per_second"] = steps / seconds
            for name, value in values.items():
                self._writer.add_scalar(name, value, record.step)
            self._before = record.step, record.seconds
        if self.pictures_every is not None and record.step % self.pictures_every == 0:
            self._show(run)

    def held_out(self, run: Any, record: StepRecord) -> None:
        found = record.held_out
        if found is None or self._writer is None:
            return
        if math.isfinite(found.loss):
            self._writer.add_scalar("held_out/loss", found.loss, record.step)
            self._writer.add_scalar("held_out/standard_error", found.standard_error, record.step)
        for name, value in by_levels(found.curve).items():
            self._writer.add_scalar(f"held_out/{name}", value, record.step)

    def checkpoint(self, run: Any, path: Any) -> None:
        if self.pictures_every is None:
            self._show(run)

    def end(self, run: Any) -> None:
        try:
            if run.step == run.options.steps:
                self._show(run)
        finally:
            writer, self._writer = self._writer, None
            if writer is not None:
                writer.close()

    def _show(self, run: Any) -> None:
        """Pictures of this step, once."""
        if self.pictures is None or self._shown == run.step or self._writer is None:
            return
        self._shown = run.step
        self._writer.add_images("samples", as_pictures(self.pictures(run), run.model), run.step)


def by_levels(curve: LossCurve | None, groups: int = 8) -> dict[str, float]:
    """The mean loss of neighbouring levels, some groups of them, by a name that sorts."""
    if curve is None:
        return {}
    found = {}
    for k in range(min(groups, len(curve.levels))):
        rows = slice(len(curve.levels) * k // groups, len(curve.levels) * (k + 1) // groups)
        levels, losses = curve.levels[rows], curve.loss[rows]
        if levels:
            found[f"{k} log sigma {levels[0]:.1f} to {levels[-1]:.1f}"] = sum(losses) / len(losses)
    return found


def as_pictures(made: Any, model: Any) -> Tensor:
    """Images as uint8 (B, C, H, W), of what a function for pictures answered.

    Raises:
        TypeError, ValueError: no images.
    """
    x = made.x if not isinstance(made, Tensor) and isinstance(getattr(made, "x", None), Tensor) else made
    if not isinstance(x, Tensor):
        raise TypeError(f"pictures must return images (B, C, H, W), got {checks.got(made)}.")
    if x.ndim != 4 or x.shape[1] not in (1, 3):
        raise ValueError(f"pictures must return images (B, C, H, W) with C = 1 or 3, got shape {tuple(x.shape)}.")
    x = x.detach().cpu()
    if x.dtype == torch.uint8:
        return x
    scaling = getattr(model, "scaling", None)
    if isinstance(scaling, Scaling) and scaling.levels is not None:
        return scaling.to_uint8(x)
    low, high = (float(end) for end in x.aminmax())  # continuous data have no black and white of their own
    return ((x - low) * (255 / max(high - low, 1e-30))).round().clamp(0, 255).to(torch.uint8)
