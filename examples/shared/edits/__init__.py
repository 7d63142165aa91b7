"""The edits of edit.py: each takes held-out digits, answers figures, and draws one picture.

An edit is added by writing it, and naming it in :data:`EDITS`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from shared.edits import digits
from shared.edits.digits import Bench

__all__ = ["EDITS", "Bench"]

EDITS: Mapping[str, Callable[[Bench, Path], dict[str, Any]]] = {
    "sdedit": digits.sdedit,
    "inversion": digits.inversion,
    "null_text": digits.null_text,
    "counterfactual": digits.counterfactual,
    "diffedit": digits.diffedit,
    "interpolation": digits.interpolation,
}
