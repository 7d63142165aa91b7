"""All averages of a run's weights: those of given decays, and those that are kept for any width after training.

    averages = Averages(model, options)
    averages.update()                                   # after each step
    averages.first                                      # what samples are drawn with
    if averages.due(step, last=False):
        averages.keep(folder, step, placement, processes)

What one of them is stands in :mod:`~scoresde.train.ema`, and what is made of the kept ones in
:mod:`~scoresde.train.posthoc`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from torch import Tensor, nn

from scoresde.train import contents
from scoresde.train.contents import Description
from scoresde.train.ema import EMA, PowerEMA
from scoresde.train.folder import CheckpointError
from scoresde.train.options import TrainOptions
from scoresde.train.placement import Placement
from scoresde.train.posthoc import drop_snapshots, snapshot_steps, write_snapshot
from scoresde.train.processes import Processes


class Averages:
    """The averages that a run's options ask for, in the order in which checkpoints hold them.

    Args:
        model: whose weights are averaged, as they are now.
        options: of the run: ema, ema_warmup, snapshots.

    Attributes:
        by_decay: those of the option ``ema``.
        by_width: those with power profiles, of the option ``snapshots``.
    """

    def __init__(self, model: nn.Module, options: TrainOptions) -> None:
        decays = [options.ema] if isinstance(options.ema, float) else options.ema
        self.by_decay = {decay: EMA(model, decay, warmup=options.ema_warmup) for decay in decays}
        self._snapshots = options.snapshots
        widths = () if options.snapshots is None else options.snapshots.widths
        self.by_width = {width: PowerEMA(model, width) for width in widths}

    def __iter__(self) -> Iterator[EMA]:
        yield from self.by_decay.values()
        yield from self.by_width.values()

    @property
    def first(self) -> EMA:
        """The first of the option ``ema``."""
        return next(iter(self.by_decay.values()))

    def of(self, decay: float | None) -> EMA:
        """That of a decay; None for the first.

        Raises:
            ValueError: there is none of this decay.
        """
        if decay is None:
            return self.first
        if decay not in self.by_decay:
            held = ", ".join(f"{one:g}" for one in self.by_decay)
            raise ValueError(f"decay must be one of {held}, those of the option ema, got {decay!r}.")
        return self.by_decay[decay]

    def update(self) -> None:
        """Take in the weights as they are after a step."""
        for average in self:
            average.update()

    @property
    def any_applied(self) -> bool:
        """Whether one of them is in the model for a look."""
        return any(average.is_applied for average in self)

    def refuse_if_applied(self, what: str) -> None:
        """Raises RuntimeError if one of them is in the model for a look."""
        for average in self:
            average.refuse_if_applied(what)

    def load(self, resumed: Description, read: Callable[[str], Mapping[str, Tensor]], updates: int) -> None:
        """Go on from those of a checkpoint; one of a new decay from the first.

        Args:
            resumed: the checkpoint.
            read: the tensors of a file of it.
            updates: that they have seen.
        """
        decays = {decay: file for file, decay in resumed.decays.items()}
        widths = {width: file for file, width in resumed.widths.items()}
        for decay, average in self.by_decay.items():
            average.load_state(read(decays.get(decay, contents.AVERAGE)), updates)
        for width, power in self.by_width.items():
            power.load_state(read(widths[width]), updates)

    # -- snapshots -----------------------------------------------------------------------------------------------------

    def claim(self, path: Path, step: int, *, anew: bool) -> None:
        """Leave only those snapshots in the folder that this run wrote up to ``step``.

        Raises:
            CheckpointError: ``anew``, a run that neither goes on nor was to go on, and there are some.
        """
        if anew and snapshot_steps(path):
            raise CheckpointError(
                f"{path} holds snapshots of another run already. Choose another folder, remove them, or pass "
                "resume=True to begin anew over them."
            )
        drop_snapshots(path, step)

    def due(self, step: int, *, last: bool) -> bool:
        """Whether a snapshot is kept after this step."""
        return self._snapshots is not None and (step % self._snapshots.every == 0 or last)

    def keep(self, path: Path, step: int, placement: Placement, processes: Processes) -> None:
        """Write a snapshot; all processes call this, and the main one writes."""
        if self._snapshots is None:
            return
        dtype = self._snapshots.dtype
        states = {width: placement.whole(power.state()) for width, power in self.by_width.items()}
        processes.from_main(lambda: write_snapshot(path, states, step=step, dtype=dtype))
