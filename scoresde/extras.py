"""Optional packages: imported where they are used, and named with their extra where they are missing."""

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
