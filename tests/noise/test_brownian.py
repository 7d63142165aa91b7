"""The Brownian path: its law at any times, one function of time whatever is asked, the list of bridges behind it."""

from __future__ import annotations

import itertools
import math
import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chi2, kstest
from strategies import DTYPES, EVENTS, seeds
from torch import Tensor

from scoresde import grids
from scoresde.noise import BrownianNoise, IndependentNoise, PerSampleNoise
from scoresde.noise.places import NEAR, OCTAVES, Division, Place, all_beside, beside
from scoresde.noise.shapes import PIECES, library, normals
from scoresde.sde import EDM, SDE, VP, Cosine, RectifiedFlow

# A right sampler fails one seed in a thousand (p-values), or in a million (five deviations); every seed is fixed.
LEAST_P = 1e-3
FIVE = 5.0
LEVELS = [1, 3, 4, 7, 11, 20, 40]


def at(noise: BrownianNoise, x: Tensor, *times: float) -> Tensor:
    return torch.stack([noise.w(x, t) for t in times], -1)


def irregular(levels: int, end: float, n: int) -> list[float]:
    """Falling times, crowded towards both ends, of which no two are strictly inside one piece."""
    draw, division = random.Random(levels), Division(end, levels)
    parts = [draw.random() for _ in range(4 * n)]
    wanted = [end * p for p in parts[:n]] + [end * p**20 for p in parts[n : 2 * n]]
    wanted += [end * (1 - p**12) for p in parts[2 * n : 3 * n]] + [0.0, end / 2, end / 4, 3 * end / 8]
    chosen: dict[tuple[int, int], float] = {}
    for t in wanted:
        place = division.place(t)
        chosen.setdefault((place.zone, place.piece), t)
    return sorted(chosen.values(), reverse=True)[:60]


