"""What is called as a run goes on: a function after each step, or an object with a method for each occasion::

    def watch(run, record):                                 # after each step, on the main process
        if record.loss < 0.1:
            run.stop()

    class Pictures(Callback):
        def checkpoint(self, run, path):
            save_picture(path / "samples.png", run.ema_model())

    train(model, dataset, steps=2000, batch_size=128, callbacks=[watch, Pictures(), TensorBoard("logs")])

An error in a callback is told by a warning and the run goes on; Ctrl-C in one leaves the run as after the step, and
iterating it again goes on. :class:`~scoresde.train.TensorBoard` is a callback.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from scoresde import checks
from scoresde.train.record import StepRecord
from scoresde.warning import warn_user


class Callback:
    """Methods that a :class:`~scoresde.train.Run` calls, each with itself; those that are not overridden do nothing.

    They run on the main process alone, with gradients on, after the step is done wholly: nothing of the run is half
    done in them. They may look at ``run.model``, ``run.ema`` and ``run.optimizer``, draw samples from
    ``run.ema_model()``, and end the run by ``run.stop()``. With several processes ``run.save()`` is refused in them,
    for all processes would have to call it.
    """

    def begin(self, run: Any) -> None:
        """Before the first step of an iteration: of each, where a run is stopped and iterated again."""

    def compiled(self, run: Any, seconds: float) -> None:
        """After the first step of a run with ``compile``, before ``step``, with what it took, most of it compiling."""

    def step(self, run: Any, record: StepRecord) -> None:
        """After each step of the optimizer. Reading ``record.loss`` waits for a GPU."""

    def log(self, run: Any, record: StepRecord, loss: float) -> None:
        """Every ``log_every`` steps and at the end, with the mean loss since the time before."""

    def held_out(self, run: Any, record: StepRecord) -> None:
        """After the held-out loss was measured: ``record.held_out`` is it."""

    def checkpoint(self, run: Any, path: Path) -> None:
        """After a checkpoint was written, with its folder."""

    def end(self, run: Any) -> None:
        """When an iteration is over: all steps are done, time is up, ``run.stop()``, an error, ``run.close()``."""


OCCASIONS = ("begin", "step", "held_out", "log", "checkpoint", "end", "compiled")


class _AfterStep(Callback):
    """A plain function of (run, record)."""

    def __init__(self, function: Callable[[Any, StepRecord], object]) -> None:
        self.function = function

    def step(self, run: Any, record: StepRecord) -> None:
        self.function(run, record)


def are_callbacks(name: str, value: Any) -> None:
    """Functions of (run, record), or objects with some of the methods of :class:`Callback`.

    Raises:
        TypeError: something else, or a function of other arguments.
    """
    if callable(value) or any(hasattr(value, occasion) for occasion in OCCASIONS[1:]):
        raise TypeError(f"{name} must be a list, got {checks.got(value)}; write [{checks.got(value)}].")
    if isinstance(value, (str, bytes)) or not isinstance(value, Sequence):
        raise TypeError(
            f"{name} must be a list of functions (run, record) or Callback objects, got {checks.got(value)}."
        )
    for one in value:
        _as_callback(one, name)


def _as_callback(one: Any, name: str) -> Any:
    if isinstance(one, type):
        raise TypeError(f"each of {name} must be an object, got the class {one.__name__}; add its parentheses.")
    if any(callable(getattr(one, occasion, None)) for occasion in OCCASIONS):
        return one
    if not callable(one):
        raise TypeError(
            f"each of {name} must be a function (run, record) or have one of the methods {', '.join(OCCASIONS)}, got "
            f"{checks.got(one)}."
        )
    try:
        inspect.signature(one).bind(None, None)
    except ValueError:  # of C, which does not say
        pass
    except TypeError as error:
        raise TypeError(
            f"each of {name} that is a function is called as function(run, record); {checks.got(one)} takes other "
            f"arguments: {error}."
        ) from error
    return _AfterStep(one)


class Callbacks:
    """All callbacks of a run, called one after the other; none of their errors gets further than a warning.

    Args:
        callbacks: as the option says.
        active: whether this process calls them.

    Attributes:
        inside: whether one of them is running.
    """

    def __init__(self, callbacks: Sequence[Any], active: bool) -> None:
        self._all = [_as_callback(one, "callbacks") for one in callbacks] if active else []
        self._told: set[tuple[int, str, str]] = set()
        self.inside = False

    def __call__(self, occasion: str, *args: Any) -> None:
        """Call the method of this name of all that have it."""
        for i, one in enumerate(self._all):
            method = getattr(one, occasion, None)
            if method is None:
                continue
            self.inside = True
            try:
                method(*args)
            except Exception as error:  # whatever somebody's code raises
                self._tell(i, one, occasion, error)
            finally:
                self.inside = False

    def _tell(self, i: int, one: Any, occasion: str, error: Exception) -> None:
        """A warning, once for each kind of error: what fails at each step would fill the screen."""
        key = (i, occasion, type(error).__name__)
        if key in self._told:
            return
        self._told.add(key)
        function = one.function if isinstance(one, _AfterStep) else one
        what = getattr(function, "__qualname__", type(function).__qualname__)
        trace = error.__traceback__
        while trace is not None and trace.tb_next is not None:
            trace = trace.tb_next
        where = "" if trace is None else f", in {trace.tb_frame.f_code.co_filename}, line {trace.tb_lineno}"
        warn_user(
            f"the callback {what} failed at {occasion!r}: {type(error).__name__}: {error}{where}. The run goes on, and "
            "the callback is called again; further errors of this kind are not told."
        )
