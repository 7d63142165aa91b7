"""Augmentation: each transformation exactly where pixels only change places, against scipy where they are looked up."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy import ndimage, stats
from torch import Tensor

from scoresde.data import Augmentation
from scoresde.data.warping import mirrored, moved, rotation, stretching, warped

F64 = torch.float64
NONE: dict[str, Any] = {
    "x_flip": False,
    "y_flip": False,
    "quarter_turns": False,
    "whole_shift": 0.0,
    "scale": 0.0,
    "rotation": 0.0,
    "stretch": 0.0,
    "shift": 0.0,
}


def uniforms(count: int, seed: int = 0) -> Tensor:
    return torch.rand(count, Augmentation.draws, generator=torch.Generator().manual_seed(seed), dtype=F64)


def pictures(count: int, *sizes: int, seed: int = 0) -> Tensor:
    """White noise: any pixel out of place shows."""
    return torch.randn(count, 2, *sizes, generator=torch.Generator().manual_seed(seed), dtype=F64)


def smooth(count: int, height: int, width: int) -> Tensor:
    """Noise without what two pixels or less hold: a Gaussian of deviation 2 pixels has passed it."""
    noise = pictures(count, height, width).numpy()
    return torch.from_numpy(ndimage.gaussian_filter(noise, (0, 0, 2, 2), mode="reflect") * 7)  # 7: deviation about 1


def only(**strength: Any) -> Augmentation:
    return Augmentation(1.0, **{**NONE, **strength})


# -- pixels that change places -----------------------------------------------------------------------------------------


def test_probability_zero_is_the_identity_bit_by_bit() -> None:
    x = pictures(16, 6, 5).float()
    everything = Augmentation(0.0, whole_shift=0.5)
    out, told = everything(x, uniforms(16))
    assert torch.equal(out, x) and told.isnan().all() and everything.untouched == 1.0
    assert torch.equal(everything.apply(x, torch.zeros(16, 13)), x)


@pytest.mark.parametrize(("name", "axis", "column"), [("x_flip", 3, 0), ("y_flip", 2, 1)])
def test_flips(name: str, axis: int, column: int) -> None:
    x, u = pictures(64, 4, 5), uniforms(64)
    out, told = only(**{name: True})(x, u)
    flipped = told[:, column] == 1
    assert 16 < flipped.sum() < 48  # half of 64, give or take four deviations of 4
    assert torch.equal(out[flipped], x[flipped].flip(axis)) and torch.equal(out[~flipped], x[~flipped])
    assert told[~flipped].isnan().all() and not told[flipped][:, [i for i in range(13) if i != column]].any()


def test_quarter_turns() -> None:
    x, u = pictures(64, 5, 5), uniforms(64)
    out, told = only(quarter_turns=True)(x, u)
    seen = set()
    for one, was, row in zip(out, x, told.nan_to_num(0), strict=True):
        quarters = round(math.atan2(row[3].item(), 1 + row[2].item()) / (math.pi / 2)) % 4
        seen.add(quarters)
        assert torch.equal(one, torch.rot90(was, -quarters, (1, 2)))  # clockwise; rot90 is the other way
    assert seen == {0, 1, 2, 3}
    with pytest.raises(ValueError, match="square"):
        only(quarter_turns=True)(pictures(2, 4, 5), uniforms(2))


def test_shifts_by_whole_pixels() -> None:
    x, u = pictures(64, 6, 5), uniforms(64)
    out, told = only(whole_shift=0.7)(x, u)
    for one, was, row in zip(out, x, told.nan_to_num(0), strict=True):
        dx, dy = round(row[4].item() * 5), round(row[5].item() * 6)
        # scipy: what is at i comes from i - d, with mirrors at the borders; order 0 takes pixels as they are
        expected = ndimage.shift(was.numpy(), (0, dy, dx), order=0, mode="reflect")
        assert np.array_equal(one.numpy(), expected)
        assert abs(dx) <= 0.7 * 5 + 0.5 and abs(dy) <= 0.7 * 6 + 0.5
    assert len({tuple(row[4:6].tolist()) for row in told.nan_to_num(0)}) > 20


@pytest.mark.parametrize("size", [1, 2, 5])
def test_mirrors_go_on_for_ever(size: int) -> None:
    row = torch.arange(size)
    both = torch.cat([row, row.flip(0)])
    index = torch.arange(-4 * size, 4 * size)
    assert torch.equal(mirrored(index, size), both.repeat(4))
    x = pictures(1, size, size)
    assert moved(x, torch.tensor([2 * size]), torch.tensor([0])).equal(x)


# -- pixels that are looked up -----------------------------------------------------------------------------------------

# Linear interpolation at steps of half a pixel errs by at most h^2 / 8 max |f''|, h = 1/2, in each direction. A field
# of deviation 1 filtered by a Gaussian of 2 pixels has f'' of deviation sqrt(3) / 8, so 4 deviations give
# 2 x 0.031 x 0.87 = 0.05 at worst and 0.01 typically; splines of order 5, the reference, have next to none.
WORST, TYPICAL = 0.05, 0.01


def reference(x: Tensor, matrix: Tensor, shift: Tensor) -> Tensor:
    """By scipy's splines of order 5: output at p from matrix^-1 (p - shift), from the centre, x right and y down."""
    swap = np.array([[0, 1], [1, 0]])  # scipy's axes are (y, x)
    inverse = swap @ np.linalg.inv(matrix.numpy()) @ swap
    centre = (np.array(x.shape[1:]) - 1) / 2
    offset = centre - inverse @ (centre + swap @ shift.numpy())
    planes = [ndimage.affine_transform(plane.numpy(), inverse, offset, order=5, mode="reflect") for plane in x]
    return torch.from_numpy(np.stack(planes))


