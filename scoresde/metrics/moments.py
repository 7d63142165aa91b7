"""Mean and covariance of a stream of batches, in float64, merged over processes.

    moments = RunningMoments()
    for batch in batches:
        moments.update(features(batch))
    whole = moments.gathered(Accelerator().gather)          # the same on all processes
    whole.mean, whole.covariance                            # (d,), (d, d)

Batches of any sizes and order give what one batch gives, to rounding: the sums of squares are about the running mean
(Chan, Golub & LeVeque 1983, doi:10.1080/00031305.1983.10483115), so that nothing is lost to a mean that is large beside
the deviations.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from scoresde import checks
from scoresde.metrics.sets import rows_of


class RunningMoments:
    r"""Mean and covariance of what it was given so far.

        n = n_a + n_b,  δ = μ_b - μ_a,  μ = μ_a + δ n_b/n,  S = S_a + S_b + δ δᵀ n_a n_b/n,

    S the sum of outer products of deviations from the mean. Memory d² + the batch.
    """

    def __init__(self) -> None:
        self._count = 0
        self._mean = torch.zeros(0, dtype=torch.float64)
        self._scatter = torch.zeros(0, 0, dtype=torch.float64)

    @property
    def count(self) -> int:
        """Samples so far."""
        return self._count

    @property
    def mean(self) -> Tensor:
        """(d,) float64.

        Raises:
            ValueError: there are no samples yet.
        """
        self._check(1)
        return self._mean

    @property
    def covariance(self) -> Tensor:
        """The unbiased one, S/(n - 1), (d, d) float64.

        Raises:
            ValueError: fewer than two samples.
        """
        self._check(2)
        return self._scatter / (self._count - 1)

    def _check(self, least: int) -> None:
        if self._count < least:
            raise ValueError(f"moments need at least {least} samples, got {self._count}: call update(x) first.")

    def update(self, x: Tensor) -> None:
        """Take a batch (B, *event) in.

        Raises:
            TypeError, ValueError: not floating, not finite, empty, or of another event than before.
        """
        rows = rows_of(x, name="x")
        if self._count and rows.shape[1] != len(self._mean):
            raise ValueError(f"x must hold {len(self._mean)} numbers a sample as before, got {checks.got(x)}.")
        mean = rows.mean(0)
        centred = rows - mean
        self._join(len(rows), mean, centred.T @ centred)

    def merge(self, other: RunningMoments) -> None:
        """Take in what another has seen.

        Raises:
            TypeError, ValueError: no RunningMoments, or of samples of another size.
        """
        checks.instance(other, RunningMoments, name="other")
        if not other._count:
            return
        if self._count and len(other._mean) != len(self._mean):
            raise ValueError(f"other must be of {len(self._mean)} numbers a sample, got {len(other._mean)}.")
        self._join(other._count, other._mean, other._scatter)

    def _join(self, count: int, mean: Tensor, scatter: Tensor) -> None:
        if not self._count:
            self._count, self._mean, self._scatter = count, mean.clone(), scatter.clone()
            return
        total = self._count + count
        off = mean.to(self._mean.device) - self._mean
        self._mean = self._mean + off * (count / total)
        self._scatter = self._scatter + scatter.to(off.device) + torch.outer(off, off) * (self._count * count / total)
        self._count = total

    def gathered(self, gather: Callable[[Tensor], Tensor], device: torch.device | str = "cpu") -> RunningMoments:
        """Those of all processes together, the same on all, merged in order of their ranks.

        Every process must have seen a sample.

        Args:
            gather: puts the tensors of all processes, of one shape, behind each other along the first axis, such as
                ``accelerate.Accelerator().gather``.
            device: where the tensors that are exchanged must be: that of the process, for NCCL.

        Raises:
            ValueError: no sample yet.
        """
        checks.function(gather, name="gather", what="from a tensor to those of all processes, stacked")
        self._check(1)
        size = len(self._mean)
        count = self._mean.new_tensor([self._count])  # exact up to 2**53
        mine = torch.cat([count, self._mean, self._scatter.flatten()])[None].to(checks.device(device))
        whole = RunningMoments()
        for row in gather(mine).to(self._mean.device):
            whole._join(round(float(row[0])), row[1 : 1 + size], row[1 + size :].reshape(size, size))
        return whole
