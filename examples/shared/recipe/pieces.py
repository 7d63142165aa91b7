"""Results in pieces of a size that can be carried: files above it are cut, and joined again by ``cat``::

    gather(Path("run/results"), [weights, table, picture], most=16_000_000)
    joined(Path("run/results"), Path("here"))                       # checked against the SHA-256 of the whole files

results/pieces.json names each file, its size and its SHA-256, and the pieces it is in, in their order.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from scoresde.files import read_json, replacing, write_json

INDEX = "pieces.json"


def gather(folder: Path, files: Sequence[Path], *, most: int) -> dict[str, Any]:
    """Copy files into ``folder``, those of more than ``most`` bytes in pieces NAME.part-000 and so on.

    What a call before left there is replaced; the index is written last.

    Returns:
        What the index says, by name.

    Raises:
        ValueError: two files of one name.
    """
    names = [file.name for file in files]
    if len(set(names)) < len(names):
        raise ValueError(f"files are told apart by their names, and two of these have one: {', '.join(sorted(names))}.")
    folder.mkdir(parents=True, exist_ok=True)
    before = read_json(folder / INDEX, ValueError) if (folder / INDEX).exists() else {}
    index: dict[str, Any] = {}
    for file in files:
        size, cut = file.stat().st_size, []
        for part in range(max(1, -(-size // most))):
            cut.append(file.name if size <= most else f"{file.name}.part-{part:03d}")
        index[file.name] = {"bytes": size, "sha256": _digest([file]), "pieces": cut}
        if before.get(file.name) == index[file.name] and all((folder / piece).exists() for piece in cut):
            continue  # large ones are copied once
        with file.open("rb") as whole:
            for piece in cut:
                with replacing(folder / piece) as partial:
                    partial.write_bytes(whole.read(most))
        for old in (folder / file.name, *folder.glob(f"{file.name}.part-*")):
            if old.name not in cut:
                old.unlink(missing_ok=True)
    write_json(folder / INDEX, index)
    return index


def joined(folder: Path, out: Path) -> list[Path]:
    """The whole files of ``folder``, written to ``out``.

    Raises:
        ValueError: a piece is missing or not the one that was written.
    """
    index = read_json(folder / INDEX, ValueError)
    out.mkdir(parents=True, exist_ok=True)
    files = []
    for name, about in index.items():
        pieces = [folder / Path(piece).name for piece in about["pieces"]]
        lost = [piece.name for piece in pieces if not piece.is_file()]
        if lost or _digest(pieces) != about["sha256"]:
            raise ValueError(f"{name} in {folder} is not whole: {', '.join(lost) or 'a piece was changed'}.")
        with replacing(out / Path(name).name) as partial, partial.open("wb") as whole:
            for piece in pieces:
                with piece.open("rb") as part:
                    shutil.copyfileobj(part, whole)
        files.append(out / Path(name).name)
    return files


def _digest(files: Sequence[Path]) -> str:
    digest = hashlib.sha256()
    for file in files:
        with file.open("rb") as stream:
            while chunk := stream.read(1 << 20):
                digest.update(chunk)
    return digest.hexdigest()
