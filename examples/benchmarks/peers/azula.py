"""azula's samplers, on any noise levels: its schedules differ only in them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from peers.peer import Oracle, Peer, Run, named


def _run(sampler: str, **options: Any) -> Run:
    def run(oracle: Oracle, y: Tensor, ratios: Tensor) -> Tensor:
        from azula import sample
        from azula.denoise import Denoiser, DiracPosterior
        from azula.noise import Schedule

        class Levels(Schedule):  # type: ignore[misc]
            """α = 1, σ the i-th of ``ratios`` at azula's i-th linear time."""

            def __call__(self, t: Tensor) -> tuple[Tensor, Tensor]:
                steps = len(ratios) - 1
                return torch.ones_like(t), ratios[((1 - t) * steps).round().long()]

        class Exact(Denoiser):  # type: ignore[misc]
            """The oracle."""

            def __init__(self) -> None:
                super().__init__()
                self.schedule = Levels()

            def forward(self, x_t: Tensor, t: Tensor) -> DiracPosterior:
                return DiracPosterior(mean=oracle(x_t, self.schedule(t)[1]))

        made = getattr(sample, sampler)(
            Exact(), start=1.0, stop=0.0, steps=len(ratios) - 1, silent=True, dtype=torch.float64, **options
        )
        out: Tensor = made(y)
        return out

    return run


def ode() -> dict[str, Peer]:
    """DDIM (its Euler is the same map), Heun and the Adams-Bashforth families at orders 2 to 6."""
    families: list[str] = ["zAB", "vAB", "zEAB", "xEAB", "REAB"]
    return named(
        "azula",
        [
            Peer("DDIM", _run("DDIMSampler")),
            Peer("Heun", _run("HeunSampler"), per_step=2),
            *(Peer(f"{kind} order {k}", _run(f"{kind}Sampler", order=k)) for kind in families for k in range(2, 7)),
        ],
    )


def sde() -> dict[str, Peer]:
    """Its stochastic samplers."""
    makers: dict[str, Callable[[], Run]] = {
        "DDPM": lambda: _run("DDPMSampler"),
        "Ito eta 1": lambda: _run("ItoSampler", eta=1.0),
    }
    pc = Peer("PC delta 0.1", _run("PCSampler", delta=0.1), per_step=2)
    return named("azula", [*(Peer(name, make()) for name, make in makers.items()), pc])
