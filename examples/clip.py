"""CLIP in small: pictures of digits and their captions brought into one space; retrieval and zero-shot classification.

    python examples/clip.py                          # writes runs/clip
    python examples/clip.py --tokenizer bytes        # captions as byte pairs instead of words
    python examples/clip.py --resume                 # go on after a kill

Two encoders are trained, one of clean pictures and one of pictures under noise of any strength, which can guide.
report.json says how often the right one of 240 captions comes first, and among the first five, for a held-out
picture, and the right picture for a caption; and what share of digits, colours and places is read by prompts alone,
each of pairs that training has shown and of pairs it has not, clean and through noise.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from scoresde.cli.command import command
from scoresde.cli.outputs import finish, show, told
from scoresde.cli.pictures import new_figure, save_figure
from shared.digits import load
from shared.unclip.encoder import LEVELS, ClipFlags, figures, gallery_of, learn
from shared.unclip.sentences import Captions, pictures_of, tokenizer_of

ENCODERS: tuple[Literal["clean", "noisy"], ...] = ("clean", "noisy")


@dataclass(frozen=True, kw_only=True)
class Config(ClipFlags):
    """Train contrastive encoders of captioned digits, and measure what they know."""

    out: Path = Path("runs/clip")
    """Folder for everything that is written."""


def main(config: Config) -> dict[str, Any]:
    """Train, measure, write; the report."""
    start = time.perf_counter()
    out = config.begin(config.out)
    training, held = load(config.seed)
    captions = Captions(tokenizer_of(config.tokenizer))
    pictures = pictures_of(training, captions, config.seed)
    gallery = gallery_of(held, captions, pictures.dataset.scaling, config.seed)
    report: dict[str, Any] = {"config": told(config, out), "pictures": len(pictures.dataset)}
    for reads in ENCODERS:
        model = learn(config, captions, pictures, out / reads, reads=reads)
        report[reads] = {
            "parameters": sum(p.numel() for p in model.parameters()),
            **figures(model, gallery, captions, config.seed),
        }
        for name, one in report[reads].items():
            if isinstance(one, dict) and "seen" in one:
                for pairs, found in one.items():
                    show(f"{reads} encoder, {name}, {pairs}", found)
    draw(report, out / "noise.png")
    finish(report, out, start)
    return report


def draw(report: dict[str, Any], path: Path) -> None:
    """The share of captions found first over the noise level, of both encoders."""
    figure, axes = new_figure(1, 2, size=3.2)
    for axis, pairs in zip(axes[0], ("seen", "unseen"), strict=True):
        for reads in ENCODERS:
            values = [report[reads][f"sigma/alpha {level:g}"][pairs]["caption_at_1"] for level in LEVELS]
            axis.plot(LEVELS, values, marker="o", label=f"trained on {reads} pictures")
        axis.set_xscale("log")
        axis.set_ylim(0, 1)
        axis.set_xlabel("σ/α", fontsize=8)
        axis.set_title(f"right caption of 240 first, {pairs} pairs", fontsize=8)
        axis.legend(fontsize=7)
    save_figure(path, figure)


if __name__ == "__main__":
    command(main, Config)