def angle(degrees: float) -> Tensor:
    r = torch.tensor([math.radians(degrees)], dtype=F64)
    return rotation(r.cos(), r.sin())[0]


@pytest.mark.parametrize(
    ("matrix", "shift"),
    [
        (torch.eye(2, dtype=F64), (0.0, 0.0)),
        (torch.eye(2, dtype=F64), (2.3, -1.6)),
        (torch.eye(2, dtype=F64) * 1.3, (0.0, 0.0)),
        (torch.eye(2, dtype=F64) * 0.8, (0.5, 0.0)),
        (angle(30), (0.0, 0.0)),
        (angle(-100) @ torch.diag(torch.tensor([1.3, 1 / 1.3], dtype=F64)), (4.5, 9.0)),
        (torch.tensor([[1.0, 0.4], [0.1, 0.9]], dtype=F64), (0.0, 30.0)),
    ],
)
def test_warping_is_that_of_scipy(matrix: Tensor, shift: tuple[float, float]) -> None:
    x, moved_by = smooth(2, 17, 24), torch.tensor(shift, dtype=F64)
    out = warped(x, matrix.expand(2, 2, 2), moved_by.expand(2, 2))
    for one, was in zip(out, x, strict=True):
        error = one - reference(was, matrix, moved_by)
        assert error.abs().max() < WORST and error.square().mean().sqrt() < TYPICAL


def test_constants_and_means_stay() -> None:
    x = torch.full((3, 1, 7, 6), 2.5, dtype=F64)
    out = warped(x, angle(40).expand(3, 2, 2) * 0.9, torch.tensor([[1.5, 0.5]], dtype=F64).expand(3, 2))
    torch.testing.assert_close(out, x, rtol=1e-13, atol=0)  # the filters' weights sum to 1


