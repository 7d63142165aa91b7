r"""Maximum mean discrepancy: how far the mean embeddings of two laws are apart in a kernel's space.

mmd(samples, data)                                      # Gaussian kernel: Estimate(value, error)
kernel_distance(features(samples), features(data))      # KID: a cubic kernel, without bias
mmd_test(samples, data, permutations=999)               # TwoSampleTest(statistic, p_value)
mmd_test(samples, data, DistanceKernel())               # the test of the energy distance

MMD² = E k(X, X') + E k(Y, Y') - 2 E k(X, Y).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from scoresde import checks
from scoresde.metrics.kernels import GaussianKernel, Kernel, PolynomialKernel, median_distance
from scoresde.metrics.permutations import p_value, regroupings
from scoresde.metrics.sets import CHUNK, Estimate, TwoSampleTest, blocks, check_sizes, two_sets
from scoresde.noise import Noise, as_noise


def mmd(x: Tensor, y: Tensor, kernel: Kernel | None = None, *, unbiased: bool = True, chunk: int = CHUNK) -> Estimate:
    r"""Squared MMD of two sets, and its standard error.

    Gretton et al. 2012 (Journal of Machine Learning Research 13, equations 3 and 5). The unbiased one leaves out pairs
    of a sample with itself: its mean is that of the laws, and where these are equal half of its values are below 0. The
    error is the jackknife's over samples of both sets, which is never too small on average (Efron & Stein 1981,
    doi:10.1214/aos/1176345462); where the laws are equal its square is up to twice the variance.

    Args:
        x: (n, *event), n at least 3.
        y: (m, *event), m at least 3.
        kernel: a Gaussian one with the median of all distances for a bandwidth, unless told.
        unbiased: the U-statistic; else the V-statistic, which is never below 0 and too large.
        chunk: samples whose kernels are evaluated at once.

    Raises:
        TypeError, ValueError: no kernel, fewer than three samples, not finite, events of two shapes.
    """
    unbiased, chunk = checks.flag(unbiased, name="unbiased"), checks.count(chunk, name="chunk")
    a, b, kernel = _checked(x, y, kernel)
    sums, n, m = _sums(a, b, kernel, chunk), len(a), len(b)
    whole = _of_sums(sums.xx.sum(), sums.yy.sum(), sums.xy.sum(), n, m)
    if not unbiased:
        whole = (sums.xx.sum() + sums.x_itself) / n**2 + (sums.yy.sum() + sums.y_itself) / m**2
        whole = whole - 2 * sums.xy.sum() / (n * m)
    without_x = _of_sums(sums.xx.sum() - 2 * sums.xx, sums.yy.sum(), sums.xy.sum() - sums.xy, n - 1, m)
    without_y = _of_sums(sums.xx.sum(), sums.yy.sum() - 2 * sums.yy, sums.xy.sum() - sums.yx, n, m - 1)
    variance = sum((len(v) - 1) * v.var(correction=0) for v in (without_x, without_y))
    return Estimate(float(whole), float(torch.as_tensor(variance).sqrt()))


def kernel_distance(x: Tensor, y: Tensor, *, chunk: int = CHUNK) -> Estimate:
    """KID: the unbiased squared MMD with the kernel (x·y/d + 1)³, and its standard error.

    Bińkowski et al. 2018 (arXiv:1801.01401, section 4). It sees the first three moments, has no bias at any number of
    samples, and so compares across sizes, which the Fréchet distance does not. All pairs are used, where the paper
    averages over blocks.

    Args:
        x: (n, *event), features most often, n at least 3.
        y: (m, *event), m at least 3.
        chunk: samples whose kernels are evaluated at once.

    Raises:
        TypeError, ValueError: as :func:`mmd`.
    """
    return mmd(x, y, PolynomialKernel(), chunk=chunk)


def mmd_test(
    x: Tensor,
    y: Tensor,
    kernel: Kernel | None = None,
    noise: Noise | torch.Generator | int = 0,
    *,
    permutations: int = 199,
    chunk: int = CHUNK,
) -> TwoSampleTest:
    """The unbiased squared MMD, and its p-value by permutation, exact at any size.

    What ``permutation_test(lambda x, y: mmd(x, y, kernel).value, x, y, noise)`` answers, at the cost of one evaluation
    of all kernels and a matrix product, instead of one evaluation for each permutation.

    Args:
        x: (n, *event), independent draws, n at least 3.
        y: (m, *event), independent draws, m at least 3.
        kernel: a Gaussian one with the median of all distances for a bandwidth, unless told.
        noise: source of the regroupings.
        permutations: B. The least p-value is 1/(1 + B).
        chunk: samples whose kernels are evaluated at once.

    Raises:
        TypeError, ValueError: as :func:`mmd`.
    """
    count, chunk = checks.count(permutations, name="permutations"), checks.count(chunk, name="chunk")
    as_noise(noise, "regroupings")
    a, b, kernel = _checked(x, y, kernel)
    pooled, n, m = torch.cat([a, b]), len(a), len(b)
    # Which samples are in the first set: as it is, then of each regrouping; (n + m, 1 + B).
    first = torch.zeros(n + m, 1 + count, dtype=torch.float64)
    first[:n, 0] = 1
    first[:, 1:].scatter_(0, regroupings(n, m, count, noise)[:, :n].T, 1.0)
    first = first.to(pooled.device)
    inside, across, total = first.new_zeros(1 + count), first.new_zeros(1 + count), first.new_zeros(())
    for here in blocks(n + m, chunk):
        for there in blocks(n + m, chunk):
            k = kernel.matrix(pooled[here], pooled[there])
            if here == there:
                k.fill_diagonal_(0)
            inside += (first[here] * (k @ first[there])).sum(0)
            across += first[here].T @ k.sum(1)  # of the first set with all
            total += k.sum()
    xx, xy = inside, across - inside
    found = _of_sums(xx, total - xx - 2 * xy, xy, n, m)
    return TwoSampleTest(float(found[0]), p_value(found))


class _Sums(NamedTuple):
    """Sums of kernels over the other samples, for each sample; those of a sample with itself apart."""

    xx: Tensor
    yy: Tensor
    xy: Tensor
    yx: Tensor
    x_itself: Tensor
    y_itself: Tensor


def _sums(a: Tensor, b: Tensor, kernel: Kernel, chunk: int) -> _Sums:
    xx, x_itself = _within(a, kernel, chunk)
    yy, y_itself = _within(b, kernel, chunk)
    xy, yx = a.new_zeros(len(a)), a.new_zeros(len(b))
    for here in blocks(len(a), chunk):
        for there in blocks(len(b), chunk):
            k = kernel.matrix(a[here], b[there])
            xy[here] += k.sum(1)
            yx[there] += k.sum(0)
    return _Sums(xx, yy, xy, yx, x_itself, y_itself)


def _within(a: Tensor, kernel: Kernel, chunk: int) -> tuple[Tensor, Tensor]:
    sums, itself = a.new_zeros(len(a)), a.new_zeros(())
    for here in blocks(len(a), chunk):
        for there in blocks(len(a), chunk):
            k = kernel.matrix(a[here], a[there])
            if here == there:
                itself += k.diagonal().sum()
                k.fill_diagonal_(0)
            sums[here] += k.sum(1)
    return sums, itself


def _of_sums(xx: Tensor, yy: Tensor, xy: Tensor, n: int, m: int) -> Tensor:
    return xx / (n * (n - 1)) + yy / (m * (m - 1)) - 2 * xy / (n * m)


def _checked(x: Tensor, y: Tensor, kernel: Kernel | None) -> tuple[Tensor, Tensor, Kernel]:
    if kernel is not None:
        checks.instance(kernel, Kernel, name="kernel", hint="GaussianKernel(bandwidth) is one.")
    a, b = two_sets(x, y)
    check_sizes(a, b, least=3, names=("x", "y"), what="an MMD with its error")
    return a, b, GaussianKernel(median_distance(x, y)) if kernel is None else kernel
