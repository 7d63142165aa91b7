"""What a scheduler of diffusers says of a network: its schedule, how it counts timesteps, and what is predicted.

Three families of schedules cover theirs: a chain of β (DDPM's and all that share its betas), the straight path of flow
matching, and σ with α = 1 (EDM, continuous v-prediction, score_sde's VE)::

    found = schedule_of(scheduler)
    found.sde, found.timesteps, found.predicts, found.sigma_data

A scheduler is known by the name of its class; what is not in the table is refused by name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from scoresde import checks
from scoresde.interop.timesteps import (
    AngleTimesteps,
    ChainTimesteps,
    QuarterLogTimesteps,
    SigmaTimesteps,
    StraightTimesteps,
    Timesteps,
)
from scoresde.models import PREDICTIONS, Affine, Prediction
from scoresde.sde import EDM, SDE, VE, Chain, ChainSDE, RectifiedFlow


@dataclass(frozen=True, eq=False)
class Schedule:
    """What a scheduler says of its network.

    Attributes:
        sde: the schedule.
        timesteps: from c = log(σ/α) to the network's timesteps.
        predicts: of a :class:`~scoresde.ScoreModel`.
        sigma_data: of one, too.
        steps: N, how many timesteps there are.
    """

    sde: SDE
    timesteps: Timesteps
    predicts: str | Prediction
    sigma_data: float | None = None
    steps: float = 1.0


def minus_velocity(alpha: Tensor, sigma: Tensor, sigma_data: float) -> Affine:
    """F = x_0 - ε, the velocity of a path that runs from noise to data."""
    of = PREDICTIONS["velocity"](alpha, sigma, sigma_data)
    return of._replace(noise_out=-of.noise_out, x0_out=-of.x0_out)


def minus_edm(alpha: Tensor, sigma: Tensor, sigma_data: float) -> Affine:
    """EDM's F with the sign of v: with σ_data = 1 it is v of the variance-preserving x/sqrt(1 + σ²)."""
    of = PREDICTIONS["edm"](alpha, sigma, sigma_data)
    return of._replace(noise_out=-of.noise_out, x0_out=-of.x0_out)


def schedule_of(scheduler: Any) -> Schedule:
    """What a scheduler says of its network.

    Raises:
        ValueError: a class that is not known, or settings that nothing here is equal to.
    """
    names = [cls.__name__ for cls in type(scheduler).__mro__]
    reader = next((_READERS[name] for name in names if name in _READERS), None)
    if reader is None:
        why = next((_REFUSED[name] for name in names if name in _REFUSED), "its schedule is not known here")
        raise ValueError(
            f"scheduler must be one of {', '.join(sorted(_READERS))}; got {type(scheduler).__name__}: {why}. Where the "
            "network was trained with the noise levels of one of these, give that one."
        )
    return reader(scheduler)


def remarks_of(scheduler: Any) -> list[str]:
    """Lines of ours for what a scheduler does to each prediction beside its schedule."""
    config = scheduler.config
    if config.get("thresholding"):
        ratio, most = config.get("dynamic_thresholding_ratio", 0.995), config.get("sample_max_value", 1.0)
        return [f"guidance.threshold(model, {ratio:g}, largest={max(1.0, most):g})"]
    if config.get("clip_sample"):
        return [f"guidance.clip(model, {config.get('clip_sample_range', 1.0):g})"]
    return []


def class_among(scheduler: Any, known: Mapping[str, Any]) -> str | None:
    """The name, among those known, of a scheduler's class or of the nearest that it derives from."""
    return next((cls.__name__ for cls in type(scheduler).__mro__ if cls.__name__ in known), None)


def spaced_in_sigma(config: Mapping[str, Any]) -> bool:
    """Whether the noise levels are chosen first (Karras', exponential, beta), and timesteps found for them."""
    return any(
        config.get(name)
        for name in ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas", "use_lu_lambdas")
    )


def _prediction(scheduler: Any, known: Mapping[str, str | Prediction]) -> str | Prediction:
    named = scheduler.config.get("prediction_type", "epsilon")
    if named not in known:
        raise ValueError(
            f"scheduler: prediction_type of {type(scheduler).__name__} must be one of {', '.join(known)} with its "
            f"schedule; got {named!r}."
        )
    return known[named]


_OF_CHAIN: Mapping[str, str | Prediction] = {
    "epsilon": "noise",
    "sample": "x0",
    "original_sample": "x0",
    "v_prediction": "v",
}


def _chain(scheduler: Any) -> Schedule:
    """The levels ᾱ of the scheduler itself, float32 as its networks were trained with."""
    config = scheduler.config
    if config.get("use_flow_sigmas"):
        predicts = _prediction(scheduler, {"flow_prediction": "velocity", "epsilon": "noise", "sample": "x0"})
        return _straight(scheduler, predicts)
    sde = ChainSDE(_levels(scheduler))
    if config.get("timestep_type") == "continuous" and config.get("prediction_type") == "v_prediction":
        alpha, sigma = sde.chain.alpha, sde.chain.sigma
        ends = [(sigma[i] / alpha[i].clamp_min(1e-8)).item() for i in (0, -1)]
        low, high = (config.get(n) or end for n, end in zip(("sigma_min", "sigma_max"), ends, strict=True))
        return Schedule(EDM(t_min=float(low), T=float(high)), QuarterLogTimesteps(), minus_edm, 1.0)
    in_sigma = class_among(scheduler, _BETWEEN_IN_SIGMA) is not None and not spaced_in_sigma(config)
    n = len(scheduler.alphas_cumprod)
    counts = None if sde.chain.n == n else (n * sde.chain.times).round() - 1
    timesteps = ChainTimesteps.of(sde.chain, "sigma" if in_sigma else "log", counts)
    return Schedule(sde, timesteps, _prediction(scheduler, _OF_CHAIN), steps=float(n))


