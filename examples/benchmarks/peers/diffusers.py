"""diffusers' schedulers, their tables of noise levels replaced by ours.

A scheduler rounds its levels to those of a chain of 1000 and ends at σ = 0; here it is given the float64 levels of the
benchmark's grid, the last of which is t_min, so that it integrates the same ODE between the same ends as everybody. Its
state is x in variance-preserving coordinates, x/α over sqrt(1 + (σ/α)²).
"""

from __future__ import annotations

import importlib
import warnings
from typing import Any

import torch
from torch import Tensor

from peers.peer import Oracle, Peer, Run, named


def made(name: str, steps: int, **options: Any) -> Any:
    """A scheduler, made for so many steps; the package is loaded when it is first asked for."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scheduler = getattr(importlib.import_module("diffusers"), name)(**options)
    scheduler.set_timesteps(steps)
    return scheduler


def _one_by_one(scheduler: Any, levels: int) -> None:
    """Makes the scheduler take its levels one by one from the first."""
    scheduler.timesteps = torch.arange(levels - 1, 0, -1)
    scheduler.set_begin_index(0)


def _run(name: str, **options: Any) -> Run:
    """Schedulers that keep x in variance-preserving coordinates and take E[x_0 | x_t] ("sample" prediction)."""

    def run(oracle: Oracle, y: Tensor, ratios: Tensor) -> Tensor:
        scheduler = made(name, len(ratios) - 1, prediction_type="sample", **options)
        scheduler.sigmas = ratios.clone()
        _one_by_one(scheduler, len(ratios))
        scale = (1 + ratios**2).sqrt()
        x = y / scale[0]
        for i, t in enumerate(scheduler.timesteps):
            x = scheduler.step(oracle(scale[i] * x, ratios[i]), t, x, return_dict=False)[0]
        return x * scale[-1]

    return run


def _heun(oracle: Oracle, y: Tensor, ratios: Tensor) -> Tensor:
    """HeunDiscrete keeps x/α, asks twice for each level but the first and ends with an Euler step."""
    scheduler = made("HeunDiscreteScheduler", len(ratios) - 1, prediction_type="sample")
    scheduler.sigmas = torch.cat([ratios[:1], ratios[1:-1].repeat_interleave(2), ratios[-1:]])
    _one_by_one(scheduler, len(scheduler.sigmas))
    for i, t in enumerate(scheduler.timesteps):
        y = scheduler.step(oracle(y, scheduler.sigmas[i]), t, y, return_dict=False)[0]
    return y


def _ipndm(oracle: Oracle, y: Tensor, ratios: Tensor) -> Tensor:
    """IPNDM takes v = α ε - σ x_0 and has its own names for α and σ."""
    scheduler = made("IPNDMScheduler", len(ratios) - 1)
    scale = (1 + ratios**2).sqrt()
    scheduler.alphas, scheduler.betas = 1 / scale, ratios / scale
    _one_by_one(scheduler, len(ratios))
    x = y / scale[0]
    for i, t in enumerate(scheduler.timesteps):
        x0 = oracle(scale[i] * x, ratios[i])
        alpha, sigma = scheduler.alphas[i], scheduler.betas[i]
        v = alpha * (x - alpha * x0) / sigma - sigma * x0
        x = scheduler.step(v, t, x, return_dict=False)[0]
    return x * scale[-1]


def ode() -> dict[str, Peer]:
    """DPM-Solver(++), single-step too, UniPC, DEIS, Heun, IPNDM, with and without lower orders at the end."""
    peers = [Peer("Heun", _heun, per_step=2, last_free=1), Peer("IPNDM", _ipndm)]
    ends = {"": True, " full order to the end": False}
    dpm: dict[str, Any] = {"final_sigmas_type": "sigma_min"}
    for word, lower in ends.items():
        for algorithm in ("dpmsolver++", "dpmsolver"):
            for order, kind in ((1, "midpoint"), (2, "midpoint"), (2, "heun"), (3, "midpoint")):
                if order == 1 and not lower:
                    continue
                options = {**dpm, "algorithm_type": algorithm, "solver_order": order, "solver_type": kind}
                run = _run("DPMSolverMultistepScheduler", lower_order_final=lower, **options)
                peers.append(Peer(f"{algorithm} {order}M {kind}{word}", run))
        for order in (2, 3, 4, 5):
            for kind in ("bh1", "bh2"):
                for predicts in (True, False):
                    run = _run(
                        "UniPCMultistepScheduler", solver_order=order, solver_type=kind, predict_x0=predicts,
                        lower_order_final=lower,
                    )  # fmt: skip
                    peers.append(Peer(f"UniPC {order} {kind} {'x0' if predicts else 'noise'}{word}", run))
        for order in (2, 3):
            run = _run("DEISMultistepScheduler", solver_order=order, lower_order_final=lower)
            peers.append(Peer(f"DEIS {order}{word}", run))
    for order in (2, 3):
        for algorithm in ("dpmsolver++", "dpmsolver"):
            options = {**dpm, "algorithm_type": algorithm, "solver_order": order, "lower_order_final": True}
            peers.append(Peer(f"{algorithm} {order}S", _run("DPMSolverSinglestepScheduler", **options)))
    return named("diffusers", peers)


def sde() -> dict[str, Peer]:
    """SDE-DPM-Solver(++) and SA-Solver (tau = 1, predictor and corrector of orders 1 to 4)."""
    peers = []
    for word, lower in {"": True, " full order to the end": False}.items():
        for algorithm in ("sde-dpmsolver++", "sde-dpmsolver"):
            for order, kind in ((2, "midpoint"), (2, "heun"), (3, "midpoint")):
                if order == 3 and algorithm == "sde-dpmsolver":
                    continue  # not implemented there
                run = _run(
                    "DPMSolverMultistepScheduler", algorithm_type=algorithm, solver_order=order, solver_type=kind,
                    final_sigmas_type="sigma_min", lower_order_final=lower,
                )  # fmt: skip
                peers.append(Peer(f"{algorithm} {order}M {kind}{word}", run))
        for predictor, corrector in ((1, 1), (2, 2), (3, 3), (3, 4), (2, 3)):
            run = _run(
                "SASolverScheduler", predictor_order=predictor, corrector_order=corrector, tau_func=lambda t: 1,
                lower_order_final=lower,
            )  # fmt: skip
            peers.append(Peer(f"SA-Solver {predictor}/{corrector}{word}", run))
    return named("diffusers", peers)
