"""Randomness: the right law, no global state, the same sample in any batch, the same path at any step size."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chi2, kstest
from strategies import DTYPES, EVENTS, generator, normal, seeds
from torch import Tensor

from scoresde.noise import (
    BrownianNoise,
    IndependentNoise,
    Noise,
    PerSampleNoise,
    as_noise,
    brownian_path,
    counter_normal,
)
from scoresde.noise.counter import Counter, absorb, atoms, begin

CPU = torch.device("cpu")
# Statistical tests: a right sampler fails one seed in a thousand (p-values), or in a million (five deviations); every
# seed here is fixed, so they never flicker.
LEAST_P = 1e-3
FIVE = 5.0


@pytest.fixture(autouse=True)
def _no_global_state() -> Iterator[None]:
    """Whatever a test here does, the global generators of torch, numpy and Python stand still."""
    before = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()  # type: ignore[index] # noqa: NPY002
    yield
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.array_equal(np.random.get_state()[1], before[1])  # type: ignore[index] # noqa: NPY002
    assert random.getstate() == before[2]


def initial(noise: Noise, *shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return noise.initial(shape, dtype=dtype, device=CPU)


def correlations(columns: Tensor) -> Tensor:
    """(k, k) of (n, k) standard normals, without the diagonal."""
    return columns.T @ columns / len(columns) - torch.eye(columns.shape[1], dtype=columns.dtype)


# -- the law of all of them ----------------------------------------------------------------------------------------

SOURCES = {
    "independent": lambda: IndependentNoise(5),
    "generator": lambda: IndependentNoise(generator(5)),
    "per sample": lambda: PerSampleNoise(5),
    "Brownian": lambda: BrownianNoise(5, T=1.0),
}


@pytest.mark.parametrize("make", SOURCES.values(), ids=SOURCES)
def test_draws_are_standard_normal_and_independent(make: Any) -> None:
    noise, n = make(), 8000
    x = torch.zeros(n, 5, dtype=torch.float64)
    draws = [initial(noise, n, 5), noise.normal(x), noise.normal(x)]
    t, u, s = (torch.tensor(v, dtype=torch.float64) for v in (0.9, 0.4, 0.15))
    draws += [noise.between(x, t, u), noise.between(x, u, s)]
    columns = torch.cat(draws, 1)  # elements and draws side by side: all 25 are independent
    for column in columns.T[::3]:
        assert kstest(column.numpy(), "norm").pvalue > LEAST_P
    assert kstest(columns.square().sum(1).numpy(), chi2(25).cdf).pvalue > LEAST_P  # jointly, not only in pairs
    assert correlations(columns).abs().max() < FIVE / math.sqrt(n)
    assert correlations(columns.square() - 1).fill_diagonal_(0).abs().max() < 2 * FIVE / math.sqrt(n)  # var(z²) = 2
    neighbours = torch.cat([columns[1:], columns[:-1]], 1)  # sample i beside sample i + 1
    assert correlations(neighbours).fill_diagonal_(0).abs().max() < FIVE / math.sqrt(n - 1)


@pytest.mark.parametrize("make", SOURCES.values(), ids=SOURCES)
@given(event=EVENTS, dtype=st.sampled_from([torch.float16, torch.bfloat16, torch.float32, torch.float64]))
def test_shapes_and_dtypes(make: Any, event: tuple[int, ...], dtype: torch.dtype) -> None:
    for batch in (0, 1, 3):
        noise = make()
        x = torch.zeros(batch, *event, dtype=dtype)
        t, s = torch.tensor(0.7), torch.tensor(0.2)
        for draw in (noise.initial(x.shape, dtype=dtype, device=CPU), noise.normal(x), noise.between(x, t, s)):
            assert draw.shape == x.shape and draw.dtype == dtype and bool(draw.isfinite().all())


@pytest.mark.parametrize("make", SOURCES.values(), ids=SOURCES)
def test_the_same_seed_repeats_the_run_and_draws_move_on(make: Any) -> None:
    x = torch.zeros(3, 2)
    first, second = make(), make()
    for _ in range(3):
        assert torch.equal(first.normal(x), second.normal(x))
    assert not torch.equal(first.normal(x), first.normal(x))
    assert not torch.equal(initial(first, 3, 2), initial(first, 3, 2))


# -- independent ---------------------------------------------------------------------------------------------------


def test_a_generator_is_continued() -> None:
    stream, twin = generator(3), generator(3)
    a = initial(IndependentNoise(stream), 2, 3, dtype=torch.float32)
    b = IndependentNoise(stream).normal(a)
    assert torch.equal(a, torch.randn(2, 3, generator=twin)) and torch.equal(b, torch.randn(2, 3, generator=twin))
    assert torch.equal(stream.get_state(), twin.get_state())
    assert torch.equal(initial(IndependentNoise(9), 4), torch.randn(4, generator=generator(9), dtype=torch.float64))


# -- per sample ----------------------------------------------------------------------------------------------------


@given(seed=seeds(), event=EVENTS, dtype=DTYPES, sizes=st.lists(st.integers(0, 4), min_size=1, max_size=4))
def test_a_sample_is_the_same_in_any_batch(
    seed: int, event: tuple[int, ...], dtype: torch.dtype, sizes: list[int]
) -> None:
    total = sum(sizes)
    whole = PerSampleNoise(seed)
    parts = [PerSampleNoise(seed, first=sum(sizes[:i])) for i in range(len(sizes))]
    for _ in range(2):  # every draw of the run, not only the first
        together = whole.normal(torch.zeros(total, *event, dtype=dtype))
        pieces = [p.normal(torch.zeros(n, *event, dtype=dtype)) for p, n in zip(parts, sizes, strict=True)]
        assert torch.equal(together, torch.cat(pieces))


@given(seed=st.sampled_from([0, 1, 2**63, 2**64 - 1]), first=st.sampled_from([0, 1, 10**6, 2**40]))
def test_any_integer_seeds_and_offsets(seed: int, first: int) -> None:
    draws = initial(PerSampleNoise(seed, first=first), 500, 3)
    assert kstest(draws.flatten().numpy(), "norm").pvalue > LEAST_P
    assert len(draws.unique()) == draws.numel()


def test_neighbouring_seeds_samples_and_draws_share_nothing() -> None:
    streams = [initial(PerSampleNoise(seed), 4000) for seed in range(8)]
    noise = PerSampleNoise(0)
    streams += [noise.normal(torch.zeros(4000, dtype=torch.float64)) for _ in range(8)][1:]
    streams.append(initial(PerSampleNoise(0, first=1), 4000))  # one sample on: another pairing of the same streams
    assert correlations(torch.stack(streams, 1)).abs().max() < FIVE / math.sqrt(4000)


def test_precision_only_rounds() -> None:
    """float32 and half draws are those of float64 but for rounding: a model in another dtype sees the same noise."""
    exact = initial(PerSampleNoise(3), 400, 7)
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        draws = initial(PerSampleNoise(3), 400, 7, dtype=dtype)
        # three float32 sums of numbers below 8.9, then one rounding to dtype
        torch.testing.assert_close(draws.double(), exact, rtol=torch.finfo(dtype).eps, atol=3 * 8 * 2.0**-24)


def test_the_atoms_have_the_moments_of_a_normal() -> None:
    for count in (16, 2**16):
        values = atoms(count)
        assert torch.equal(values, -values.flip(0)) and bool((values.diff() > 0).all())
        moments = [values.pow(k).mean().item() for k in (2, 4)]
        assert moments == pytest.approx([1, 3], rel=1e-11)  # sums of 65536 float64 terms
    # normal quantiles but for the outermost two, which make up for the moments lost inside the cells
    inner = torch.arange(1, 2**16 - 1) + 0.5
    # a mean differs from a middle by about a third of the second outermost cell's width, 0.15
    torch.testing.assert_close(values[1:-1], torch.special.ndtri(inner.double() / 2**16), rtol=0, atol=0.05)
    # Cumulants of half the sum of four: those of an atom times 4 / 2^k. The sixth, E z^6 - 15 E z^4 + 30, is 2e-4.
    assert abs(values.pow(6).mean().item() - 15) * 4 / 2**6 < 3e-4


@pytest.mark.parametrize("event", [(1,), (64,)])
def test_moments_and_tails_of_counter_normals(event: tuple[int, ...]) -> None:
    z = counter_normal((2**20 // event[0], *event), (3, 1), first=5, dtype=torch.float64, device=CPU).flatten()
    n = z.numel()
    for k, (mean, variance) in {1: (0, 1), 2: (1, 2), 3: (0, 15), 4: (3, 96), 6: (15, 10170)}.items():
        assert abs(z.pow(k).mean().item() - mean) < FIVE * math.sqrt(variance / n)
    for bound in (2.0, 3.0, 4.0, 4.5):
        expected = n * math.erfc(bound / math.sqrt(2))
        assert abs(int((z.abs() > bound).sum()) - expected) < FIVE * math.sqrt(expected) + 1
    assert kstest(z.numpy(), "norm").pvalue > LEAST_P
    assert float(z.abs().max()) <= 2 * float(atoms(2**16)[-1])  # half a sum of four


def test_bits_of_draws_elements_samples_and_seeds_are_independent() -> None:
    """Pairs of bytes from two draws, lanes, words, samples or seeds fill 256 x 256 cells evenly: chi-square."""

    def bits(seed: int, draw: int) -> Tensor:
        counter = Counter(seed, 0, (2**14, 16), torch.float32, CPU)
        return counter.lanes(absorb(begin(2), seed, draw))

    a, b, c, d = bits(0, 0), bits(0, 1), bits(0, 2), bits(1, 0)
    pairs = {
        "draws": (a, b),
        "draws apart": (a, c),
        "sums of draws": ((a + b) & 0xFFFF, c),
        "differences of draws": ((a ^ b) & 0xFFFF, c),
        "seeds": (a, d),
        "elements": (a[:, :-1], a[:, 1:]),
        "words": (a[:, :-4], a[:, 4:]),
        "samples": (a[:-1], a[1:]),
        "samples, another draw": (a[:-1], b[1:]),
    }
    for name, (left, right) in pairs.items():
        for low, high in ((0, 0), (8, 8), (0, 8), (8, 0)):
            cells = ((left >> low) & 255) * 256 + ((right >> high) & 255)
            counts = torch.bincount(cells.flatten(), minlength=2**16).double()
            expected = counts.mean()
            statistic = ((counts - expected).square() / expected).sum().item()
            # 36 of them: LEAST_P for all together
            assert LEAST_P / 72 < chi2.sf(statistic, 2**16 - 1) < 1 - LEAST_P / 72, (name, low, high)


def test_the_counter_is_a_pure_function() -> None:
    def draw(key: tuple[int, ...], first: int = 0) -> Tensor:
        return counter_normal((2, 3), key, first=first, dtype=torch.float64, device=CPU)

    assert torch.equal(draw((1, 2)), draw((1, 2))) and torch.equal(draw((1, 2), first=1)[0], draw((1, 2))[1])
    keys = [(0,), (1,), (0, 0), (0, 1), (1, 0), (0, 0, 0), (-1, 0), (2**60, 1)]
    values = [draw(key)[0, 0].item() for key in keys]
    assert len(set(values)) == len(keys)


# -- one seed, many uses -------------------------------------------------------------------------------------------


def test_equal_seeds_in_different_roles_are_independent() -> None:
    n, x = 8000, torch.zeros(8000, dtype=torch.float64)
    one, path = PerSampleNoise(5), BrownianNoise(5, 1.0)
    half, whole = (torch.tensor(v, dtype=torch.float64) for v in (0.5, 1.0))
    draws = [
        initial(PerSampleNoise(5), n),
        PerSampleNoise(5).normal(x),
        *(initial(as_noise(5, p), n) for p in ("data", "probe", "dequantise", "slices")),
        as_noise(5, "probe").normal(x),
        path.between(x, whole, half),
        brownian_path(one, 1.0).between(x, whole, half),
        brownian_path(one, 1.0).between(x, whole, half),
        brownian_path(as_noise(5, "data"), 1.0).between(x, whole, half),
        IndependentNoise(5).normal(x),
        IndependentNoise(5).stream("data").normal(x),
        brownian_path(IndependentNoise(5), 1.0).between(x, whole, half),
        brownian_path(BrownianNoise(5, 1.0).stream("data"), 1.0).between(x, whole, half),
    ]
    # the last is the same stream as the one before IndependentNoise's: one seed, one purpose, one role
    assert torch.equal(draws.pop(), draws[10])
    columns = torch.stack(draws, 1)
    assert correlations(columns).fill_diagonal_(0).abs().max() < FIVE / math.sqrt(n)
    assert correlations(columns.square() - 1).fill_diagonal_(0).abs().max() < 2 * FIVE / math.sqrt(n)


def test_a_seed_a_noise_and_a_path_are_one_stream_where_they_should_be() -> None:
    x = torch.zeros(3, 2, dtype=torch.float64)
    assert torch.equal(initial(BrownianNoise(5, 1.0), 3, 2), initial(as_noise(5), 3, 2))
    assert torch.equal(BrownianNoise(5, 1.0).normal(x), as_noise(5).normal(x))
    assert torch.equal(as_noise(PerSampleNoise(5), "data").normal(x), as_noise(5, "data").normal(x))
    noise = PerSampleNoise(5)
    for _ in range(2):
        initial(noise, 3, 2)  # the two roles count apart: how often the prior is drawn does not move the solver
    assert torch.equal(noise.normal(x), PerSampleNoise(5).normal(x))
    probes = as_noise(noise, "probe")
    assert as_noise(noise, "probe") is probes and not torch.equal(probes.normal(x), probes.normal(x))
    path = BrownianNoise(5, 1.0)
    assert brownian_path(path, 0.5) is path
    with pytest.raises(ValueError, match="a larger T"):
        brownian_path(path, 2.0)


def test_one_device_has_one_generator_whatever_it_is_called() -> None:
    noise, twin = IndependentNoise(3), IndependentNoise(3)
    a = [noise.initial((4,), dtype=torch.float64, device=torch.device(name)) for name in ("cpu:0", "cpu", "cpu:0")]
    assert torch.equal(torch.cat(a), torch.cat([initial(twin, 4) for _ in range(3)]))
    assert len(noise._generators) == 1


# -- the same numbers again ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", SOURCES.values(), ids=SOURCES)
def test_rewinding_repeats_what_followed(make: Any) -> None:
    noise, x = make(), torch.zeros(4, 3)

    def draws() -> list[Tensor]:
        probe = noise.stream("probe")
        found = [noise.normal(x), initial(noise, 4, 3), probe.normal(x), probe.normal(x)]
        return [*found, noise.between(x, torch.tensor(0.7), torch.tensor(0.3))]

    at_start = noise.position()
    first = draws()
    later = noise.position()
    second = draws()
    noise.rewind(later)
    assert all(torch.equal(a, b) for a, b in zip(second, draws(), strict=True))
    noise.rewind(at_start)  # the stream did not exist yet
    assert all(torch.equal(a, b) for a, b in zip(first, draws(), strict=True))
    assert not torch.equal(first[0], second[0]) and not torch.equal(first[2], second[2])


def test_a_rewound_source_of_paths_gives_the_same_path() -> None:
    x, t, s = torch.zeros(4, 3), torch.tensor(0.7), torch.tensor(0.3)
    for noise in (PerSampleNoise(1), IndependentNoise(1)):
        start = noise.position()
        first, second = (brownian_path(noise, 1.0).between(x, t, s) for _ in range(2))
        noise.rewind(start)
        assert torch.equal(brownian_path(noise, 1.0).between(x, t, s), first) and not torch.equal(first, second)


def test_a_position_is_for_its_kind_of_noise_and_a_users_noise_says_what_it_lacks() -> None:
    class Own(Noise):
        def initial(self, shape: tuple[int, ...], *, dtype: torch.dtype, device: torch.device) -> Tensor:
            return torch.zeros(shape)

        def normal(self, x: Tensor) -> Tensor:
            return torch.zeros_like(x)

    with pytest.raises(TypeError, match="Own cannot draw its numbers again"):
        Own().position()
    with pytest.raises(TypeError, match=r"Own has no rewind\(\)"):
        Own().rewind(None)
    for noise, other in ((PerSampleNoise(0), IndependentNoise(0)), (IndependentNoise(0), PerSampleNoise(0))):
        with pytest.raises(TypeError, match="what its own position"):
            noise.rewind(other.position())


# -- bad input -----------------------------------------------------------------------------------------------------


def test_as_noise() -> None:
    kept = PerSampleNoise(1)
    assert as_noise(kept) is kept
    assert isinstance(as_noise(3), PerSampleNoise) and isinstance(as_noise(generator(3)), IndependentNoise)
    assert torch.equal(initial(as_noise(3), 2, 2), initial(PerSampleNoise(3), 2, 2))
    assert torch.equal(initial(as_noise(generator(3)), 2), initial(IndependentNoise(generator(3)), 2))
    assert torch.equal(initial(as_noise(np.int64(3)), 2, 2), initial(PerSampleNoise(3), 2, 2))  # type: ignore[arg-type]
    for bad in (None, 0.5, "seed", True, normal(2)):
        with pytest.raises(TypeError, match=r"a Noise, a torch\.Generator or an integer seed"):
            as_noise(bad)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: IndependentNoise(0.5), TypeError, "seed must be a whole number"),
        (lambda: PerSampleNoise(-1), ValueError, "seed must be a whole number from 0"),
        (lambda: IndependentNoise(2**64), ValueError, "seed must be a whole number from 0"),
        (lambda: PerSampleNoise("a"), TypeError, "seed must be a whole number"),
        (lambda: PerSampleNoise(True), TypeError, "seed must be a whole number"),
        (lambda: BrownianNoise(None, 1.0), TypeError, "seed must be a whole number"),
        (lambda: PerSampleNoise(0, first=-1), ValueError, "first must be"),
        (lambda: PerSampleNoise(0, first=1.5), TypeError, "first must be a whole number"),
        (lambda: BrownianNoise(0, 1.0, first=-1), ValueError, "first must be"),
        (lambda: BrownianNoise(0, 0.0), ValueError, "T must be positive"),
        (lambda: BrownianNoise(0, math.nan), ValueError, "T must be positive"),
        (lambda: BrownianNoise(0, math.inf), ValueError, "T must be positive"),
        (lambda: BrownianNoise(0, 1.0, levels=0), ValueError, "levels must be a whole number from 1 to 40"),
        (lambda: BrownianNoise(0, 1.0, levels=41), ValueError, "levels must be a whole number from 1 to 40"),
        (lambda: BrownianNoise(0, 1.0).w(normal(2), 1.1), ValueError, "give BrownianNoise a larger T"),
        (lambda: BrownianNoise(0, 1.0).w(normal(2), -0.1), ValueError, "t must lie on the path"),
        (lambda: BrownianNoise(0, 1.0).w(normal(2), math.nan), ValueError, "t must lie on the path"),
        (
            lambda: BrownianNoise(0, 1.0).between(normal(2), torch.ones(3), torch.zeros(2)),
            ValueError,
            "one for each sample",
        ),
        (
            lambda: BrownianNoise(0, 1.0).between(normal(2), torch.ones(2), torch.tensor([0.5, -0.5])),
            ValueError,
            "t must lie on the path",
        ),
        (
            lambda: BrownianNoise(0, 1.0).between(normal(2), torch.tensor(0.5), torch.tensor(0.5)),
            ValueError,
            "no length",
        ),
        (lambda: initial(PerSampleNoise(0), 2, dtype=torch.int64), TypeError, "floating dtype"),
    ],
)
def test_bad_requests(call: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()
