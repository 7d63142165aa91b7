"""Tensors in safetensors files: written with the user's umask, and read as if a stranger had made the file.

What is in a file is asked before its bytes are: names, shapes and dtypes as tensors on the device "meta", to be
compared with what the model needs. Then the values, which must be finite::

    layout = read_layout(path, fail)                        # {"net.head.weight": torch.empty(2, 4, device="meta")}
    check_equal(layout, wanted, fail, dtypes=True)          # names, shapes, dtypes
    values = read_values(path, fail)                        # in memory of our own
    writer(model.state_dict())(path)

``fail`` makes the error of a text (:mod:`scoresde.files`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.nn.parameter import is_lazy

from scoresde.files import Fail, opened

Found = TypeVar("Found")

MOST_HEADER = 16 << 20
"""Bytes of the longest header that is read: names and shapes of 100,000 tensors."""

_DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64,
    "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
    "C64": torch.complex64,
}  # fmt: skip


def read_layout(path: Path, fail: Fail) -> dict[str, Tensor]:
    """Names, shapes and dtypes of a file, as tensors without values.

    Raises:
        FileNotFoundError: there is no such file.
        Exception: what ``fail`` makes of a file that is damaged, or no regular one.
    """

    def kinds(file: Any) -> dict[str, tuple[str, Tensor]]:
        slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 - it is no mapping
        return {
            name: (one.get_dtype(), torch.empty(one.get_shape(), dtype=_DTYPES.get(one.get_dtype()), device="meta"))
            for name, one in slices.items()
        }

    found = _read(path, fail, kinds)
    for name, (dtype, _) in found.items():
        if dtype not in _DTYPES:
            raise fail(f"the tensor {name:.80} has the dtype {dtype}; expected one of {', '.join(_DTYPES)}.")
    return {name: layout for name, (_, layout) in found.items()}


def read_values(path: Path, fail: Fail) -> dict[str, Tensor]:
    """The tensors of a file, copied: who changes the file later does not change them.

    Raises:
        FileNotFoundError: there is no such file.
        Exception: what ``fail`` makes of a file that is damaged, or holds NaN or infinity.
    """
    values = _read(path, fail, lambda file: {name: file.get_tensor(name).clone() for name in file.keys()})  # noqa: SIM118
    for name, value in values.items():
        if not all_finite(value):
            raise fail(f"the tensor {name} holds NaN or infinity.")
    return values


def read_metadata(path: Path, fail: Fail) -> dict[str, str]:
    """The texts by name that stand beside the tensors of a file.

    Raises:
        FileNotFoundError: there is no such file.
        Exception: what ``fail`` makes of a file that is damaged, or no regular one.
    """
    return _read(path, fail, lambda file: dict(file.metadata() or {}))


def read_rows(
    path: Path, fail: Fail, rows: Callable[[str, tuple[int, ...]], slice | None]
) -> dict[str, tuple[Tensor, tuple[int, ...]]]:
    """Some rows of the tensors of a file, copied, each with the shape of the whole; the rest is not read.

    Args:
        path, fail: as above.
        rows: which, by name and shape; None for all of a tensor.

    Raises:
        FileNotFoundError: there is no such file.
        Exception: what ``fail`` makes of a file that is damaged, or holds NaN or infinity there.
    """

    def some(file: Any, name: str) -> tuple[Tensor, tuple[int, ...]]:
        stored = file.get_slice(name)
        shape = tuple(stored.get_shape())
        wanted = rows(name, shape)
        return (file.get_tensor(name) if wanted is None else stored[wanted]).clone(), shape

    found = _read(path, fail, lambda file: {name: some(file, name) for name in file.keys()})  # noqa: SIM118
    for name, (value, _) in found.items():
        if not all_finite(value):
            raise fail(f"the tensor {name} holds NaN or infinity.")
    return found


def check_equal(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor], fail: Fail, *, dtypes: bool) -> None:
    """Raise unless two sets of tensors have the same names and shapes, and dtypes.

    Args:
        found: in a file.
        wanted: by the model.
        fail: makes the error of a text.
        dtypes: whether they must be equal; else floating ones may differ in precision.
    """

    def words(value: Tensor | None) -> str:
        return "nowhere" if value is None else f"{tuple(value.shape)} {str(value.dtype).removeprefix('torch.')}"

    def same(a: Tensor | None, b: Tensor | None) -> bool:
        if a is None or b is None or a.shape != b.shape:
            return False
        floating = a.is_floating_point() and b.is_floating_point()
        return a.dtype == b.dtype or (not dtypes and floating)

    differ = sorted(name for name in found.keys() | wanted.keys() if not same(found.get(name), wanted.get(name)))
    if differ:
        first = "; ".join(f"{n:.80}: saved {words(found.get(n))}, model {words(wanted.get(n))}" for n in differ[:3])
        raise fail(f"({len(differ)} differ: {first})")


def all_finite(value: Tensor) -> bool:
    """Whether no number in it, or in this process's part of it, is NaN or infinite."""
    value = local_part(value)
    return not (value.is_floating_point() or value.is_complex()) or bool(value.isfinite().all())


