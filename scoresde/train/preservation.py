"""What a model draws before it is tuned, so that it is not forgotten: prior preservation, as in DreamBooth::

    prior = prior_set(model, {"caption": tokens})                   # drawn now; tokens of the class, (N, L)
    both = mix([subject, prior], weights=[1.0, 1.0])              # scoresde.data
    for step in train(model, both, steps=400, batch_size=32, lr=1e-4): ...

Tuned on a few pictures of a subject alone, a model takes its whole class for that subject. The loss on its own earlier
pictures of the class keeps it (Ruiz et al. 2022, arXiv:2208.12242, section 3.3).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from scoresde import checks
from scoresde.data import Dataset, Scaling, from_tensors
from scoresde.models import Score, ScoreModel
from scoresde.noise import PerSampleNoise
from scoresde.sampling import sample

ScoreOfConditions = Callable[[Mapping[str, Tensor]], Score]
"""The conditions of some samples -> the Score that draws them."""


def prior_set(
    model: ScoreModel,
    conditions: Mapping[str, Tensor],
    *,
    score: ScoreOfConditions | None = None,
    batch_size: int = 256,
    seed: int = 0,
    **options: Any,
) -> Dataset:
    """A data set of one sample that the model draws for each row of some conditions, with those conditions.

    Samples are in the units of the data, rounded to levels where the data have such, and so go together with pictures
    of a subject in :func:`scoresde.data.mix`.

    Args:
        model: as it is before it is tuned, with ``event_shape`` and ``scaling``, as after training or loading.
        conditions: by name, (N, ...) on the CPU.
        score: of some rows of the conditions; ``model.bind(**rows)`` by default. For guided samples,
            ``lambda rows: classifier_free(model, rows, scale=2.0)``.
        batch_size: how many are drawn at once.
        seed: sample i depends on the seed, i and its conditions alone.
        options: of :func:`~scoresde.sample`, such as ``steps`` and ``solver``.

    Raises:
        TypeError: no model, or conditions that are no tensors by name.
        ValueError: no rows, or not as many in each; the model knows no shape or units of its data.
    """
    checks.instance(model, ScoreModel, name="model")
    batch_size, seed = checks.count(batch_size, name="batch_size"), checks.seed(seed)
    checks.instance(conditions, Mapping, name="conditions", hint="Write {'caption': tokens}.")
    given = dict(conditions)
    for name, value in given.items():
        checks.instance(value, Tensor, name=f"conditions[{name!r}]")
    counts = {len(value) if value.ndim else 0 for value in given.values()}
    if len(counts) != 1 or not (count := counts.pop()):
        raise ValueError(f"conditions must have as many rows each, at least one, got {checks.got(conditions)}.")
    if score is not None:
        checks.function(score, name="score", what="of the conditions of some samples", takes=1)
    shape, scaling = model.event_shape, model.scaling
    if shape is None or not isinstance(scaling, Scaling):
        raise ValueError(
            "model must know the shape and the units of its data, as after training on a data set or load_model: set "
            "model.event_shape and model.scaling."
        )
    for name in ("x", "noise", "device"):
        if name in options:
            raise ValueError(f"{name} must be left out here: samples are drawn from seed, where the model is.")
    place = next(model.parameters()).device
    parts = []
    for start in range(0, count, batch_size):
        rows = {name: value[start : start + batch_size].to(place) for name, value in given.items()}
        drawn = model.bind(**rows) if score is None else score(rows)
        size = min(batch_size, count - start)
        found = sample(drawn, (size, *shape), noise=PerSampleNoise(seed, first=start), **options)
        parts.append(scaling.to_data(found.x).cpu())
    data = torch.cat(parts)
    if scaling.levels is not None:
        data = data.round().clamp(0, scaling.levels - 1)
    label = given.pop("label", None)
    units: Any = {name: model.condition_scalings.get(name) for name in given}
    return from_tensors(
        data,
        label,
        scaling=scaling,
        channels="first" if data.ndim > 2 else None,
        class_names=None if label is None else model.class_names,
        conditions=given,
        condition_scalings=units,
        vocabularies={name: words for name, words in model.vocabularies.items() if name in given},
    )
