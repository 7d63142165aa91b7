"""The models that ship with the library: small ones, for first pictures, lessons and tests::

    model = pretrained("digits")                            # a ScoreModel in evaluation mode
    score = scoresde.classifier_free(model, {"label": torch.arange(10)}, scale=2.0)
    scoresde.sample(score, (10, *model.event_shape)).data   # digits 0 to 9, grey levels 0 to 16
    pretrained()                                            # what there is: {"digits": "class-conditional ..."}

Each is a folder that ``save_pretrained`` wrote, with a card that tells how it was made and what was measured of it.
"""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import overload

from scoresde import checks
from scoresde.models import ScoreModel
from scoresde.train import load_model

SHIPPED = {
    "digits": "class-conditional 8x8 digits of scikit-learn, ten classes, VP, 735,313 parameters",
}
"""What there is, by name."""

_HERE = Path(__file__).parent / "models"


@overload
def pretrained() -> dict[str, str]: ...
@overload
def pretrained(name: str) -> ScoreModel: ...
def pretrained(name: str | None = None) -> ScoreModel | dict[str, str]:
    """A model that ships with the library, on the CPU, in evaluation mode; nothing is downloaded.

    Args:
        name: which; without it, what there is: a line for each, by name.

    Raises:
        TypeError: no name. ValueError: there is no such model; the message tells which there are.
    """
    return dict(SHIPPED) if name is None else load_model(folder_of(name))


def folder_of(name: str) -> Path:
    """Where the files of a model that ships are.

    Raises:
        TypeError: no name. ValueError: there is no such model.
    """
    if not isinstance(name, str):
        raise TypeError(f"name must be one of {', '.join(SHIPPED)}, got {checks.got(name)}.")
    if name not in SHIPPED:
        near = difflib.get_close_matches(name.lower(), SHIPPED, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        there = "; ".join(f"{key!r} ({text})" for key, text in SHIPPED.items())
        raise ValueError(
            f"name must be that of a model that ships with the library, got {name!r:.80}; there is {there}.{hint} "
            "Folders and models of a hub are loaded by ScoreModel.from_pretrained(path_or_id)."
        )
    return _HERE / name
