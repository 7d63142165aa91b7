"""The folder a script writes into: asked for before work starts, and every file in it written whole or not."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np


def make_folder(folder: Path) -> Path:
    """Make the folder and try to write in it.

    Raises:
        ValueError: it cannot be made or written.
    """
    probe = folder / f".probe-{os.getpid()}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.write_bytes(b"")
        probe.unlink()
    except OSError as error:
        raise ValueError(f"cannot write into {folder}: {error}. Choose a folder that you may write.") from error
    return folder


def save_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write JSON; paths inside become text."""
    part = path.with_name(path.name + ".part")
    part.write_text(json.dumps(content, indent=2, default=str) + "\n", encoding="utf-8")
    os.replace(part, path)


def save_array(path: Path, array: np.ndarray[Any, Any]) -> None:
    """Write an .npy file."""
    part = path.with_name(path.name + ".part")
    with part.open("wb") as file:
        np.save(file, array, allow_pickle=False)
    os.replace(part, path)
