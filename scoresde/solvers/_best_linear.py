r"""The best linear multistep method for data of a known spectrum.

With x̃ = x/α and σ̃ = σ/α the probability-flow ODE is dx̃ = (x̃ - D)/σ̃ dσ̃, D = E[x_0 | x_t], so that from a to b::

    x̃_b = (σ̃_b/σ̃_a) x̃_a + σ̃_b ∫ D d(1/σ̃)

Along a direction in which the data have the variance λ, x̃ = ξ sqrt(λ + σ̃²) and D = ξ λ / sqrt(λ + σ̃²), ξ a normal.
For data with many λ, weights that are shared by all directions leave a squared error that is a quadratic form of the
weights; the best of them solve a least-squares problem, as in the prediction of a random process from its values at
some times (Wiener 1949; kriging). All that is needed of the data are the shares of their variance by λ.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from scoresde.sde.base import root


class Prior(NamedTuple):
    """What is assumed of the data, in units of their deviation per coordinate.

    Attributes:
        variances: (m,) λ.
        shares: (m,) of the total variance, summing to 1.
        mean: deviation of a constant, common to all times, beside it.
        roughness: deviation of what D has at one time alone.
        slack: part of x's variance that is not believed to follow from the variances.
    """

    variances: Tensor
    shares: Tensor
    mean: float
    roughness: float
    slack: float

    def denoised(self, ratio: Tensor) -> Tensor:
        """D (..., m + 1) at σ̃ = ``ratio`` (...), in independent parts."""
        part = (self.shares * self.variances / (self.variances + ratio[..., None] ** 2)).sqrt()
        return torch.cat([part, torch.full_like(part[..., :1], self.mean)], -1)

    def state(self, ratio: Tensor) -> Tensor:
        """x̃, the constant without noise, (..., m + 1)."""
        part = (self.shares * (1 + ratio[..., None] ** 2 / self.variances)).sqrt()
        return torch.cat([part, torch.full_like(part[..., :1], self.mean)], -1)


MOST = 20.0
"""How large the weights of D may be in sum, for a step from σ̃_a to σ̃_b in units of 1 - σ̃_b/σ̃_a: so much are errors of D
amplified. On spectral grids at most 18; where a long step follows short ones, as on uniform ones, up to 1e4."""


def bounded(
    prior: Prior, start: Tensor, end: Tensor, nodes: Tensor, count: Tensor, most: float = MOST
) -> tuple[Tensor, Tensor]:
    """:func:`best` through fewer of the values where all of them would amplify their errors more than ``most``."""
    return _through_fewer(lambda count: best(prior, start, end, nodes, count), count, most * (1 - end / start))


def _through_fewer(
    least: Callable[[Tensor], tuple[Tensor, Tensor]], count: Tensor, most: Tensor
) -> tuple[Tensor, Tensor]:
    """``least`` of so many values, of fewer in the steps (n,) whose weights would sum to more than ``most`` (n,)."""
    a, w = least(count)
    for fewer in range(w.shape[1] - 1, 0, -1):
        wild = w.detach().abs().sum(1) > most.detach()
        if not bool(wild.any()):
            break
        other_a, other_w = least(count.clamp_max(fewer))
        a, w = torch.where(wild, other_a, a), torch.where(wild[:, None], other_w, w)
    return a, w


def best(prior: Prior, start: Tensor, end: Tensor, nodes: Tensor, count: Tensor) -> tuple[Tensor, Tensor]:
    """(a, w): x̃_end = a x̃_start + Σ_j w_j D_j with the least expected squared error, for n steps at once.

    Args:
        prior: of the data.
        start: (n,) σ̃ where each step begins.
        end: (n,) where it ends.
        nodes: (n, p) σ̃ of the values of D.
        count: (n,) how many of them, from the first, are known; the others get weight 0.

    Returns:
        (n,) and (n, p).
    """
    ratio = end / start
    x, goal = prior.state(start), prior.state(end) - ratio[:, None] * prior.state(start)
    a, w = _least(prior, x, prior.denoised(nodes), torch.zeros_like(nodes), goal, count)
    return ratio + a, w


def _least(
    prior: Prior, x: Tensor, values: Tensor, noise: Tensor, goal: Tensor, count: Tensor, left: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Weights of x (n, m) and of ``count`` (n,) of the values (n, p, m) that come nearest to the goal (n, m).

    ``noise`` (n, p) is the variance of what a value has besides of its own; an error in a part counts by ``left``
    (n, m), and what is own by their mean over what the goal needs.
    """
    known = torch.cat([x[:, None], values], 1)
    used = torch.arange(known.shape[1]) <= count[:, None]
    own = torch.cat([prior.slack * x.square().sum(1, keepdim=True), prior.roughness**2 + noise], 1).sqrt()
    if left is not None:
        own = own * ((left * goal).abs().sum(1, keepdim=True) / goal.abs().sum(1, keepdim=True))
        known, goal = known * left[:, None], goal * left
    known = torch.where(used[:, :, None], known, torch.zeros_like(known))
    # by least squares over the parts of the data: its normal equations would lose the digits that short steps need
    parts = torch.cat([known, torch.diag_embed(torch.where(used, own, torch.ones_like(own)))], 2).mT
    size = parts.square().sum(1).sqrt()
    q, r = torch.linalg.qr(parts / size[:, None])
    right = q[:, : goal.shape[1]].mT @ goal[:, :, None]
    found = torch.linalg.solve_triangular(r, right, upper=True)[..., 0] / size
    return found[:, 0], found[:, 1:]


