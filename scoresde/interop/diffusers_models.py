"""A network of diffusers as a model here, from the network and its scheduler::

model = from_diffusers(unet, DDPMScheduler())           # a ScoreModel
model = from_diffusers("runs/ddpm-cats")                # a pipeline's folder
sample(model, (4, 3, 32, 32), steps=25, seed=0)
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any

from scoresde import checks
from scoresde.files import PathName
from scoresde.interop.diffusers_files import PARTS, load_network, network_and_scheduler, scheduler_of
from scoresde.interop.diffusers_network import DiffusersNetwork
from scoresde.interop.diffusers_schedules import remarks_of, schedule_of
from scoresde.interop.timesteps import Rounding
from scoresde.models import Score, ScoreModel
from scoresde.warning import warn_user


def from_diffusers(
    net: Callable[..., Any] | PathName | Any,
    scheduler: Mapping[str, Any] | PathName | Any = None,
    *,
    timesteps: Rounding | None = None,
    fixed: Mapping[str, Any] | None = None,
) -> ScoreModel:
    r"""A :class:`~scoresde.ScoreModel` of a network of diffusers, exact at every noise level that it was trained for.

    Of the scheduler its noise levels, its prediction and how it counts timesteps are taken; how to step is the
    business of a solver here (:func:`~scoresde.interop.diffusers_sampling` gives the counterpart of theirs, on its own
    times). The schedule is

    - a :class:`~scoresde.ChainSDE` for schedulers with betas (linear, scaled_linear, squaredcos_cap_v2, sigmoid,
      trained_betas, zero terminal SNR): its levels are the scheduler's ᾱ, level i at t = i/N is timestep i - 1;
    - :class:`~scoresde.RectifiedFlow` for flow matching, timestep N t;
    - :class:`~scoresde.EDM` with α = 1, t = σ, for EDM's and for continuous v-prediction, timestep log(σ)/4;
    - :class:`~scoresde.VE` for score_sde's, whose networks are told σ.

    At the levels of a chain the network is given the whole number exactly, between them a fraction, linear in log(σ/α),
    or in σ/α where their scheduler takes it so (Euler's and its kin, unless Karras' or exponential σ are chosen).

    Networks are called as net(x, timestep, ...): UNet2DModel, UNet2DConditionModel, DiT and the transformers of flow
    matching, any module or function. Conditions have their names there: ``model.bind(encoder_hidden_states=prompts)``,
    ``classifier_free(model, {"class_labels": y}, 4.0)``; see
    :class:`~scoresde.interop.diffusers_network.DiffusersNetwork`. Of a learned variance only the mean is used.

    What a scheduler does to each prediction beside that is no part of the model: where it clips or thresholds x̂_0, a
    warning says the line that does it here, :func:`~scoresde.guidance.clip` or :func:`~scoresde.guidance.threshold`.

    Args:
        net: the network, a pipeline that has one, or the folder that their ``save_pretrained`` wrote, safetensors only.
        scheduler: the scheduler, its config, its JSON file or its folder. None for that of a pipeline, or of its
            folder.
        timesteps: "fractional"; for a network that only knows whole numbers "rounded" or "truncated", int64: between
            levels the score then changes in steps with time. Default "rounded" where the network's config says that
            it looks timesteps up in a table (time_embedding_type "learned"), else "fractional".
        fixed: arguments of every call of the network that are no conditions, by name.

    Raises:
        TypeError: not a network, not a scheduler, or fixed arguments that the network does not take.
        ValueError: a scheduler or settings that nothing here is equal to, or files that are not read.
        FileNotFoundError: no such folder.
        ModuleNotFoundError: diffusers is needed to read files and configs, and is not installed.
    """
    if isinstance(net, (ScoreModel, Score)):
        raise TypeError(f"net must be a network of diffusers, got {checks.got(net)}, which is a score already.")
    if scheduler is None:
        net, scheduler = network_and_scheduler(net)
    elif isinstance(net, (str, os.PathLike)):
        net = load_network(net)
    elif hasattr(net, "scheduler") and any(getattr(net, part, None) is not None for part in PARTS):
        net, _ = network_and_scheduler(net)
    checks.function(net, name="net", what="(sample, timestep, ...), such as a UNet2DModel")
    scheduler = scheduler_of(scheduler)
    found = schedule_of(scheduler)
    if timesteps is None:
        table = getattr(getattr(net, "config", None), "time_embedding_type", None) == "learned"
        timesteps = "rounded" if table else "fractional"
    network = DiffusersNetwork(net, found.timesteps, rounding=timesteps, fixed=fixed, unit_time=found.steps)
    for line in remarks_of(scheduler):
        warn_user(
            f"{type(scheduler).__name__} bends each prediction of x_0, which is no part of the model. To do the same "
            f"here, sample from {line}."
        )
    return ScoreModel(network, found.sde, found.predicts, found.sigma_data)
