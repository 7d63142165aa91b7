"""Peers on a score that costs nothing, used as their documentation shows: for the overhead of their steps."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import torchsde
from torch import Tensor

from contest.timing import Work
from peers.diffusers import made as scheduler_of
from peers.kdiffusion import sampling


class Free:
    """A model of no cost that answers every library and counts what it is asked."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, x: Tensor, *_: object) -> Tensor:
        self.calls += 1
        return -x


def kdiffusion(model: Free, x: Tensor, steps: int) -> dict[str, Work]:
    """Samplers of one evaluation a step; the stochastic one with its own Brownian tree."""
    k = sampling()
    sigmas = k.get_sigmas_karras(steps, 0.002, 80.0)
    names = ("euler", "dpmpp_2m", "euler_ancestral", "dpmpp_2m_sde")
    runs = {n: getattr(k, f"sample_{n}") for n in names}
    return {f"k-diffusion {n}": partial(run, model, x, sigmas, disable=True) for n, run in runs.items()}


def diffusers(model: Free, x: Tensor, steps: int) -> dict[str, Work]:
    """Schedulers in the loop of diffusers' own examples."""

    def run(name: str, options: dict[str, Any]) -> Tensor:
        scheduler, y = scheduler_of(name, steps, **options), x
        for t in scheduler.timesteps:
            y = scheduler.step(model(scheduler.scale_model_input(y, t), t), t, y).prev_sample
        return y

    kinds: dict[str, tuple[str, dict[str, Any]]] = {
        "DDIM": ("DDIMScheduler", {}),
        "Euler": ("EulerDiscreteScheduler", {}),
        "DPM-Solver++ 2M": ("DPMSolverMultistepScheduler", {}),
        "UniPC": ("UniPCMultistepScheduler", {}),
        "SDE-DPM-Solver++ 2M": ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}),
        "SA-Solver": ("SASolverScheduler", {}),
    }
    return {f"diffusers {kind}": partial(run, *how) for kind, how in kinds.items()}


def azula(model: Free, x: Tensor, steps: int) -> dict[str, Work]:
    """Samplers on its VP schedule."""
    from azula import sample
    from azula.denoise import Denoiser, DiracPosterior
    from azula.noise import VPSchedule

    class Trivial(Denoiser):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.schedule = VPSchedule()

        def forward(self, x_t: Tensor, t: Tensor) -> DiracPosterior:
            return DiracPosterior(mean=model(x_t, t))

    options = {"steps": steps, "silent": True}
    made = {
        "DDIM": sample.DDIMSampler(Trivial(), **options),
        "zAB 3": sample.zABSampler(Trivial(), order=3, **options),
        "xEAB 3": sample.xEABSampler(Trivial(), order=3, **options),
        "DDPM": sample.DDPMSampler(Trivial(), **options),
    }
    return {f"azula {name}": partial(sampler, x) for name, sampler in made.items()}


def sdeint(model: Free, x: Tensor, steps: int) -> dict[str, Work]:
    """torchsde's Euler on the same linear drift, with its default Brownian interval."""

    class Process(torch.nn.Module):
        noise_type, sde_type = "diagonal", "ito"

        def f(self, t: Tensor, y: Tensor) -> Tensor:
            return -0.5 * y - 0.5 * model(y, t)

        def g(self, t: Tensor, y: Tensor) -> Tensor:
            return torch.full_like(y, 0.1)

    times = torch.tensor([0.0, 1.0])
    flat = x.flatten(1)

    def run() -> Tensor:
        out: Tensor = torchsde.sdeint(Process(), flat, times, method="euler", dt=1 / steps)
        return out

    return {"torchsde euler": run}


def contestants(model: Free, x: Tensor, steps: int) -> dict[str, Work]:
    """Those that are installed; the others are named on the way out."""
    found: dict[str, Work] = {}
    for library in (kdiffusion, diffusers, azula, sdeint):
        try:
            found |= library(model, x, steps)
        except ModuleNotFoundError as error:
            print(f"left out: {error}")
    return found
