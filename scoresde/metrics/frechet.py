r"""Fréchet distance of two sets in a feature space: that of the Gaussians with their means and covariances.

    frechet_distance(features(samples), features(data))     # FID, where the features are those of Inception
    frechet_of_moments(of_samples, of_data)                 # from running moments, of any number of samples
    frechet_bias(covariance, n, m)                          # what two sets of one law score on average
    frechet_extrapolated(a, b)                              # to infinitely many samples

    FD = |μ_1 - μ_2|² + tr(C_1 + C_2 - 2 (C_1^½ C_2 C_1^½)^½),

the square of the 2-Wasserstein distance of the two Gaussians. It sees means and covariances of the features and nothing
else. With few samples it is too large, by :func:`frechet_bias` to first order where the laws are equal.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from scoresde import checks
from scoresde.metrics.moments import RunningMoments
from scoresde.metrics.sets import SampleSizeWarning, check_sizes, two_sets
from scoresde.noise import Noise, as_noise
from scoresde.warning import warn_user


def frechet_distance(x: Tensor, y: Tensor) -> float:
    r"""|μ_x - μ_y|² + tr(C_x + C_y - 2 (C_x^½ C_y C_x^½)^½), with unbiased covariances.

    Heusel et al. 2017 (arXiv:1706.08500, equation 6), who call it squared d. tr (C_x^½ C_y C_x^½)^½ is the sum of the
    singular values of A_xᵀ A_y for any factors C = A Aᵀ: exact for singular covariances too, which those of n <= d
    samples are; the value is then far too large, and a :class:`SampleSizeWarning` says so.

    Args:
        x: (n, *event), features most often.
        y: (m, *event).

    Raises:
        TypeError, ValueError: fewer than two samples, not finite, events of two shapes.
    """
    a, b = two_sets(x, y)
    check_sizes(a, b, least=2, names=("x", "y"), what="a covariance")
    _warn_if_few(min(len(a), len(b)), a.shape[1])
    return _distance(a, b)


def _distance(a: Tensor, b: Tensor) -> float:
    means = [rows.mean(0) for rows in (a, b)]
    factors = [(rows - mean).T / math.sqrt(len(rows) - 1) for rows, mean in zip((a, b), means, strict=True)]
    if min(len(a), len(b)) > a.shape[1]:  # the covariances are smaller than the samples
        factors = [_root(factor @ factor.T) for factor in factors]
    return _of_factors(means[0], means[1], factors[0], factors[1])


def frechet_of_moments(x: RunningMoments, y: RunningMoments) -> float:
    """The same from moments, which a stream of any length, or several processes, have gathered.

    Args:
        x: of one set, of two samples at least.
        y: of the other.

    Raises:
        TypeError, ValueError: no RunningMoments, fewer than two samples, or samples of two sizes.
    """
    for name, value in (("x", x), ("y", y)):
        checks.instance(value, RunningMoments, name=name)
        if value.count < 2:
            raise ValueError(f"{name} must be the moments of at least 2 samples, got those of {value.count} samples.")
    if x.mean.shape != y.mean.shape:
        raise ValueError(f"x and y must be of samples of one size, got {len(x.mean)} and {len(y.mean)} numbers.")
    _warn_if_few(min(x.count, y.count), len(x.mean))
    return _of_factors(x.mean, y.mean.to(x.mean.device), _root(x.covariance), _root(y.covariance.to(x.mean.device)))


def _root(covariance: Tensor) -> Tensor:
    """A with A Aᵀ the covariance; eigenvalues that are rounding are left out, whose roots would not be small."""
    values, vectors = torch.linalg.eigh(covariance)
    least = len(values) * torch.finfo(values.dtype).eps * values[-1].clamp_min(0)
    return vectors * torch.where(values > least, values, 0.0).sqrt()


def _of_factors(mean_x: Tensor, mean_y: Tensor, a: Tensor, b: Tensor) -> float:
    cross = torch.linalg.svdvals(a.T @ b).sum()
    total = (mean_x - mean_y).square().sum() + a.square().sum() + b.square().sum() - 2 * cross
    return max(float(total), 0.0)  # equal sets give the rounding of the traces


def _warn_if_few(count: int, size: int) -> None:
    if count <= size:
        warn_user(
            f"the covariance of {count} samples in {size} dimensions is singular, and a Fréchet distance of it is far "
            f"too large. Give more than {size} samples, better ten times as many, or take features of fewer numbers.",
            SampleSizeWarning,
        )


def frechet_bias(covariance: Tensor, n: int, m: int) -> float:
    r"""What two sets of n and m samples of one Gaussian law score on average, to first order in 1/n and 1/m:

        (1/n + 1/m) [tr C + ½ tr C + ½ Σ_{i≠j} λ_i λ_j/(λ_i + λ_j)],

    λ the eigenvalues of C: the first term is that of the means, the others are those of the covariances (the second
    derivative of the Bures distance is Σ_ij E_ij²/(2 (λ_i + λ_j)), and Wishart errors E have variances λ_i λ_j/n, twice
    that on the diagonal). Of white features in d dimensions (1/n + 1/m) d (d + 5)/4. What Chong & Forsyth 2020
    (arXiv:1911.07023, section 3) show to be there, in closed form.

    Args:
        covariance: (d, d), of the features of real data.
        n: samples of one set, more than d for the expansion to hold.
        m: samples of the other.

    Raises:
        TypeError, ValueError: no covariance, or n or m below 2.
    """
    checks.state(covariance, name="covariance", values=True)
    if covariance.ndim != 2 or covariance.shape[0] != covariance.shape[1] or not len(covariance):
        raise ValueError(f"covariance must be (d, d), got {checks.got(covariance)}.")
    n, m = checks.count(n, name="n", least=2), checks.count(m, name="m", least=2)
    values = torch.linalg.eigvalsh(checks.brought(covariance, torch.float64)).clamp_min(0)
    sums = values[:, None] + values
    pairs = torch.where(sums > 0, values[:, None] * values / sums.clamp_min(torch.finfo(sums.dtype).tiny), 0.0)
    off = pairs.sum() - pairs.diagonal().sum()
    return float(1.5 * values.sum() + off / 2) * (1 / n + 1 / m)


def frechet_extrapolated(x: Tensor, y: Tensor, noise: Noise | torch.Generator | int = 0, *, parts: int = 3) -> float:
    r"""The Fréchet distance at infinitely many samples: the bias is proportional to 1/n, and is taken off.

    Both sets are cut into k random parts, k = 1 ... ``parts``; the mean of the k distances of part to part is
    FD + c k + O(k²/n²), and a line through these points meets k = 0 at FD. That of equal laws is 0 on average: single
    values may be below it. Chong & Forsyth 2020 (arXiv:1911.07023) extrapolate so from nested subsets of
    one of the sets; parts that do not overlap use all samples at each k, and both sets' bias goes.

    Args:
        x: (n, *event).
        y: (m, *event).
        noise: source of the random parts.
        parts: the most parts, at least 2; each must hold more than 2 d samples, where the bias is still linear.

    Raises:
        TypeError, ValueError: too few samples, not finite, events of two shapes.
    """
    parts = checks.count(parts, name="parts", least=2)
    a, b = two_sets(x, y)
    size, least = a.shape[1], parts * (2 * a.shape[1] + 1)
    for name, rows in (("x", a), ("y", b)):
        if len(rows) < least:
            raise ValueError(
                f"{name} must hold at least {least} samples, more than {2 * size} in each of parts={parts} in {size} "
                f"dimensions; got {len(rows)} samples. Give more, fewer parts, or features of fewer numbers."
            )
    orders = [_order(rows, noise, name) for name, rows in (("x", a), ("y", b))]
    counts = torch.arange(1, parts + 1, dtype=torch.float64)
    found = torch.tensor([_mean_of_parts(a[orders[0]], b[orders[1]], k) for k in range(1, parts + 1)]).double()
    # The parts of k have 1/k of the samples each: their mean has about one variance for all k.
    slope = ((counts - counts.mean()) * found).sum() / (counts - counts.mean()).square().sum()
    return float(found.mean() - slope * counts.mean())


def _mean_of_parts(a: Tensor, b: Tensor, k: int) -> float:
    pairs = zip(a.tensor_split(k), b.tensor_split(k), strict=True)
    return sum(_distance(p, q) for p, q in pairs) / k


def _order(rows: Tensor, noise: Noise | torch.Generator | int, name: str) -> Tensor:
    draw = as_noise(noise, f"parts of {name}").initial((len(rows),), dtype=torch.float64, device=torch.device("cpu"))
    return draw.argsort().to(rows.device)