def test_shrinking_does_not_alias() -> None:
    """Stripes of one pixel, shrunk by 0.75, are finer than any pixel and must turn grey; looked up alone they beat."""
    stripes = (torch.arange(32, dtype=F64) % 2 * 2 - 1).expand(1, 1, 32, 32)
    shrunk = warped(stripes, 0.75 * torch.eye(2, dtype=F64)[None], torch.zeros(1, 2, dtype=F64))
    naive = reference(stripes[0], 0.75 * torch.eye(2, dtype=F64), torch.zeros(2, dtype=F64))
    assert shrunk.square().mean().sqrt() < 0.25 < 0.6 < naive.square().mean().sqrt()


def test_a_stretch_is_what_its_name_says() -> None:
    """R(b) diag(2^(s a), 2^(-s a)) R(-b) from (a cos 2b, a sin 2b)."""
    for a, b in [(1.3, 0.4), (-0.7, 2.0), (2.0, -1.0), (0.0, 1.0)]:
        u, v = (torch.tensor([a * f(2 * b)], dtype=F64) for f in (math.cos, math.sin))
        turn = angle(math.degrees(b))
        expected = turn @ torch.diag(torch.tensor([2 ** (0.2 * a), 2 ** (-0.2 * a)], dtype=F64)) @ turn.T
        torch.testing.assert_close(stretching(u, v, 0.2 * math.log(2))[0], expected, rtol=1e-13, atol=1e-14)


# -- what the condition says -------------------------------------------------------------------------------------------


def test_the_condition_alone_says_what_was_done_and_undoes_it() -> None:
    """The map is read from the numbers by the table in the docstring, independently, and inverted by scipy."""
    x = smooth(24, 24, 24)
    augmentation = Augmentation(0.7, x_flip=False, y_flip=False, shift=0.05, scale=0.1, stretch=0.1)
    out, told = augmentation(x, uniforms(24, seed=3))
    seen = 0
    for one, was, row in zip(out, x, told.nan_to_num(0).numpy(), strict=True):
        a = np.hypot(row[9], row[10])
        b = np.arctan2(row[10], row[9]) / 2
        turn = np.array([[np.cos(b), -np.sin(b)], [np.sin(b), np.cos(b)]])
        stretch = turn @ np.diag([2 ** (0.1 * a), 2 ** (-0.1 * a)]) @ turn.T
        r = np.arctan2(row[8], 1 + row[7])
        matrix = stretch @ np.array([[np.cos(r), -np.sin(r)], [np.sin(r), np.cos(r)]]) * 2 ** (0.1 * row[6])
        shift = 0.05 * 24 * row[11:]
        back = reference(one, torch.from_numpy(np.linalg.inv(matrix)), torch.from_numpy(-np.linalg.inv(matrix) @ shift))
        # in the middle, where no mirror image has come in; twice the errors of one warp
        middle = (slice(None), slice(9, 15), slice(9, 15))
        assert (back - was)[middle].abs().max() < 2 * WORST
        seen += bool((one - was)[middle].abs().max() > 0.5)
    assert seen > 12


def test_probabilities_and_laws_of_what_is_drawn() -> None:
    n = 20_000
    augmentation = Augmentation(0.3, quarter_turns=True, whole_shift=0.5)
    told = augmentation.draw(uniforms(n), (1, 16, 16))
    untouched = told.isnan().all(1)
    assert torch.equal(untouched, told.isnan().any(1))
    # p (1 - p) / n under the root is at most 0.0035; five of them
    assert abs(untouched.double().mean().item() - augmentation.untouched) < 0.018
    told = told.nan_to_num(0)
    shares = {0: 0.15, 1: 0.15, 6: 0.3, 8: 0.3, 9: 0.3, 11: 0.3, 12: 0.3}
    for column, share in shares.items():
        assert abs((told[:, column] != 0).double().mean().item() - share) < 0.018, column
    for column in (6, 11, 12):  # normal where it is done
        assert stats.kstest(told[told[:, column] != 0, column].numpy(), "norm").pvalue > 1e-4
    turned = told[told[:, 8] != 0]
    r = torch.atan2(turned[:, 8], 1 + turned[:, 7]) / math.pi
    assert stats.kstest(r.numpy(), "uniform", (-1, 2)).pvalue > 1e-4
    a = torch.hypot(told[:, 9], told[:, 10])  # |N(0, 1)|, whichever way
    assert stats.kstest(a[a > 0].numpy(), "halfnorm").pvalue > 1e-4
    joint = ((told[:, 6] != 0) & (told[:, 8] != 0)).double().mean().item()
    assert abs(joint - 0.09) < 0.011  # independent


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_a_uniform_of_zero_is_the_mean_of_those_rounded_to_it(dtype: torch.dtype) -> None:
    """torch.rand has 24 or 53 bits: 0 is met once in 2^24 draws, and stands for 2^-25, or 2^-54, and not for 1e-38."""
    row = Augmentation(1.0).draw(torch.zeros(1, 19, dtype=dtype), (1, 8, 8))[0]
    bits = 24 if dtype == torch.float32 else 53
    assert float(row[6]) == pytest.approx(stats.norm.ppf(2.0 ** -(bits + 1)), rel=1e-5)
    assert torch.isfinite(row).all()


