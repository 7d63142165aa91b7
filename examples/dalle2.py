"""DALL-E 2 in small: from a caption to an embedding of a picture, and from that to the picture.

    python examples/dalle2.py                        # trains all of it, writes runs/dalle2
    python examples/dalle2.py --clip runs/clip       # with the encoders of examples/clip.py
    python examples/dalle2.py --resume               # go on after a kill

A contrastive encoder is trained and frozen; a prior, a diffusion transformer, draws embeddings of pictures for a
caption, and a decoder, a U-Net, pictures for an embedding. Beside it: a regression of the same size in the place of the
prior, the decoder told the caption alone, and what an independent reader of digit, colour and place makes of each, for
pairs of digit and colour that training has shown and for pairs it has not. Captions that leave things open tell how
varied the pictures of each are. Embeddings of real pictures are varied, joined, and turned along a difference of
captions.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scoresde.cli.command import command
from scoresde.cli.outputs import finish, told
from shared.digits import load
from shared.unclip.asked import compositions, open_captions
from shared.unclip.edited import edits
from shared.unclip.flags import Dalle2Flags
from shared.unclip.system import built


@dataclass(frozen=True, kw_only=True)
class Config(Dalle2Flags):
    """Train the parts of DALL-E 2 on captioned digits, draw, and measure."""

    width: int = 16
    """Channels of the decoder at its finest level."""
    out: Path = Path("runs/dalle2")
    """Folder for everything that is written."""


def main(config: Config) -> dict[str, Any]:
    """Train, draw, measure, write; the report."""
    start = time.perf_counter()
    out = config.begin(config.out)
    training, held = load(config.seed)
    system = built(config, training, held, out)
    report: dict[str, Any] = {
        "config": told(config, out),
        "parameters": {
            name: sum(p.numel() for p in getattr(system, name).parameters())
            for name in ("clean", "prior", "regression", "decoder")
        },
        "training_seconds": round(time.perf_counter() - start, 1),
        "captions": compositions(system, out),
        "open_captions": open_captions(system, out),
        **edits(system, out),
    }
    finish(report, out, start)
    return report


if __name__ == "__main__":
    command(main, Config)
