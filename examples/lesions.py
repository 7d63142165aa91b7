"""Find what does not belong: a model that has seen healthy pictures alone, and blobs pasted into others.

    python examples/lesions.py                                                  # digits, by the model that is shipped
    python examples/lesions.py --checkpoint runs/cifar --data cifar/test.parquet --levels 3 6 --smoothing 8

Each picture is noised and made anew by the model, which knows nothing of blobs; where the two differ is the map.
report.json holds the area under the curve of every map against the true masks, beside those of controls: chance, each
pixel's deviation from its mean, and a single step of denoising. lesions.png shows pictures, counterfactuals and maps.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import scoresde as ss
from scoresde.cli.command import command
from scoresde.cli.flags import MachineFlags, ReaderFlags, at_least
from scoresde.cli.outputs import finish, show, told
from scoresde.cli.sheets import draw_rows
from scoresde.cli.trained import Trained, open_checkpoint
from scoresde.data import Dataset
from shared.digits import load
from shared.lesions.blobs import with_blobs
from shared.lesions.maps import Search, figures, maps_of, smoothed
from shared.training import of_each_class

SHIPPED = "digits"


@dataclass(frozen=True, kw_only=True)
class Config(MachineFlags, ReaderFlags):
    """Paste blobs into healthy pictures, and find them by a model that has seen none."""

    checkpoint: str = SHIPPED
    """A model of healthy pictures: the folder of a run, or the name of a model that comes with the package."""
    data: Path | None = None
    """Healthy pictures that it has not seen: a folder, a Parquet file or .npy; for digits those held out."""
    out: Path = Path("runs/lesions")
    """Folder for everything that is written."""
    count: int = 100
    """Pictures with a blob each; as many others, or the training digits, say what each pixel is like."""
    levels: tuple[float, ...] = (0.3, 0.5, 0.7)
    """Noise levels σ/α to which pictures are noised: low ones keep blobs, high ones lose healthy detail. A blob is
    hidden from about its contrast times the root of its pixels on: 0.3 to 0.7 for digits, 3 to 6 for 32x32 colours."""
    samples: int = 4
    """Counterfactuals of each picture at each level."""
    steps: int = 6
    """Steps of each, one evaluation of the network each and one to end with."""
    smoothing: int = 1
    """How often maps are smoothed by weights 1 2 1 along each axis; for lesions of r pixels about r² / 2 times."""
    guidance: float = 2.0
    """Scale of classifier-free guidance towards what a picture is known to be of, where the model knows classes."""
    seed: int = 0
    """Of blobs, noise and the choice of pictures; 0 is that of the shipped model's held-out digits."""

    def check(self) -> None:
        at_least(self, count=2, samples=2, steps=1, smoothing=0)
        if not self.levels or min(self.levels) <= 0:
            raise ValueError(f"--levels takes noise levels σ/α above 0, got {self.levels}.")
        if (self.data is None) != (self.checkpoint == SHIPPED):
            raise ValueError(
                f"--checkpoint and --data go together: pictures that the model has not seen. Without both, {SHIPPED}."
            )


def pictures(config: Config, model: Trained) -> tuple[Dataset, Dataset]:
    """Healthy pictures that become ill, and others that say what each pixel is like.

    Raises:
        ValueError: others than the model's, or too few.
    """
    if config.data is None:
        training, held = load(0)
        return of_each_class(held, config.count), training
    given = config.read(config.data)
    if given.event_shape != model.event or len(given.event_shape) != 3 or given.scaling != model.scaling:
        raise ValueError(
            f"the model knows events {model.event} in units of {model.scaling}, and {config.data} holds "
            f"{given.event_shape} in units of {given.scaling}; pictures (C, H, W) of one kind are needed."
        )
    if len(given) < 2 * config.count:
        raise ValueError(f"{config.data} holds {len(given)} pictures, and --count {config.count} asks for twice that.")
    order = torch.randperm(len(given), generator=torch.Generator().manual_seed(config.seed))
    return given.subset(order[: config.count]), given.subset(order[config.count : 21 * config.count])


def main(config: Config) -> dict[str, Any]:
    """Paste, search, measure, write."""
    start = time.perf_counter()
    out = config.begin(config.out)
    trained = open_checkpoint(config.checkpoint, ema=True, cpu=config.cpu)
    chosen, others = pictures(config, trained)
    batch, like = chosen[:], others[:]["x"]
    ill = with_blobs(batch["x"], config.seed, levels=chosen.scaling.levels)
    x, model = ill.x.to(trained.device), trained.model
    labels = {"label": batch["label"].to(trained.device)} if trained.classes and "label" in batch else None
    search = Search(
        plain=model if labels is None else ss.classifier_free(model, labels, scale=0.0),
        labelled=None if labels is None else model.bind(**labels),
        guided=None if labels is None else ss.classifier_free(model, labels, scale=config.guidance),
        x=x,
        mean=like.mean(0).to(x.device),
        std=(like.std(0) + 0.1).to(x.device),
        levels=config.levels,
        samples=config.samples,
        steps=config.steps,
        seed=config.seed,
    )
    report: dict[str, Any] = {"config": told(config, out), "masked_share": float(ill.mask.double().mean()), "maps": {}}
    drawn = {}
    for name, look in maps_of(search).items():
        began = time.perf_counter()
        found = look()
        report["maps"][name] = {
            **figures(found, ill.mask, config.smoothing),
            "seconds": round(time.perf_counter() - began, 2),
        }
        show(name, report["maps"][name])
        drawn[name] = found
    best = drawn["counterfactuals, label" if labels else "counterfactuals"]
    control = drawn["denoiser, one step, label" if labels else "denoiser, one step"]
    assert best.healthy is not None and control.healthy is not None
    rows = [
        ("healthy", batch["x"]),
        ("with a blob", ill.x),
        ("mask", ill.mask.float()),
        ("made anew", best.healthy),
        ("difference", ill.x - best.healthy.cpu()),
        ("map", smoothed(best.map.cpu(), config.smoothing)),
        ("made by one step", control.healthy),
    ]
    names = trained.classes or ()
    heads = [names[int(k)] for k in batch["label"]] if labels else [str(i + 1) for i in range(len(x))]
    draw_rows(
        out / "lesions.png", rows, heads, chosen.scaling, "Blobs, and what a model of healthy pictures makes anew"
    )
    finish(report, out, start)
    return report


if __name__ == "__main__":
    command(main, Config)
