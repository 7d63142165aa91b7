"""Style transfer: the same digit in another style, by the latent that two models share, and by a style word.

    python examples/styles.py                       # trains a small model of captions, writes runs/styles
    python examples/styles.py --resume              # go on after a kill

Digits come plain, bold and striped; a network learns them with sentences such as "a bold three" and "a bold digit".
Held-out plain digits are then brought to another style: up the ODE of the model of plain digits that comes with the
package and down that of the new one, which share nothing but their latents; within the new one, from one sentence to
another; and by noise and a style word (SDEdit). Judges that have seen real pictures alone read digit and style, and as
every style is a function, it is known what each picture should have become.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import scoresde as ss
from scoresde import editing
from scoresde.cli.choices import SDES
from scoresde.cli.command import command
from scoresde.cli.flags import PictureFlags, at_least
from scoresde.cli.outputs import finish, show, told
from scoresde.cli.sheets import SheetRow, draw_rows
from scoresde.data import Dataset
from scoresde.nn import UNet
from scoresde.train import train
from shared.digits import load
from shared.measures import rms_distance
from shared.styles.drawn import LENGTH, STYLES, sentences, training_set, vocabulary
from shared.styles.judges import Judges
from shared.training import edm_options, of_each_class, trained


@dataclass(frozen=True, kw_only=True)
class Config(PictureFlags):
    """Train a model of digits in styles, and bring held-out digits from one style to another."""

    out: Path = Path("runs/styles")
    """Folder for everything that is written."""
    steps: int = 1000
    """Training steps."""
    batch_size: int = 64
    """Pictures in a training step."""
    count: int = 100
    """Held-out digits that are edited."""
    edit_steps: int = 25
    """Steps of every way up and every way down."""
    guidance: float = 2.0
    """Scale of classifier-free guidance towards a sentence."""
    levels: tuple[float, ...] = (0.5, 1.0, 2.0)
    """Noise levels σ/α of SDEdit."""
    seed: int = 0
    """Of everything: split, sentences, weights, training, noise; 0 is that of the shipped model's held-out digits."""

    def check(self) -> None:
        at_least(self, steps=1, batch_size=1, count=10, edit_steps=1, width=1)
        if not self.levels or min(self.levels) <= 0:
            raise ValueError(f"--levels takes noise levels σ/α above 0, got {self.levels}.")
        if self.sde != "vp":
            raise ValueError(
                f"--sde must be vp, that of the model of plain digits, whose latents are shared; got {self.sde}."
            )


def fit(config: Config, dataset: Dataset, out: Path) -> ss.ScoreModel:
    """The model of styled digits, with averaged weights; checkpoints in ``out``."""
    torch.manual_seed(config.seed)
    words = {"vocabulary": len(vocabulary()), "length": LENGTH, "width": 32, "layers": 1}
    shape: dict[str, Any] = {"multipliers": (1, 2), "blocks": 1, "attention_levels": (-1,)}
    net = UNet(1, width=config.width, captions={"caption": words}, dropout=config.dropout, **shape)
    sigma_data = float(dataset[:]["x"].std())
    return trained(
        train,
        ss.ScoreModel(net, SDES[config.sde](), predicts="edm", sigma_data=sigma_data),
        dataset,
        steps=config.steps,
        condition_dropout=0.1,
        dequantize=True,
        folder=out / "checkpoints",
        resume=config.resume,
        **edm_options(config, sigma_data),
    )


@torch.no_grad()
def ways(config: Config, model: ss.ScoreModel, x: Tensor, label: Tensor, style: str) -> dict[str, tuple[Tensor, int]]:
    """Plain pictures in another style, by every way, with the evaluations; first what no way should be taken for."""
    device, steps = x.device, config.edit_steps
    told, untold = ({"caption": sentences(style, one, len(x)).to(device)} for one in (label, None))
    plain = {"caption": sentences("plain", label, len(x)).to(device)}
    other = ss.ScoreModel.from_pretrained("digits").to(device).eval()
    options: dict[str, Any] = {"steps": steps, "iterations": 10, "memory": 3, "tolerance": 1e-4}

    def guided(sentence: dict[str, Tensor], scale: float = config.guidance) -> ss.Score:
        return ss.classifier_free(model, sentence, scale)

    any_digit = ss.classifier_free(other, {"label": label.to(device)}, scale=0.0)
    found = {"untouched": (x, 0)}
    bridges = {
        "two models": (any_digit, guided(untold, 1.0)),
        "two models, guided": (any_digit, guided(untold)),
        "two models, digit told": (other.bind(label=label.to(device)), guided(told, 1.0)),
        "one model, sentence to sentence": (model.bind(**plain), guided(told, 1.0)),
    }
    for name, (source, target) in bridges.items():
        edit = editing.counterfactual(source, target, x, **options)
        found[name] = edit.x, edit.nfe
    for level in config.levels:
        for name, score in (("style word", guided(untold)), ("no word", guided(untold, 0.0))):
            run = editing.sdedit(score, x, level=level, steps=steps, seed=config.seed)
            found[f"SDEdit {level:g}, {name}"] = run.x, run.nfe
    return found


def main(config: Config) -> dict[str, Any]:
    """Train, edit, measure, write."""
    start = time.perf_counter()
    out = config.begin(config.out)
    training, held = load(config.seed)
    judges = Judges(training)
    model = fit(config, training_set(training, config.seed), out)
    held = of_each_class(held, config.count)
    assert held.label is not None
    label, device = held.label, next(model.parameters()).device
    x = held[:]["x"].to(device)
    report: dict[str, Any] = {"config": told(config, out), "edited": len(x), "real": {}, "styles": {}}
    for style, change in STYLES.items():
        truth = held.scaling.to_model(change(held.data)).to(device)
        report["real"][style] = {"content": judges.content(truth, label), "style": judges.style(truth, style)}
        show(f"real, {style}", report["real"][style])
    for style in list(STYLES)[1:]:
        truth = held.scaling.to_model(STYLES[style](held.data)).to(device)
        figures = report["styles"][style] = {}
        rows: list[SheetRow] = [("plain", x), (style, truth)]
        for name, (made, nfe) in ways(config, model, x, label, style).items():
            figures[name] = {
                "content": judges.content(made, label),
                "style": judges.style(made, style),
                "distance_to_truth": float(rms_distance(made, truth).mean()),
                "nfe": nfe,
            }
            show(f"{style}, {name}", figures[name])
            rows.append((name, made))
        # what a picture scores that has the right digit and style, and nothing of the original
        same = torch.stack([truth[label == k].roll(1, 0)[i] for k, i in places(label)])
        figures["another digit of the class"] = {"distance_to_truth": float(rms_distance(same, truth).mean())}
        heads = list(map(str, label.tolist()))
        draw_rows(out / f"{style}.png", rows, heads, held.scaling, f"Plain digits made {style}")
    finish(report, out, start)
    return report


def places(label: Tensor) -> list[tuple[int, int]]:
    """For each sample its class, and its place among those of the class."""
    return [(k, int((label[:i] == k).sum())) for i, k in enumerate(label.tolist())]


if __name__ == "__main__":
    command(main, Config)