# -- the law -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("levels", LEVELS)
def test_increments_at_irregular_times_are_independent_normals(levels: int) -> None:
    end, n = 2.5, 4000
    times = irregular(levels, end, 20)
    assert len(times) >= 10
    x = torch.zeros(n, 3, dtype=torch.float64)
    noise = BrownianNoise(8, end, levels=levels)
    pairs = list(itertools.pairwise([end, *times] if times[0] < end else times))
    steps = [noise.increment(x, t, s) / math.sqrt(t - s) for t, s in pairs]
    z = torch.stack(steps, -1).flatten(0, 1)  # (rows, steps): elements are independent too
    rows = len(z)
    covariance = z.T @ z / rows
    deviation = torch.ones_like(covariance).fill_diagonal_(2.0).div_(rows).sqrt_()  # var(z²) = 2, var(z z') = 1
    assert bool(((covariance - torch.eye(len(pairs))).abs() < FIVE * deviation).all())
    assert bool((z.mean(0).abs() < FIVE / math.sqrt(rows)).all())
    assert kstest(z.square().sum(1).numpy(), chi2(len(pairs)).cdf).pvalue > LEAST_P
    for column in z.T[:: max(1, len(pairs) // 8)]:
        assert kstest(column.numpy(), "norm").pvalue > LEAST_P
    squares = (z.square() - 1).T @ (z.square() - 1) / rows / 2  # correlations of the squares: 1 and 0
    assert squares.fill_diagonal_(0).abs().max() < 2 * FIVE / math.sqrt(rows)


@pytest.mark.parametrize("levels", [4, 11, 40])
def test_covariance_is_that_of_brownian_motion(levels: int) -> None:
    """Cov(w(a), w(b)) = min(T - a, T - b), w as a whole."""
    end, n = 2.5, 40_000
    times = [0.0, 0.3, 0.625, 1.0, 1.25, 1.9, 2.4]
    path = at(BrownianNoise(8, end, levels=levels), torch.zeros(n, dtype=torch.float64), *times)
    expected = torch.tensor([[end - max(a, b) for b in times] for a in times], dtype=torch.float64)
    deviation = ((expected**2 + expected.diag()[:, None] * expected.diag()) / n).sqrt()  # of a sample covariance
    assert bool(((path.T @ path / n - expected).abs() < FIVE * deviation).all())
    assert bool((path.mean(0).abs() < FIVE * (expected.diag() / n).sqrt()).all())
    for column, variance in zip(path.T, expected.diag().tolist(), strict=True):
        assert kstest((column / math.sqrt(variance)).numpy(), "norm").pvalue > LEAST_P


@pytest.mark.parametrize("steps", [64, 300, 2048])
def test_quadratic_variation(steps: int) -> None:
    """Σ (Δw)² = T with variance 2 T²/steps for each path: the finest grid that the default serves, and coarser ones."""
    end, x = 3.0, torch.zeros(50, 4, dtype=torch.float64)
    noise, times = BrownianNoise(2, end), torch.linspace(end, 0, steps + 1, dtype=torch.float64)
    noise.check(times)
    z = torch.stack([noise.between(x, t, s) for t, s in itertools.pairwise(times)], -1)
    variation = end / steps * z.square().sum(-1)
    assert variation.mean().item() == pytest.approx(end, abs=FIVE * end * math.sqrt(2 / steps / 200))
    assert kstest(z.flatten().numpy(), "norm").pvalue > LEAST_P
    for lag in (1, 2, 7):
        assert (z[..., lag:] * z[..., :-lag]).mean().abs() < FIVE / math.sqrt(200 * (steps - lag))


@pytest.mark.parametrize("steps", [20, 50, 100, 400, 1000])
@pytest.mark.parametrize("grid", [grids.uniform, grids.log_snr, grids.karras], ids=["uniform", "log_snr", "karras"])
@pytest.mark.parametrize("sde", [VP(), EDM(), RectifiedFlow(), Cosine()], ids=lambda s: type(s).__name__)
def test_the_default_serves_the_usual_grids(sde: SDE, grid: object, steps: int) -> None:
    BrownianNoise(0, sde.T).check(grid(sde, steps))  # type: ignore[operator]


# -- one function of time ------------------------------------------------------------------------------------------


@settings(max_examples=12)
@given(
    seed=seeds(),
    end=st.floats(0.1, 100),
    parts=st.lists(st.floats(0, 1), min_size=1, max_size=12),
    event=EVENTS,
    dtype=DTYPES,
    levels=st.sampled_from(LEVELS),
)
def test_one_path_whatever_is_asked_before(
    seed: int, end: float, parts: list[float], event: tuple[int, ...], dtype: torch.dtype, levels: int
) -> None:
    x = torch.zeros(3, *event, dtype=dtype)
    times = [end * p for p in parts]
    forward = [BrownianNoise(seed, end, levels=levels).w(x, t) for t in times]  # each from a fresh object
    one = BrownianNoise(seed, end, levels=levels)
    order = random.Random(seed).sample(range(len(times)), len(times))
    for i in [*order, *order[::-1]]:
        assert torch.equal(one.w(x, times[i]), forward[i])
        one.normal(x)  # draws outside the path do not move it
        one.increment(x, torch.full((3,), times[i], dtype=torch.float64), times[0])  # nor do questions of another kind
    tail = BrownianNoise(seed, end, first=1, levels=levels)
    for t, whole in zip(times, forward, strict=True):  # nor does the batch
        assert torch.equal(tail.w(x[:2], t), whole[1:])
        assert torch.equal(one.w(x[:1], t), whole[:1])
    assert bool((one.w(x, end) == 0).all())  # counted from the noise end


@pytest.mark.parametrize("event", [(2,), (3, 5, 7), (4, 16, 16)])  # with and without what fills up the last four
def test_increments_do_not_depend_on_the_batch_or_the_step_count(event: tuple[int, ...]) -> None:
    x = torch.zeros(7, *event)
    times = torch.linspace(1.0, 0.01, 24, dtype=torch.float64)
    whole = BrownianNoise(1, 1.0)
    parts = [BrownianNoise(1, 1.0, first=i) for i in (0, 3)]
    for t, s in itertools.pairwise(times):
        pieces = [p.between(x[i:j], t, s) for p, (i, j) in zip(parts, ((0, 3), (3, 7)), strict=True)]
        assert torch.equal(torch.cat(pieces), whole.between(x, t, s))
    coarse = BrownianNoise(1, 1.0).increment(x, 1.0, 0.01)
    fine = sum(whole.increment(x, float(t), float(s)) for t, s in itertools.pairwise(times))
    torch.testing.assert_close(fine, coarse, rtol=0, atol=24 * 4 * 2.0**-24)  # 23 float32 roundings of values below 4


def test_memory_does_not_grow_with_the_number_of_steps() -> None:
    noise, x = BrownianNoise(1, 2.0), torch.zeros(2, dtype=torch.float64)
    times = torch.linspace(2, 0, 700, dtype=torch.float64)
    first = at(noise, x, *times.tolist())
    kept = sum(len(c) for c in (noise._nodes, noise._lanes, noise._values, noise._rows))
    assert kept <= 11 + 3 + 2 + 3
    assert torch.equal(at(noise, x, *times.flip(0).tolist()).flip(-1), first)  # the path outlives its cache


@given(end=st.floats(0.5, 50), parts=st.tuples(*[st.floats(0, 1)] * 3).filter(lambda p: len(set(p)) == 3))
def test_increments_nest(end: float, parts: tuple[float, float, float]) -> None:
    """Normalised increments over [s, u] and [u, t] add up to that over [s, t]: coarse steps see the fine path."""
    noise, x = BrownianNoise(3, end, levels=40), torch.zeros(4, 2, dtype=torch.float64)
    s, u, t = (torch.tensor(end * p, dtype=torch.float64) for p in sorted(parts))
    if min(u - s, t - u) < 1e-6 * end:
        return  # below the resolution of the path
    coarse = (t - s).sqrt() * noise.between(x, t, s)
    fine = (t - u).sqrt() * noise.between(x, t, u) + (u - s).sqrt() * noise.between(x, u, s)
    torch.testing.assert_close(fine, coarse, rtol=1e-12, atol=1e-14 * math.sqrt(end))  # roundings of w
    torch.testing.assert_close(
        coarse, noise.w(x, float(s)) - noise.w(x, float(t)), rtol=1e-12, atol=1e-14 * math.sqrt(end)
    )
    assert torch.equal(noise.between(x, s, t), noise.between(x, t, s))  # |t - s| either way
    assert torch.equal(noise.increment(x, float(s), float(t)), -noise.increment(x, float(t), float(s)))


@pytest.mark.parametrize("levels", LEVELS)
def test_the_path_is_continuous(levels: int) -> None:
    """Times one rounding apart, also where octaves, zones, cells and pieces meet: at most some sqrt(Δt), as in life."""
    end, x = 80.0, torch.zeros(300, dtype=torch.float64)
    noise = BrownianNoise(6, end, levels=levels)
    meetings = [end * 2.0**-k for k in range(1, OCTAVES + 2)] + [end * (1 - 2.0**-k) for k in range(2, NEAR + 3)]
    for t in [*meetings, *(end * k / 32 for k in range(1, 32)), 79.9, 33.3, 1.0, 0.002]:
        for near in (math.nextafter(t, end), math.nextafter(t, 0.0)):
            step = abs(near - t) + 2.0**-52 * end  # t/T and the place in the piece round too
            # six deviations; a piece is 2^-25 T or longer here but at 40 levels, whose slope 1/sqrt(piece) adds as much
            bound = 12 * math.sqrt(step) + 1e-13
            assert float((noise.w(x, near) - noise.w(x, t)).abs().max()) < bound < 3e-6


def test_half_precision_increments_are_not_differences_of_rounded_paths() -> None:
    x, t, s = torch.zeros(4000), torch.tensor(0.5), torch.tensor(0.4995)
    exact = BrownianNoise(0, 1.0).between(x.double(), t, s)
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        got = BrownianNoise(0, 1.0).between(x.to(dtype), t, s)
        # float32 path: 6e-8 of values below 4, over sqrt(5e-4); then one rounding to dtype
        torch.testing.assert_close(got.double(), exact, rtol=torch.finfo(dtype).eps, atol=1e-4)


def test_small_times_keep_their_digits() -> None:
    """Near 0 an increment is a difference of values from its own octave, not of w, which is 1e4 times larger."""
    x, t, s = torch.zeros(4000), torch.tensor(0.003).double(), torch.tensor(0.0029).double()
    exact, got = BrownianNoise(0, 80.0).between(x.double(), t, s), BrownianNoise(0, 80.0).between(x, t, s)
    # values of an octave of 2e-3 over sqrt(1e-4): below 20 in these units, some ten roundings
    torch.testing.assert_close(got.double(), exact, rtol=0, atol=200 * 2.0**-24)


def test_paths_differ_between_samples_seeds_and_from_the_prior() -> None:
    x = torch.zeros(2, 3, dtype=torch.float64)
    path = BrownianNoise(4, 1.0).w(x, 0.0)
    assert path.unique().numel() == 6 and not torch.equal(path, BrownianNoise(5, 1.0).w(x, 0.0))
    fresh = BrownianNoise(4, 1.0)
    others = [fresh.initial((2, 3), dtype=x.dtype, device=x.device), fresh.normal(x), fresh.normal(x)]
    assert not any(torch.isin(draw, path).any() for draw in others)
    longer = BrownianNoise(4, 4.0).w(x, 0.0)
    torch.testing.assert_close(longer, 2 * path, rtol=1e-14, atol=0.0)  # w(T) scales as sqrt(T)


# -- a time for each sample ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("levels", LEVELS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rows_are_what_their_own_times_give(levels: int, dtype: torch.dtype) -> None:
    end, x = 0.999, torch.zeros(24, 5, dtype=dtype)
    draw = random.Random(levels)
    t = torch.tensor([end * draw.random() ** draw.choice([1, 1, 12]) for _ in range(24)], dtype=torch.float64)
    s = torch.tensor([float(v) * draw.random() for v in t], dtype=torch.float64)
    t[:5] = torch.tensor([end, end / 2, end / 4, end * 0.375, end * (1 - 2.0**-9)], dtype=torch.float64)
    s[:5] = torch.tensor([end / 2, 0.0, end / 8, end / 4, end / 2], dtype=torch.float64)
    noise = BrownianNoise(2, end, levels=levels)
    ulp = torch.finfo(dtype).eps
    rows = noise.increment(x, t, s)
    alone = torch.stack([noise.increment(x, float(t[i]), float(s[i]))[i] for i in range(24)])
    torch.testing.assert_close(rows, alone, rtol=0, atol=16 * 4 * ulp)  # sums of some ten values below 4
    assert torch.equal(noise.increment(x, s, t), -rows)
    shared = noise.increment(x, end, s)  # one time for all, and one for each
    alone = torch.stack([noise.increment(x, end, float(s[i]))[i] for i in range(24)])
    torch.testing.assert_close(shared, alone, rtol=0, atol=16 * 4 * ulp)
    apart = ~all_beside(Division(end, levels).places(t), Division(end, levels).places(s))
    t, s, x, noise = t[apart], s[apart], x[apart], BrownianNoise(2, end, levels=levels)
    scaled = noise.between(x, t, s) * (t - s).sqrt()[:, None].to(dtype)
    torch.testing.assert_close(scaled, noise.increment(x, t, s), rtol=0, atol=16 * ulp)  # sums of values below 4
    assert torch.equal(noise.between(x, s, t), noise.between(x, t, s))


def test_a_row_that_does_not_move_gets_nothing() -> None:
    noise, x = BrownianNoise(2, 1.0), torch.zeros(3, 4)
    t, s = torch.tensor([0.9, 0.5, 0.123]), torch.tensor([0.8, 0.5, 0.123])
    for draw in (noise.between(x, t, s), noise.increment(x, t, s)):
        assert bool((draw[0] != 0).all()) and not bool(draw[1:].any())


def test_a_rejected_step_is_a_bridge_of_the_path() -> None:
    """Steps cut after a look at them, each sample by its own fraction: the halves add up to what was seen."""
    noise, x = BrownianNoise(2, 1.0, levels=20), torch.zeros(4000, 2, dtype=torch.float64)
    t, s = torch.full((4000,), 0.8), torch.full((4000,), 0.3)
    middle = (0.3 + 0.5 * torch.rand(4000, generator=torch.Generator().manual_seed(0))).double()
    whole, first, second = (noise.increment(x, *pair) for pair in ((t, s), (t, middle), (middle, s)))
    torch.testing.assert_close(first + second, whole, rtol=0, atol=1e-14)  # roundings
    part = ((0.8 - middle) / 0.5)[:, None]  # given the whole, N(part whole, 0.5 part (1 - part))
    bridge = (first - part * whole) / (0.5 * part * (1 - part)).sqrt()
    assert kstest(bridge.flatten().numpy(), "norm").pvalue > LEAST_P
    assert (bridge * whole).mean().abs() < FIVE * math.sqrt(0.5 / 8000)


def test_noises_without_a_path_draw_for_times_of_each_sample() -> None:
    x, t = torch.zeros(3, 2), torch.tensor([0.9, 0.5, 0.2])
    for noise, twin in ((PerSampleNoise(1), PerSampleNoise(1)), (IndependentNoise(1), IndependentNoise(1))):
        assert torch.equal(noise.between(x, t, t / 2), twin.normal(x))


# -- what is refused -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("levels", LEVELS)
def test_steps_of_a_piece_are_served_and_two_times_inside_one_are_refused(levels: int) -> None:
    noise, x, division = BrownianNoise(1, 1.0, levels=levels), torch.zeros(20, 2), Division(1.0, levels)
    for start in (0.9371, 0.7003, 0.37, 0.013):
        piece = division.piece(division.place(start))
        t = torch.tensor(start, dtype=torch.float64)
        if piece < start / 3:
            assert bool(noise.between(x, t, t - 2.01 * piece).isfinite().all())  # the next piece may be twice as long
        place = division.place(start)
        room = (1 - place.inside) * piece  # below t, inside its piece
        close = t - room / 2
        for ask in (
            lambda t=t, close=close: noise.between(x, t, close),
            lambda t=t, close=close: noise.check(torch.stack([torch.tensor(1.0), t, close])),
            lambda t=t, close=close: noise.between(x, t.expand(20), torch.cat([t.expand(19) / 2, close[None]])),
        ):
            with pytest.raises(ValueError, match="a smaller T" if levels == 40 else "more levels"):
                ask()
        assert bool(noise.increment(x, float(t), float(close)).isfinite().all())  # of any length


def test_times_at_the_ends_of_one_piece_are_served() -> None:
    noise, x = BrownianNoise(1, 1.0, levels=5), torch.zeros(4000, 3, dtype=torch.float64)
    a, b, inside = (torch.tensor(v, dtype=torch.float64) for v in (0.75, 0.75 - 2.0**-5, 0.75 - 0.3 * 2.0**-5))
    noise.check(torch.stack([a, inside, b]))
    upper, lower = noise.between(x, a, inside), noise.between(x, inside, b)
    for draw in (upper, lower):
        assert kstest(draw.flatten().numpy(), "norm").pvalue > LEAST_P
    assert (upper * lower).mean().abs() < FIVE / math.sqrt(12000)


def test_times_beyond_the_path_are_refused() -> None:
    noise, x = BrownianNoise(1, 1.0), torch.zeros(2, 2)
    with pytest.raises(ValueError, match="a larger T"):
        noise.check(torch.tensor([1.5, 0.5], dtype=torch.float64))
    with pytest.raises(ValueError, match="a larger T"):
        noise.increment(x, torch.tensor([0.5, 1.5]), torch.tensor([0.1, 0.1]))
    noise.check(torch.tensor([1.0, 0.5, 0.1, 0.0], dtype=torch.float64))


# -- how time is divided -------------------------------------------------------------------------------------------


@given(end=st.floats(0.1, 100), part=st.floats(0, 1), levels=st.integers(1, 40), power=st.sampled_from([1, 1, 15]))
def test_places_are_the_same_one_by_one_and_together(end: float, part: float, levels: int, power: int) -> None:
    division = Division(end, levels)
    for t in (end * part**power, end * (1 - part**power)):
        place = division.place(t)
        together = division.places(torch.tensor([t, end], dtype=torch.float64))
        assert Place(*(field[0].item() for field in together)) == place
        depth = division.tree[place.zone] + division.fine[place.zone]
        length = division.length(place.octave)
        top = 2 * length if place.octave < OCTAVES else length
        # t = top - (piece + inside) of 2^depth parts of the octave; t / T and the product round
        assert top - length * (place.piece + place.inside) / 2**depth == pytest.approx(t, abs=2.0**-51 * top)
        assert 0 <= place.inside <= 1 and beside(place, place) == (0 < place.inside < 1)


@pytest.mark.parametrize("levels", LEVELS)
def test_zones_are_made_of_whole_cells(levels: int) -> None:
    division = Division(1.0, levels)
    assert division.tree[0] + division.fine[0] == levels - 1  # pieces of 2^-levels in the octave [1/2, 1]
    for zone in range(NEAR + 1):
        ends = zone + 1 if zone > 2 else 3  # octave / 2^ends fits into the zone
        assert levels < 4 or division.tree[zone] >= ends
    assert all(0 <= 1 << fine <= PIECES for fine in division.fine)


# -- the bridges ---------------------------------------------------------------------------------------------------


def test_any_three_normals_of_a_bridge_are_independent() -> None:
    z = normals()
    assert z.shape == (2 * PIECES - 1, 2**16)
    torch.testing.assert_close(z @ z.T / 2**16, torch.eye(len(z), dtype=z.dtype), rtol=0, atol=1e-11)  # roundings
    levels = torch.stack([torch.unique(row, return_inverse=True)[1] for row in z[:, :]])
    assert int(levels.max()) == 15
    draw = random.Random(0)
    for _ in range(60):
        a, b, c = (levels[i] for i in draw.sample(range(len(z)), 3))
        counts = torch.bincount(a * 256 + b * 16 + c, minlength=4096)
        assert bool((counts == 16).all())  # each of the 16³ combinations 16 times among 16⁴
    word = torch.arange(2**16)
    assert torch.equal(z[:, word ^ 15], -z)


def test_bridges_have_the_law_of_brownian_bridges() -> None:
    nodes, rest = (table.double() for table in library(torch.device("cpu")))
    u = torch.arange(PIECES + 1, dtype=torch.float64) / PIECES
    expected = torch.minimum(u[:, None], u) - u[:, None] * u
    torch.testing.assert_close(nodes @ nodes.T / 2**16, expected, rtol=0, atol=2.0**-23)  # stored in float32
    assert float((rest @ nodes.T / 2**16).abs().max()) < 2.0**-23
    torch.testing.assert_close(rest @ rest.T / 2**16, torch.eye(PIECES).double(), rtol=0, atol=2.0**-22)
    # Fourth cumulants of increments, over the square of the increment's variance: those of the bridge over 4, since
    # Counter.rotate sums four of them, halved; the line between the cell's ends adds variance but is normal.
    for width in (1, 2, 4, 8, 16, 32):
        steps = nodes[width:] - nodes[:-width]
        variance = steps.square().mean(1)
        cumulant = (steps.pow(4).mean(1) - 3 * variance.square()) / 4 / (width / PIECES) ** 2
        assert float(cumulant.abs().max()) < 0.02
    # A step of two cells and more meets two bridges, at its ends.
    variance = nodes.square().mean(1)
    cumulant = (nodes.pow(4).mean(1) - 3 * variance.square()) / 4
    assert 2 * float(cumulant.abs().max()) / 2**2 < 0.002


def test_a_path_says_which_steps_it_refuses() -> None:
    path, x = BrownianNoise(0, T=1.0, levels=6), torch.zeros(1, 2)
    t = torch.tensor([0.9, 0.5, 0.3, 0.05, 1e-4, 0.7], dtype=torch.float64)
    s = t - torch.tensor([0.3, 1e-3, 0.02, 0.01, 1e-7, 0.0], dtype=torch.float64)
    told = path.resolves(t, s).tolist()
    for i, taken in enumerate(told):
        if taken:
            path.between(x, t[i : i + 1], s[i : i + 1])
        else:
            with pytest.raises(ValueError, match="resolves steps of"):
                path.between(x, t[i : i + 1], s[i : i + 1])
    assert True in told and False in told and told[-1]  # a sample that does not move is no step
