"""k-diffusion's samplers.

The package imports torchvision, clip and others for parts that have nothing to do with sampling. Its sampling file
needs one function of its utils, so the file is loaded on its own with that function beside it.
"""

from __future__ import annotations

import functools
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from peers.peer import Oracle, Peer, Run, named


@functools.cache
def sampling() -> ModuleType:
    """k_diffusion.sampling without the rest of the package.

    Raises:
        ModuleNotFoundError: k-diffusion is not installed.
    """
    package = importlib.util.find_spec("k_diffusion")
    if package is None or package.origin is None:
        raise ModuleNotFoundError("k-diffusion is not installed: pip install --no-deps k-diffusion")
    stand_in = ModuleType("k_diffusion_alone")
    stand_in.__path__ = []
    utils = ModuleType("k_diffusion_alone.utils")
    utils.append_dims = lambda x, ndim: x.reshape(*x.shape, *[1] * (ndim - x.ndim))  # type: ignore[attr-defined]
    stand_in.utils = utils  # type: ignore[attr-defined]
    spec = importlib.util.spec_from_file_location(
        "k_diffusion_alone.sampling", Path(package.origin).parent / "sampling.py"
    )
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules |= {"k_diffusion_alone": stand_in, "k_diffusion_alone.utils": utils, spec.name: module}
    spec.loader.exec_module(module)
    return module


def _run(function: str, **options: Any) -> Run:
    def run(oracle: Oracle, y: Tensor, ratios: Tensor) -> Tensor:
        sample: Callable[..., Tensor] = getattr(sampling(), function)
        made = {key: value(y) if key == "noise_sampler" else value for key, value in options.items()}
        return sample(oracle, y, ratios, disable=True, **made)

    return run


def _fast(oracle: Oracle, y: Tensor, ratios: Tensor) -> Tensor:
    """DPM-Solver-fast takes the number of evaluations and the ends."""
    first, last = (float(r) for r in (ratios[0], ratios[-1]))
    out: Tensor = sampling().sample_dpm_fast(oracle, y, last, first, len(ratios) - 1, disable=True)
    return out


def ode() -> dict[str, Peer]:
    """Deterministic samplers; the stochastic ones at eta = 0 are methods of their own."""
    zero: dict[str, Any] = {"eta": 0.0, "noise_sampler": lambda y: lambda a, b: torch.zeros_like(y)}
    return named(
        "k-diffusion",
        [
            Peer("euler", _run("sample_euler")),
            Peer("heun", _run("sample_heun"), per_step=2),
            Peer("dpm_2", _run("sample_dpm_2"), per_step=2),
            *(Peer(f"lms order {k}", _run("sample_lms", order=k)) for k in (2, 3, 4)),
            Peer("dpm_fast", _fast, least=3, any_grid=False),
            Peer("dpmpp_2s", _run("sample_dpmpp_2s_ancestral", **zero), per_step=2),
            Peer("dpmpp_2m", _run("sample_dpmpp_2m")),
            Peer("dpmpp_2m_sde heun eta 0", _run("sample_dpmpp_2m_sde", solver_type="heun", **zero)),
            Peer("dpmpp_3m_sde eta 0", _run("sample_dpmpp_3m_sde", **zero)),
        ],
    )


class NestedNoise:
    """The increments of k-diffusion's Brownian tree on the queries that dpmpp_sde makes: (a, b), then (a, c) past b.

    Equal in law to the tree, which takes minutes on 20,000 samples.
    """

    def __init__(self, y: Tensor) -> None:
        self.like, self.start, self.reached = y, -1.0, -1.0
        self.w = torch.zeros_like(y)

    def __call__(self, a: Tensor, b: Tensor) -> Tensor:
        start, end = float(a), float(b)
        if abs(start - self.start) > 1e-9 * start:
            self.start, self.reached, self.w = start, start, torch.zeros_like(self.like)
        self.w = self.w + torch.randn_like(self.w) * (self.reached - end) ** 0.5
        self.reached = end
        increment: Tensor = self.w / (start - end) ** 0.5
        return increment


def _fresh(y: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
    """Independent normals: what a Brownian path gives on intervals that do not overlap."""
    return lambda a, b: torch.randn_like(y)


def sde() -> dict[str, Peer]:
    """Stochastic samplers at eta = 1, their default, and Heun with the churn of EDM's table 5 (ImageNet)."""
    churn = {"s_churn": 40.0, "s_tmin": 0.05, "s_tmax": 50.0, "s_noise": 1.003}
    return named(
        "k-diffusion",
        [
            Peer("euler_ancestral", _run("sample_euler_ancestral")),
            Peer("dpm_2_ancestral", _run("sample_dpm_2_ancestral"), per_step=2),
            Peer("dpmpp_2s_ancestral", _run("sample_dpmpp_2s_ancestral"), per_step=2),
            Peer("dpmpp_sde", _run("sample_dpmpp_sde", noise_sampler=NestedNoise), per_step=2),
            *(
                Peer(f"dpmpp_2m_sde {kind}", _run("sample_dpmpp_2m_sde", solver_type=kind, noise_sampler=_fresh))
                for kind in ("midpoint", "heun")
            ),
            Peer("dpmpp_3m_sde", _run("sample_dpmpp_3m_sde", noise_sampler=_fresh)),
            Peer("heun churn 40", _run("sample_heun", **churn), per_step=2),
        ],
    )
