"""The run of a scheduler of diffusers as a run here: its times, its end, and the solver that takes its steps::

    model = from_diffusers(unet, scheduler)
    sample(model, (4, 3, 32, 32), **diffusers_sampling(scheduler, 50))      # equal to its own loop, to rounding
    sample(model, (4, 3, 32, 32), grid=diffusers_grid(scheduler, 20), solver=UniPC())

Schedulers are copied, never changed. For results equal to theirs, to rounding:

- start from their latents as they are for DDIM, DDPM, DPM-Solver++, flow matching and EDM's, ``x=latents``;
  Euler's and its kin under betas keep x_t/α_t, so that ``x=latents * model.sde.alpha(grid[0])``, and where their run
  ends at a noise level ours is theirs times α there;
- where theirs makes whole numbers of timesteps, make the model with ``timesteps="rounded"`` (Karras' σ under
  DPM-Solver++) or ``"truncated"`` (exponential, beta and flow σ there);
- DDIM that clips with ``use_clipped_model_output`` is ``guidance.clip``; without it, it moves by the clipped x̂_0 and
  the network's ε̂, a pair that belongs to no score.
"""

from __future__ import annotations

import copy
import inspect
import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from scoresde import checks
from scoresde.files import PathName
from scoresde.interop.diffusers_files import scheduler_of
from scoresde.interop.diffusers_schedules import Schedule, class_among, schedule_of
from scoresde.interop.dpm_solver_2m import DPMSolver2M
from scoresde.interop.timesteps import ChainTimesteps
from scoresde.solvers import DDIM, Ancestral, Heun, Solver
from scoresde.warning import warn_user


def diffusers_grid(scheduler: Mapping[str, Any] | PathName | Any, steps: int | None = 50, **options: Any) -> Tensor:
    """The times at which a scheduler's run asks the network, under the SDE of :func:`from_diffusers`.

    A run that ends clean ends with ``denoise=True`` here, ``sample``'s default, so that its last time is that of the
    last evaluation. One that ends at a noise level (``set_alpha_to_one=False``, ``final_sigmas_type="sigma_min"``) has
    that as its last time, and is run with ``denoise=False``: :func:`diffusers_sampling` says which.

    Args:
        scheduler: the scheduler, its config, or the path of its folder.
        steps: of its ``set_timesteps``; None where the options say them.
        options: others of that method: ``mu`` where flow matching shifts by the size of the picture, ``timesteps``,
            ``sigmas``.

    Returns:
        decreasing times, float64.

    Raises:
        TypeError: no scheduler, or an option that its ``set_timesteps`` does not take.
        ValueError: steps or options that it refuses; a scheduler whose steps no times describe, as it asks the network
            at timesteps that are not those of its noise levels.
    """
    return _run(scheduler, steps, options).grid


def diffusers_sampling(
    scheduler: Mapping[str, Any] | PathName | Any, steps: int | None = 50, *, eta: float | None = None, **options: Any
) -> dict[str, Any]:
    """The arguments of :func:`~scoresde.sample` by which a run is the scheduler's own: solver, grid, denoise and eta.

    DDIM (any η), DDPM (fixed_small, fixed_large), Euler, ancestral Euler, Heun, DPM-Solver++ of orders 1 and 2 and its
    SDE form, flow-matching Euler, and the Euler and DPM-Solver++ of EDM. Of others :func:`diffusers_grid` gives the
    times, for a solver of your choice.

    Args:
        scheduler: the scheduler, its config, or the path of its folder.
        steps: as of :func:`diffusers_grid`, ``options`` likewise.
        eta: of DDIM, 0 unless told otherwise.

    Raises:
        TypeError, ValueError: as there; a scheduler whose steps no solver here takes, an eta that it does not have.
    """
    run = _run(scheduler, steps, options)
    name = class_among(run.scheduler, _SOLVERS)
    if name is None:
        raise ValueError(
            f"scheduler: the steps of {type(run.scheduler).__name__} are those of no solver here; known are "
            f"{', '.join(sorted(_SOLVERS))}. Choose a solver, and take its times alone: sample(model, shape, "
            "solver=UniPC(), grid=diffusers_grid(scheduler, steps))."
        )
    if eta is not None:
        checks.not_negative(eta, name="eta")
        if "DDIM" not in name:
            raise ValueError(f"eta is an option of DDIM alone; got eta = {eta:g} for {name}. Leave it out.")
    solver, stochasticity = _SOLVERS[name](run, 0.0 if eta is None else checks.number(eta))
    return {"solver": solver, "grid": run.grid, "denoise": run.clean, "eta": stochasticity}


