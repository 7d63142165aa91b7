"""What a network was trained with, from whatever says it: a pipeline of diffusers, a scheduler, its config, an SDE::

    trained = read_trained(pipe)
    trained.schedule, trained.config, trained.shape

The config is what a scheduler made of it writes down, flat as theirs are, so that theirs can be made of it again.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import diffusers
import torch
from torch import Tensor

from scoresde import checks, rules
from scoresde.guidance.clipping import clip, threshold
from scoresde.interop.diffusers_files import PARTS, scheduler_of
from scoresde.interop.diffusers_schedules import Schedule, schedule_of
from scoresde.interop.driven import Reading
from scoresde.interop.timesteps import ChainTimesteps, Timesteps, TimeTimesteps
from scoresde.interop.written import read_sde
from scoresde.models import Score
from scoresde.sde import SDE

PREDICTED: Mapping[str, str] = {
    "epsilon": "noise",
    "sample": "x0",
    "v_prediction": "v",
    "flow_prediction": "velocity",
}
"""Their name of a prediction -> ours, for an SDE."""


@dataclass(frozen=True, eq=False)
class TrainedSchedule:
    """What a network was trained with.

    Attributes:
        schedule: the SDE, its timesteps and the prediction.
        config: the same by their names.
        sde: the SDE, where it is what was given.
        scheduler: the scheduler, where there is one.
        shape: of a sample, where a pipeline tells it.
    """

    schedule: Schedule
    config: dict[str, Any]
    sde: SDE | None = None
    scheduler: Any = None
    shape: tuple[int, ...] | None = None

    @property
    def times(self) -> Tensor:
        """Of all its training timesteps, from noise to data."""
        n = int(self.config.get("num_train_timesteps", 1000))
        sde = self.schedule.sde
        return rules.uniform(sde, n - 1) if n > 1 else torch.tensor([sde.T], dtype=torch.float64)


def read_trained(
    given: Any, prediction_type: str | None = None, num_train_timesteps: int | None = None
) -> TrainedSchedule:
    """See :func:`~scoresde.interop.to_diffusers`.

    Raises:
        TypeError, ValueError: nothing of the kind, or settings that nothing here is equal to.
    """
    if prediction_type is not None:
        checks.instance(prediction_type, str, name="prediction_type")
    if isinstance(given, Mapping) and given.get("sde") is not None:
        named = given.get("prediction_type") if prediction_type is None else prediction_type
        n = given.get("num_train_timesteps") if num_train_timesteps is None else num_train_timesteps
        return _of_sde(read_sde(given["sde"]), named, n)
    if isinstance(given, SDE):
        return _of_sde(given, prediction_type, num_train_timesteps)
    shape = None
    if hasattr(given, "scheduler") and not isinstance(given, type):
        shape, given = _shape_of(given), given.scheduler
    if given is None:
        raise TypeError(
            "schedule must say what the network was trained with: a pipeline, its scheduler or the scheduler's config, "
            "or an SDE; got None."
        )
    scheduler = _scheduler(given, prediction_type)
    if num_train_timesteps is not None:
        raise ValueError(
            f"num_train_timesteps belongs to an SDE; a scheduler says it itself. Got {num_train_timesteps!r}."
        )
    names = [cls.__name__ for cls in type(scheduler).__mro__ if hasattr(diffusers, cls.__name__)]
    config = {key: value for key, value in dict(scheduler.config).items() if not key.startswith("_")}
    return TrainedSchedule(schedule_of(scheduler), {**config, "schedule_class": names[0]}, None, scheduler, shape)


def reading_of(
    config: Mapping[str, Any], schedule: Schedule, sigma_data: float | None, guidance_scale: float
) -> Reading:
    """How outputs are read, with the clipping or thresholding of x̂_0 that a config asks for."""
    through: Callable[[Score], Score] | None = None
    if config.get("thresholding"):
        quantile, most = config.get("dynamic_thresholding_ratio", 0.995), config.get("sample_max_value", 1.0)
        through = partial(threshold, quantile=quantile, largest=max(1.0, most))
    elif config.get("clip_sample"):
        through = partial(clip, limit=config.get("clip_sample_range", 1.0))
    return Reading(schedule.sde, schedule.predicts, sigma_data, through, guidance_scale)


def flows(config: Mapping[str, Any]) -> bool:
    """Whether a scheduler's config is one of flow matching."""
    return "shift" in config or bool(config.get("use_flow_sigmas"))


def _scheduler(given: Any, prediction_type: str | None) -> Any:
    """One of theirs, with another prediction where that is said."""
    if isinstance(given, Mapping) and not given:
        return scheduler_of(given, name="schedule")
    own = isinstance(given, Mapping) and "schedule_class" in given
    if not own and not isinstance(given, Mapping):
        found = scheduler_of(given, name="schedule")
        given = found.config
        own = "schedule_class" in given
        if prediction_type is None and not own:
            return found
        given = {**given, "_class_name": given.get("schedule_class") or type(found).__name__}
    if own:
        given = {**given, "_class_name": given["schedule_class"]}
    change = {} if prediction_type is None else {"prediction_type": prediction_type}
    kind = getattr(diffusers, str(given.get("_class_name")), None)
    if kind is not None:  # what a pipeline, or we, have added is no matter of theirs
        takes = {*inspect.signature(kind).parameters, "_class_name"}
        given = {key: value for key, value in given.items() if key in takes}
    return scheduler_of({**given, **change}, name="schedule")


def _of_sde(sde: SDE, prediction_type: str | None, num_train_timesteps: int | None) -> TrainedSchedule:
    named = checks.one_of("epsilon" if prediction_type is None else prediction_type, PREDICTED, name="prediction_type")
    chain = getattr(sde, "chain", None)
    n = 1000 if num_train_timesteps is None else checks.count(num_train_timesteps, name="num_train_timesteps", least=2)
    if chain is None:
        timesteps: Timesteps = TimeTimesteps(sde, n / sde.T)
    else:
        if num_train_timesteps not in (None, chain.n):
            raise ValueError(f"num_train_timesteps must be {chain.n}, the levels of the chain; got {n}.")
        n = chain.n
        timesteps = ChainTimesteps.of(chain)
    config = {"num_train_timesteps": n, "prediction_type": named}
    return TrainedSchedule(Schedule(sde, timesteps, PREDICTED[named]), config, sde)


def _shape_of(pipe: Any) -> tuple[int, ...] | None:
    """Of a sample of a pipeline's network at its own size: channels and height and width of the latents, if any."""
    net = next((found for name in PARTS if (found := getattr(pipe, name, None)) is not None), None)
    config, vae = getattr(net, "config", {}), getattr(getattr(pipe, "vae", None), "config", {})
    channels, size = vae.get("latent_channels") or config.get("in_channels"), config.get("sample_size")
    sizes = size if isinstance(size, (list, tuple)) else (size, size)
    whole = (channels, *sizes)
    return whole if all(isinstance(v, int) for v in whole) else None
