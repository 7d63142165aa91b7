"""Bytes of strangers: what is no regular file or is too large is not read, and JSON is checked before it is used.

:func:`read_json` answers with an object or with the error that ``fail`` makes of a text; a missing file alone is a
FileNotFoundError. :func:`read_format` reads what :func:`~scoresde.files.write_format` wrote::

    content = read_json(Path("run/config.json"), fail)      # at most MOST_JSON bytes, LEVELS deep
    with opened(path, fail) as file:                        # never waits for a pipe, starts no device
        file.read(8)
"""

from __future__ import annotations

import json
import math
import os
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from scoresde.files.fields import Fail

MOST_JSON = 8 << 20
"""Bytes of the largest JSON file that is read, or written to be read again."""

LEVELS = 16
"""How deep the values of a JSON file may be nested."""

_KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a FIFO"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)

_DIGITS = 20  # of 64 bits; a number of a million digits would take minutes


def irregular(mode: int) -> str | None:
    """What a file of this ``st_mode`` is, where it is no regular file."""
    return None if stat.S_ISREG(mode) else next((word for is_a, word in _KINDS if is_a(mode)), "no regular file")


@contextmanager
def opened(path: Path, fail: Fail, *, most: int | None = None) -> Iterator[BinaryIO]:
    """Open a regular file to read its bytes; a link to one will do.

    Args:
        path: the file.
        fail: makes the error of a text.
        most: bytes it may have; None for any number.

    Raises:
        FileNotFoundError: there is none.
        Exception: what ``fail`` makes: a folder, pipe, socket or device, too large, or not to be read.
    """
    try:
        kind = irregular(os.stat(path).st_mode)  # first: to open a device may already start it
        # Not blocking: it may have become a pipe since.
        flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
        descriptor = os.open(path, flags) if kind is None else None
    except FileNotFoundError as error:
        raise FileNotFoundError(f"path must be that of a file, and there is none at {path}.") from error
    except (OSError, ValueError) as error:
        raise fail(f"the file cannot be read ({getattr(error, 'strerror', None) or error}).") from error
    if descriptor is None:
        raise fail(f"it is {kind}, and must be a regular file: only regular files are read.")
    with os.fdopen(descriptor, "rb") as file:
        found = os.fstat(descriptor)
        if irregular(found.st_mode) is not None:
            raise fail(f"it is {irregular(found.st_mode)}, and must be a regular file: only regular files are read.")
        if most is not None and found.st_size > most:
            raise fail(f"the file has {found.st_size} bytes; the limit is {most}.")
        yield file


def read_json(path: Path, fail: Fail, *, most: int = MOST_JSON) -> dict[str, Any]:
    """The JSON object in a file, in which every number is finite and fits into 64 bits, and no name stands twice.

    Raises:
        FileNotFoundError: there is no such file.
        Exception: what ``fail`` makes of all else.
    """
    with opened(path, fail, most=most) as file:
        try:
            text = file.read(most + 1)
        except OSError as error:
            raise fail(f"the file cannot be read ({error}).") from error
    if len(text) > most:
        raise fail(f"the file has more than {most} bytes, the limit.")
    try:
        content = json.loads(text.decode("utf-8"), object_pairs_hook=_once, parse_int=_whole)
    except RecursionError as error:
        raise fail(f"the values are nested deeper than {LEVELS} levels.") from error
    except _Twice as error:
        raise fail(f"the field {error} stands twice.") from error
    except ValueError as error:  # of JSON, or of UTF-8
        raise fail(f"the file is not JSON ({error}).") from error
    _check(content, fail)
    if not isinstance(content, dict):
        raise fail(f"the file must be a JSON object, got {content!r:.80}.")
    return content


def read_format(path: Path, fail: Fail, *, format: str, version: int, what: str, mend: str) -> Mapping[str, Any]:
    """The content of a file whose "format" and "version" are those.

    Args:
        path: the file.
        fail: makes the error of a text.
        format: what it should say that it is.
        version: of the format, that can be read.
        what: what the file should hold, in words.
        mend: how such a file is made.

    Raises:
        FileNotFoundError: there is no such file.
        Exception: what ``fail`` makes of another file, another version, or no JSON.
    """

    def mended(text: str) -> Exception:
        return fail(f"{text.removesuffix('.')}; {mend}.")

    content = read_json(path, mended)
    if content.get("format") != format:
        raise mended(f'the file holds no {what}: its "format" should be {format!r}.')
    if repr(content.get("version")) != repr(version):  # true is no 1
        raise mended(
            f"the file has version {content.get('version')!r:.80} of the format, this library reads {version}."
        )
    return content


class _Twice(Exception):
    """A name that stands twice in an object: readers of JSON differ in which they take."""


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        raise _Twice(f"{next(name for name in names if names.count(name) > 1)!r:.80}")
    return found


def _whole(digits: str) -> int:
    return int(digits[: _DIGITS + 5])  # of a longer one, enough to be refused with its place


def _check(content: Any, fail: Fail) -> None:
    """Raise unless all is at most LEVELS deep, finite, of 64 bits, and text that can be written again."""
    waiting: list[tuple[str, Any, int]] = [("", content, 0)]
    for at, value, level in waiting:  # which grows as it goes
        reason = _unfit(value)
        if reason:
            raise fail(f"{at or 'the file'} {reason}.")
        if not isinstance(value, (dict, list)):
            continue
        if level == LEVELS:
            raise fail(f"{at[:80]} is nested deeper than {LEVELS} levels.")
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for key, one in items:
            reason = _unfit(key) or _unfit(one)
            if reason or isinstance(one, (dict, list)):
                place = f"{at}[{key}]" if isinstance(value, list) else f"{at}.{key!s:.60}".lstrip(".")
                if reason:
                    raise fail(f"{place.encode('utf-8', 'replace').decode()} {reason}.")
                waiting.append((place, one, level + 1))


def _unfit(value: Any) -> str:
    """What is wrong with a number or a text; empty for nothing."""
    if isinstance(value, float) and not math.isfinite(value):
        return f"must be finite, got {value}"
    if isinstance(value, int) and not -(2**63) <= value < 2**64:
        return "is a whole number of more than 64 bits"
    if isinstance(value, str) and not value.isascii() and any("\ud800" <= char <= "\udfff" for char in value):
        return "is no text: it holds half a surrogate pair"
    return ""
