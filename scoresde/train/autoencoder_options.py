"""The options of the training of an autoencoder: one object, whose fields are the keywords of ``train_autoencoder``::

options = AutoencoderOptions(steps=4000, batch_size=64, adversary=Adversary(start=2000))
run = train_autoencoder(net, dataset, options, seed=1)
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from scoresde import checks
from scoresde.files import PathName
from scoresde.train.autoencoder_terms import Adversary, Perceptual
from scoresde.train.optimizer import Decay
from scoresde.train.option_checks import Precision

_UNRECORDED = ("folder", "resume", "save_every", "keep", "log_every", "cpu")
"""Options that change no number of a run."""


@dataclass(frozen=True, kw_only=True)
class AutoencoderOptions:
    """Options of :func:`train_autoencoder`, whose keywords they are.

    Attributes:
        steps: optimizer steps in all.
        batch_size: samples in each.
        lr, warmup, decay: of the learning rate, see :func:`~scoresde.train.learning_rate`.
        betas, weight_decay: of AdamW.
        clip: largest norm of the gradient; None for no limit.
        penalty: w, the factor of the bottleneck's penalty; None takes the bottleneck's own, 1e-3 of a KL divergence.
        perceptual: a term by what another network sees.
        adversary: a term by a discriminator.
        ema: decay of the averaged weights, with warm-up.
        flip: mirror half of the samples along their last axis.
        seed: of everything.
        folder: for checkpoints and log.jsonl.
        resume: go on from the last checkpoint in the folder, where there is one.
        save_every: steps between checkpoints; there is one at the end in any case.
        keep: how many checkpoints to leave.
        log_every: steps between lines of the log.
        mixed_precision: "bf16" computes the networks in bfloat16; weights and losses stay as they are.
        cpu: stay on the CPU although there is a GPU.

    Raises:
        TypeError, ValueError: a value of another kind or out of its range, or two that contradict each other.
    """

    steps: int
    batch_size: int = 64
    lr: float = 1e-3
    warmup: int = 0
    decay: Decay = "cosine"
    betas: tuple[float, float] = (0.9, 0.99)
    weight_decay: float = 0.0
    clip: float | None = 1.0
    penalty: float | None = None
    perceptual: Perceptual | None = None
    adversary: Adversary | None = None
    ema: float = 0.999
    flip: bool = False
    seed: int = 0
    folder: PathName | None = None
    resume: bool = False
    save_every: int | None = None
    keep: int = 2
    log_every: int = 25
    mixed_precision: Precision = "no"
    cpu: bool = False

    def __post_init__(self) -> None:
        checks.fields(self)
        for name in ("steps", "batch_size", "keep", "log_every"):
            checks.count(getattr(self, name), name=name)
        checks.whole(self.warmup, name="warmup", least=0)
        checks.positive(self.lr, name="lr")
        checks.not_negative(self.weight_decay, name="weight_decay")
        betas = checks.numbers(self.betas, name="betas", what="two numbers in [0, 1)")
        if len(betas) != 2 or not all(0 <= beta < 1 for beta in betas):
            raise ValueError(f"betas must be two numbers in [0, 1), got {self.betas}.")
        object.__setattr__(self, "betas", tuple(betas))
        if not 0 <= checks.number(self.ema, name="ema") < 1:
            raise ValueError(f"ema must be a decay in [0, 1), got {self.ema:g}.")
        if self.clip is not None:
            checks.positive(self.clip, name="clip")
        if self.penalty is not None:
            checks.not_negative(self.penalty, name="penalty")
        object.__setattr__(self, "seed", checks.seed(self.seed))
        if self.warmup > self.steps:
            raise ValueError(f"warmup={self.warmup} steps is longer than the whole run, steps={self.steps}.")
        if self.save_every is not None:
            checks.count(self.save_every, name="save_every")
        if self.folder is None:
            for name in ("save_every", "resume"):
                if getattr(self, name):
                    raise ValueError(f"{name} needs a folder; give folder=... or leave {name} out.")
        else:
            object.__setattr__(self, "folder", checks.path(self.folder, name="folder").absolute())

    def recorded(self) -> dict[str, Any]:
        """What changes the numbers of such a run, as JSON."""
        found = {name: getattr(self, name) for name in self.__dataclass_fields__ if name not in _UNRECORDED}
        found["betas"] = list(self.betas)
        found["perceptual"] = None if self.perceptual is None else self.perceptual.weight
        found["adversary"] = None if self.adversary is None else asdict(self.adversary)
        if self.decay == "constant":  # then the length of the run changes nothing
            del found["steps"]
        return found