def _levels(scheduler: Any) -> Chain:
    """Level i = 1 ... n at time i/n is their timestep i - 1.

    Samplers that need a finite σ/α put ᾱ = 2^-24 at the end of a schedule with zero terminal SNR: levels before it that
    have even less signal are left out, so that there are no steps back to more signal.
    """
    bar = torch.as_tensor(scheduler.alphas_cumprod).detach().cpu().double().clone()
    n = len(bar)
    times = torch.arange(1, n + 1, dtype=torch.float64) / max(n, 1)
    if scheduler.config.get("rescale_betas_zero_snr") and bar.ndim == 1 and n > 1:
        keep = bar > bar[-1]
        keep[-1] = True
        bar, times = bar[keep], times[keep]
    before = torch.cat([bar.new_ones(1), bar[:-1]])
    if bar.ndim != 1 or not n or not bool(bar.isfinite().all()) or not bool((bar < before).all()) or bar[-1] < 0:
        raise ValueError(
            "scheduler: its alphas_cumprod must fall at each of its timesteps from below 1, and end at 0 or above; "
            f"those of {type(scheduler).__name__} do not. Look at its betas."
        )
    return Chain(times, (bar / before).sqrt(), (before - bar) / before)


def _flow(scheduler: Any) -> Schedule:
    back = bool(scheduler.config.get("invert_sigmas"))
    return _straight(scheduler, minus_velocity if back else "velocity", back=back)


def _straight(scheduler: Any, predicts: str | Prediction, *, back: bool = False) -> Schedule:
    steps = checks.count(scheduler.config.get("num_train_timesteps", 1000), name="num_train_timesteps", least=2)
    return Schedule(RectifiedFlow(T=1.0, t_min=1 / steps), StraightTimesteps(steps, back), predicts, steps=steps)


def _edm(scheduler: Any) -> Schedule:
    return _of_sigma(scheduler, QuarterLogTimesteps())


def _cosine_edm(scheduler: Any) -> Schedule:
    return _of_sigma(scheduler, AngleTimesteps())


def _of_sigma(scheduler: Any, timesteps: Timesteps) -> Schedule:
    config = scheduler.config
    predicts = _prediction(scheduler, {"epsilon": "edm", "v_prediction": minus_edm})
    sde = EDM(t_min=float(config["sigma_min"]), T=float(config["sigma_max"]))
    return Schedule(sde, timesteps, predicts, float(config["sigma_data"]))


def _ve(scheduler: Any) -> Schedule:
    config = scheduler.config
    sde = VE(sigma_min=float(config["sigma_min"]), sigma_max=float(config["sigma_max"]))
    return Schedule(sde, SigmaTimesteps(), "score")


_READERS: Mapping[str, Callable[[Any], Schedule]] = {
    **dict.fromkeys(
        (
            "CogVideoXDDIMScheduler",
            "CogVideoXDPMScheduler",
            "DDIMParallelScheduler",
            "DDIMScheduler",
            "DDPMParallelScheduler",
            "DDPMScheduler",
            "DEISMultistepScheduler",
            "DPMSolverMultistepScheduler",
            "DPMSolverSDEScheduler",
            "DPMSolverSinglestepScheduler",
            "EulerAncestralDiscreteScheduler",
            "EulerDiscreteScheduler",
            "HeunDiscreteScheduler",
            "KDPM2AncestralDiscreteScheduler",
            "KDPM2DiscreteScheduler",
            "LMSDiscreteScheduler",
            "PNDMScheduler",
            "SASolverScheduler",
            "UniPCMultistepScheduler",
        ),
        _chain,
    ),
    "FlowMatchEulerDiscreteScheduler": _flow,
    "FlowMatchHeunDiscreteScheduler": _flow,
    "EDMDPMSolverMultistepScheduler": _edm,
    "EDMEulerScheduler": _edm,
    "CosineDPMSolverMultistepScheduler": _cosine_edm,
    "ScoreSdeVeScheduler": _ve,
}

# Between two levels these take timesteps linear in σ/α, unless they choose σ first.
_BETWEEN_IN_SIGMA = dict.fromkeys(
    (
        "DPMSolverSDEScheduler",
        "EulerAncestralDiscreteScheduler",
        "EulerDiscreteScheduler",
        "HeunDiscreteScheduler",
        "KDPM2AncestralDiscreteScheduler",
        "KDPM2DiscreteScheduler",
        "LMSDiscreteScheduler",
    )
)

_DISTILLED = "its networks are distilled to jump to the data, so that what they answer is no expectation and no score"
_DISCRETE = "its states are discrete"
_REFUSED: Mapping[str, str] = {
    "AmusedScheduler": _DISCRETE,
    "VQDiffusionScheduler": _DISCRETE,
    "CMStochasticIterativeScheduler": _DISTILLED,
    "ConsistencyDecoderScheduler": _DISTILLED,
    "FlowMatchLCMScheduler": _DISTILLED,
    "LCMScheduler": _DISTILLED,
    "TCDScheduler": _DISTILLED,
    "SCMScheduler": _DISTILLED,
    "DDIMInverseScheduler": "it runs towards noise; for inversion see scoresde.editing",
    "DPMSolverMultistepInverseScheduler": "it runs towards noise; for inversion see scoresde.editing",
    "DDPMWuerstchenScheduler": "its network is told a ratio of its own in place of a timestep",
    "KarrasVeScheduler": "its pipeline shows the network (x + 1)/2 at σ/2",
    "IPNDMScheduler": "it keeps no noise levels, only its steps",
}
