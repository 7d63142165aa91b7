"""Scaling per tensor, channel and coordinate: statistics that come back, what float32 cannot hold, checkpoints."""

from __future__ import annotations

import copy
import json
import math
import pickle
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

import scoresde as ss
from scoresde import problems
from scoresde.data import Dataset, Scaling, from_tensors
from scoresde.data.scaling import PER, Per
from scoresde.models.model import in_network_units
from scoresde.nn import MLP
from scoresde.train import checkpoint, describe, load_model, save, train

EPS32, EPS64 = 2.0**-24, 2.0**-53  # half the distance of neighbours, relative

AGE, INCOME, CORRELATION = (40.0, 12.0), (30_000.0, 16_000.0), 0.35


def normals(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def correlated(z: Tensor) -> Tensor:
    """Standard normal pairs (N, 2) with the correlation of age and income."""
    return torch.stack([z[:, 0], CORRELATION * z[:, 0] + math.sqrt(1 - CORRELATION**2) * z[:, 1]], 1)


def table(count: int = 4000) -> Tensor:
    """Age and income."""
    (age, spread), (income, wide) = AGE, INCOME
    return correlated(normals(count, 2)) * torch.tensor([spread, wide]) + torch.tensor([age, income])


def groups(x: Tensor, per: Per) -> Tensor:
    """(numbers of a group, groups)."""
    if per == "tensor":
        return x.reshape(-1, 1)
    return x.flatten(1) if per == "coordinate" else x.movedim(1, -1).flatten(0, -2)


# -- the laws of the map -----------------------------------------------------------------------------------------------

scales = st.floats(-6, 6).map(lambda power: 10**power)
shifts = st.one_of(st.just(0.0), st.floats(-1e6, 1e6))
shapes = st.sampled_from([(3,), (2, 5), (2, 3, 4), (1, 3, 2, 2)])


@given(st.data(), shapes, st.sampled_from(PER), st.booleans(), st.sampled_from([torch.float32, torch.float64]))
@settings(max_examples=60, deadline=None)
def test_each_group_is_standardised_and_comes_back(
    draw: st.DataObject, event: tuple[int, ...], per: Per, robust: bool, dtype: torch.dtype
) -> None:
    channels = event[0]
    scale = torch.tensor([draw.draw(scales) for _ in range(channels)]).double().reshape(-1, *[1] * (len(event) - 1))
    shift = torch.tensor([draw.draw(shifts) for _ in range(channels)]).double().reshape(scale.shape)
    data = (normals(40, *event) * scale + shift).to(dtype)
    quarters = torch.tensor([0.25, 0.5, 0.75], dtype=torch.float64)
    low, _, high = torch.quantile(groups(data.double(), per), quarters, dim=0)
    assume(bool((high > low).all()))  # in float32 differences are lost where the data themselves are made
    scaling = Scaling.standardise(data, per, robust=robust)
    x = scaling.to_model(data.double())
    each, factor = groups(x, per), torch.as_tensor(scaling.scale)
    # each x, and the shift, has a few roundings of float64 of numbers as large as the data, in deviations; 1e-14 is
    # for sums of 480 numbers of size 1
    room = 8 * EPS64 * float((data.double().abs().amax(0) / factor).max()) + 1e-14
    if robust:
        q1, q2, q3 = torch.quantile(each, quarters, dim=0)
        assert float(q2.abs().max()) <= room
        wanted = 2 * float(torch.special.ndtri(quarters[2]))  # the quartiles of N(0, 1)
        assert float((q3 - q1 - wanted).abs().max()) <= 2 * room
    else:
        assert float(each.mean(0).abs().max()) <= room
        assert float((each.std(0, correction=0) - 1).abs().max()) <= 2 * room
    # back in float64: roundings of the difference, the quotient, the product and the sum
    back, size = scaling.to_data(x), data.double().abs() + torch.as_tensor(scaling.shift).abs() + factor
    assert back.dtype == torch.float64 and bool(((back - data.double()).abs() <= 4 * EPS64 * size).all())
    # and through float32: the rounding of x; where the answer is float32, that of numbers up to 2**8 + |x| scales
    narrow = scaling.to_data(x.float())
    last = EPS32 * (2.0**8 + x.abs()) if narrow.dtype == torch.float32 else torch.zeros(())
    error = (narrow.double() - data.double()).abs() / factor
    assert bool((error <= EPS32 * x.abs() * (1 + 1e-6) + last + 4 * EPS64 * size / factor).all())


@pytest.mark.parametrize(
    ("event", "scale"),
    [
        ((), 2.5),
        ((2, 3), 2.5),
        ((4,), [0.5, 2.0, 3.0, 7.0]),
        ((3, 2), [[0.5], [2.0], [3.0]]),
        ((3, 2, 2), [[[0.5]], [[2.0]], [[3.0]]]),
        ((3, 2), [0.5, 2.0]),
    ],
)
def test_the_log_determinant_is_that_of_the_jacobian(event: tuple[int, ...], scale: Any) -> None:
    """Of d data / d x, by automatic differentiation of the whole map."""
    scaling = Scaling(1.0, scale)
    jacobian: Any = torch.autograd.functional.jacobian(scaling.to_data, torch.randn(event, dtype=torch.float64))
    size = math.prod(event)
    expected = torch.linalg.slogdet(jacobian.reshape(size, size))[1]
    # a sum of at most 12 logarithms of size below 2, rounded each
    assert scaling.log_det(event) == pytest.approx(float(expected), abs=50 * EPS64)


def test_the_density_in_data_units_integrates_to_one() -> None:
    """log p(x) - log_det on a grid of a plane: a sign or a factor wrong in it is off by orders of magnitude."""
    problem = problems.Gaussian(torch.zeros(2).double(), torch.eye(2).double())
    scaling = Scaling(torch.tensor([40.0, 30_000.0]), torch.tensor([12.0, 16_000.0]))
    axes = [torch.linspace(m - 8 * s, m + 8 * s, 161, dtype=torch.float64) for m, s in (AGE, INCOME)]
    points = torch.cartesian_prod(*axes)
    density = (problem.log_prob(scaling.to_model(points)) - scaling.log_det((2,))).exp()
    # the trapezoid rule of a Gaussian at steps of 1/10 deviation is exact to rounding; the tails beyond 8: 2e-15
    cell = math.prod(float(axis[1] - axis[0]) for axis in axes)
    assert float(density.sum() * cell) == pytest.approx(1, abs=1e-12)


@given(st.lists(st.floats(allow_nan=False, allow_infinity=False, width=64), min_size=1, max_size=5), scales)
@settings(max_examples=50, deadline=None)
def test_numbers_survive_json_bit_for_bit(numbers: list[float], scale: float) -> None:
    for shape in ((-1,), (-1, 1, 1)):
        scaling = Scaling(torch.tensor(numbers, dtype=torch.float64).reshape(shape), scale)
        read = Scaling.from_json(json.loads(json.dumps(scaling.to_json())))
        assert isinstance(read.shift, Tensor) and isinstance(scaling.shift, Tensor)
        assert read == scaling and read.shift.shape == scaling.shift.shape
        assert read.shift.numpy().tobytes() == scaling.shift.numpy().tobytes() and read.scale == scale
        assert hash(read) == hash(scaling)


def test_scalings_are_values() -> None:
    rows = torch.tensor([1.0, 2.0])
    scaling = Scaling(0, rows)
    rows[0] = 5.0  # what is changed outside does not reach it
    assert scaling == Scaling(0.0, [1.0, 2.0]) == Scaling(np.float32(0), np.array([1, 2]))
    assert scaling == copy.deepcopy(scaling) == pickle.loads(pickle.dumps(scaling))
    assert (
        scaling != Scaling(0.0, torch.tensor([1.0, 2.5])) and scaling != Scaling(0.0, torch.ones(1, 2)) and scaling != 3
    )
    assert Scaling(torch.tensor(1), torch.tensor(2.0)) == Scaling(1.0, 2.0)
    assert "(1, 2) of shape (2,)" in repr(scaling) and "(1 ... 9) of shape (9,)" in repr(
        Scaling(0, torch.arange(1, 10))
    )


def test_pictures_keep_one_bin_width() -> None:
    assert Scaling.to_unit_range(5).bin_width == 0.5
    assert Scaling(0.0, torch.ones(3)).bin_width is None
    with pytest.raises(ValueError, match="black and white"):
        Scaling(0.0, torch.ones(3)).to_uint8(torch.zeros(1, 3))
    with pytest.raises(ValueError, match="all bins have one width"):
        Scaling(torch.zeros(3, 1, 1), 1.0, levels=256)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "by name"),
        ({"shift": 1.0}, "by name"),
        ({"shift": 1.0, "scale": 1.0, "offset": 2.0}, "by name"),
        (5, "by name"),
        ({"shift": 1.0, "scale": []}, "scale must hold a number"),
        ({"shift": 1.0, "scale": "1"}, "scale must be a real number"),
        ({"shift": [[1.0], 2.0], "scale": 1.0}, "shift must be numbers in one shape"),
        ({"shift": [True, False], "scale": 1.0}, "shift must be real numbers"),
        ({"shift": [10**400], "scale": 1.0}, "shift must be real numbers"),
        ({"shift": 10**400, "scale": 1.0}, "finite"),
        ({"shift": [0.0, math.nan], "scale": 1.0}, "finite"),
        ({"shift": [0.0, 1.0], "scale": [1.0, 0.0]}, "scale > 0"),
        ({"shift": [0.0, 1.0], "scale": [1.0, 1.0, 1.0]}, "broadcast to one sample"),
        ({"shift": 0.0, "scale": 1.0, "levels": "7"}, "levels must be a whole number"),
        ({"shift": 0.0, "scale": 1.0, "levels": 2**25}, "levels must be a whole number from 2 to"),
    ],
)
def test_fields_that_no_scaling_has_are_refused(fields: Any, message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        Scaling.from_json(fields)


@pytest.mark.parametrize("wrong", [torch.zeros(4, 3), torch.zeros(4, 1), torch.zeros(4, 2, 3), torch.zeros(1)])
def test_samples_of_another_shape_are_refused_not_broadcast(wrong: Tensor) -> None:
    scaling = Scaling(torch.zeros(2), 1.0)
    for way in (scaling.to_model, scaling.to_data):
        with pytest.raises(ValueError, match=r"does not broadcast.*another shape"):
            way(wrong)
    with pytest.raises(ValueError, match="does not broadcast"):
        from_tensors(normals(5, 3), scaling=scaling)
    with pytest.raises(ValueError, match="does not broadcast"):
        scaling.log_det((3,))


@pytest.mark.parametrize(
    ("message", "given"),
    [
        ("must be a torch.Tensor", {"data": [[1.0, 2.0]]}),
        ("must be real numbers, got torch.bool", {"data": torch.ones(3, 2, dtype=torch.bool)}),
        ("must hold some numbers", {"data": torch.zeros(0, 2)}),
        ("NaN or infinite", {"data": torch.tensor([[1.0, math.inf]])}),
        ("constant", {"data": torch.full((4, 2), 0.1)}),
        ("each coordinate holds one number", {"data": torch.tensor([[1.0, 2.0]] * 3), "per": "coordinate"}),
        ("per must be one of", {"data": torch.rand(4, 2), "per": "column"}),
        ("at least two axes", {"data": torch.rand(4), "per": "channel"}),
        ("robust must be True or False", {"data": torch.rand(4, 2), "robust": "yes"}),
        ("are the same in column 1", {"data": torch.eye(5)[:, :2] + torch.rand(5, 1) * torch.tensor([1.0, 0.0]),
                                      "per": "coordinate", "robust": True}),
        (r"beyond 2\*\*53", {"data": torch.tensor([[2**60], [2**60 + 1]])}),
    ],
)  # fmt: skip
def test_what_cannot_be_standardised_is_refused(message: str, given: dict[str, Any]) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        Scaling.standardise(**given)


# -- which scaling a data set takes ------------------------------------------------------------------------------------


def test_tables_are_standardised_column_by_column() -> None:
    dataset = from_tensors(table())
    x = dataset[:]["x"].double()
    # 4000 float32 numbers of size up to 5: the mean of their roundings
    assert float(x.mean(0).abs().max()) < 5 * EPS32
    assert float((x.std(0, correction=0) - 1).abs().max()) < 5 * EPS32
    assert torch.corrcoef(x.T)[0, 1].item() == pytest.approx(torch.corrcoef(table().T)[0, 1].item(), abs=1e-6)


@pytest.mark.parametrize("event", [(2, 30), (2, 8, 8), (2, 4, 4, 4)])
def test_a_channel_that_one_scale_would_lose_has_its_own(event: tuple[int, ...]) -> None:
    spread = torch.tensor([1.0, 1000.0]).reshape(2, *[1] * (len(event) - 1))
    with pytest.warns(UserWarning, match=r"channel 0 .* beside channel 1 .* would be lost .*scaling=\"channel\""):
        dataset = from_tensors(normals(50, *event) * spread)
    assert isinstance(dataset.scaling.scale, Tensor)
    assert dataset.scaling.scale.shape == (2, *[1] * (len(event) - 1))
    with pytest.warns(UserWarning, match=r"channel 0 .* would be lost under Scaling"):
        assert isinstance(from_tensors(normals(50, *event) * spread, scaling="tensor").scaling.scale, float)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert from_tensors(normals(50, *event) * spread, scaling="channel").scaling == dataset.scaling
        # channels that differ a little keep their contrasts
        assert isinstance(from_tensors(normals(50, *event) * spread**0.3).scaling.scale, float)


@pytest.mark.parametrize("per", PER)
def test_the_groups_are_chosen_by_name(per: Per) -> None:
    data = normals(50, 2, 3)
    assert from_tensors(data, scaling=per).scaling == Scaling.standardise(data, per)
    with pytest.raises(ValueError, match="contradicts"):
        from_tensors(data, levels=5, scaling=per)


def test_one_scale_for_a_table_is_warned_of() -> None:
    for scaling in ("tensor", Scaling.standardise(table()), Scaling(0.0, 1.0)):
        with pytest.warns(UserWarning, match=r"column 0 \(40.* ± 12\) beside column 1 .* would be lost under"):
            from_tensors(table(), scaling=scaling)  # type: ignore[arg-type]


def test_a_constant_column_comes_back_as_it_is() -> None:
    data = torch.cat([table(100), torch.full((100, 1), 7.0), torch.zeros(100, 1)], 1)
    with pytest.warns(UserWarning, match="columns 2, 3 of the data hold one number each"):
        dataset = from_tensors(data)
    x = dataset[:]["x"]
    assert bool((x[:, 2:] == 0).all())
    wrong = dataset.scaling.to_data(x + 0.1)  # a network that is a tenth of a deviation off
    assert float((wrong[:, 2] - 7).abs().max()) <= 7 * 0.1 / 2**8 * (1 + 1e-4)
    assert float(wrong[:, 3].abs().max()) <= 12.5 * 0.1 / 2**8  # in parts of the least other deviation, about 12
    assert from_tensors(data[:1]).scaling == Scaling.standardise(data[:1])  # one sample has no deviations


def test_heavy_tails_are_scaled_by_quartiles() -> None:
    """Cauchy numbers, whose mean and deviation are those of the outermost; the other column keeps its own."""
    u = torch.rand(4000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    data = torch.stack([3 * (math.pi * (u - 0.5)).tan() + 5, normals(4000)], 1)
    with pytest.warns(UserWarning, match=r"column 0 .* far numbers .*scaling=\"coordinate\""):
        scaling = from_tensors(data).scaling
    robust, plain = (Scaling.standardise(data, "coordinate", robust=r) for r in (True, False))
    for got, first, second in zip(*((s.shift, s.scale) for s in (scaling, robust, plain)), strict=True):
        assert isinstance(got, Tensor) and isinstance(first, Tensor) and isinstance(second, Tensor)
        assert got[0] == first[0] and got[1] == second[1]
    # quartiles of Cauchy(5, 3) are 5 ± 3; those of 4000 draws have a standard error of 1.36 · 3 π/2 /sqrt(4000) · ...,
    # sqrt(p (1 - p)/n)/f(q) = 0.00685 · 2 π 3 = 0.13 each: five of them
    assert float(robust.shift[0]) == pytest.approx(5, abs=0.6)  # type: ignore[index]
    assert 1.349 * float(robust.scale[0]) == pytest.approx(6, abs=0.9)  # type: ignore[index]


@pytest.mark.parametrize("share", [0.5, 0.6, 0.7, 0.74, 0.7495, 0.75, 0.7505, 0.8, 0.9, 0.96])
@pytest.mark.parametrize("width", [0.0, 1e-9, 1e-3])
def test_a_column_that_is_nearly_one_number_for_the_most_part_keeps_the_rest_in_reach(
    share: float, width: float
) -> None:
    """Amounts that are mostly none, as of rain: quartiles alone say nothing of the rest, or next to nothing."""
    count = 2000
    none = round(share * count)
    u = (torch.arange(count - none, dtype=torch.float64) + 0.5) / (count - none)
    column = torch.cat([width * normals(none), -20 * (1 - u).log()])  # quantiles of an exponential law of mean 20
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        x = from_tensors(torch.stack([column, normals(count)], 1))[:]["x"][:, 0].double()
    # nine tenths lie within 3.29 of the deviations of the quantiles at their ends, or 10 times that of the scale taken
    low, high = torch.quantile(x, torch.tensor([0.05, 0.95], dtype=torch.float64)).tolist()
    assert high - low <= 32.9
    if share < 0.95:  # a twentieth or more is amounts: these are not a few far numbers
        assert x.square().mean().sqrt() < 10


@pytest.mark.parametrize("event", [(1, 40), (2, 8, 8)])
def test_positions_that_a_channel_would_lose_are_warned_of(event: tuple[int, ...]) -> None:
    size = torch.logspace(0, 5, event[-1], dtype=torch.float64)
    for data in (normals(50, *event) * size, normals(50, *event) + 1e5 * size):
        with pytest.warns(UserWarning, match=r"positions of a sample.* would be lost.*scaling=\"coordinate\""):
            from_tensors(data)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        from_tensors(normals(50, *event) * size, scaling="coordinate")
        from_tensors(normals(50, *event).cumsum(-1))  # a walk, whose first steps are small
        border = (normals(50, *event) > 2).double()  # pixels that are rarely other than black
        from_tensors(border)


def test_bytes_that_are_no_pictures_are_warned_of() -> None:
    generator = torch.Generator().manual_seed(0)

    def levels(count: int, *shape: int) -> Tensor:
        return torch.randint(0, count, shape, generator=generator, dtype=torch.uint8)

    with pytest.warns(UserWarning, match=r"values in \[0, 16\] only.*levels=17"):
        from_tensors(levels(17, 50, 1, 8, 8))
    with pytest.warns(UserWarning, match=r"column 1 .* beside column 0 .*data\.float\(\)"):
        from_tensors(torch.cat([levels(100, 50, 1), levels(2, 50, 1)], 1))
    flat = levels(256, 50, 64)
    flat[:, :8] = 0
    flat[3, :8] = 5  # the border of flat pictures
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        from_tensors(flat)
        from_tensors(levels(17, 50, 1, 8, 8), levels=17)
        from_tensors(levels(17, 50, 1, 8, 8), levels=256)


# -- what float32 cannot hold ------------------------------------------------------------------------------------------

TINY = torch.tensor([[1], [1e-9]], dtype=torch.float64)


@pytest.mark.parametrize("dtype", [torch.float64, torch.int64])
def test_a_large_mean_loses_nothing(dtype: torch.dtype) -> None:
    """10,000 different numbers, of which float32 tells 45 or so apart."""
    if dtype == torch.float64:
        data = 5e6 + 3 * normals(10_000, 1)
        dataset = from_tensors(data)
    else:
        data = 2**45 + torch.arange(10_000)[:, None]
        dataset = from_tensors(data, scaling="coordinate")
    assert len(data.unique()) == 10_000 and len(data.float().unique()) < 100
    x = dataset[:]["x"]
    assert x.dtype == torch.float32
    # some of 10,000 random float64 numbers of a width of 8 deviations coincide in float32, of 2^24 per unit: about
    # n²/2 · 2^-24/3.5 · 2 = 2 pairs; the whole numbers are 3e-4 deviations apart, and none does
    assert len(x.unique()) >= (10_000 if dtype == torch.int64 else 9_990)
    back = dataset.scaling.to_data(x)
    assert back.dtype == torch.float64  # float32 could not hold it
    width = dataset.scaling.scale
    assert float(((back - data) / width).abs().max()) <= 5 * EPS32  # the rounding of x, below 5, to float32


@pytest.mark.parametrize("size", [1e39, 1e300, 1e-300])
def test_sizes_beyond_float32_come_back(size: float) -> None:
    data = size * (1 + normals(50, 3))
    dataset = from_tensors(data)
    x = dataset[:]["x"]
    assert bool(x.isfinite().all()) and float(x.std()) == pytest.approx(1, abs=0.02)
    # roundings of x, below 5, relative to data that are no smaller than 1e-3 of their deviation
    assert torch.allclose(dataset.scaling.to_data(x), data, rtol=0, atol=10 * EPS32 * size)


@pytest.mark.parametrize(
    ("message", "build"),
    [
        ("float32 cannot hold", lambda: from_tensors(1e39 * normals(9, 2), scaling=Scaling(0.0, 1.0))),
        ("column 0.*round away", lambda: from_tensors(5e6 + 3 * normals(99, 2), scaling=Scaling(0.0, 1.0))),
        ("channel 1.*round away", lambda: from_tensors(1 + normals(99, 2, 4) * TINY, scaling=Scaling(0.0, 1.0))),
        (r"beyond 2\*\*53", lambda: from_tensors(2**60 + torch.arange(9)[:, None], scaling=Scaling(0.0, 1.0))),
        ("2\\*\\*63 and above", lambda: from_tensors(torch.full((4, 2), 2**63 + 1, dtype=torch.uint64), levels=5)),
        ("from 2 to 16777216", lambda: from_tensors(torch.arange(9)[:, None] * 2**22, levels=2**26)),
        ("condition 'day' round away", lambda: from_tensors(normals(9, 2), conditions={"day": 5e6 + normals(9)})),
    ],
)  # fmt: skip
def test_what_float32_cannot_hold_is_refused(message: str, build: Any) -> None:
    with pytest.raises(ValueError, match=message), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        build()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_widened_before_it_is_centred(dtype: torch.dtype) -> None:
    data = (100 + normals(200, 2)).to(dtype)
    dataset = from_tensors(data)
    assert torch.equal(dataset[:]["x"], from_tensors(data.double())[:]["x"])
    back = dataset.scaling.to_data(dataset[:]["x"].to(dtype))
    assert back.dtype == torch.float32  # samples in half precision are not rounded to its units of data


@pytest.mark.parametrize("levels", [2, 256, 2**20])
def test_levels_go_through_float32_exactly(levels: int) -> None:
    data = torch.tensor([[0], [1], [levels // 2], [levels - 1]])
    scaling = from_tensors(data, levels=levels).scaling
    assert scaling.to_model(data).dtype == torch.float32
    wide = (data.double() - (levels - 1) / 2) / ((levels - 1) / 2)
    assert torch.equal(scaling.to_model(data), wide.float())
    assert torch.equal(scaling.to_data(scaling.to_model(data)).round().long(), data)


# -- undone at sampling ------------------------------------------------------------------------------------------------


def test_the_statistics_of_a_table_come_back_from_the_exact_score() -> None:
    """In model units the law is N(0, [[1, ρ], [ρ, 1]]), whose score is exact: what is left is the map, and chance."""
    data, count = table(20_000), 20_000
    dataset = from_tensors(data)
    x = dataset[:]["x"].double()
    exact = problems.Gaussian(torch.zeros(2).double(), torch.cov(x.T, correction=0)).score(ss.VP())
    score = ss.as_score(exact, ss.VP(), scaling=dataset.scaling)
    assert score.scaling is None  # a score is answered as it is
    score = ss.as_score(exact.__call__, ss.VP(), scaling=dataset.scaling, dtype=torch.float64)
    solution = ss.sample(score, (count, 2), seed=0, dtype=torch.float64)
    drawn = solution.data
    assert torch.equal(drawn, dataset.scaling.to_data(solution.x))
    # 5 standard errors of 20,000 draws: of a mean σ/sqrt(n), of a deviation σ/sqrt(2 n), of a correlation
    # (1 - ρ²)/sqrt(n); and 1e-3 σ for 25 steps of the solver and the end at t_min
    error = 5 / math.sqrt(count) + 1e-3
    mean, std = data.mean(0), data.std(0)
    assert bool(((drawn.mean(0) - mean).abs() < error * std).all())
    assert bool(((drawn.std(0) - std).abs() < error * std / math.sqrt(2)).all())
    wanted = torch.corrcoef(data.T)[0, 1].item()
    assert torch.corrcoef(drawn.T)[0, 1].item() == pytest.approx(wanted, abs=error * (1 - wanted**2))


def test_scores_of_a_model_know_its_scaling() -> None:
    model = ss.ScoreModel(MLP(2, width=8, depth=1, num_classes=3), ss.VP())
    scaling = Scaling(torch.tensor([40.0, 30_000.0]), torch.tensor([12.0, 16_000.0]))
    bound = model.bind(label=1)
    with pytest.raises(ValueError, match=r"model\.scaling = dataset\.scaling"):
        _ = ss.sample(bound, (2, 2), steps=2).data
    model.scaling = scaling
    guided = ss.classifier_free(model, {"label": 1}, scale=2.0)
    scheduled = ss.classifier_free(model, {"label": 1}, scale=lambda t: 1 + t)
    for score in (model, model.bind(label=1), model.under(ss.RectifiedFlow()), guided, scheduled):
        assert score.scaling is scaling
    solution = ss.sample(guided, (3, 2), steps=2)
    assert torch.equal(solution.data, scaling.to_data(solution.x)) and solution.scaling is scaling


def fitted(dataset: Dataset, *, steps: int = 250, folder: Path | None = None, vectors: Any = None) -> ss.ScoreModel:
    torch.manual_seed(0)
    model = ss.ScoreModel(MLP(2, width=64, depth=2, vectors=vectors), ss.VP(), "edm", sigma_data=1.0)
    for _ in train(
        model, dataset, steps=steps, batch_size=128, lr=3e-3, ema=0.98, folder=folder, progress=False, cpu=True
    ):
        pass
    return model


def test_age_and_income_come_back_from_training_and_a_checkpoint(tmp_path: Path) -> None:
    data = table()
    dataset = from_tensors(data.float())
    fitted(dataset, folder=tmp_path)
    model = load_model(tmp_path)
    assert model.scaling == dataset.scaling == describe(tmp_path).scaling
    drawn = ss.sample(model, (4000, 2), seed=0).data
    # 5 standard errors of 4000 draws are 0.08 σ of a mean and 0.07 of a correlation; the network of 250 steps may be
    # off by as much again. Under one scale for both the errors of age were 57 σ, and the correlation 0.
    assert bool(((drawn.mean(0) - data.mean(0)).abs() < 0.16 * data.std(0)).all())
    assert bool(((drawn.std(0) / data.std(0) - 1).abs() < 0.16).all())
    assert torch.corrcoef(drawn.T)[0, 1].item() == pytest.approx(CORRELATION, abs=0.14)


def test_checkpoints_of_before_tensors_still_load(tmp_path: Path) -> None:
    """Their config.json has plain numbers, and says nothing of the units of conditions."""
    assert Scaling.from_json({"shift": 0.5, "scale": 2.0, "levels": None}) == Scaling(0.5, 2.0)
    assert Scaling.from_json({"shift": 8.0, "scale": 8.0, "levels": 17}) == Scaling.to_unit_range(17)
    model = ss.ScoreModel(MLP(2, width=4, depth=1), ss.VP())
    save(tmp_path, model, step=1, dataset=from_tensors(normals(5, 2), scaling=Scaling(0.5, 2.0)))
    assert load_model(tmp_path).scaling == load_model(tmp_path, ema=False).scaling == Scaling(0.5, 2.0)


def test_a_model_that_knows_its_units_tells_the_checkpoint(tmp_path: Path) -> None:
    """Where it was trained on a data set of the user's own, which says nothing."""
    model = ss.ScoreModel(MLP(2, width=4, depth=1), ss.VP())
    model.scaling = Scaling(torch.tensor([1.0, 2.0]), 3.0)
    save(tmp_path, model, step=1)
    assert load_model(tmp_path, ema=False).scaling == model.scaling


def test_another_scaling_is_another_data_set(tmp_path: Path) -> None:
    data = table(50)
    options: dict[str, Any] = {"batch_size": 4, "folder": tmp_path, "progress": False, "cpu": True}

    def model() -> ss.ScoreModel:
        return ss.ScoreModel(MLP(2, width=4, depth=1), ss.VP())

    list(train(model(), from_tensors(data), steps=1, **options))
    other = from_tensors(data, scaling=Scaling.standardise(data, "coordinate", robust=True))
    with pytest.raises(ss.train.CheckpointError, match=r"scaling .*from_tensors\(\.\.\., scaling=describe\("):
        train(model(), other, steps=2, resume=True, **options)
    kept = from_tensors(data[:40], scaling=describe(tmp_path).scaling)
    list(train(model(), kept, steps=2, resume=True, **options))
    known = load_model(tmp_path).requires_grad_()
    with pytest.warns(UserWarning, match="comes from data in units of"):
        train(known, other, steps=1, batch_size=4, progress=False, cpu=True)
    assert known.scaling == other.scaling  # in which x comes now


# -- conditions --------------------------------------------------------------------------------------------------------


def test_heavy_tails_of_a_condition_are_scaled_by_quartiles() -> None:
    z = normals(1000)
    given = {"amount": (3 * z).exp(), "both": torch.stack([(3 * z).exp(), 30 + z], 1)}
    with pytest.warns(UserWarning, match=r"condition '(amount|both)', column 0 .* far numbers .* logarithm"):
        dataset = from_tensors(normals(1000, 2), conditions=given)
    scaled = in_network_units(dataset[:], dataset.condition_scalings)
    quarters = torch.tensor([0.25, 0.5, 0.75], dtype=torch.float64)
    for x in (scaled["amount"], scaled["both"][:, 0]):
        low, middle, high = torch.quantile(x.double(), quarters).tolist()
        # float32 rounds each by 2**-24 of its size, and of the shift of size 1, under a scale of 6
        assert abs(middle) < 1e-6 and high - low == pytest.approx(1.3489795, rel=1e-6)
    assert float(scaled["both"][:, 1].std(correction=0)) == pytest.approx(1, rel=1e-5)


def test_a_condition_that_varies_little_beside_its_mean_is_centred() -> None:
    dataset = from_tensors(normals(50, 2), conditions={"year": 8 + 0.05 * normals(50, 1), "unit": 1 + normals(50, 1)})
    assert list(dataset.condition_scalings) == ["year"]


@pytest.mark.parametrize("factor", [100.0, 1e-4])
def test_conditions_with_axes_far_from_unit_size_are_warned_of(factor: float) -> None:
    low = factor * normals(50, 1, 2, 2)
    with pytest.warns(UserWarning, match=r"condition 'low' \(50, 1, 2, 2\) .* far from unit size"):
        from_tensors(normals(50, 2), conditions={"low": low})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        from_tensors(normals(50, 2), conditions={"low": low}, condition_scalings={"low": None})
        own = from_tensors(normals(50, 2), conditions={"low": low}, condition_scalings={"low": Scaling(0.0, factor)})
    assert own.condition_scalings == {"low": Scaling(0.0, factor)}


def test_vectors_of_wild_scale_are_standardised_for_the_network() -> None:
    income, nan = INCOME[0] + INCOME[1] * normals(50), math.nan
    both = torch.stack([income, normals(50)], 1)
    both[3] = nan
    token = torch.arange(100).reshape(50, 2)
    given = {"income": income, "both": both, "unit": normals(50, 3), "token": token, "low": normals(50, 1, 2, 2)}
    dataset = from_tensors(normals(50, 2), conditions=given)
    assert list(dataset.condition_scalings) == ["income", "both"]
    assert dataset.subset(slice(5)).condition_scalings == dataset.condition_scalings
    for name in given:  # batches hold conditions in their own units
        torch.testing.assert_close(dataset[:][name], given[name].to(dataset[:][name].dtype), equal_nan=True)
    scaled = in_network_units(dataset[:], dataset.condition_scalings)
    for name in ("income", "both"):
        known = scaled[name][~scaled[name].reshape(50, -1).isnan().any(1)].double().reshape(-1, scaled[name][0].numel())
        assert float(known.mean(0).abs().max()) < 1e-5 and float((known.std(0, correction=0) - 1).abs().max()) < 1e-5
        assert bool(scaled["both"][3].isnan().all())
    assert all(scaled[name] is dataset[:][name] or torch.equal(scaled[name], given[name].to(scaled[name].dtype))
               for name in ("unit", "token", "low"))  # fmt: skip
    own = {"income": None, "unit": Scaling(0.0, 2.0)}
    assert set(from_tensors(normals(50, 2), conditions=given, condition_scalings=own).condition_scalings) == {
        "both",
        "unit",
    }


@pytest.mark.parametrize(
    ("message", "asked"),
    [
        ("mapping by name", [Scaling(0.0, 1.0)]),
        ("name age, and the conditions are income, token", {"age": Scaling(0.0, 1.0)}),
        (r"condition_scalings\['income'\] must be a Scaling", {"income": 2.0}),
        (r"does not broadcast to a sample of condition 'income', \(1,\)", {"income": Scaling(torch.zeros(2), 1.0)}),
        ("'token' holds whole numbers", {"token": Scaling(0.0, 1.0)}),
    ],
)
def test_scalings_that_do_not_fit_a_condition_are_refused(message: str, asked: Any) -> None:
    given = {"income": normals(5, 1), "token": torch.arange(5)}
    with pytest.raises((TypeError, ValueError), match=message):
        from_tensors(normals(5, 2), conditions=given, condition_scalings=asked)


def test_conditions_are_given_in_their_own_units_wherever_a_model_is_asked(tmp_path: Path) -> None:
    """x = income in thousands and noise: what the network learns shows whether units are kept, and changed once."""
    z = normals(2000, 3)
    income = INCOME[0] + INCOME[1] * z[:, :1]
    data = torch.cat([income / 1000 + z[:, 1:2], z[:, 2:]], 1)
    dataset = from_tensors(data, conditions={"income": income})
    trained = fitted(dataset, folder=tmp_path, vectors={"income": 1})
    model = load_model(tmp_path)
    assert model.condition_scalings == trained.condition_scalings == dataset.condition_scalings
    assert describe(tmp_path).condition_scalings == dataset.condition_scalings
    for wanted in (14_000.0, 46_000.0):
        number, row = model.bind(income=wanted), model.bind(income=torch.tensor([[wanted]]))
        guided = ss.classifier_free(model, {"income": torch.tensor([[wanted]])}, scale=1.0)
        moved = model.under(ss.RectifiedFlow(T=0.99, t_min=0.01)).bind(income=torch.tensor([[wanted]]))
        for score in (number, row, guided, moved):
            drawn = ss.sample(score, (300, 2), seed=0).data[:, 0]
            # deviation 1 about the conditional mean, of 300 draws 0.06; the network of 250 steps is right to 1.5 or
            # so, a tenth of the 16 by which it would be off without the condition, and of 32 between the two
            assert float(drawn.mean()) == pytest.approx(wanted / 1000, abs=3)
        x, t = torch.randn(3, 2), 0.3
        one = model(x, t, {"income": torch.full((3, 1), wanted)})
        torch.testing.assert_close(one, row(x, t))


def test_a_null_that_is_a_number_leaves_its_condition_as_it_is() -> None:
    class Own(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.null_conditions = {"income": 0.0}
            self.w = torch.nn.Parameter(torch.zeros(2))

        def forward(self, x: Tensor, c: Tensor, income: Tensor) -> Tensor:
            return x * self.w + 0 * income[:, None]

    dataset = from_tensors(normals(20, 2), conditions={"income": 1e4 + 1e3 * normals(20)})
    model = ss.ScoreModel(Own(), ss.VP())
    with pytest.warns(UserWarning, match="income by a number"):
        train(model, dataset, steps=1, batch_size=4, progress=False, cpu=True)
    assert model.condition_scalings == {}


def test_units_may_be_a_map_of_ones_own() -> None:
    """Anything with to_model and to_data: here logarithms, of which the median is the exponential."""

    class Log:
        def to_model(self, data: Tensor) -> Tensor:
            return data.log()

        def to_data(self, x: Tensor) -> Tensor:
            return x.exp()

    exact = problems.Gaussian(torch.zeros(1), torch.eye(1)).score(ss.VP())
    score = ss.as_score(exact.__call__, ss.VP(), scaling=Log())
    solution = ss.sample(score, (10, 1))
    assert torch.equal(solution.data, solution.x.exp())


@pytest.mark.parametrize(
    "change",
    [
        {"scaling": {"shift": [0.0, 0.0, 0.0], "scale": 1.0}},
        {"scaling": {"shift": [0.0, [1.0]], "scale": 1.0}},
        {"scaling": {"shift": 0.0, "scale": [1.0, -1.0]}},
        {"scaling": [1.0, 2.0]},
        {"condition_scalings": {"income": {"shift": [0.0, 0.0], "scale": 1.0}}},
        {"condition_scalings": {"income": None}},
        {"condition_scalings": [1.0]},
    ],
    ids=str,
)
def test_changed_units_in_a_checkpoint_are_damage(
    change: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The seal is of what was written: here a file that was resealed after the change."""
    model = ss.ScoreModel(MLP(2, width=4, depth=1, vectors={"income": 1}), ss.VP())
    dataset = from_tensors(table(9), conditions={"income": 1e4 * normals(9, 1)})
    whole = checkpoint.with_units
    monkeypatch.setattr(checkpoint, "with_units", lambda data, of: {**whole(data, of), **change})
    save(tmp_path, model, step=1, dataset=dataset)
    with pytest.raises(ss.train.CheckpointError, match=r"config\.json"):
        describe(tmp_path)
