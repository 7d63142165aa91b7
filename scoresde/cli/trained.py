"""A trained model opened for use: on the right device, with the shape and units of its data and its conditions.

    trained = open_checkpoint("runs/my-images", ema=True, cpu=False)
    trained.model, trained.event, trained.scaling, trained.classes, trained.conditions

What is named may be the folder of a run, of its checkpoints, of one step or of a saved model; the name of a model that
comes with the package, such as digits; the id of one on a hub; or the folder of a pipeline of diffusers.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

import scoresde as ss
from scoresde.cli.flags import CheckpointFlags
from scoresde.data import Scaling
from scoresde.files import read_json, refusing
from scoresde.hub import locate
from scoresde.hub.loading import ships
from scoresde.interop import from_diffusers
from scoresde.models.conditions import Series, Set, TrainedWith, Vector, kinds_of, nulls_of
from scoresde.train import CheckpointError, describe, load_model, reconstruct_ema, snapshot_steps

PIPELINE = "model_index.json"
"""What says that a folder is a pipeline of diffusers."""


@dataclass(frozen=True)
class Trained:
    """A model and its data.

    Attributes:
        model: in evaluation mode, on ``device``.
        device: where it is.
        path: of the checkpoint, for messages and reports.
        event: shape of one sample.
        scaling: the map between data and model units.
        home: the folder into which results go unless told: the run's, or one of its name below runs.
        step: of training; None where it is not known, as of a model that was saved by itself.
        version: of the library that wrote it.
        classes: their names; None for a model without classes.
        conditions: shape and dtype of each further condition of one sample, by name.
        condition_scalings: the maps to the network's units, of those that have one.
        trained_with: how often training left conditions out, where it is known.
        decays: of the averages that are kept.
        snapshots: steps of those of which any other average is put together.
    """

    model: ss.ScoreModel
    device: torch.device
    path: Path
    event: tuple[int, ...]
    scaling: Scaling
    home: Path
    step: int | None = None
    version: str = ""
    classes: tuple[str, ...] | None = None
    conditions: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    condition_scalings: Mapping[str, Scaling] = field(default_factory=dict)
    trained_with: TrainedWith | None = None
    decays: tuple[float, ...] = ()
    snapshots: tuple[int, ...] = ()

    @property
    def name(self) -> str:
        """For titles: the run's and the step, or that of the saved model."""
        title = self.home.absolute().name
        return title if self.step is None else f"{title}, step {self.step}"

    @property
    def null(self) -> int:
        """The label that means: of no class in particular."""
        return len(self.classes or ())

    def index(self, name: str) -> int:
        """The number of a class, given by its name or number.

        Raises:
            ValueError: there is no such class.
        """
        if self.classes is None:
            raise ValueError(f"the model in {self.path} knows no classes, so there is no {name!r}.")
        if name in self.classes:
            return self.classes.index(name)
        if name.isascii() and name.isdigit() and int(name) < len(self.classes):
            return int(name)
        shown = ", ".join(self.classes[:20]) + (", ..." if len(self.classes) > 20 else "")
        raise ValueError(
            f"there is no class {name!r}; the model knows {len(self.classes)}: {shown} (or their numbers 0 to "
            f"{len(self.classes) - 1})."
        )

    def indices(self, names: Sequence[str]) -> list[int]:
        """The numbers of some classes."""
        return [self.index(name) for name in names]

    def told(self) -> dict[str, Any]:
        """What report.json says of it."""
        return {"checkpoint": str(self.path), "step": self.step, "device": str(self.device)}


def checkpoints_in(folder: Path, *names: str) -> Path:
    """Where the checkpoints of a run are: the first of its folders of these names, or the folder itself."""
    inside = (folder.expanduser() / name for name in names)
    return next((path for path in inside if path.is_dir()), folder)


