"""The tasks of conditional.py, each a function of the flags and a folder that trains, draws, measures.

A task is added by writing it, and naming it in :data:`TASKS`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from shared.conditional import caption, classifier, images, label
from shared.conditional.task import Flags

TASKS: Mapping[str, Callable[[Flags, Path], dict[str, Any]]] = {
    "caption": caption.run,
    "superresolution": images.superresolution,
    "mask": images.mask,
    "segment": images.segment,
    "label": label.run,
    "classifier": classifier.run,
}
