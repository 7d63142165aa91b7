"""The flags of dalle2.py beside those of the contrastive encoder."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from scoresde.cli.flags import at_least
from shared.unclip.encoder import ClipFlags


@dataclass(frozen=True, kw_only=True)
class Dalle2Flags(ClipFlags):
    """How the prior and the decoder are trained, and what is drawn."""

    clip: Path | None = None
    """Folder of a run of examples/clip.py with the same words; without it encoders are trained here."""
    prior_steps: int = 1200
    """Training steps of the prior, and of the regression that it is compared with."""
    prior_width: int = 96
    """Width of their transformer."""
    prior_batch: int = 256
    """Embeddings in one of their training steps."""
    prior_guidance: float = 1.0
    """Scale of classifier-free guidance of the prior."""
    steps: int = 2000
    """Training steps of the decoder."""
    batch_size: int = 64
    """Pictures in one of its training steps."""
    guidance: float = 2.0
    """Scale of classifier-free guidance of the decoder."""
    samples: int = 240
    """Captions that are asked for, of seen pairs and of unseen ones; and pictures that are varied."""
    draws: int = 8
    """Pictures of each caption that leaves something out."""
    choices: int = 4
    """Pictures drawn of each caption, of which the encoder chooses the best."""
    sampling_steps: int = 18
    """Steps of the library's default solver."""

    def check(self) -> None:
        super().check()
        at_least(self, prior_steps=1, prior_width=2, prior_batch=1, steps=1, batch_size=1, samples=20, draws=2)
        at_least(self, choices=2, sampling_steps=1)
        for name in ("guidance", "prior_guidance"):
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) >= 0):
                raise ValueError(f"--{name.replace('_', '-')} must be a finite number of at least 0.")
        if self.clip is not None and not self.clip.expanduser().is_dir():
            raise FileNotFoundError(f"no run at {self.clip}; `python examples/clip.py` makes one.")
