"""What property-based tests draw: SDEs with their parameters, times, shapes, dtypes."""

from __future__ import annotations

import math
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

from scoresde.sde import EDM, SDE, VE, VP, Chain, ChainSDE, Cosine, LinearSDE, RectifiedFlow, ScheduleSDE, SubVP

DEFAULTS: tuple[SDE, ...] = (VP(), SubVP(), VE(), EDM(), Cosine(), RectifiedFlow())
"""The members with closed forms, as a newcomer makes them."""


def rescaled_ddpm(n: int = 1000) -> Chain:
    """DDPM's chain brought to zero terminal SNR (Lin et al. 2024, arXiv:2305.08891, Alg. 1), whose last ratio is 0."""
    chain = VP().discretize(n)
    root = chain.alpha  # sqrt(ᾱ)
    root = (root - root[-1]) * root[0] / (root[0] - root[-1])
    ratio = root / torch.cat([torch.ones_like(root[:1]), root[:-1]])
    return Chain(times=chain.times, ratio=ratio, variance=1 - ratio**2)


ZERO_TERMINAL: dict[str, SDE] = {
    "RectifiedFlow": RectifiedFlow(T=1.0),
    "Cosine": Cosine(T=1.0),
    "rounded": ScheduleSDE(lambda t: torch.cos(0.5 * math.pi * t), lambda t: torch.sin(0.5 * math.pi * t)),
    "chain": ChainSDE(rescaled_ddpm(50)),
}
"""SDEs whose x_T says nothing of x_0: α(T) is 0, or 6e-17 where rounding makes cos(π/2) of it."""


def name(value: object) -> str:
    """For pytest's ids."""
    return type(value).__name__


def between(low: float, high: float) -> st.SearchStrategy[float]:
    """Finite floats of a closed range, without subnormals."""
    return st.floats(low, high, allow_nan=False, allow_subnormal=False)


def _linear_beta(kind: type[SDE]) -> st.SearchStrategy[SDE]:
    return st.builds(
        lambda low, rise, T, t_min: kind(beta_min=low, beta_max=low + rise, T=T, t_min=t_min),  # type: ignore[call-arg]
        between(0.01, 2.0),
        between(0.0, 30.0),
        between(0.3, 1.5),
        between(1e-5, 1e-2),
    )


def members() -> st.SearchStrategy[SDE]:
    """The closed-form members of the family, with their parameters drawn."""
    below_one = between(0.5, 0.999)
    t_min = between(1e-5, 1e-2)
    return st.one_of(
        _linear_beta(VP),
        _linear_beta(SubVP),
        st.builds(VE, sigma_min=between(1e-3, 0.1), sigma_max=between(1.0, 400.0), T=between(0.5, 2.0), t_min=t_min),
        st.builds(EDM, T=between(10.0, 100.0), t_min=t_min),
        st.builds(Cosine, s=between(1e-3, 0.1), T=below_one, t_min=t_min),
        st.builds(RectifiedFlow, T=below_one, t_min=t_min),
    )


def bare(sde: SDE) -> ScheduleSDE:
    """The same α and σ and nothing else: whatever is asked of it, the base class derives."""
    return ScheduleSDE(sde.alpha, sde.sigma, T=sde.T, t_min=sde.t_min)


def integrated(sde: SDE) -> LinearSDE:
    """The same f and g and nothing else: α and σ come from quadrature. For members with σ(0) = 0."""
    return LinearSDE(sde.f, sde.g, T=sde.T, t_min=sde.t_min)


_smooth = st.builds(  # f and g of one's own, away from every named member
    lambda a, b, c: LinearSDE(lambda t: -a * (1 + torch.sin(b * t)), lambda t: c * (1 + t**2), T=1.2),
    between(0.1, 3.0),
    between(0.5, 6.0),
    between(0.3, 2.0),
)
_circle = st.builds(lambda end: ScheduleSDE(torch.cos, torch.sin, T=end), between(0.8, 1.5))


def custom() -> st.SearchStrategy[SDE]:
    """SDEs from a user's functions or chain."""
    chains = st.builds(lambda n: ChainSDE(VP().discretize(n)), st.integers(25, 60))
    return st.one_of(_smooth, _circle, chains, st.sampled_from([VP(), SubVP(), Cosine(T=0.9)]).map(bare))


def sdes() -> st.SearchStrategy[SDE]:
    """Any SDE of the library."""
    return st.one_of(members(), members(), custom())


def seeds() -> st.SearchStrategy[int]:
    """Seeds of generators."""
    return st.integers(0, 2**31)


def generator(seed: int) -> torch.Generator:
    """A generator of its own: tests touch no global state either."""
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    """Standard normals, the same for the same seed."""
    return torch.randn(shape, generator=generator(seed), dtype=dtype)


DTYPES = st.sampled_from([torch.float32, torch.float64])
EVENTS = st.sampled_from([(), (1,), (3,), (2, 3), (1, 4, 4), (2, 3, 2, 2)])
"""Event shapes of rank 0 to 4."""


def fractions() -> st.SearchStrategy[float]:
    """Where between its ends a time lies."""
    return st.one_of(st.sampled_from([0.0, 1.0]), between(0.0, 1.0))


def at(sde: SDE, *parts: float) -> list[float]:
    """The times at these fractions of [t_min, T], increasing."""
    return [min(sde.t_min + (sde.T - sde.t_min) * part, sde.T) for part in sorted(parts)]


def grid_of(sde: SDE, n: int = 33) -> Tensor:
    """(n,) times from t_min to T, dense near both ends, where schedules are steep."""
    part = 0.5 - 0.5 * torch.cos(torch.linspace(0, torch.pi, n, dtype=torch.float64))
    return (sde.t_min + (sde.T - sde.t_min) * part).clamp_max(sde.T)


def draw_times(data: Any, sde: SDE, batch: int) -> Tensor:
    """(batch,) times in [t_min, T]."""
    return torch.tensor([at(sde, data.draw(fractions()))[0] for _ in range(batch)], dtype=torch.float64)
