"""Evaluation mode for as long as samples are drawn: no dropout, no new statistics, and every mode put back.

Everything that draws or follows samples (:func:`~scoresde.sample`, ``Solver.solve``, ``log_prob``, edits, particles,
fitting, calibration) runs inside :func:`evaluating`, so that a network in training mode gives what it would give after
``eval()``, moves no global generator, and is in training mode again when the call returns::

    with evaluating(score):
        x0 = score.denoise(x, t)

:func:`in_evaluation_mode` makes a function run so.
"""

from __future__ import annotations

import functools
import inspect
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import ParamSpec, TypeVar

from torch import nn

from scoresde.models.modules import modules_used

P = ParamSpec("P")
R = TypeVar("R")


class _Held:
    """A module that was in training mode, and how many are evaluating it."""

    __slots__ = ("count", "module")

    def __init__(self, module: nn.Module) -> None:
        self.module, self.count = module, 0


_mine: ContextVar[frozenset[int]] = ContextVar("modules that this thread evaluates", default=frozenset())
_held: dict[int, _Held] = {}
_lock = threading.RLock()


@contextmanager
def evaluating(*parts: object) -> Iterator[None]:
    """Inside, every module behind ``parts`` (scores, solvers, functions) is in evaluation mode.

    Each module's own mode comes back at the end, also after an error; a module that several use at once, one inside the
    other or in several threads, is put back by the last to leave. Gradients flow as ever. ``training`` is set as an
    attribute, without a call of ``train()`` or ``eval()``, which some networks override.

    A mode is a property of the module, which all threads share: do not train a network in one thread while another
    samples from it, but sample from a copy (:func:`~scoresde.train.ema_model` is one). Dropout that is to stay on, as
    for Monte Carlo dropout, is written ``F.dropout(x, p, training=True)``. A network that computes its activations
    again in the backward pass does so after the call, in the mode it has then: call its ``eval()`` where it has
    dropout or batch norm.

    Args:
        parts: see :func:`~scoresde.models.modules.modules_used`.
    """
    with AllModules(parts).evaluating():
        yield


class AllModules:
    """The modules behind some scores, solvers or functions, and those inside them, found once.

    For what may be called again after a run is over, as by a backward pass that evaluates once more::

        behind = AllModules([score])
        with nullcontext() if behind.evaluated() else behind.evaluating():
            score.denoise(x, t)
    """

    def __init__(self, parts: Iterable[object]) -> None:
        self._modules = modules_used(*parts)
        self._ids = frozenset(map(id, self._modules))

    def evaluated(self) -> bool:
        """Whether all are in evaluation mode until a context is left that this thread has opened."""
        return self._ids <= _mine.get()

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """See :func:`evaluating`."""
        if self.evaluated():
            yield
            return
        token, held = _mine.set(_mine.get() | self._ids), _enter(self._modules)
        try:
            yield
        finally:
            _leave(held)
            _mine.reset(token)


def _enter(modules: Iterable[nn.Module]) -> list[_Held]:
    mine = []
    with _lock:
        for module in modules:
            held = _held.get(id(module))
            if held is None:
                if not module.training:
                    continue
                held = _held[id(module)] = _Held(module)
            held.count += 1
            mine.append(held)
            if module.training:
                module.training = False
    return mine


def _leave(mine: Iterable[_Held]) -> None:
    with _lock:
        for held in mine:
            held.count -= 1
            if not held.count:
                del _held[id(held.module)]
                held.module.training = True


def in_evaluation_mode(*names: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Decorates a function that runs :func:`evaluating` its arguments of these names."""

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        signature = inspect.signature(function)

        @functools.wraps(function)
        def evaluated(*args: P.args, **kwargs: P.kwargs) -> R:
            try:
                given = signature.bind_partial(*args, **kwargs).arguments
            except TypeError:
                return function(*args, **kwargs)  # which says what is wrong by its name
            with evaluating(*(given.get(name) for name in names)):
                return function(*args, **kwargs)

        return evaluated

    return decorate
