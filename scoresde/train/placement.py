"""How the processes of a run hold its weights: whole on each of them, here, or divided among them, in
:mod:`~scoresde.train.sharded`.

A :class:`~scoresde.train.Run` asks its :class:`Placement` for whatever depends on it, and works with the rest, the
optimizer and the averages, as with any tensors::

    placement.place(objective, closed)                      # from here on, weights are held as they will be
    with placement.step():                                  # gradients of the global batch
        with placement.reading():
            ...
        placement.last_piece()
        loss.backward()
    norm = placement.gradient_norm(optimizer)
    placement.once(lambda: write(placement.write))          # a checkpoint
    placement.ema_model(model, ema)                         # a whole copy
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from scoresde.train import contents
from scoresde.train.contents import Description
from scoresde.train.describe import Model
from scoresde.train.ema import EMA, ema_model
from scoresde.train.objective import Objective
from scoresde.train.optimizer import Optimizer
from scoresde.train.options import TrainOptions
from scoresde.train.processes import Made, Processes
from scoresde.train.sums import Sums
from scoresde.train.writing import Content, write_whole


class Placement:
    """Each process holds all weights, their averages and the state of the optimizer, and the main one writes them.

    Args:
        processes: of the run.

    Attributes:
        divided: whether a process holds a part alone.
    """

    divided = False

    def __init__(self, processes: Processes) -> None:
        self.processes = processes
        self._sums = Sums((), processes)

    def check(self, options: TrainOptions, model: nn.Module) -> None:
        """Raise unless a run of these options can hold its weights so."""

    def units(self, model: nn.Module) -> list[nn.Module]:
        """The parts of a network that would be gathered each on its own."""
        return []

    def place(self, objective: Objective[Any], units: Sequence[nn.Module], alone: Callable[[], bool]) -> None:
        """Hold the weights so from now on; parameters and what was made of them may be others then.

        Args:
            objective: whose model is trained; the same on all processes.
            units: of ``units``, those whose weights nothing else uses.
            alone: whether one process is at work without the others, as in a callback.
        """

    def follow(self, parameters: Sequence[nn.Parameter]) -> None:
        """These are trained, as they are after ``place``."""
        self._sums = Sums(parameters, self.processes)

    # -- a step --------------------------------------------------------------------------------------------------------

    def step(self) -> AbstractContextManager[None]:
        """Inside, each process does its part of a gradient; afterwards, ``.grad`` is that of the global batch.

        Raises:
            TypeError, ValueError, FloatingPointError, CheckpointError, RuntimeError: another process failed.
        """
        return self._sums.step()

    def passes(self) -> AbstractContextManager[None]:
        """Inside, the network is called without gradients, by all processes and by each as often.

        Raises:
            TypeError, ValueError, FloatingPointError, CheckpointError, RuntimeError: another process failed.
        """
        return self.processes.together()

    def reading(self) -> AbstractContextManager[None]:
        """Inside ``step`` and ``passes``, around what comes before a call of the network."""
        return nullcontext()

    def last_piece(self) -> None:
        """The next backward pass is the last of this step."""
        self._sums.last_piece()

    def gradient_norm(self, optimizer: Optimizer) -> Tensor:
        """The Euclidean norm of the gradient of all weights, ()."""
        return optimizer.gradient_norm()

    def close(self) -> None:
        """Leave nothing at the model that is not needed between two iterations."""
        self._sums.close()

    # -- copies and files ----------------------------------------------------------------------------------------------

    def ema_model(self, model: Model, ema: EMA) -> Model:
        """A whole copy of the model with its averaged weights."""
        return ema_model(model, ema)

    def once(self, action: Callable[[], Made]) -> Made:
        """What ``action``, which calls ``write``, returns on the process that writes, or on all that do."""
        return self.processes.from_main(action)

    def whole(self, tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """These tensors on the main process, put together where they are divided; all call it."""
        return tensors

    def write(self, folder: Path, content: Content) -> Path:
        """Write a checkpoint; its folder."""
        return write_whole(folder, content)

    def read(self, description: Description, name: str, model: nn.Module) -> dict[str, Tensor]:
        """The tensors of a file of averages or of an optimizer's state, held as those of the model are."""
        return contents.read_tensors(description, name)
