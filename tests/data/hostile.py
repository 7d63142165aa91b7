"""Small hostile files, made on the spot; a fuzzer of bytes; and a watch over what is opened or started meanwhile."""

from __future__ import annotations

import io
import os
import struct
import sys
import traceback
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

import scoresde

HOME = Path(scoresde.__file__).parent

# What an audit hook is told of; a hook cannot be removed, so this one has a switch.
STARTS = (
    "subprocess.Popen",
    "os.system",
    "os.exec",
    "os.posix_spawn",
    "os.spawn",
    "os.fork",
    "os.forkpty",
    "pty.spawn",
)
_seen: list[str] | None = None


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    if _seen is None:
        return
    if event in STARTS or event.startswith("socket.") or event == "pickle.find_class":
        _seen.append(event)
    elif event == "open" and isinstance(arguments[0], (str, bytes, os.PathLike)):
        _seen.append(os.fsdecode(arguments[0]))


sys.addaudithook(_hook)


@contextmanager
def watched(*allowed: Path) -> Iterator[None]:
    """Fails where a program is started, or a file opened other than below ``allowed`` and Python's own modules."""
    global _seen
    _seen = seen = []
    try:
        yield
    finally:
        _seen = None
    own = (*map(str, allowed), sys.prefix, sys.base_prefix, str(HOME.parent / "scoresde"), "/sys/fs/cgroup")
    others = [name for name in seen if not os.path.realpath(name).startswith(own) and not name.startswith(own)]
    assert not others, others


def assert_ours(error: BaseException) -> None:
    """The error was raised by this library, with words, and not by whatever it called."""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    assert Path(frame.filename).is_relative_to(HOME), "".join(traceback.format_exception(error))
    assert len(str(error)) > 20


def png_chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(width: int, height: int, body: bytes = b"", *before: bytes) -> bytes:
    """A grey PNG that says it has that size, whatever ``body`` holds."""
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    parts = [png_chunk(b"IHDR", header), *before, png_chunk(b"IDAT", zlib.compress(body)), png_chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def encoded(format: str, size: tuple[int, int] = (7, 5), mode: str = "RGB", **options: Any) -> bytes:
    from PIL import Image

    channels = {"L": (), "RGB": (3,)}[mode]
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], *channels)).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format, **options)
    return buffer.getvalue()


def frames(format: str, count: int = 3) -> bytes:
    from PIL import Image

    pictures = [Image.new("RGB", (5, 4), (60 * i, 0, 0)) for i in range(count)]
    buffer = io.BytesIO()
    pictures[0].save(buffer, format, save_all=True, append_images=pictures[1:])
    return buffer.getvalue()


def npy(description: str, body: bytes = b"", version: int = 1) -> bytes:
    """An ``.npy`` file with this text for a header."""
    header = description.encode("latin1")
    return b"\x93NUMPY" + bytes([version, 0]) + struct.pack("<H" if version == 1 else "<I", len(header)) + header + body


def parquet(path: Path, **columns: Any) -> Path:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table(columns), path)
    return path


_VALUES = (0, 1, 0x7F, 0x80, 0xFF)


def mutated(content: bytes, rng: np.random.Generator) -> bytes:
    """Damage of one to four kinds: bytes changed, cut out, doubled, or the end cut off; the header is hit often."""
    data = bytearray(content)
    for _ in range(rng.integers(1, 5)):
        end = len(data) if rng.random() < 0.5 else min(len(data), 120)
        at, length = int(rng.integers(0, max(end, 1))), int(rng.integers(1, 9))
        kind = rng.integers(0, 6)
        if kind == 0:
            data[at : at + 1] = bytes([int(rng.integers(0, 256))])
        elif kind == 1:
            data[at : at + length] = bytes([int(rng.choice(_VALUES))]) * length
        elif kind == 2:
            del data[at : at + length]
        elif kind == 3:
            data[at:at] = data[at : at + length]
        elif kind == 4:
            del data[int(rng.integers(0, len(data) + 1)) :]
        elif len(data) > at:
            data[at] ^= 1 << int(rng.integers(0, 8))
    return bytes(data)