def device_for(*, cpu: bool) -> torch.device:
    """The GPU where there is one, unless told to stay on the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() and not cpu else "cpu")


def home_of(checkpoint: str | Path) -> Path:
    """The folder where results of a model go unless told: that of the run, or one below runs for a name or an id."""
    given = Path(checkpoint).expanduser()
    if ships(checkpoint) or not given.exists():
        return Path("runs") / re.sub(r"[^\w.-]+", "-", str(checkpoint))
    if given.name.startswith("step-"):
        given = given.parent
    return given.parent if given.name == "checkpoints" else given


def open_checkpoint(
    checkpoint: str | Path, *, ema: bool, cpu: bool, decay: float | None = None, width: float | None = None
) -> Trained:
    """Load the latest checkpoint of a run, or the one that is named; onto the GPU where there is one.

    Args:
        checkpoint: a folder, name or id, see the top.
        ema: the averaged weights, or those of the last step.
        cpu: stay on the CPU.
        decay: those of the average of this decay, of several.
        width: those of an average of this width, put together of snapshots.

    Raises:
        CheckpointError: no checkpoint, or a damaged one; no average of this decay, no snapshots.
        ValueError: one that does not tell the shape and units of its data; it was trained with parts of the user's own,
            which a file does not rebuild; a pipeline whose samples are not pictures.
    """
    if (Path(checkpoint).expanduser() / PIPELINE).is_file():
        if decay is not None or width is not None:
            raise ValueError(f"{checkpoint} is a pipeline of diffusers, of which there is one set of weights.")
        return open_pipeline(Path(checkpoint).expanduser(), cpu=cpu)
    path = checkpoints_in(Path(checkpoint), "checkpoints")
    found = locate(path if path.expanduser().exists() else str(checkpoint), ema=ema or None)
    description = describe(found)
    event, scaling = description.event_shape, description.scaling
    if event is None or scaling is None:
        raise ValueError(
            f"{found} does not tell the shape and units of its data: it was trained on a data set of your own. Load it "
            "with scoresde.train.load_model and use scoresde.sample."
        )
    model = weights_wanted(found, ema=ema, decay=decay, width=width)
    device = device_for(cpu=cpu)
    known = description.trained_with  # what training never gave nobody can ask for: how pictures were augmented, say
    names = [name for name in nulls_of(model.net) if known is None or name == "label" or name in known.names]
    others = {name: description.conditions.get(name, {}) for name in names if name != "label"}
    for name, kind in kinds_of(model.net).items():
        if name not in others:
            continue
        if isinstance(kind, Vector) and not others[name]:
            others[name] = {"shape": [kind.size], "dtype": "float32"}
        if isinstance(kind, (Set, Series)):
            others[name] = {"shape": [None, kind.size], "dtype": "float32", "members": True}
    return Trained(
        model=model.to(device),
        device=device,
        path=found,
        event=event,
        scaling=scaling,
        home=home_of(checkpoint),
        step=description.step or None,  # a model that was saved by itself knows of none
        version=description.version,
        classes=description.class_names if "label" in names else None,
        conditions=others,
        condition_scalings=description.condition_scalings,
        trained_with=description.trained_with,
        decays=tuple(description.decays.values()),
        snapshots=tuple(step for step in snapshot_steps(found.parent) if step <= (description.step or 0)),
    )


def trained_of(config: CheckpointFlags) -> Trained:
    """The checkpoint that flags name; errors as of :func:`open_checkpoint`."""
    return open_checkpoint(
        config.checkpoint, ema=config.ema, cpu=config.cpu, decay=config.ema_decay, width=config.ema_width
    )


def weights_wanted(found: Path, *, ema: bool, decay: float | None, width: float | None) -> ss.ScoreModel:
    """The model of a checkpoint with the weights that the flags ask for.

    Raises:
        CheckpointError, ValueError: it does not hold them, or two of them are asked for.
    """
    if decay is not None and width is not None:
        raise ValueError("--ema-decay and --ema-width are of two averages; give one of them.")
    if not ema and (decay is not None or width is not None):
        raise ValueError("--no-ema takes the weights of the last step; leave --ema-decay and --ema-width out with it.")
    if width is not None:
        return reconstruct_ema(found, width)
    if decay is not None:
        return load_model(found, ema=decay)
    try:
        return load_model(found, ema=ema)
    except CheckpointError:
        if not ema:
            raise
        return load_model(found, ema=None)  # a saved folder may hold one set of weights


def open_pipeline(folder: Path, *, cpu: bool) -> Trained:
    """A pipeline of diffusers whose samples are pictures in [-1, 1], without conditions.

    Raises:
        ValueError: one of latents, or one that is told what to draw: there are no flags for that.
        ModuleNotFoundError: diffusers is not installed.
    """
    parts = read_json(folder / PIPELINE, refusing(folder / PIPELINE))
    for name in ("vae", "vqvae", "movq", "text_encoder"):
        if name in parts:
            raise ValueError(
                f"{folder} is a pipeline with a {name}: its network works on latents or takes prompts, for which there "
                "are no flags. In Python: scoresde.interop.from_diffusers(folder), and what it says of conditions."
            )
    model = from_diffusers(folder)
    network = next(name for name in ("unet", "transformer") if name in parts)
    config = read_json(folder / network / "config.json", refusing(folder / network / "config.json"))
    size, channels = config.get("sample_size"), config.get("in_channels")
    sizes = [size, size] if isinstance(size, int) else size
    if config.get("num_class_embeds") or config.get("class_embed_type"):
        raise ValueError(f"{folder}: the network takes class_labels, for which there is no flag; bind them in Python.")
    if not isinstance(channels, int) or not isinstance(sizes, list) or not all(isinstance(n, int) for n in sizes):
        raise ValueError(f"{folder}: {network}/config.json does not tell the size of a sample.")
    device = device_for(cpu=cpu)
    scaling = Scaling.to_unit_range(256)
    return Trained(model.to(device).eval(), device, folder, (channels, *sizes), scaling, home_of(folder))
