"""A sampler fitted to one model and budget: few evaluations, their times and coefficients by least squares.

    scoresde fit --checkpoint runs/my-images --steps 5
    scoresde sample --checkpoint runs/my-images --fitted runs/my-images/fitted-5/sampler.json

:func:`main` takes the flags as a :class:`FitConfig`; what is fitted and how is said at ``scoresde.fitting.fit``.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import scoresde as ss
from scoresde.cli.conditions import asked_conditions
from scoresde.cli.config import remember
from scoresde.cli.costs import expect
from scoresde.cli.flags import CheckpointFlags, Repeated, at_least
from scoresde.cli.outputs import say, told
from scoresde.cli.trained import Trained, trained_of
from scoresde.files import make_writable, write_json
from scoresde.fitting import fit

SAMPLER = "sampler.json"
"""The file of the sampler in its folder."""
ENDS = 200
"""Evaluations, or some more, of a trajectory to its exact end (64 and 128 steps, doubled until it stands still)."""


@dataclass(frozen=True, kw_only=True)
class FitConfig(CheckpointFlags):
    """Fit a sampler to a model: sampler.json and report.json."""

    out: Path | None = None
    """Folder for what is written; default fitted-STEPS in the run's folder."""
    steps: int = 8
    """Evaluations of the network for a sample."""
    samples: int = 1000
    """Trajectories that it is fitted to and judged on, a multiple of the batch size."""
    batch_size: int = 250
    """How many at once."""
    iterations: int = 300
    """Of the fit, at most."""
    seconds: float = 60.0
    """Of the iterations, at most; exact ends and fixed methods come on top."""
    labels: tuple[str, ...] = ()
    """Classes, by name or number, that the samples take in turn; default all of them."""
    condition: Repeated = ()
    """Another condition, as of `scoresde sample`."""
    guidance: float = 1.0
    """Scale of classifier-free guidance under which the sampler will be used."""
    seed: int = 0
    """Of the trajectories."""

    def check(self) -> None:
        at_least(self, steps=1, samples=8, batch_size=1, iterations=0)
        if self.samples % self.batch_size or self.samples // self.batch_size < 3:
            raise ValueError(
                f"--samples {self.samples} are split in batches of --batch-size {self.batch_size} to fit, to stop and "
                "to judge: expected a multiple of it, three times as many at least."
            )
        for name in ("seconds", "guidance"):
            if not math.isfinite(getattr(self, name)):
                raise ValueError(f"--{name} must be finite, got {getattr(self, name)}.")


def score_of(config: FitConfig, trained: Trained) -> ss.Score:
    """The score that the sampler is fitted to, with conditions for a batch.

    Raises:
        ValueError: conditions that the model does not take.
    """
    given = asked_conditions(config.condition, trained, config.batch_size)
    if trained.classes is not None:
        turn = torch.tensor(trained.indices(config.labels) or list(range(len(trained.classes))))
        given["label"] = turn[torch.arange(config.batch_size) % len(turn)].to(trained.device)
    elif config.labels:
        raise ValueError(f"--labels needs a model that knows classes, and {trained.path} was trained without.")
    if not given:
        if config.guidance != 1:
            raise ValueError("--guidance needs a model that knows conditions; leave it out.")
        return trained.model
    return ss.classifier_free(trained.model, given, scale=config.guidance)


def main(config: FitConfig) -> dict[str, Any]:
    """Fit and write; returns what report.json holds."""
    start = time.perf_counter()
    config.ready()
    trained = trained_of(config)
    score = score_of(config, trained)
    out = make_writable(trained.home / f"fitted-{config.steps}" if config.out is None else config.out)
    say(f"{config.samples} trajectories to their exact ends, then at most {config.seconds:g} s of fitting")
    expect(trained, ENDS * (1 if config.guidance in (0, 1) else 2), config.samples, config.batch_size)
    fitted = fit(
        score,
        config.steps,
        shape=(config.samples, *trained.event),
        batch=config.batch_size,
        seed=config.seed,
        iterations=config.iterations,
        budget=config.seconds,
        device=trained.device,
    )
    fitted.save(out / SAMPLER)
    remember(config, out)
    report = {
        "config": told(config, out),
        **trained.told(),
        "sde": repr(trained.model.sde),
        "chosen": fitted.report.chosen,
        "fixed_method": fitted.report.fixed_method,
        "rms_of_fitted": fitted.report.held_out,
        "rms_of_best_fixed": fitted.report.fixed,
        "seconds": round(time.perf_counter() - start, 1),
    }
    write_json(out / "report.json", report)
    say(str(fitted.report))
    say(f"scoresde sample --checkpoint {config.checkpoint} --fitted {out / SAMPLER}")
    return report
