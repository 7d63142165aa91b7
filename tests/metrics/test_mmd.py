"""Maximum mean discrepancies: published sums, other libraries' kernels, Gaussians in closed form, errors, p-values."""

from __future__ import annotations

import math

import pytest
import sklearn.metrics.pairwise
import torch
from torch import Tensor

from scoresde.metrics import (
    CosineKernel,
    DistanceKernel,
    GaussianKernel,
    Kernel,
    PolynomialKernel,
    energy_distance,
    kernel_distance,
    median_distance,
    mmd,
    mmd_test,
    permutation_test,
)


def normals(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


X, Y = normals(9, 3), 0.5 + 1.3 * normals(7, 3, seed=1)

# ---- kernels and sums ----


@pytest.mark.parametrize(
    ("kernel", "oracle"),
    [
        (GaussianKernel(1.7), lambda a, b: sklearn.metrics.pairwise.rbf_kernel(a, b, gamma=1 / (2 * 1.7**2))),
        (PolynomialKernel(), lambda a, b: sklearn.metrics.pairwise.polynomial_kernel(a, b)),  # 3, 1/d, 1 there too
        (
            PolynomialKernel(2, scale=0.3, offset=0.0),
            lambda a, b: sklearn.metrics.pairwise.polynomial_kernel(a, b, 2, gamma=0.3, coef0=0),
        ),
        (DistanceKernel(), lambda a, b: -sklearn.metrics.pairwise.euclidean_distances(a, b)),
        (CosineKernel(), lambda a, b: sklearn.metrics.pairwise.cosine_similarity(a, b)),
    ],
)
def test_kernels_are_those_of_scikit_learn(kernel: Kernel, oracle: object) -> None:
    found = kernel.matrix(X, Y)
    torch.testing.assert_close(found, torch.from_numpy(oracle(X.numpy(), Y.numpy())), rtol=1e-10, atol=1e-10)  # type: ignore[operator]


@pytest.mark.parametrize("kernel", [GaussianKernel(1.0), PolynomialKernel(), DistanceKernel()])
def test_both_estimates_are_the_published_sums(kernel: Kernel) -> None:
    n, m = len(X), len(Y)

    def k(a: Tensor, b: Tensor) -> float:
        return float(kernel.matrix(a[None], b[None]))

    cross = sum(k(a, b) for a in X for b in Y) / (n * m)
    within = [[k(a, b) for i, a in enumerate(s) for j, b in enumerate(s) if i != j] for s in (X, Y)]
    itself = [sum(k(a, a) for a in s) for s in (X, Y)]
    unbiased = sum(within[0]) / (n * (n - 1)) + sum(within[1]) / (m * (m - 1)) - 2 * cross
    biased = (sum(within[0]) + itself[0]) / n**2 + (sum(within[1]) + itself[1]) / m**2 - 2 * cross
    for chunk in (4096, 4):
        assert mmd(X, Y, kernel, chunk=chunk).value == pytest.approx(unbiased, rel=1e-9)  # sums in another order
        assert mmd(X, Y, kernel, unbiased=False, chunk=chunk).value == pytest.approx(biased, rel=1e-9, abs=1e-12)
        assert mmd(X, Y, kernel, chunk=chunk).error == pytest.approx(mmd(X, Y, kernel).error, rel=1e-9)


def test_the_energy_distance_is_one_of_them() -> None:
    for unbiased in (False, True):
        expected = energy_distance(X, Y, unbiased=unbiased)
        assert mmd(X, Y, DistanceKernel(), unbiased=unbiased).value == pytest.approx(expected, rel=1e-9)


def test_kid_is_torchmetrics() -> None:
    kid = pytest.importorskip("torchmetrics.image.kid")
    x, y = normals(30, 8), 1.2 * normals(30, 8, seed=1)
    assert kernel_distance(x, y).value == pytest.approx(float(kid.poly_mmd(x, y)), rel=1e-9)


def test_the_bandwidth_is_the_median_and_does_not_see_the_groups() -> None:
    pooled = torch.cat([X, Y])
    far = sorted(float((a - b).norm()) for i, a in enumerate(pooled) for b in pooled[:i])
    assert median_distance(X, Y) == pytest.approx(far[(len(far) - 1) // 2], rel=1e-12)  # torch's median: the lower one
    assert mmd(X, Y) == mmd(X, Y, GaussianKernel(median_distance(X, Y)))
    order = torch.randperm(16, generator=torch.Generator().manual_seed(0))
    assert median_distance(pooled[order[:9]], pooled[order[9:]]) == median_distance(X, Y)
    many, more = normals(3000, 1), normals(1500, 1, seed=1)  # beyond what all pairs are taken of
    swapped = median_distance(torch.cat([more, many[:1000]]), many[1000:])
    assert median_distance(many, more) == swapped == pytest.approx(0.954, rel=0.03)  # Φ^-1(3/4) sqrt(2), n = 2250
    with pytest.raises(ValueError, match="most differ"):
        median_distance(torch.zeros(5, 2), torch.zeros(5, 2))


# ---- Gaussians ----


def rbf_of_gaussians(mean: Tensor, covariance: Tensor, h: float) -> float:
    """E exp(-|z|²/2h²) for z ~ N(mean, covariance)."""
    wide = h**2 * torch.eye(len(mean), dtype=torch.float64) + covariance
    quadratic = mean @ torch.linalg.solve(wide, mean)
    return float(h ** len(mean) / torch.linalg.det(wide).sqrt() * torch.exp(-quadratic / 2))


def third_moment(mean: Tensor, c: Tensor) -> Tensor:
    one = torch.einsum("i,jk->ijk", mean, c)
    return torch.einsum("i,j,k->ijk", mean, mean, mean) + one + one.permute(1, 0, 2) + one.permute(1, 2, 0)


def cubic_of_gaussians(a: tuple[Tensor, Tensor], b: tuple[Tensor, Tensor]) -> float:
    """E (x·y/d + 1)³ by the moments of both, x and y independent."""
    (mu, c), (nu, e) = a, b
    d = len(mu)
    one = mu @ nu
    two = ((c + torch.outer(mu, mu)) * (e + torch.outer(nu, nu))).sum()
    three = (third_moment(mu, c) * third_moment(nu, e)).sum()
    return float(1 + 3 * one / d + 3 * two / d**2 + three / d**3)


@pytest.mark.parametrize("name", ["gaussian", "cubic"])
@pytest.mark.parametrize("apart", [False, True])
def test_the_mean_is_that_of_the_laws(name: str, apart: bool) -> None:
    h, n, m, runs = 1.5, 60, 80, 150
    mu, nu = torch.tensor([0.3, -0.2]).double(), torch.tensor([0.3, -0.2]).double()
    root, other = torch.tensor([[1.0, 0.0], [0.5, 0.8]]).double(), torch.tensor([[1.0, 0.0], [0.5, 0.8]]).double()
    if apart:
        nu, other = nu + 0.6, 1.3 * other
    c, e = root @ root.T, other @ other.T
    if name == "gaussian":
        kernel: Kernel = GaussianKernel(h)
        xx, yy, xy = (rbf_of_gaussians(*z, h) for z in ((0 * mu, 2 * c), (0 * mu, 2 * e), (mu - nu, c + e)))
    else:
        kernel = PolynomialKernel()
        xx, yy, xy = (cubic_of_gaussians(*z) for z in (((mu, c),) * 2, ((nu, e),) * 2, ((mu, c), (nu, e))))
    truth = xx + yy - 2 * xy
    found = torch.tensor([
        mmd(mu + normals(n, 2, seed=2 * i) @ root.T, nu + normals(m, 2, seed=2 * i + 1) @ other.T, kernel)
        for i in range(runs)
    ])  # fmt: skip
    values, errors = found[:, 0], found[:, 1]
    assert abs(float(values.mean()) - truth) < 4 * float(values.std()) / math.sqrt(runs)
    assert apart == (truth > 0.01)
    # The jackknife's variance over the true one: 1 where laws differ, 2 where the statistic is degenerate. The true one
    # is known to 2/sqrt(2·150) = 12 %, for heavy tails of the cubic kernel to less.
    ratio = float(errors.square().mean() / values.var())
    assert 0.6 < ratio < 3.0


@pytest.mark.parametrize("kernel", [GaussianKernel(1.5), PolynomialKernel()], ids=["gaussian", "cubic"])
def test_the_error_is_the_jackknife_s(kernel: Kernel) -> None:
    """Σ over both sets of (n - 1)/n Σ_i (θ_i - mean)², θ_i the estimate without sample i, one by one."""
    x, y = normals(9, 2, seed=1), normals(7, 2, seed=2) + 0.5
    keep = [torch.arange(n) != torch.arange(n)[:, None] for n in (9, 7)]
    without = [[mmd(x[k], y, kernel).value for k in keep[0]], [mmd(x, y[k], kernel).value for k in keep[1]]]
    variance = sum((len(v) - 1) / len(v) * (torch.tensor(v) - sum(v) / len(v)).square().sum() for v in without)
    assert mmd(x, y, kernel).error == pytest.approx(math.sqrt(float(variance)), rel=1e-5)


# ---- p-values ----


def test_the_fast_test_is_the_permutation_test() -> None:
    for kernel in (GaussianKernel(1.0), DistanceKernel()):
        slow = permutation_test(lambda a, b, k=kernel: mmd(a, b, k).value, X, Y, 3, permutations=60)  # type: ignore[misc]
        for chunk in (4096, 5):
            fast = mmd_test(X, Y, kernel, 3, permutations=60, chunk=chunk)
            assert fast.statistic == pytest.approx(slow.statistic, rel=1e-9)
            assert fast.p_value == slow.p_value
    assert mmd_test(X, Y, noise=1) == mmd_test(X, Y, noise=1)
    assert mmd_test(X, X + 30, permutations=99).p_value == 1 / 100  # the least


def test_the_level_of_the_fast_test_is_exact() -> None:
    """P(p <= 0.05) = 0.05 and P(p <= 0.5) = 0.5 with B = 19 for draws of one law, of unequal sizes."""
    runs = 400
    p = torch.tensor([
        mmd_test(normals(8, 2, seed=2 * i), normals(13, 2, seed=2 * i + 1), noise=i, permutations=19).p_value
        for i in range(runs)
    ]).double()  # fmt: skip
    for level in (0.05, 0.5):
        share = float((p <= level + 1e-6).double().mean())
        assert abs(share - level) < 4 * math.sqrt(level * (1 - level) / runs)


@pytest.mark.parametrize("statistic", [energy_distance, lambda x, y: float(x.mean() - y.mean())])
def test_the_level_of_any_test_is_exact(statistic: object) -> None:
    runs = 400
    p = torch.tensor([
        permutation_test(statistic, normals(4, 1, seed=2 * i), normals(6, 1, seed=2 * i + 1), i, permutations=9).p_value  # type: ignore[arg-type]
        for i in range(runs)
    ]).double()  # fmt: skip
    for level in (0.1, 0.5):
        share = float((p <= level + 1e-6).double().mean())
        assert abs(share - level) < 4 * math.sqrt(level * (1 - level) / runs)
    assert set((10 * p).round().tolist()) <= set(range(1, 11))


def test_p_values_count_ties_and_keep_shapes() -> None:
    x, y = torch.zeros(4, 1, 2), torch.zeros(5, 1, 2)
    seen: set[tuple[int, ...]] = set()

    def statistic(a: Tensor, b: Tensor) -> float:
        seen.add((*a.shape, *b.shape))
        return float(a.sum() - b.sum())

    assert permutation_test(statistic, x, y, permutations=5).p_value == 1.0  # all equal
    assert seen == {(4, 1, 2, 5, 1, 2)}
    with pytest.raises(ValueError, match="NaN"):
        permutation_test(lambda a, b: math.nan, x, y)
    with pytest.raises(ValueError, match="at least 3 samples"):
        mmd(normals(2, 2), Y[:, :2])
    with pytest.raises(TypeError, match="kernel must be a Kernel"):
        mmd(X, Y, 3)  # type: ignore[arg-type]