class StepWeights(NamedTuple):
    """x̃ at the end of each of n steps as a x̃ + Σ_j w_j D_j: (n,) and (n, p), of the newest D first."""

    a: Tensor
    w: Tensor


class Steps(NamedTuple):
    """The steps, and in the same form by how much what is known at the start of each corrects x̃ there."""

    step: StepWeights
    correction: StepWeights


def plan(prior: Prior, ratio: Tensor, history: int, again: int, free: bool, most: float = MOST) -> Steps:
    """The n steps between n + 1 levels of σ̃: each from the one before, corrected by what has been learned since.

    At level i, with D known at i and before, the last ``again`` steps are taken once more, from the newest state that
    will not change any more; from there on to i + 1. All of it is linear in the state at i and the values of D, so that
    it costs weights and no evaluations.

    Args:
        prior: of the data.
        ratio: (n + 1,) decreasing σ̃.
        history: p, values of D by which a step is predicted; one more by which it is corrected.
        again: how many steps are taken again; at least 1.
        free: whether nothing is evaluated at the first level.
        most: the bound on weights, as MOST.

    Returns:
        With history + 2 weights a step.
    """
    n, first = len(ratio) - 1, int(free)
    at = torch.arange(n)

    def window(newest: Tensor, size: int) -> tuple[Tensor, Tensor]:
        """σ̃ of the values at ``newest`` and before, and how many of them there are."""
        index = newest[:, None] - torch.arange(size)
        return ratio[index.clamp_min(first)], (newest - first + 1).clamp(0, size)

    ahead = StepWeights(*bounded(prior, ratio[:-1], ratio[1:], *window(at, history), most))
    # from the state `again` levels before to level i
    back = StepWeights(*bounded(prior, ratio[(at - again).clamp_min(0)], ratio[:-1], *window(at, history + 1), most))
    # the step to the level that is the base of the next step, for the last time
    settled = at - again + 1
    steady = (settled >= 1) & (at >= first)
    base = settled.clamp_min(1)
    final = StepWeights(*bounded(prior, ratio[base - 1], ratio[base], *window(at, history + 1), most))
    known = (at >= max(first, 1))[:, None]
    none = torch.zeros_like(back.w)
    back = StepWeights(torch.where(known[:, 0], back.a, 1.0), torch.where(known, back.w, none))
    final = StepWeights(torch.where(steady, final.a, 1.0), torch.where(steady[:, None], final.w, none))
    pad = torch.nn.functional.pad
    # x̃_{i+1} = g F + Σ u D of the settled state F
    g = ahead.a * back.a
    u = pad(ahead.w, (0, 1)) + ahead.a[:, None] * back.w
    # F of the next step is f F + Σ v D, and F follows from x̃_{i+1}
    a = torch.cat([g[:1], g[1:] * final.a[:-1] / g[:-1]])
    older = g[1:, None] * final.w[:-1] - a[1:, None] * u[:-1]
    w = pad(u, (0, 1)) + pad(torch.cat([none[:1], older]), (1, 0))
    # from the state as it is corrected, the step is that ahead
    correction = StepWeights(a / ahead.a - 1, (w - pad(ahead.w, (0, 2))) / ahead.a[:, None])
    return Steps(StepWeights(a, w), correction)