@dataclass(frozen=True, eq=False)
class _Run:
    """A scheduler after ``set_timesteps``, the times at which it asks, and whether it ends clean."""

    scheduler: Any
    grid: Tensor
    clean: bool


def _run(given: object, steps: int | None, options: Mapping[str, Any]) -> _Run:
    scheduler = copy.deepcopy(scheduler_of(given))
    found = schedule_of(scheduler)
    if steps is not None or not options:
        steps = checks.count(steps, name="steps")
    takes = inspect.signature(scheduler.set_timesteps).parameters
    allowed = [name for name in takes if name not in ("device", "num_inference_steps")]
    if unknown := [name for name in options if name not in allowed]:
        raise TypeError(
            f"options must be those of {type(scheduler).__name__}.set_timesteps beside the steps, "
            f"{', '.join(allowed) or 'of which there are none'}; got {', '.join(unknown)}."
        )
    if scheduler.config.get("use_dynamic_shifting") and options.get("mu") is None and "mu" in takes:
        raise ValueError(
            "mu must be given where use_dynamic_shifting is on: the shift that the pipeline computes from the size of "
            "the picture, for Flux mu = base_shift + (max_shift - base_shift) (n - base_image_seq_len) / "
            "(max_image_seq_len - base_image_seq_len) with n tokens."
        )
    name = class_among(scheduler, _TIMES)
    if name is None:
        raise ValueError(
            f"scheduler: {type(scheduler).__name__} asks its network between its times, too, so that they are no grid "
            f"of steps; known are {', '.join(sorted(_TIMES))}. Take one of these, or a rule of scoresde.grids."
        )
    try:
        scheduler.set_timesteps(steps, **options)
    except (ValueError, TypeError, AssertionError) as error:
        raise ValueError(
            f"steps = {steps} and options {sorted(options)}: {type(scheduler).__name__}.set_timesteps refuses them "
            f"({error})."
        ) from error
    return _TIMES[name](scheduler, found)


def _of_sigmas(scheduler: Any, found: Schedule) -> _Run:
    """Times of the noise levels σ̃ = σ/α, or σ on the straight path, that the scheduler lists with its end."""
    sigmas = torch.as_tensor(scheduler.sigmas).detach().cpu().double()
    timesteps = torch.as_tensor(scheduler.timesteps).detach().cpu().double()
    if scheduler.config.get("invert_sigmas"):
        sigmas = 1 - sigmas
    if len(sigmas) > len(timesteps) + 1:
        raise ValueError(
            f"scheduler: {type(scheduler).__name__} lists {len(sigmas)} noise levels for {len(timesteps)} timesteps, "
            'so that they do not belong together, as with interpolation_type="log_linear". Take "linear".'
        )
    # Heun's lists them twice, and an end may repeat the last, to the rounding of float32
    keep = torch.cat([torch.ones(1, dtype=torch.bool), sigmas.diff().abs() > 1e-6 * sigmas[:-1]])
    clean = bool(sigmas[-1] == 0)
    levels = sigmas[keep][: -1 if clean else None]
    if bool((levels.diff() >= 0).any()):
        i = int((levels.diff() >= 0).nonzero()[0])
        raise ValueError(
            f"scheduler: the noise levels of {type(scheduler).__name__} must fall; got {levels[i]:g} and then "
            f"{levels[i + 1]:g}, as rescale_betas_zero_snr puts 4096 at the end of some betas. Take fewer steps."
        )
    grid, seen = _at_levels(levels, found)
    asked = timesteps[keep[: len(timesteps)]]
    # theirs may be whole numbers where σ came first: within one of what belongs to the level
    apart = (seen[: len(asked)] - asked).abs()
    if bool((apart >= 1.0 - 1e-9).any()):
        i = int(apart.argmax())
        raise ValueError(
            f"scheduler: {type(scheduler).__name__} asks its network at timestep {asked[i]:g} where its noise level is "
            f"{levels[i]:g}, which is that of timestep {seen[i]:g}: no time has both. Take another spacing, without "
            "log_linear interpolation or timesteps of your own."
        )
    return _Run(scheduler, _falling(grid, scheduler), clean)


