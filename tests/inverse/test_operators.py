"""Measurement operators: linearity, adjoints, systems with A Aᵀ, conjugate gradients, measurements, and refusals."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from scoresde.inverse import (
    Blur,
    Downsample,
    FunctionOperator,
    Grayscale,
    Identity,
    LinearOperator,
    Mask,
    Matrix,
    Measurement,
    PhaseRetrieval,
    gaussian_kernel,
)
from scoresde.inverse.conjugate_gradients import conjugate_gradients
from scoresde.noise import IndependentNoise

EVENT = (3, 4, 6)


def normals(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def every_second(x: Tensor) -> Tensor:
    """A linear function without a name: running sums, every second one."""
    return x.cumsum(-1)[..., ::2]


OPERATORS: dict[str, LinearOperator] = {
    "identity": Identity(EVENT),
    "mask": Mask(normals(1, 4, 6) > 0, EVENT),
    "downsample": Downsample(2, EVENT),
    "downsample one axis": Downsample((3,), EVENT),
    "blur": Blur(gaussian_kernel(3, 0.7), EVENT),
    "crooked blur": Blur(normals(2, 3), EVENT),
    "blur of all axes": Blur(normals(3, 2, 3), EVENT),
    "grayscale": Grayscale(EVENT),
    "matrix": Matrix(normals(7, 72), EVENT),
    "tall matrix": Matrix(normals(80, 72), EVENT),
    "function": FunctionOperator(every_second, event=EVENT, dtype=torch.float64),
    "composition": Downsample(2, EVENT) @ Blur(gaussian_kernel(3, 0.7), EVENT),
    "closed composition": Matrix(normals(5, 6), (1, 2, 3)) @ Grayscale((3, 2, 3)) @ Downsample(2, EVENT),
}
each = pytest.mark.parametrize("name", list(OPERATORS))


@each
def test_linear_with_its_adjoint(name: str) -> None:
    a = OPERATORS[name]
    a.check()
    matrix = a.matrix()
    x, y = normals(5, *a.event, seed=1), normals(5, *a.measured, seed=2)
    assert matrix.shape == (math.prod(a.measured), math.prod(a.event))
    # sums of up to 80 terms
    torch.testing.assert_close(a(x).flatten(1), x.flatten(1) @ matrix.mT, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(a.adjoint(y).flatten(1), y.flatten(1) @ matrix, rtol=1e-12, atol=1e-12)


@each
@pytest.mark.parametrize("each_sample", [True, False])
def test_systems_are_solved(name: str, each_sample: bool) -> None:
    a = OPERATORS[name]
    v, matrix = normals(3, *a.measured, seed=1), a.matrix()
    scale: Any = torch.tensor([0.3, 2.0, 0.0], dtype=torch.float64) if each_sample else 0.7
    shift: Any = torch.tensor([0.1, 0.2, 3.0], dtype=torch.float64) if each_sample else 0.2
    gram, one = matrix @ matrix.mT, torch.eye(len(matrix), dtype=torch.float64)
    factors = (torch.as_tensor(f, dtype=torch.float64).expand(3)[:, None, None] for f in (scale, shift))
    expected = torch.linalg.solve(next(factors) * gram + next(factors) * one, v.flatten(1)[..., None])[..., 0]
    # the worst condition number is 1e4; conjugate gradients stop at 10 roundings
    torch.testing.assert_close(a.solve(v, scale, shift).flatten(1), expected, rtol=1e-9, atol=1e-9)


@each
def test_pseudo_inverse_is_moore_penrose(name: str) -> None:
    a = OPERATORS[name]
    y = normals(3, *a.measured, seed=1)
    expected = y.flatten(1) @ torch.linalg.pinv(a.matrix()).mT
    # the worst condition number of A Aᵀ is 1e6
    torch.testing.assert_close(a.pseudo_inverse(y).flatten(1), expected, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize(("points", "length"), [(2, 6), (5, 10), (7, 14)])
def test_what_a_blur_cannot_see_stays_zero(points: int, length: int) -> None:
    """A mean of k of n points, k dividing n, wipes frequencies out, some only to rounding: A⁺ answers none of them."""
    a = Blur(torch.full((points,), 1 / points, dtype=torch.float64), (length,))
    y = normals(2, length)
    expected = y @ torch.linalg.pinv(a.matrix(), rtol=1e-10).mT
    # condition numbers below 100
    torch.testing.assert_close(a.pseudo_inverse(y), expected, rtol=1e-11, atol=1e-11)


def test_measured_twice_is_averaged() -> None:
    a = Matrix(torch.tensor([[1.0, 2.0], [1.0, 2.0]], dtype=torch.float64))
    got = a.pseudo_inverse(torch.tensor([[1.0, 3.0]], dtype=torch.float64))
    torch.testing.assert_close(a(got), torch.tensor([[2.0, 2.0]], dtype=torch.float64))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@each
def test_dtype_follows_x(name: str, dtype: torch.dtype) -> None:
    a = OPERATORS[name]
    x = normals(2, *a.event).to(dtype)
    assert a(x).dtype == a.adjoint(a(x)).dtype == dtype
    with warnings.catch_warnings():  # conjugate gradients in half precision may well stop short, and say so
        warnings.simplefilter("ignore", RuntimeWarning)
        assert a.solve(a(x), 1.0, torch.ones(2)).dtype == dtype


@each
def test_an_empty_batch_passes(name: str) -> None:
    a = OPERATORS[name]
    y = a(normals(0, *a.event))
    assert a.solve(y, 1.0, 1.0).shape == y.shape == (0, *a.measured)
    assert a.pseudo_inverse(y).shape == (0, *a.event)
    assert PhaseRetrieval((2, 2))(torch.ones(0, 2, 2)).shape == (0, 4, 4)


@each
def test_gradients_flow(name: str) -> None:
    a = OPERATORS[name]
    v = normals(1, *a.measured, seed=1)
    v, scale, shift = (torch.as_tensor(w, dtype=torch.float64).requires_grad_() for w in (v, 0.5, 0.3))

    def solved(v: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        return a.solve(v, scale, shift).flatten()[:3]

    assert torch.autograd.gradcheck(solved, (v, scale, shift), fast_mode=True)
    assert torch.autograd.gradcheck(lambda v: a(a.adjoint(v)).flatten()[:3], (v,), fast_mode=True)


# ---- what each one means ----


def test_mask_keeps_in_order() -> None:
    x = torch.arange(6.0).reshape(1, 2, 3)
    mask = torch.tensor([[True, False, True], [False, True, False]])
    assert Mask(mask)(x).tolist() == [[0, 2, 4]]
    assert torch.equal(Mask(mask).adjoint(Mask(mask)(x)), x * mask)
    assert Mask(mask[:1], (2, 2, 3)).measured == (8,) and Mask(mask).event == (2, 3)


def test_downsample_averages_blocks() -> None:
    x = normals(2, 3, 4, 6)
    torch.testing.assert_close(Downsample(2, EVENT)(x), torch.nn.functional.avg_pool2d(x, 2), rtol=1e-14, atol=1e-14)
    got = Downsample((2, 1, 3), (4, 4, 6))(normals(1, 4, 4, 6))
    torch.testing.assert_close(got, torch.nn.functional.avg_pool3d(normals(1, 4, 4, 6), (2, 1, 3)))
    assert Downsample(3, (6,)).measured == (2,)


@pytest.mark.parametrize("size", [(3, 3), (3, 5), (1, 3)])
def test_blur_is_circular_correlation(size: tuple[int, int]) -> None:
    kernel, x = normals(*size), normals(2, 3, 6, 8)
    padded = torch.nn.functional.pad(x, (size[1] // 2,) * 2 + (size[0] // 2,) * 2, mode="circular")
    expected = torch.nn.functional.conv2d(padded, kernel.expand(3, 1, *size), groups=3)
    torch.testing.assert_close(Blur(kernel, (3, 6, 8))(x), expected, rtol=1e-13, atol=1e-13)


def test_gaussian_kernel_is_one() -> None:
    kernel = gaussian_kernel(5, 1.3, 3)
    assert kernel.shape == (5, 5, 5) and abs(float(kernel.sum()) - 1) < 1e-15
    ratio = float(kernel[2, 2, 0] / kernel[2, 2, 2])
    assert abs(ratio - math.exp(-0.5 * (2 / 1.3) ** 2)) < 1e-15


def test_grayscale_weighs_channels() -> None:
    x = normals(2, 2, 5)
    torch.testing.assert_close(Grayscale((2, 5), (0.25, 3.0))(x), 0.25 * x[:, :1] + 3 * x[:, 1:])
    # white stays white
    assert abs(float(Grayscale(EVENT)(torch.ones(1, *EVENT)).mean()) - 1) < 1e-6


def test_random_projections_keep_lengths_in_the_mean() -> None:
    a = Matrix.gaussian(2000, (5, 2), 0)
    x = normals(4, 5, 2)
    ratio = a(x).square().sum(1) / x.square().sum((1, 2))
    # |A x|²/|x|² is chi-squared over m with m = 2000: standard deviation sqrt(2/m) = 0.032, five of them
    assert float((ratio - 1).abs().max()) < 0.16
    assert torch.equal(a.values, Matrix.gaussian(2000, (5, 2), 0).values)
    assert not torch.equal(a.values, Matrix.gaussian(2000, (5, 2), IndependentNoise(1)).values)


def test_phase_retrieval_is_blind_to_sign_and_half_a_turn_and_keeps_energy() -> None:
    a = PhaseRetrieval((2, 4, 5), oversample=2.0)
    x = normals(3, 2, 4, 5)
    assert a.measured == (2, 8, 10)
    torch.testing.assert_close(a(-x), a(x))
    torch.testing.assert_close(a(x.flip(-1, -2)), a(x), rtol=1e-12, atol=1e-12)
    assert float((a(x.flip(-1)) - a(x)).abs().max()) > 0.01  # one mirror is no half turn
    # Parseval
    torch.testing.assert_close(a(x).square().sum((1, 2, 3)), x.square().sum((1, 2, 3)))
    shifted = x.roll(1, -1)
    torch.testing.assert_close(PhaseRetrieval((2, 4, 5), 1.0)(shifted), PhaseRetrieval((2, 4, 5), 1.0)(x))
    assert float((a(shifted) - a(x)).abs().max()) > 0.01  # padding tells shifts apart


@pytest.mark.parametrize("adjoint", [None, lambda y: torch.nn.functional.pad(y, (0, 3))], ids=["derived", "given"])
def test_a_function_with_and_without_its_adjoint(adjoint: Callable[[Tensor], Tensor] | None) -> None:
    a = FunctionOperator(lambda x: x[:, :2], adjoint, event=(5,))
    assert a.adjoint(torch.tensor([[1.0, 2.0]])).tolist() == [[1, 2, 0, 0, 0]]
    with torch.no_grad():
        assert a.adjoint(torch.ones(1, 2)).tolist() == [[1, 1, 0, 0, 0]]


def test_a_function_without_autograd_is_served_with_its_adjoint() -> None:
    a = FunctionOperator(lambda x: x.detach() * 2, lambda y: y * 2, event=(5,))
    assert a.solve(torch.ones(1, 5), 1.0, 1.0).sub(0.2).abs().max() < 1e-6
    with pytest.raises(ValueError, match="cannot be derived"):
        FunctionOperator(lambda x: x.detach() * 2, event=(5,))


# ---- conjugate gradients ----


def spd(n: int, condition: float) -> Tensor:
    basis = torch.linalg.qr(normals(n, n, seed=7))[0]
    return (basis * torch.logspace(0, math.log10(condition), n, dtype=torch.float64)) @ basis.mT


def test_a_sample_does_not_depend_on_its_batch() -> None:
    matrix, v = spd(12, 1e3), normals(4, 12)
    v[1] = 0
    together = conjugate_gradients(lambda u: u @ matrix, v)
    alone = torch.cat([conjugate_gradients(lambda u: u @ matrix, row[None]) for row in v])
    # the same iterations; products of another shape round otherwise, amplified by the condition number
    torch.testing.assert_close(together, alone, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(together @ matrix, v, rtol=1e-11, atol=1e-11)
    assert not together[1].any()


def test_each_sample_stops_at_its_tolerance() -> None:
    """In float64, of a system with 12 different eigenvalues: a loose tolerance is kept, and not far overshot."""
    matrix, v = spd(12, 1e4), normals(3, 12)
    for tolerance in (1e-1, 1e-3, 1e-6):
        u = conjugate_gradients(lambda u: u @ matrix, v, tolerance=tolerance)
        left = (v - u @ matrix).norm(dim=1) / v.norm(dim=1)
        assert bool((left <= 1.01 * tolerance).all())
    calls = []

    def counted(u: Tensor) -> Tensor:
        calls.append(1)
        return u @ matrix

    conjugate_gradients(counted, v, tolerance=0.5)
    assert len(calls) < 12


def test_no_convergence_is_said() -> None:
    matrix, v = spd(12, 1e8), normals(3, 12)
    with pytest.warns(RuntimeWarning, match=r"within 4 iterations with 3 of 3 samples.*try this"):
        conjugate_gradients(lambda u: u @ matrix, v, iterations=4, remedy="try this")


def test_gradients_are_those_of_the_solution() -> None:
    """Though the iterations stop at 1e-2 and no graph goes through them, K du = dv - dK u is solved as exactly."""
    root, v = normals(4, 4).requires_grad_(), normals(1, 4, seed=1).requires_grad_()

    def solved(root: Tensor, v: Tensor) -> Tensor:
        return conjugate_gradients(lambda u: u @ (root @ root.mT + torch.eye(4, dtype=torch.float64)), v)

    assert torch.autograd.gradcheck(solved, (root, v))


# ---- measurements ----


def test_a_measurement_is_drawn_and_weighed() -> None:
    a = Downsample(2, (2, 4))
    x = normals(20000, 2, 4)
    m = Measurement.simulate(x, a, 0.3, 0)
    assert m.y.shape == (20000, 1, 2) and m.event == (2, 4) and m.linear is a
    # 40000 normals: standard error of the standard deviation 0.3/sqrt(80000) = 0.0011, of the mean 0.0015
    assert abs(float(m.residual(x).std()) - 0.3) < 0.005 and abs(float(m.residual(x).mean())) < 0.007
    expected = torch.distributions.Normal(a(x), 0.3).log_prob(m.y).sum((1, 2))
    torch.testing.assert_close(m.log_prob(x), expected)
    again = Measurement.simulate(x, a, 0.3, 0).y
    assert torch.equal(m.y, again) and not torch.equal(m.y, Measurement.simulate(x, a, 0.3, 1).y)
    shared = Measurement(m.y[0], a, 0.3)
    torch.testing.assert_close(shared.residual(x), m.y[0] - a(x))
    assert shared.log_prob(x.float()).dtype == torch.float32


def test_a_function_is_measured_too() -> None:
    m = Measurement(torch.zeros(2), lambda x: x[:, :2].square(), 1.0)
    assert m.linear is None and m.event is None
    assert m.residual(torch.ones(3, 4)).shape == (3, 2)
    with pytest.raises(ValueError, match="y must be"):
        Measurement(torch.zeros(3), lambda x: x[:, :2].square(), 1.0).residual(torch.ones(3, 4))


def test_broken_adjoints_and_functions_are_found() -> None:
    class Broken(Downsample):
        def transpose(self, y: Tensor) -> Tensor:
            return 2 * super().transpose(y)

    with pytest.raises(ValueError, match="adjoint of Broken is not that of A"):
        Broken(2, (4, 4)).check()


ONES = torch.ones(2, 2, dtype=torch.bool)


@pytest.mark.parametrize(
    ("build", "error", "match"),
    [
        (lambda: Mask(torch.ones(2, 2)), TypeError, "mask > 0.5"),
        (lambda: Mask([True]), TypeError, "boolean tensor"),  # type: ignore[arg-type]
        (lambda: Mask(~ONES), ValueError, "keeps nothing"),
        (lambda: Mask(ONES, (3, 2)), ValueError, "does not broadcast"),
        (lambda: Mask(ONES, (2,)), ValueError, "does not broadcast"),
        (lambda: Mask(ONES)(torch.ones(1, 3, 2)), ValueError, r"x must be \(B, 2, 2\)"),
        (lambda: Mask(ONES).adjoint(torch.ones(1, 3)), ValueError, r"y must be \(B, 4\)"),
        (lambda: Mask(ONES)(torch.ones(1, 2, 2, dtype=torch.long)), TypeError, "floating"),
        (lambda: Downsample(3, (3, 4)), ValueError, "multiples"),
        (lambda: Downsample(0, (3, 4)), ValueError, "at least 1"),
        (lambda: Downsample((), (3, 4)), ValueError, "one entry for each"),
        (lambda: Downsample((1, 2, 2), (3, 4)), ValueError, "one entry for each"),
        (lambda: Identity(()), ValueError, "event must be"),
        (lambda: Identity(4), TypeError, "event must be"),  # type: ignore[arg-type]
        (lambda: Identity((0, 2)), ValueError, "event must be"),
        (lambda: Blur(torch.ones(5), (4,)), ValueError, "does not fit"),
        (lambda: Blur(torch.ones(1, 1), (4,)), ValueError, "does not fit"),
        (lambda: Blur(torch.ones(3, dtype=torch.long), (4,)), TypeError, "floating"),
        (lambda: Blur(torch.tensor([math.nan]), (4,)), ValueError, "NaN"),
        (lambda: gaussian_kernel(4, 1.0), ValueError, "odd"),
        (lambda: gaussian_kernel(3, 0.0), ValueError, "positive"),
        (lambda: Grayscale((1, 4, 4)), ValueError, "1 channels"),
        (lambda: Grayscale((2, 4), (0.0, 0.0)), ValueError, "not all 0"),
        (lambda: Matrix(torch.ones(2, 3), (4,)), ValueError, "3 columns"),
        (lambda: Matrix(torch.ones(3)), ValueError, "matrix"),
        (lambda: Matrix(torch.tensor([[math.inf]])), ValueError, "infinite"),
        (lambda: Downsample(2, (4, 4)) @ Identity((2, 2)), ValueError, "measures"),
        (lambda: Downsample(2, (4, 4)) @ torch.nn.ReLU(), TypeError, "unsupported"),
        (lambda: Identity((2,)).solve(torch.ones(1, 2), -1.0, 1.0), ValueError, "a must be at least 0"),
        (lambda: Identity((2,)).solve(torch.ones(1, 2), 0.0, 0.0), ValueError, "a \\+ b must be positive"),
        (lambda: Identity((2,)).solve(torch.ones(1, 2), torch.ones(3), 1.0), ValueError, "a must be a number"),
        (lambda: Identity((2,)).solve(torch.ones(1, 3), 1.0, 1.0), ValueError, "v must be"),
        (lambda: PhaseRetrieval((4,)), ValueError, "last two axes"),
        (lambda: PhaseRetrieval((4, 4), 0.5), ValueError, "oversample"),
        (lambda: PhaseRetrieval((4, 4))(torch.ones(1, 4, 5)), ValueError, "the event of PhaseRetrieval"),
        (lambda: FunctionOperator(torch.square, event=(2,)), ValueError, "not linear.*dps"),
        (lambda: FunctionOperator(torch.abs, event=(2,)), ValueError, "not linear.*dps"),
        (lambda: FunctionOperator(lambda x: x + 1, event=(2,)), ValueError, r"A\(0\) is not 0"),
        (lambda: FunctionOperator(lambda x: x - x.mean(0), event=(2,)), ValueError, "mixes samples"),
        (lambda: FunctionOperator(lambda x: x, lambda y: 2 * y, event=(2,)), ValueError, "adjoint of FunctionOp"),
        (lambda: FunctionOperator(lambda x: x, lambda y: y[:, :1], event=(2,)), ValueError, "adjoint.*answer"),
        (lambda: FunctionOperator(lambda x: x.sum(), event=(2,)), ValueError, "forward must answer"),
        (lambda: FunctionOperator(3, event=(2,)), TypeError, "must be a function"),  # type: ignore[arg-type]
        (lambda: Measurement([1.0], Mask(ONES), 0.1), TypeError, "y must be a floating tensor"),  # type: ignore[arg-type]
        (lambda: Measurement(torch.ones(4).long(), Mask(ONES), 0.1), TypeError, "floating"),
        (lambda: Measurement(torch.ones(3), Mask(ONES), 0.1), ValueError, "y must be"),
        (lambda: Measurement(torch.ones(2, 2), Mask(ONES), 0.1), ValueError, "y must be"),
        (lambda: Measurement(torch.full((4,), math.nan), Mask(ONES), 0.1), ValueError, "NaN"),
        (lambda: Measurement(torch.ones(4), Mask(ONES), -0.1), ValueError, "noise_std"),
        (lambda: Measurement(torch.ones(4), Mask(ONES), math.inf), ValueError, "noise_std"),
        (lambda: Measurement(torch.ones(4), Mask(ONES), "0"), TypeError, "noise_std"),  # type: ignore[arg-type]
        (lambda: Measurement(torch.ones(4), torch.ones(4), 0.1), TypeError, "order is Measurement"),  # type: ignore[arg-type]
        (
            lambda: Measurement(torch.ones(4), Mask(ONES), 0.0).log_prob(torch.ones(1, 2, 2)),
            ValueError,
            "noise_std > 0",
        ),
        (lambda: Measurement(torch.ones(3, 4), Mask(ONES), 0.1).residual(torch.ones(2, 2, 2)), ValueError, "3 measure"),
        (lambda: Measurement(torch.ones(4), Mask(ONES), 0.1).residual(torch.ones(2, 4)), ValueError, "event of Mask"),
    ],
)
def test_bad_input_is_refused(build: Callable[[], object], error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        build()


def deficient(rank: int) -> tuple[LinearOperator, Tensor]:
    """A (5, 8) of a given rank as a function without closed form, and as a matrix."""
    a = normals(5, rank, seed=31) @ normals(rank, 8, seed=32)
    return FunctionOperator(lambda x: x @ a.mT, event=(8,), dtype=torch.float64), a


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("rank", [1, 2, 3, 5])
def test_singular_systems_without_a_closed_form(rank: int) -> None:
    operator, a = deficient(rank)
    y, exact = normals(4, 5, seed=33), torch.linalg.pinv(a)
    # conditioning of a random (5, 8): below 1e3, squared by the normal equations, times roundings
    torch.testing.assert_close(operator.pseudo_inverse(y), y @ exact.mT, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(operator.solve(y, 2.0, 0.0), y @ torch.linalg.pinv(2 * a @ a.mT), rtol=1e-6, atol=1e-6)


@pytest.mark.filterwarnings("error")
def test_a_composition_that_forgets_frequencies() -> None:
    blur = Blur(torch.tensor([0.5, 0.5], dtype=torch.float64), (8,))  # sees nothing of the highest frequency
    twice, y = blur @ blur, normals(3, 8, seed=34)
    exact = torch.linalg.pinv(twice.matrix(), rtol=1e-10)
    torch.testing.assert_close(twice.pseudo_inverse(y), y @ exact.mT, rtol=1e-7, atol=1e-7)


def test_a_system_that_has_no_solution_warns() -> None:
    ones = torch.ones(2, 2, dtype=torch.float64)
    with pytest.warns(RuntimeWarning, match="not at tolerance"):
        conjugate_gradients(lambda u: u @ ones, torch.tensor([[1.0, 0.0]], dtype=torch.float64))
    operator = FunctionOperator(lambda x: x @ ones, event=(2,), dtype=torch.float64)
    got = operator.solve(torch.tensor([[1.0, 0.0]], dtype=torch.float64), 1.0, 0.0)
    torch.testing.assert_close(got, torch.full((1, 2), 0.125, dtype=torch.float64), rtol=1e-12, atol=1e-12)
