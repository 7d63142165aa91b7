r"""Weights and resampling: which particles go on, and how often (Douc et al. 2005, arXiv:cs/0507025, compare the four).

Weights are logarithms (G, N): G groups that know nothing of each other, N particles in each. ::

    effective_sample_size(log_weights)          # (G,)
    ancestors = systematic(log_weights, noise)  # (G, N): the particles whose copies go on

Each scheme takes log-weights and a noise, and answers ancestors (G, M), M = N unless ``count`` says otherwise. All are
unbiased, E[number of copies of n] = M w_n, and a particle of weight 0 is never chosen. They differ in the variance of
these numbers: systematic, stratified and residual never exceed that of multinomial, and systematic copies n either
⌊M w_n⌋ or ⌈M w_n⌉ times.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Literal

import torch
from torch import Tensor

from scoresde import checks
from scoresde.checks.later import later
from scoresde.noise import Noise, as_noise

Resampling = Callable[..., Tensor]
"""(log_weights (G, N), noise, count=None) -> ancestors (G, count or N), int64."""

ResamplingName = Literal["systematic", "stratified", "multinomial", "residual"]

_BELOW_ONE = 1 - 2.0**-53


def normalised(log_weights: Tensor, *, where: str = "") -> Tensor:
    """The weights themselves, (G, N) float64, each group's sum 1; a log-weight of -inf is a weight of 0.

    ``where`` stands in front of what an error says of their values, which on a device is told when the run has ended.

    Raises:
        TypeError: not a floating tensor.
        ValueError: not (G, N) with N >= 1; NaN or +inf; or a group all of whose particles weigh nothing.
    """
    if not isinstance(log_weights, Tensor) or not log_weights.is_floating_point():
        raise TypeError(f"log_weights must be a floating tensor (G, N), got {checks.got(log_weights)}.")
    checks.state(log_weights, name="log_weights")
    if log_weights.is_meta:
        raise ValueError(f"log_weights must hold values, got {checks.got(log_weights)}.")
    if log_weights.ndim != 2 or not log_weights.shape[1]:
        raise ValueError(
            f"log_weights must be (groups, particles), got {tuple(log_weights.shape)}; one group is log_weights[None]."
        )
    greatest = log_weights.detach().amax(1)  # NaN where any is

    def refuse() -> None:
        raise ValueError(f"{where} {_reason(greatest)}".lstrip())

    later(~greatest.isfinite().all(), refuse)
    return log_weights.double().softmax(1)


def _reason(greatest: Tensor) -> str:
    def rows(bad: Tensor) -> list[int]:
        return bad.nonzero().flatten()[:5].tolist()

    if bool((bad := greatest.isnan() | (greatest == math.inf)).any()):
        return (
            f"log_weights hold NaN or +inf, first in groups {rows(bad)}, and must be finite or -inf: a score, a "
            "twist or a potential has answered "
            "such values. Look for an overflow or a division by 0 in it, most often near the last time."
        )
    return (
        f"every particle of groups {rows(greatest == -math.inf)} has weight 0 (log_weights all -inf): none is where "
        "the potential allows. Make it positive everywhere, such as a measurement with noise, or take more particles."
    )


def effective_sample_size(log_weights: Tensor) -> Tensor:
    """1 / Σ_n w_n² of the normalised weights (Kong et al. 1994, doi:10.1080/01621459.1994.10476469), (G, N) -> (G,).

    N for equal weights, 1 where one particle holds all.

    Raises:
        TypeError, ValueError: as :func:`normalised`.
    """
    return 1 / normalised(log_weights).square().sum(1)


def systematic(log_weights: Tensor, noise: Noise | torch.Generator | int, count: int | None = None) -> Tensor:
    """Positions (m + u) / M with one uniform u for each group (Kitagawa 1996, doi:10.2307/1390750).

    Args:
        log_weights: (G, N).
        noise: where the uniforms come from.
        count: M, N unless given.

    Raises:
        TypeError, ValueError: bad weights; see :func:`normalised`.
    """
    weights = normalised(log_weights)
    m = _count(weights, count)
    u = _uniforms(noise, (len(weights), 1), weights)
    return _found(weights, (torch.arange(m, device=weights.device) + u) / m)


def stratified(log_weights: Tensor, noise: Noise | torch.Generator | int, count: int | None = None) -> Tensor:
    """Positions (m + u_m) / M, a uniform for each (Kitagawa 1996). Arguments as in :func:`systematic`."""
    weights = normalised(log_weights)
    m = _count(weights, count)
    u = _uniforms(noise, (len(weights), m), weights)
    return _found(weights, (torch.arange(m, device=weights.device) + u) / m)


def multinomial(log_weights: Tensor, noise: Noise | torch.Generator | int, count: int | None = None) -> Tensor:
    """Independent draws (Gordon et al. 1993, doi:10.1049/ip-f-2.1993.0015). Arguments as in :func:`systematic`."""
    weights = normalised(log_weights)
    return _found(weights, _uniforms(noise, (len(weights), _count(weights, count)), weights))


def residual(log_weights: Tensor, noise: Noise | torch.Generator | int, count: int | None = None) -> Tensor:
    """⌊M w_n⌋ copies of each, the others by independent draws (Liu & Chen 1998, doi:10.1080/01621459.1998.10473765).

    Arguments as in :func:`systematic`.
    """
    weights = normalised(log_weights)
    m = _count(weights, count)
    scaled = m * weights
    whole = scaled.round()
    scaled = torch.where((scaled - whole).abs() <= 1e-12 * m, whole, scaled)  # a rounding short of a whole number
    copies = scaled.floor()
    upto = copies.cumsum(1)
    slots = torch.arange(m, device=weights.device, dtype=torch.float64).expand(len(weights), m)
    certain = torch.searchsorted(upto, slots.contiguous(), right=True).clamp_max(weights.shape[1] - 1)
    left = scaled - copies
    # where nothing is left, no slot needs it; the weights stand in to keep the division defined
    left = torch.where((upto[:, -1:] < m) & (left.sum(1, keepdim=True) > 0), left, weights)
    drawn = _found(left / left.sum(1, keepdim=True), _uniforms(noise, (len(weights), m), weights))
    return torch.where(slots < upto[:, -1:], certain, drawn)


RESAMPLING: Mapping[str, Resampling] = {
    "systematic": systematic,
    "stratified": stratified,
    "multinomial": multinomial,
    "residual": residual,
}


def resampling_of(choice: str | Resampling) -> Resampling:
    """One of the four by its name, or a function of one's own (see :data:`Resampling`).

    Raises:
        ValueError: neither.
    """
    if isinstance(choice, str) and choice in RESAMPLING:
        return RESAMPLING[choice]
    if isinstance(choice, str) or not callable(choice):
        raise ValueError(f"resampling must be one of {', '.join(RESAMPLING)}, or a function; got {checks.got(choice)}.")
    checks.function(choice, name="resampling", what="(log_weights, noise) -> ancestors", takes=2)
    return choice


def _count(weights: Tensor, count: int | None) -> int:
    if count is None:
        return weights.shape[1]
    return checks.count(count, name="count")


def _uniforms(noise: Noise | torch.Generator | int, shape: tuple[int, int], like: Tensor) -> Tensor:
    """Uniforms in [0, 1) from normals, (G, M) float64."""
    normals = as_noise(noise, "resampling").initial(shape, dtype=torch.float64, device=torch.device("cpu"))
    return checks.sent(torch.special.ndtr(normals), like.device)


def _found(weights: Tensor, positions: Tensor) -> Tensor:
    """The first n whose cumulated weight exceeds each position; so never one of weight 0."""
    upto = weights.cumsum(1)
    upto = upto / upto[:, -1:]  # ends in 1 whatever has been rounded
    found = torch.searchsorted(upto, positions.clamp_max(_BELOW_ONE).contiguous(), right=True)
    return found.clamp_max(weights.shape[1] - 1)  # beyond only where weights are NaN, which a run tells of at its end
