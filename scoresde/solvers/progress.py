"""A progress bar for any run: over the steps of a grid, or over the way in log-SNR where a method chooses its steps.

with Bar(True, "encode", sde, t_min, T) as bar:
    bar.asked(t)                                           # before each evaluation, at t
"""

from __future__ import annotations

import math
from types import TracebackType
from typing import Self

import torch
from torch import Tensor

from scoresde.sde import SDE

_WIDEST = 50.0  # log-SNRs beyond are as good as infinite


class Bar:
    """A bar on stderr, to be used in a ``with``; without ``shown`` it does nothing.

    Args:
        shown: whether there is one.
        name: stands in front of it.
        sde: gives the log-SNR.
        start: where the run starts.
        end: where it ends; the way from one to the other in log-SNR is 100 %.
        steps: of the grid; then the bar is over them.
    """

    def __init__(self, shown: bool, name: str, sde: SDE, start: Tensor, end: Tensor, steps: int | None = None) -> None:
        self._bar, self._steps, self._nfe = None, steps, 0
        if not shown:
            return
        from tqdm import tqdm

        if steps is not None:
            self._bar = tqdm(total=steps, desc=name, unit="step")
            return
        form = "{desc}: {percentage:3.0f}%|{bar}| [{elapsed}<{remaining}{postfix}]"
        self._sde, self._first, self._last = sde, *(self._level(sde, t) for t in (start, end))
        self._bar = tqdm(total=1.0, desc=name, bar_format=form, miniters=0)

    @staticmethod
    def _level(sde: SDE, t: Tensor) -> Tensor:
        with torch.no_grad():
            return sde.log_snr(t.detach().double()).nan_to_num(0.0, math.inf, -math.inf).clamp(-_WIDEST, _WIDEST)

    @property
    def over_evaluations(self) -> bool:
        """Whether :meth:`asked` moves it."""
        return self._bar is not None and self._steps is None

    def stepped(self) -> None:
        """One step of the grid is done."""
        if self._bar is not None and self._steps is not None:
            self._bar.update()

    def asked(self, t: Tensor) -> None:
        """The score is asked at t, () or (B,): the sample farthest behind counts."""
        if not self.over_evaluations:
            return
        self._nfe += 1
        way = self._last - self._first
        if t.numel() and way != 0:
            done = float(((self._level(self._sde, t).to(way.device) - self._first) / way).min())
            assert self._bar is not None
            self._bar.n = max(self._bar.n, min(done, 1.0))
        self.note()

    def note(self, text: str = "") -> None:
        """What is going on within an evaluation."""
        if self._bar is not None and self._steps is None:
            self._bar.set_postfix_str(f"{self._nfe} evaluations{text}", refresh=False)
            self._bar.update(0)  # redraws no more often than ten times a second

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._bar is not None:
            self._bar.close()