def _at_levels(levels: Tensor, found: Schedule) -> tuple[Tensor, Tensor]:
    """Times with these σ/α (or σ, on the straight path), and the timesteps there."""
    sde = found.sde
    if not isinstance(found.timesteps, ChainTimesteps):
        if bool((levels > sde.T * (1 + 1e-5)).any()):
            raise ValueError(f"scheduler: its noise levels must end at {sde.T:g}; got {levels.max():g}.")
        levels = levels.clamp_max(sde.T)  # float32 rounds the last one up, or down
        return levels, found.timesteps(-0.5 * sde.log_snr(levels))
    c = levels.log()
    seen = found.timesteps(c.float()).double()  # their levels are float32: what is a whole number to that is one
    whole = seen == seen.round()
    low, high = (-0.5 * sde.log_snr(t).item() for t in (0.0, sde.T))
    if bool((c > high + 1e-6).any()):
        raise ValueError(
            f"scheduler: its sigma_max = {levels.max():g} is beyond the noise that its betas end with, "
            f"{torch.tensor(high).exp():g}; leave sigma_max out, or lower it."
        )
    between = sde.t_of_log_snr(-2 * c.clamp(low, high))
    return torch.where(whole & (c >= found.timesteps.levels[0] - 1e-6), (seen + 1) / found.steps, between), seen