@torch.no_grad()
def local_part(value: Tensor) -> Tensor:
    """What this process holds of a tensor that several divide among them (a DTensor); of all others, themselves."""
    to_local = getattr(value, "to_local", None)
    return value if to_local is None else to_local()


@torch.no_grad()
def joined(value: Tensor) -> Tensor:
    """The whole of a tensor that processes divide among them, on each; all call it. Of all others, themselves."""
    full_tensor = getattr(value, "full_tensor", None)
    return value if full_tensor is None else full_tensor()


def check_finite(tensors: Mapping[str, Tensor], what: str, when: str) -> None:
    """Raise where a number is NaN or infinite, or has no value.

    Raises:
        FloatingPointError, ValueError: in which of them.
    """
    for name, value in tensors.items():
        if is_lazy(value):
            raise ValueError(f"the {what} {name} has no shape yet: call the network once; it is not saved.")
        if value.is_meta:
            raise ValueError(f"the {what} {name} is on the device meta, without a value; it is not saved.")
        if not all_finite(value):
            raise FloatingPointError(f"the {what} {name} is not finite {when}; it is not saved.")


def writer(
    tensors: Mapping[str, Tensor], *, apart: bool = False, metadata: Mapping[str, str] | None = None
) -> Callable[[Path], None]:
    """A function that writes them at a path; whatever goes wrong is an OSError.

    Args:
        tensors: by name.
        apart: they are contiguous, in main memory, and share none of it: no copy is needed.
        metadata: texts to stand beside them, by name.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    def write(path: Path) -> None:
        # Copies: safetensors takes no tensors that share memory (tied weights) or are not contiguous.
        contiguous = torch.contiguous_format
        copies = (
            dict(tensors)
            if apart
            else {k: v.detach().cpu().clone(memory_format=contiguous) for k, v in tensors.items()}
        )
        try:
            save_file(copies, path, None if metadata is None else dict(metadata))
        except SafetensorError as error:
            raise OSError(str(error)) from error

    return write


def _read(path: Path, fail: Fail, read: Callable[[Any], Found]) -> Found:
    """What ``read`` takes from a file, opened by safetensors, whose header has a length that makes sense."""
    from safetensors import safe_open

    with opened(path, fail) as file:
        length = int.from_bytes(file.read(8), "little")
    if length > MOST_HEADER:
        raise fail(f"the header claims {length} bytes; the limit is {MOST_HEADER}.")
    try:
        with safe_open(path, framework="pt") as tensors:
            return read(tensors)
    except Exception as error:  # whatever the library meets in bytes of a stranger
        raise fail(f"the file cannot be read ({error}).") from error
