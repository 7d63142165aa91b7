"""Optional packages: imported in the functions that use them, and named with their extra where they are missing::

    with needs("train"):
        from accelerate import Accelerator

``pip install "scoresde[train]"`` brings what training, Parquet and images need, ``"scoresde[cli]"`` also the command
line and what it draws with, ``"scoresde[hub]"``, ``[diffusers]``, ``[datasets]`` and ``[tensorboard]`` what they are
called after; without them all else works, reading and writing models included.
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
