"""Files: written whole or not at all, read as if a stranger had made them.

- :mod:`~scoresde.files.writing`: every file that the library writes goes through :func:`saving`; it is flushed, has
  the mode that the user's umask gives, and :func:`replacing` gives it its name when it is complete.
- :mod:`~scoresde.files.reading`: what is no regular file, or is too large, is refused before it is read; JSON is
  checked all over (depth, repeated names, numbers that no double or 64 bits can hold).
- :mod:`~scoresde.files.fields`: :class:`Fields` asks for each field by name, kind and range.

::

    out = make_writable(Path("runs/digits"))                # now, not after an hour of work
    write_json(out / "report.json", {"accuracy": 0.99, "folder": out})
    with replacing(out / "samples.npy") as partial:
        np.save(partial, samples)

    fields = Fields(read_json(path, fail := refusing(path)), fail)
    steps = fields.whole("steps", least=1, most=1000)
"""

from scoresde.files.fields import Fail, Fields, refusing
from scoresde.files.reading import MOST_JSON, irregular, opened, read_format, read_json
from scoresde.files.writing import (
    PARTIAL,
    PathName,
    append_line,
    flush,
    make_writable,
    replacing,
    saving,
    write_format,
    write_json,
)

__all__ = [
    "MOST_JSON",
    "PARTIAL",
    "Fail",
    "Fields",
    "PathName",
    "append_line",
    "flush",
    "irregular",
    "make_writable",
    "opened",
    "read_format",
    "read_json",
    "refusing",
    "replacing",
    "saving",
    "write_format",
    "write_json",
]
