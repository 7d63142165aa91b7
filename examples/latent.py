"""Latent diffusion beside diffusion of pixels: as many parameters, as much training time.

    python examples/latent.py                               # digits of 16x16, writes runs/latent
    python examples/latent.py --bottleneck vq               # a codebook in place of a Gaussian
    python examples/latent.py --data cifar/train.parquet --limit 20000 --out runs/latent-cifar
    python examples/latent.py --resume                      # go on after a kill

An autoencoder is trained, its latents are standardised and encoded once, and a U-Net learns them. The control is a
U-Net of pixels with as many parameters as both, trained for as long as both. Held-out pictures tell how well the
autoencoder reconstructs; samples are measured in the features of a third network, that saw real pictures alone.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from scoresde.cli.command import command
from scoresde.cli.flags import PictureFlags, as_flag, at_least
from scoresde.cli.outputs import finish, show, told
from scoresde.cli.pictures import save_grid, save_losses
from scoresde.files import make_writable
from scoresde.interop import Latent, latent_dataset, standardise_latents
from scoresde.nn import Autoencoder
from scoresde.train import load_autoencoder, save_autoencoder
from shared.latent.measures import Judge, draw, reconstructed, reconstruction
from shared.latent.models import Sizes, autoencoder_run, costs, fit, parameters
from shared.latent.pictures import FACTOR, pictures

SHOWN = 12  # pictures of each row


@dataclass(frozen=True, kw_only=True)
class Config(PictureFlags):
    """Train an autoencoder and a diffusion of its latents, and a diffusion of pixels for as long; measure both."""

    data: Path | None = None
    """Images of your own, a folder or a Parquet file, instead of scikit-learn's digits."""
    limit: int = 10_000
    """Pictures of --data that are trained on, at most."""
    held: int = 360
    """Pictures of --data that are kept from training."""
    out: Path | None = None
    """Folder for everything that is written; default runs/latent."""
    bottleneck: Literal["kl", "vq"] = "kl"
    """Of the autoencoder: a diagonal Gaussian, or a codebook."""
    codes: int = 256
    """In the codebook."""
    latent_channels: int = 4
    """Of the latents, each side of which is a quarter of the pictures'."""
    autoencoder_width: int = 16
    """Channels of the autoencoder at its finest level."""
    autoencoder_steps: int = 1200
    """Training steps of the autoencoder."""
    steps: int = 3000
    """Training steps of the diffusion of latents."""
    pixel_steps: int | None = None
    """Training steps of the diffusion of pixels; as many as take the time of both others unless told."""
    feature_steps: int = 600
    """Training steps of the network whose features are compared."""
    batch_size: int = 64
    """Pictures in a training step."""
    samples: int = 1000
    """Pictures drawn of each model."""
    sampling_steps: int = 25
    """Steps of the library's default solver, one network evaluation each and one to end with."""
    seed: int = 0
    """Of everything: split, weights, training, drawing."""

    def check(self) -> None:
        at_least(self, limit=40, held=SHOWN, codes=2, latent_channels=1, autoencoder_width=1, autoencoder_steps=1)
        at_least(self, steps=1, pixel_steps=1, feature_steps=1, batch_size=1, samples=SHOWN, sampling_steps=1, width=1)
        if not 0 <= self.dropout < 1:
            raise ValueError(f"{as_flag('dropout')} must be at least 0 and below 1, got {self.dropout}.")
        if self.data is not None and not self.data.expanduser().exists():
            raise FileNotFoundError(f"no data at {self.data}.")


def learned_autoencoder(config: Config, net: Autoencoder, training: Any, out: Path) -> Autoencoder:
    """The trained autoencoder, with the statistics of its latents, from ``out`` where it is there already."""
    saved = out / "autoencoder"
    if config.resume and (saved / "config.json").exists():
        return load_autoencoder(saved)
    folder = out / "autoencoder-checkpoints"
    run = autoencoder_run(
        config, net, training, steps=config.autoencoder_steps, folder=folder, resume=config.resume, save_every=250
    )
    for _ in run:
        pass
    trained = run.averaged().cpu()
    standardise_latents(trained, training)
    save_losses(out / "autoencoder-loss.png", folder / "log.jsonl")
    save_autoencoder(saved, trained)
    return trained


def main(config: Config) -> dict[str, Any]:
    """Train, draw, measure, write; the report."""
    start = time.perf_counter()
    out = config.begin(Path("runs") / "latent" if config.out is None else config.out)
    training, held = pictures(config.data, seed=config.seed, limit=config.limit, held=config.held)
    event = training.event_shape
    sizes = Sizes.of(config, event)
    judge = Judge(training, make_writable(out / "features"), steps=config.feature_steps, most=5000, seed=config.seed)
    net = learned_autoencoder(config, sizes.autoencoder(), training, out)
    latents = latent_dataset(net, training, file=out / "latents.npy")
    of_latents, of_pixels = sizes.latents(), sizes.pixels()
    each = costs(config, sizes, training, latents, out / "costs.json")
    both = each["autoencoder"] * config.autoencoder_steps + each["latents"] * config.steps
    pixel_steps = max(1, round(both / each["pixels"])) if config.pixel_steps is None else config.pixel_steps
    latent = Latent(fit(config, of_latents, latents, steps=config.steps, folder=out / "latent-checkpoints").cpu(), net)
    pixel = fit(config, of_pixels, training, steps=pixel_steps, folder=out / "pixel-checkpoints").cpu()
    if torch.cuda.is_available() and not config.cpu:
        latent, pixel = latent.cuda(), pixel.cuda()
    same = {"count": config.samples, "steps": config.sampling_steps, "seed": config.seed}
    report: dict[str, Any] = {
        "config": told(config, out),
        "pictures": {"training": len(training), "held_out": len(held), "event": event},
        "features": {"fingerprint": judge.features.fingerprint, **judge.features.trained},
        "parameters": {
            "autoencoder": parameters(net),
            "latents": parameters(of_latents),
            "pixels": parameters(of_pixels),
        },
        "training": {
            "seconds_per_step": each,
            "steps": {"autoencoder": config.autoencoder_steps, "latents": config.steps, "pixels": pixel_steps},
            "seconds": {"latent": both, "pixel": pixel_steps * each["pixels"]},
        },
        "real": judge(held[:]["x"]),
        "reconstruction": reconstruction(latent, held[:]["x"], judge),
    }
    show("held-out pictures", report["real"])
    show("the same, reconstructed", report["reconstruction"])
    drawn = {}
    for name, model in (("latent", latent), ("pixel", pixel)):
        drawn[name], figures = draw(model, event, **same)
        report[name] = {**figures, **judge(drawn[name])}
        show(f"{name} diffusion", report[name])
    report["times_faster"] = report["pixel"]["seconds_per_picture"] / report["latent"]["seconds_per_picture"]
    show("latent beside pixel", {"times faster": report["times_faster"]})
    real = held[:SHOWN]["x"]
    rows = [real, reconstructed(latent, real), drawn["latent"][:SHOWN], drawn["pixel"][:SHOWN]]
    sheet = training.scaling.to_uint8(torch.cat([row.cpu() for row in rows]))
    title = f"held out, reconstructed of 1/{FACTOR} of each side, drawn by latents, drawn by pixels"
    save_grid(out / "latent.png", sheet, [""] * SHOWN, title)
    finish(report, out, start)
    return report


if __name__ == "__main__":
    command(main, Config)
