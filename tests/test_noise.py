"""Randomness: the right law, no global state, the same sample in any batch, the same path at any step size."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chi2, kstest
from strategies import DTYPES, EVENTS, generator, normal, seeds
from torch import Tensor

import scoresde.noise as noise_module
from scoresde.noise import BrownianNoise, IndependentNoise, Noise, PerSampleNoise, as_noise, counter_normal

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


@given(seed=st.sampled_from([0, 1, -1, 2**63, 2**64 - 1]), first=st.sampled_from([0, 1, 10**6, 2**40]))
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
    """float32 and half draws are those of float64, rounded: a model in another dtype sees the same noise."""
    exact = initial(PerSampleNoise(3), 4, 7)
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        assert torch.equal(initial(PerSampleNoise(3), 4, 7, dtype=dtype), exact.to(dtype))
    assert float(exact.abs().max()) < 8.7  # sqrt(2 log 2^54): the ends of the 53-bit uniforms stay finite


def test_the_counter_is_a_pure_function() -> None:
    def draw(key: tuple[int, ...], first: int = 0) -> Tensor:
        return counter_normal((2, 3), key, first=first, dtype=torch.float64, device=CPU)

    assert torch.equal(draw((1, 2)), draw((1, 2))) and torch.equal(draw((1, 2), first=1)[0], draw((1, 2))[1])
    keys = [(0,), (1,), (0, 0), (0, 1), (1, 0), (0, 0, 0), (-1, 0), (2**60, 1)]
    values = [draw(key)[0, 0].item() for key in keys]
    assert len(set(values)) == len(keys)


# -- Brownian ------------------------------------------------------------------------------------------------------


def at(noise: BrownianNoise, x: Tensor, *times: float) -> Tensor:
    return torch.stack([noise.w(x, t) for t in times], -1)


@settings(max_examples=12)
@given(
    seed=seeds(),
    end=st.floats(0.1, 100),
    parts=st.lists(st.floats(0, 1), min_size=1, max_size=12),
    event=EVENTS,
    dtype=DTYPES,
)
def test_one_path_whatever_is_asked_before(
    seed: int, end: float, parts: list[float], event: tuple[int, ...], dtype: torch.dtype
) -> None:
    x = torch.zeros(3, *event, dtype=dtype)
    times = [end * p for p in parts]
    forward = [BrownianNoise(seed, end).w(x, t) for t in times]  # each from a fresh object
    one = BrownianNoise(seed, end)
    order = random.Random(seed).sample(range(len(times)), len(times))
    for i in [*order, *order[::-1]]:
        assert torch.equal(one.w(x, times[i]), forward[i])
        one.normal(x)  # draws outside the path do not move it
    tail = BrownianNoise(seed, end, first=1)
    for t, whole in zip(times, forward, strict=True):  # nor does the batch
        assert torch.equal(tail.w(x[:2], t), whole[1:])
        assert torch.equal(one.w(x[:1], t), whole[:1])
    assert bool((one.w(x, end) == 0).all())  # counted from the noise end


def test_the_path_outlives_its_cache() -> None:
    noise, x = BrownianNoise(1, 2.0, levels=6), torch.zeros(2, dtype=torch.float64)
    times = torch.linspace(0, 2, 301).tolist()  # more nodes than are kept
    first = at(noise, x, *times)
    assert torch.equal(at(noise, x, *times[::-1]).flip(-1), first)
    assert len(noise._nodes) <= 4 * 6 + 1


@given(end=st.floats(0.5, 50), parts=st.tuples(*[st.floats(0, 1)] * 3).filter(lambda p: len(set(p)) == 3))
def test_increments_nest(end: float, parts: tuple[float, float, float]) -> None:
    """Normalised increments over [s, u] and [u, t] add up to that over [s, t]: coarse steps see the fine path."""
    noise, x = BrownianNoise(3, end), torch.zeros(4, 2, dtype=torch.float64)
    s, u, t = (torch.tensor(end * p, dtype=torch.float64) for p in sorted(parts))
    if min(u - s, t - u) < 1e-6 * end:
        return  # below the resolution of the tree
    coarse = (t - s).sqrt() * noise.between(x, t, s)
    fine = (t - u).sqrt() * noise.between(x, t, u) + (u - s).sqrt() * noise.between(x, u, s)
    torch.testing.assert_close(fine, coarse, rtol=1e-12, atol=1e-14 * math.sqrt(end))  # roundings of w
    torch.testing.assert_close(coarse, noise.w(x, float(s)) - noise.w(x, float(t)), rtol=1e-12, atol=1e-14)
    assert torch.equal(noise.between(x, s, t), noise.between(x, t, s))  # |t - s| either way


@pytest.mark.parametrize("levels", [1, 3, 40])
def test_covariance_is_that_of_brownian_motion(levels: int) -> None:
    """Cov(w(a), w(b)) = min(T - a, T - b) at the nodes, between which the path is linear."""
    end, n = 2.5, 40_000
    times = [0.0, 0.3, 0.625, 1.0, 1.25, 1.9, 2.4]
    path = at(BrownianNoise(8, end, levels=levels), torch.zeros(n, dtype=torch.float64), *times)
    # w(t) = (1 - p) w(a) + p w(b) with a, b the nodes around t, counted in cells from T
    cell = end / 2**levels
    where = (end - torch.tensor(times, dtype=torch.float64)) / cell
    nodes = torch.stack([where.floor(), where.floor() + 1], 1)  # (n, 2)
    weights = torch.stack([1 - where.frac(), where.frac()], 1)
    covariance = cell * torch.minimum(nodes[:, :, None, None], nodes)  # of w at the nodes, (n, 2, n, 2)
    expected = torch.einsum("ia,iajb,jb->ij", weights, covariance, weights)
    if levels == 40:  # cells of 2e-12: Brownian motion itself
        exact = torch.tensor([[end - max(a, b) for b in times] for a in times], dtype=torch.float64)
        torch.testing.assert_close(expected, exact, rtol=0, atol=cell)
    deviation = ((expected**2 + expected.diag()[:, None] * expected.diag()) / n).sqrt()  # of a sample covariance
    assert bool(((path.T @ path / n - expected).abs() < FIVE * deviation).all())
    assert bool((path.mean(0).abs() < FIVE * (expected.diag() / n).sqrt()).all())
    for column, variance in zip(path.T, expected.diag().tolist(), strict=True):
        assert kstest((column / math.sqrt(variance)).numpy(), "norm").pvalue > LEAST_P


@pytest.mark.parametrize("steps", [64, 300])
def test_quadratic_variation(steps: int) -> None:
    """Σ (Δw)² = T with variance 2 T²/steps for each path."""
    end, x = 3.0, torch.zeros(50, dtype=torch.float64)
    path = at(BrownianNoise(2, end), x, *torch.linspace(end, 0, steps + 1, dtype=torch.float64).tolist())
    variation = path.diff().square().sum(-1)
    assert variation.mean().item() == pytest.approx(end, abs=FIVE * end * math.sqrt(2 / steps / 50))
    # and the increments are independent normals
    scaled = path.diff() / math.sqrt(end / steps)
    assert kstest(scaled.flatten().numpy(), "norm").pvalue > LEAST_P
    neighbours = (scaled[:, 1:] * scaled[:, :-1]).mean()
    assert neighbours.abs() < FIVE / math.sqrt(50 * (steps - 1))


def test_paths_differ_between_samples_seeds_and_from_the_prior() -> None:
    x = torch.zeros(2, 3, dtype=torch.float64)
    path = BrownianNoise(4, 1.0).w(x, 0.0)
    assert path.unique().numel() == 6 and not torch.equal(path, BrownianNoise(5, 1.0).w(x, 0.0))
    fresh = BrownianNoise(4, 1.0)
    assert not any(torch.isin(draw, path).any() for draw in (initial(fresh, 2, 3), fresh.normal(x), fresh.normal(x)))
    longer = BrownianNoise(4, 4.0).w(x, 0.0)
    torch.testing.assert_close(longer, 2 * path, rtol=1e-14, atol=0.0)  # w(T) scales as sqrt(T)


def test_half_precision_increments_are_not_differences_of_rounded_paths() -> None:
    x, t, s = torch.zeros(4000), torch.tensor(0.5), torch.tensor(0.4995)
    exact = BrownianNoise(0, 1.0).between(x.double(), t, s)
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        got = BrownianNoise(0, 1.0).between(x.to(dtype), t, s)
        # float32 path: 6e-8 of values below 4, over sqrt(5e-4); then one rounding to dtype
        torch.testing.assert_close(got.double(), exact, rtol=torch.finfo(dtype).eps, atol=1e-4)


def test_the_path_is_continuous() -> None:
    """Times a rounding apart: |Δw| <= |Δt| |slope|, and a slope is a normal over sqrt(cell)."""
    noise, x = BrownianNoise(6, 80.0), torch.zeros(500, dtype=torch.float64)
    for t in (79.9, 33.3, 1.0, 0.002):
        near = math.nextafter(t, 80.0)
        step = 2.0**-53 * 80 + (near - t)  # 1 - t/T rounds too
        bound = 6 * step / math.sqrt(80 / 2**40) + 1e-14  # six deviations; roundings of w
        assert float((noise.w(x, near) - noise.w(x, t)).abs().max()) < bound < 1e-7


def test_steps_below_the_resolution_are_refused() -> None:
    noise, x = BrownianNoise(1, 1.0, levels=10), torch.zeros(4000, dtype=torch.float64)
    start, cell = 0.7003, 2.0**-10
    at_limit = noise.between(x, torch.tensor(start).double(), torch.tensor(start - 16.01 * cell).double())
    # variance between 1 - 1/32 and 1, five standard errors sqrt(2/n)
    assert 1 - 1 / 32 - FIVE * math.sqrt(2 / 4000) < float(at_limit.var()) < 1 + FIVE * math.sqrt(2 / 4000)
    with pytest.raises(ValueError, match="more levels"):
        noise.between(x, torch.tensor(start).double(), torch.tensor(start - 15.9 * cell).double())
    with pytest.raises(ValueError, match="more levels"):
        noise.check(torch.tensor([1.0, 0.5, 0.5 - cell], dtype=torch.float64))
    with pytest.raises(ValueError, match="a larger T"):
        noise.check(torch.tensor([1.5, 0.5], dtype=torch.float64))
    noise.check(torch.tensor([1.0, 0.5, 0.1], dtype=torch.float64))


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
        one.path(1.0).between(x, whole, half),
        one.path(1.0).between(x, whole, half),
        as_noise(5, "data").path(1.0).between(x, whole, half),
        IndependentNoise(5).normal(x),
        IndependentNoise(5).stream("data").normal(x),
        IndependentNoise(5).path(1.0).between(x, whole, half),
        BrownianNoise(5, 1.0).stream("data").path(1.0).between(x, whole, half),
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
    assert path.path(0.5) is path
    with pytest.raises(ValueError, match="a larger T"):
        path.path(2.0)


def test_one_device_has_one_generator_whatever_it_is_called() -> None:
    noise, twin = IndependentNoise(3), IndependentNoise(3)
    a = [noise.initial((4,), dtype=torch.float64, device=torch.device(name)) for name in ("cpu:0", "cpu", "cpu:0")]
    assert torch.equal(torch.cat(a), torch.cat([initial(twin, 4) for _ in range(3)]))
    assert len(noise._generators) == 1


def test_uniforms_never_reach_one() -> None:
    """The largest of 2^52 cells: its middle is below 1 in float64, as those of 2^53 cells are not."""
    assert (2**52 - 1 + 0.5) * 2.0**-52 < 1 and (2**53 - 1 + 0.5) * 2.0**-53 == 1.0
    bits, real = torch.tensor([[-1, 0]]), noise_module._mix
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(noise_module, "_mix", lambda z: bits if isinstance(z, Tensor) and z.numel() == 2 else real(z))
        draws = counter_normal((1, 2), (1,), first=0, dtype=torch.float64, device=CPU)
    # u_1 = 1 - 2^-53 gives a small radius, not 0; u_2 = 2^-53
    assert bool((draws != 0).all()) and bool(draws.isfinite().all())


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
        (lambda: IndependentNoise(0.5), TypeError, "seed must be an integer"),
        (lambda: PerSampleNoise("a"), TypeError, "seed must be an integer"),
        (lambda: PerSampleNoise(True), TypeError, "seed must be an integer"),
        (lambda: BrownianNoise(None, 1.0), TypeError, "seed must be an integer"),
        (lambda: PerSampleNoise(0, first=-1), ValueError, "first must be"),
        (lambda: PerSampleNoise(0, first=1.5), ValueError, "first must be a whole number"),
        (lambda: BrownianNoise(0, 1.0, first=-1), ValueError, "first must be"),
        (lambda: BrownianNoise(0, 0.0), ValueError, "T must be positive"),
        (lambda: BrownianNoise(0, math.nan), ValueError, "T must be positive"),
        (lambda: BrownianNoise(0, math.inf), ValueError, "T must be positive"),
        (lambda: BrownianNoise(0, 1.0, levels=0), ValueError, "levels must lie in"),
        (lambda: BrownianNoise(0, 1.0, levels=41), ValueError, "levels must lie in"),
        (lambda: BrownianNoise(0, 1.0).w(normal(2), 1.1), ValueError, "give BrownianNoise a larger T"),
        (lambda: BrownianNoise(0, 1.0).w(normal(2), -0.1), ValueError, "the path lives on"),
        (lambda: BrownianNoise(0, 1.0).w(normal(2), math.nan), ValueError, "the path lives on"),
        (
            lambda: BrownianNoise(0, 1.0).between(normal(2), torch.ones(2), torch.ones(2)),
            ValueError,
            "per-sample times",
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
