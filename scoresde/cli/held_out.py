"""The held-out loss of a run: a picture of it, and what it says in a sentence.

save_held_out(Path("held-out.png"), Path("run/log.jsonl"))
say(in_short(run.held_out))
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np

from scoresde.cli.pictures import new_figure, save_figure
from scoresde.train import HeldOutLoss

CURVES = 5
"""Of so many steps the loss at each level is drawn."""


def in_short(found: HeldOutLoss) -> str:
    """The loss, and what became of it."""
    if not math.isfinite(found.loss):
        return f"the held-out loss is not finite after step {found.step}"
    said = {
        "falling": "still falling",
        "undecided": "neither surely falling nor surely at rest",
        "converged": "converged: not lower by the tolerance in the second half of the steps",
        "overfitting": "rising since: overfitting",
    }[found.verdict]
    return (
        f"held-out loss {found.loss:.4g} \u00b1 {found.standard_error:.2g} after step {found.step}, lowest at step "
        f"{found.best_step}; {said}"
    )


def save_held_out(path: Path, log: Path) -> None:
    """A PNG of the held-out losses in a run's log.jsonl: over the steps beside the loss of training, and over the noise
    levels for a few of the steps, with bands of two standard errors.
    """
    lines = [json.loads(line) for line in log.read_text("utf-8").splitlines()]
    measured = [line for line in lines if line.get("held_out")]
    figure, axes = new_figure(1, 2, size=3.5, width=6)
    over_steps, over_levels = axes[0]
    over_steps.plot(*_columns(lines), linewidth=0.8, color="0.6", label="training")
    finite = [(line["step"], line["held_out"]) for line in measured if line["held_out"]["loss"] is not None]
    steps = np.array([step for step, _ in finite])
    loss, error = (np.array([one[name] for _, one in finite]) for name in ("loss", "standard_error"))
    over_steps.plot(steps, loss, ".-", color="C0", label="held out, averaged weights")
    over_steps.fill_between(steps, loss - 2 * error, loss + 2 * error, color="C0", alpha=0.25, linewidth=0)
    if finite:
        over_steps.axvline(finite[-1][1]["best_step"], color="C1", linewidth=0.8, linestyle=":", label="lowest")
    over_steps.set_xlabel("step")
    over_steps.set_ylabel("loss of training")
    with_curves = [line for line in measured if "curve" in line["held_out"]]
    last = len(with_curves) - 1
    some = sorted({round(k * last / (CURVES - 1)) for k in range(CURVES)}) if with_curves else []
    nats = False
    for k, i in enumerate(some):
        told = with_curves[i]["held_out"]["curve"]
        levels, loss, error = (np.array(told[name]) for name in ("levels", "loss", "standard_error"))
        nats = told["sigma_data"] is None
        colour = (0.1 + 0.5 * (1 - k / max(1, len(some) - 1)), 0.4, 0.7, 1.0)
        over_levels.plot(levels, loss, color=colour, linewidth=1, label=f"step {with_curves[i]['step']}")
        over_levels.fill_between(levels, loss - 2 * error, loss + 2 * error, color=colour, alpha=0.15, linewidth=0)
    over_levels.set_xlabel("noise level, log \u03c3/\u03b1")
    over_levels.set_ylabel("cross-entropy, nats" if nats else "loss, of the best that knows \u03c3_data alone")
    for axis in (over_steps, over_levels):
        axis.grid(alpha=0.3)
        axis.legend(fontsize=7)
    save_figure(path, figure)


def _columns(lines: list[dict[str, Any]]) -> tuple[list[float], list[float]]:
    return [line["step"] for line in lines], [line["loss"] for line in lines]