def _of_ddim(scheduler: Any, found: Schedule) -> _Run:
    """DDIM counts its next level from its own timestep, by N // steps, also where the next timestep is another."""
    asked = [int(t) for t in scheduler.timesteps]
    reached = [t - scheduler.config.num_train_timesteps // scheduler.num_inference_steps for t in asked]
    off = [(s, t) for s, t in zip(reached, asked[1:], strict=False) if s != t]
    if off:
        warn_user(
            f"{type(scheduler).__name__} steps to timestep {off[0][0]} and then asks its network at {off[0][1]}, as "
            "its timesteps are not N // steps apart; the grid has the latter, and its steps end where the next begin. "
            "For equal results take a number of steps that divides num_train_timesteps, with timestep_spacing "
            '"leading" or "trailing".'
        )
    clean = reached[-1] < 0 and bool(scheduler.final_alpha_cumprod == 1)
    end = [] if clean else [max(reached[-1], 0)]
    return _Run(scheduler, _of_timesteps([*asked, *end], found, scheduler), clean)


def _of_ddpm(scheduler: Any, found: Schedule) -> _Run:
    return _Run(scheduler, _of_timesteps([int(t) for t in scheduler.timesteps], found, scheduler), True)


def _of_timesteps(asked: list[int], found: Schedule, scheduler: Any) -> Tensor:
    single = [t for t, _ in itertools.groupby(asked)]
    return _falling((torch.tensor(single, dtype=torch.float64) + 1) / found.steps, scheduler)


def _falling(grid: Tensor, scheduler: Any) -> Tensor:
    if len(grid) < 2:
        raise ValueError(
            f"steps: a run of {type(scheduler).__name__} with one evaluation has no step here, only "
            "model.denoise(x, t); take at least 2 steps."
        )
    if bool((grid.diff() >= 0).any()):
        raise ValueError(f"scheduler: the timesteps of {type(scheduler).__name__} do not fall; got times {grid}.")
    return grid


_TIMES: Mapping[str, Callable[[Any, Schedule], _Run]] = {
    **dict.fromkeys(("DDIMScheduler", "DDIMParallelScheduler", "CogVideoXDDIMScheduler"), _of_ddim),
    **dict.fromkeys(("DDPMScheduler", "DDPMParallelScheduler"), _of_ddpm),
    **dict.fromkeys(
        (
            "CosineDPMSolverMultistepScheduler",
            "DEISMultistepScheduler",
            "DPMSolverMultistepScheduler",
            "EDMDPMSolverMultistepScheduler",
            "EDMEulerScheduler",
            "EulerAncestralDiscreteScheduler",
            "EulerDiscreteScheduler",
            "FlowMatchEulerDiscreteScheduler",
            "FlowMatchHeunDiscreteScheduler",
            "HeunDiscreteScheduler",
            "LMSDiscreteScheduler",
            "SASolverScheduler",
            "UniPCMultistepScheduler",
        ),
        _of_sigmas,
    ),
}


def _ddim(run: _Run, eta: float) -> tuple[Solver, float]:
    return DDIM(eta=eta), 0.0 if eta == 0 else 1.0


def _euler(run: _Run, eta: float) -> tuple[Solver, float]:
    """A straight step in the frame x/α, where DDIM with η = 0 is Euler's method; on the straight path in t as well."""
    if run.scheduler.config.get("stochastic_sampling"):
        raise _no_solver(run, "stochastic_sampling=True draws all noise anew at each step")
    return DDIM(eta=0.0), 0.0


def _ancestral_euler(run: _Run, eta: float) -> tuple[Solver, float]:
    return DDIM(eta=1.0), 1.0


def _heun(run: _Run, eta: float) -> tuple[Solver, float]:
    return Heun(), 0.0


def _ddpm(run: _Run, eta: float) -> tuple[Solver, float]:
    kind = run.scheduler.config.get("variance_type")
    if kind in ("fixed_small", "fixed_small_log"):
        return Ancestral(variance="posterior"), 1.0
    if kind == "fixed_large":
        if int(run.scheduler.timesteps[-1]) > 0:
            raise _no_solver(run, "fixed_large with a last timestep above 0 adds noise to the clean sample")
        return Ancestral(variance="transition"), 1.0
    raise _no_solver(run, f"variance_type={kind!r} draws with another variance than β̃ or β; Ancestral() draws with β̃")


def _dpm(run: _Run, eta: float) -> tuple[Solver, float]:
    config = run.scheduler.config
    kind, order = config.get("algorithm_type", "dpmsolver++"), config.get("solver_order", 2)
    if kind not in ("dpmsolver++", "sde-dpmsolver++"):
        raise _no_solver(run, f"algorithm_type={kind!r} extrapolates the noise; DEIS() does")
    if order not in (1, 2):
        raise _no_solver(run, f"solver_order={order} has other weights; DPMSolverPP(order=3) is of order 3")
    stochasticity = 1.0 if kind.startswith("sde") else 0.0
    if order == 1:
        return DDIM(eta=stochasticity), stochasticity
    asked = len(run.scheduler.timesteps)
    low = config.get("euler_at_final") or (config.get("lower_order_final") and asked < 15)
    last = not run.clean and len(run.grid) == asked + 1  # where the end repeats the last level, its step is none
    return DPMSolver2M(config.get("solver_type", "midpoint"), last_first_order=bool(low) and last), stochasticity


def _no_solver(run: _Run, why: str) -> ValueError:
    return ValueError(
        f"scheduler: {type(run.scheduler).__name__} takes steps of no solver here: {why}. Choose a solver, and take "
        "its times alone: sample(model, shape, solver=..., grid=diffusers_grid(scheduler, steps))."
    )


_SOLVERS: Mapping[str, Callable[[_Run, float], tuple[Solver, float]]] = {
    "DDIMScheduler": _ddim,
    "DDIMParallelScheduler": _ddim,
    "CogVideoXDDIMScheduler": _ddim,
    "DDPMScheduler": _ddpm,
    "DDPMParallelScheduler": _ddpm,
    "DPMSolverMultistepScheduler": _dpm,
    "EDMDPMSolverMultistepScheduler": _dpm,
    "EDMEulerScheduler": _euler,
    "EulerAncestralDiscreteScheduler": _ancestral_euler,
    "EulerDiscreteScheduler": _euler,
    "FlowMatchEulerDiscreteScheduler": _euler,
    "HeunDiscreteScheduler": _heun,
}
