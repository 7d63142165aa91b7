"""A trained model as one folder to keep, to share or to publish: weights, what it is, and a card.

    scoresde convert --checkpoint runs/my-images --out my-model --licence mit --dtype float16
    scoresde sample --checkpoint my-model
    scoresde convert --checkpoint pipeline-of-diffusers            # looks whether it can be used here; writes nothing

:func:`main` takes the flags as a :class:`ConvertConfig`; the folder is written by ``scoresde.hub.save_pretrained``, and
read by every command and by ``ScoreModel.from_pretrained``.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from scoresde.cli.flags import CheckpointFlags
from scoresde.cli.info import of_model
from scoresde.cli.outputs import say
from scoresde.cli.trained import PIPELINE, checkpoints_in, trained_of, weights_wanted
from scoresde.files import read_json, refusing
from scoresde.hub import from_pretrained, locate, save_pretrained
from scoresde.sampling import sample


@dataclass(frozen=True, kw_only=True)
class ConvertConfig(CheckpointFlags):
    """Write a model into a folder of its own, or look at a pipeline of diffusers."""

    out: Path | None = None
    """The folder, new or empty; needed unless the checkpoint is a pipeline."""
    dtype: Literal["float16", "bfloat16", "float32", "float64"] | None = None
    """In which the weights are stored; as they are unless told."""
    licence: str | None = None
    """For the card: mit, cc-by-4.0, ..."""
    notes: str | None = None
    """For the card: what the model is for, and what it should not be used for."""
    figures: Path | None = None
    """A report.json, such as that of `scoresde evaluate`, whose figures go on the card."""
    picture: Path | None = None
    """A picture of samples for the card; samples/samples.png of the run, where there is one, unless told."""
    overwrite: bool = False
    """Replace a folder that this command wrote."""

    def check(self) -> None:
        pipeline = (Path(self.checkpoint).expanduser() / PIPELINE).is_file()
        if pipeline and self.out is not None:
            raise ValueError(
                f"{self.checkpoint} is a pipeline of diffusers, whose network is not of this library: every command "
                "takes it as it is, and there is nothing to convert. Leave --out out to look whether it works."
            )
        if not pipeline and self.out is None:
            raise ValueError("--out is the folder to write; give one, such as --out my-model.")


def main(config: ConvertConfig) -> Path | None:
    """Write the folder, and tell what it is; None for a pipeline."""
    config.ready()
    if config.out is None:
        check_pipeline(config)
        return None
    path = checkpoints_in(Path(config.checkpoint), "checkpoints")
    place = path if path.expanduser().exists() else config.checkpoint
    if config.ema_decay is None and config.ema_width is None:
        model = from_pretrained(place, ema=config.ema or None)
    else:
        model = weights_wanted(locate(place), ema=config.ema, decay=config.ema_decay, width=config.ema_width)
    picture = config.picture
    if picture is None:
        usual = path / "samples" / "samples.png"
        picture = usual if usual.is_file() else None
    out = save_pretrained(
        model,
        config.out,
        dtype=None if config.dtype is None else getattr(torch, config.dtype),
        licence=config.licence,
        notes=config.notes,
        figures=None if config.figures is None else figures_of(config.figures),
        picture=picture,
        overwrite=config.overwrite,
    )
    size = sum(file.stat().st_size for file in out.iterdir())
    say(f"{out}: {size / 1e6:.1f} MB; scoresde sample --checkpoint {out}")
    return out


def figures_of(path: Path) -> dict[str, Any]:
    """The numbers of a report: those under ``figures`` where there are any, else those at its top.

    Raises:
        ValueError: no such file, or one without numbers.
    """
    content = read_json(path.expanduser(), refusing(path))
    found = content.get("figures", content)
    plain = {name: value for name, value in found.items() if isinstance(value, (int, float, dict))} if found else {}
    numbers = {
        name: {k: v for k, v in value.items() if isinstance(v, (int, float))} if isinstance(value, dict) else value
        for name, value in plain.items()
        if name != "config"
    }
    numbers = {name: value for name, value in numbers.items() if value != {}}
    if not numbers:
        raise ValueError(f"--figures {path} holds no numbers.")
    return numbers


def check_pipeline(config: ConvertConfig) -> None:
    """Load a pipeline, draw one sample in two steps, and tell what it is.

    Raises:
        ValueError: it cannot be used here, or answers with NaN.
    """
    trained = trained_of(config)
    x = sample(trained.model, (1, *trained.event), steps=2, seed=0, device=trained.device).x
    if not bool(x.isfinite().all()):
        raise ValueError(f"{config.checkpoint}: the network answers with NaN or infinite values.")
    for name, value in of_model(trained, cost=False).items():
        say(f"{name:12s}{value}")
    say("it works: every command takes this folder as --checkpoint")