class NoisySteps(NamedTuple):
    """x̃ at the end of each of n steps as a x̃ + Σ_j w_j D_j + c z: (n,), (n, p), of the newest D first, and (n,)."""

    a: Tensor
    w: Tensor
    c: Tensor


def noisy_plan(prior: Prior, ratio: Tensor, eta: float | Tensor, history: int, most: float = MOST) -> NoisySteps:
    r"""The n steps between n + 1 levels of σ̃ for the reverse SDE of that η: the flow, too far down, and noise.

    The flow from a to σ̃_d = σ̃_b (σ̃_b/σ̃_a)^{η²}, and the noise of the forward process from there back to σ̃_b, carry
    the law at a to the law at b, whatever the data. With DDIM's weights, a = σ̃_d/σ̃_a and 1 - a, that is the step of
    DDIM(η) with the noise of x̂_0's exact linear part; here with the best weights of x̃ and of values of D on the way,
    for data as in ``prior``. Values of before were of other noise: in a direction of variance λ, x̃ at two levels i
    before j are correlated by (v_j/v_i)^{η²/2}, v = λ + σ̃². What is not common counts as noise of the value, times the
    square of 1 - σ̃_d/σ̃_a, by which the method has order 2 in law. An error at σ̃_d counts by what the process leaves of
    it, (λ/(λ + σ̃_d²))^{(1 + η²)/2}.

    Args:
        prior: of the data.
        ratio: (n + 1,) decreasing σ̃.
        eta: η > 0.
        history: p, values of D that enter a step.
        most: the bound on weights, as MOST.
    """
    n, start, end = len(ratio) - 1, ratio[:-1], ratio[1:]
    noisy = end > 0  # a power of 0 has no derivative
    share = torch.where(noisy, (torch.where(noisy, end, start) / start) ** eta**2, torch.zeros_like(end))
    down, c = end * share, end * root(1 - share**2)
    x = prior.state(start)
    goal = prior.state(down) - (down / start)[:, None] * x
    left = (prior.variances / (prior.variances + down[:, None] ** 2)) ** ((1 + eta**2) / 2)
    left = torch.cat([left, torch.ones_like(left[:, :1])], 1)
    at = torch.arange(n)[:, None] - torch.arange(history)
    nodes, count = ratio[at.clamp_min(0)], (at >= 0).sum(1)
    variance = prior.variances + nodes[..., None] ** 2  # (n, p, m)
    close = (variance[:, :1] / variance) ** (eta**2 / 2)
    values = prior.denoised(nodes)
    # by the step's length squared: to the variance of the end it adds by its own, a bias of the mean by its root
    noise = (1 - down / start)[:, None] ** 2 * (values[..., :-1] ** 2 * (1 - close**2)).sum(-1)
    values = values * torch.cat([close, torch.ones_like(close[..., :1])], -1)

    def least(count: Tensor) -> tuple[Tensor, Tensor]:
        return _least(prior, x, values, noise, goal, count, left)

    a, w = _through_fewer(least, count, most * (1 - down / start))
    return NoisySteps(down / start + a, w, c)
