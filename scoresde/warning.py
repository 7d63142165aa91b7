"""Warnings that point at the line of the user's that called, however many of ours lie between::

    warn_user("the mask is empty", MaskWarning)

Counting frames for ``stacklevel`` goes wrong at each decorator and helper in between. What a solver thinks of its own
answer is said through :mod:`scoresde.solvers.advice`, which can be silenced.
"""

from __future__ import annotations

import sys
import warnings

_BETWEEN = frozenset({"scoresde", "torch", "torchdiffeq", "torchsde", "contextlib", "functools"})
"""Whose frames are no user's: our own, and what calls us back or decorates."""


def warn_user(message: str, category: type[Warning] = UserWarning) -> None:
    """``warnings.warn`` at the line outside this library from which it was called."""
    level, frame = 1, sys._getframe()
    while frame.f_back is not None and str(frame.f_globals.get("__name__")).partition(".")[0] in _BETWEEN:
        level, frame = level + 1, frame.f_back
    warnings.warn(message, category, stacklevel=level)