def test_what_is_untouched_does_not_depend_on_the_picture_and_is_left_as_it_is() -> None:
    x, u = pictures(400, 6, 6), uniforms(400)
    augmentation = Augmentation(0.2, quarter_turns=True, whole_shift=0.3)
    out, told = augmentation(x, u)
    untouched = told.isnan().all(1)
    assert torch.equal(out[untouched], x[untouched])  # the law under "not given" is that of the data
    assert (out[~untouched] != x[~untouched]).flatten(1).any(1).double().mean() > 0.95
    assert torch.equal(augmentation(x + 1, u)[1].isnan(), told.isnan())


def test_pictures_that_go_with_it_and_rows_that_are_not_given() -> None:
    """A condition of half the size moves by the same parts; NaN stays NaN."""
    augmentation = Augmentation(1.0, **{**NONE, "rotation": 1.0, "shift": 0.1})
    large = smooth(4, 24, 24)
    small = torch.nn.functional.avg_pool2d(large, 2)
    told = augmentation.draw(uniforms(4), (2, 24, 24))
    a = torch.nn.functional.avg_pool2d(augmentation.apply(large, told), 2)
    b = augmentation.apply(small, told)
    # half the size has features of half the width: four times the error of linear interpolation, and its filter's blur
    assert (a - b)[:, :, 3:-3, 3:-3].square().mean().sqrt() < 0.1 < 0.5 < (small - b).square().mean().sqrt()
    small[1] = torch.nan
    assert (
        augmentation.apply(small, told)[1].isnan().all() and augmentation.apply(small, told)[[0, 2, 3]].isfinite().all()
    )


def test_half_precision_is_computed_in_float32() -> None:
    x, u = smooth(8, 12, 12), uniforms(8)
    augmentation = only(rotation=1.0, scale=0.2)
    half, told = augmentation(x.bfloat16(), u)
    assert half.dtype == told.dtype == torch.bfloat16
    exact = augmentation.apply(x.bfloat16().double(), augmentation.draw(u, (2, 12, 12)))
    assert (half.double() - exact).abs().max() < 2 * 2**-8 * exact.abs().max()  # one rounding, to 8 bits


def test_bad_calls() -> None:
    with pytest.raises(ValueError, match="probability"):
        Augmentation(1.5)
    with pytest.raises(ValueError, match="scale"):
        Augmentation(scale=-1.0)
    with pytest.raises(TypeError, match="x_flip"):
        Augmentation(x_flip=1)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="pictures"):
        Augmentation()(torch.zeros(2, 3, 8), uniforms(2))
    with pytest.raises(ValueError, match=r"uniforms \(B, 19\)"):
        Augmentation()(torch.zeros(2, 3, 8, 8), uniforms(2)[:, :3])
    with pytest.raises(ValueError, match=r"\(2, 13\)"):
        Augmentation().apply(torch.zeros(2, 3, 8, 8), torch.zeros(3, 13))
