r"""Max-sliced Wasserstein distance: the distance along the one direction in which two sets differ most.

max_sliced_wasserstein(samples, data)                   # of these sets
max_sliced_wasserstein(samples, data, held_out=True)    # along a direction found on one half, of the other half
"""

from __future__ import annotations

import torch
from torch import Tensor

from scoresde import checks
from scoresde.metrics.sets import check_sizes, two_sets
from scoresde.metrics.sliced import coupled
from scoresde.noise import Noise, as_noise

HALVINGS = 6
"""Of a step that does not climb, before a start is given up."""


def max_sliced_wasserstein(
    x: Tensor,
    y: Tensor,
    noise: Noise | torch.Generator | int = 0,
    *,
    starts: int = 8,
    steps: int = 50,
    held_out: bool = False,
) -> float:
    r"""max_u W_2(u·X, u·Y) over unit vectors u.

    Deshpande et al. 2019 (arXiv:1904.05877). W_2² = uᵀ A_π u with A_π = E_π (x - y)(x - y)ᵀ under the
    coupling π that sorts both projections; u is moved towards A_π u, the gradient, by halves until it climbs. Starts:
    the difference of the means, the axes in which covariances differ most, and random ones; a local maximum may be
    missed, and the answer is then too small.

    The maximum is over noise as well: of two sets of one law it grows with the dimension, about as sqrt(d/n). With
    ``held_out`` the direction is found on one random half of both sets and measured on the other, whose distance then
    has the bias of a line only.

    Args:
        x: (n, *event).
        y: (m, *event).
        noise: source of the random starts and halves.
        starts: how many directions are followed.
        steps: of each, at most.
        held_out: find the direction on other samples than those it is measured on; four of each set at least.

    Raises:
        TypeError, ValueError: not finite, events of two shapes, too few samples.
    """
    starts, steps = checks.count(starts, name="starts"), checks.count(steps, name="steps")
    held_out = checks.flag(held_out, name="held_out")
    a, b = two_sets(x, y)
    source = as_noise(noise, "max-sliced")
    if held_out:
        check_sizes(a, b, least=4, names=("x", "y"), what="held_out=True")
        (a, other_a), (b, other_b) = (_halves(rows, as_noise(noise, f"half of {k}")) for k, rows in enumerate((a, b)))
    else:
        other_a, other_b = a, b
    draw = source.initial((starts, a.shape[1]), dtype=torch.float64, device=torch.device("cpu")).to(a.device)
    best, best_value = draw[0], -1.0
    for start in _starts(a, b, draw)[:starts]:
        direction, value = _climb(a, b, start / start.norm(), steps)
        if value > best_value:
            best, best_value = direction, value
    return max(_squared(other_a @ best, other_b @ best)[0], 0.0) ** 0.5


def _halves(rows: Tensor, noise: Noise) -> tuple[Tensor, Tensor]:
    order = noise.initial((len(rows),), dtype=torch.float64, device=torch.device("cpu")).argsort().to(rows.device)
    half = len(rows) // 2
    return rows[order[:half]], rows[order[half:]]


def _starts(a: Tensor, b: Tensor, draw: Tensor) -> list[Tensor]:
    """Directions, likeliest first."""
    first = [a.mean(0) - b.mean(0)]
    if min(len(a), len(b)) > 2 and a.shape[1] <= 1024:
        differ = torch.linalg.eigh(torch.cov(a.T).reshape(a.shape[1], -1) - torch.cov(b.T).reshape(a.shape[1], -1))
        first += [differ.eigenvectors[:, -1], differ.eigenvectors[:, 0]]
    return [u for u in [*first, *draw] if float(u.norm()) > 0]


def _squared(p: Tensor, q: Tensor) -> tuple[float, Tensor, Tensor, Tensor]:
    """W_2² of numbers (n,) and (m,), and the coupling: shares and which samples are joined."""
    sorted_p, sorted_q = p.sort(), q.sort()
    share, i, j = (index.to(p.device) for index in coupled(len(p), len(q)))
    squared = (share * (sorted_p.values[i] - sorted_q.values[j]).square()).sum()
    return float(squared), share, sorted_p.indices[i], sorted_q.indices[j]


def _climb(a: Tensor, b: Tensor, u: Tensor, steps: int) -> tuple[Tensor, float]:
    value, share, i, j = _squared(a @ u, b @ u)
    for _ in range(steps):
        off = a[i] - b[j]
        towards = (share * (off @ u)) @ off
        length = float(towards.norm())
        if length == 0:
            break
        towards, part = towards / length, 1.0
        for _ in range(HALVINGS):
            trial = torch.lerp(u, towards, part)
            trial = trial / trial.norm()
            found = _squared(a @ trial, b @ trial)
            if found[0] > value * (1 + 1e-10):
                break
            part /= 2
        else:
            break
        u, (value, share, i, j) = trial, found
    return u, value
