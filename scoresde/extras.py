"""Optional packages: imported in the functions that use them, and named with their extra where they are missing::

    with needs("train"):
        from safetensors.torch import load_file

``pip install "scoresde[train]"`` brings what training, checkpoints, Parquet and images need, ``"scoresde[examples]"``
also what the scripts draw with; without them all else works.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def needs(extra: str) -> Iterator[None]:
    """Around the import of an optional package: when it is missing, say which extra of scoresde brings it.

    Raises:
        ModuleNotFoundError: the import inside failed, with the command that mends it.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f'this needs the package {error.name!r}, which is not installed: pip install "scoresde[{extra}]"',
            name=error.name,
        ) from error
