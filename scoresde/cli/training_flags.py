"""The options of a training as flags of a command line, found by looking at ``scoresde.train.TrainOptions``.

    @dataclass(frozen=True, kw_only=True)
    class Config(TrainingFlags):
        ...

    options = training_options(config)         # those that are flags as they are; the script adds the others

An option that is added there is a flag from then on, with its help. What no word can say, such as a density of times,
a script asks for in flags of its own.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Annotated, Any

from scoresde.extras import needs
from scoresde.train.options import option_fields

with needs("cli"):
    import tyro

# What takes objects, or means something else on the command line.
ASKED_OTHERWISE = {
    *("weighting", "times", "condition_dropout", "conditions", "dequantize", "folder"),
    *("optimizer", "callbacks", "columns", "scaling", "snapshots", "coupling", "held_out", "early_stopping", "augment"),
}
# Defaults for data of one's own, which are trained for hours and not minutes.
DEFAULTS: dict[str, Any] = {
    "steps": 20_000,
    "batch_size": 128,
    "lr": 5e-4,
    "warmup": 500,
    "decay": "cosine",
    "ema": 0.999,
    "save_every": 1000,
}
FOUND = {name: option for name, option in option_fields().items() if name not in ASKED_OTHERWISE}

if TYPE_CHECKING:

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class TrainingFlags:
        """For type checkers, who cannot look: those that the script itself reads."""

        steps: int
        warmup: int
        compile: bool
        flip: bool
        seed: int
else:
    TrainingFlags = dataclasses.make_dataclass(
        "TrainingFlags",
        [
            (
                name,
                Annotated[option.type, tyro.conf.arg(help=option.text.replace("``", ""))],
                dataclasses.field(default=DEFAULTS.get(name, option.default)),
            )
            for name, option in FOUND.items()
        ],
        kw_only=True,
        frozen=True,
        namespace={"__module__": __name__},
    )


def training_options(flags: TrainingFlags) -> dict[str, Any]:
    """Options for ``TrainOptions``, by name, as the flags give them."""
    return {name: getattr(flags, name) for name in FOUND}
