"""What every entry point asks of its arguments, said once.

    checks.state(x, values=True)                    # a floating tensor (B, *event), finite
    time = checks.time(t, sde.t_max)                # float64, () or (B,), in range
    checks.positive(scale, name="scale")

A check raises before any work is done and says what came in, what was expected and how to mend it. Values are
read only from tensors in main memory: reading one back from an accelerator would stall it on every call.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import typing
from typing import Any, SupportsFloat

import torch
from torch import Tensor
from torch.autograd import forward_ad

# Relative room at the ends of the time range: T - (T - t) and the like come back a few roundings outside.
_SLACK = 1e-9

_functorch = torch._C._functorch


def readable(x: Tensor) -> bool:
    """Whether the values of ``x`` can be looked at without stalling a device or breaking a transform."""
    if torch.compiler.is_compiling() or not x.is_cpu:
        return False
    while _functorch.is_functorch_wrapped_tensor(x):  # vmap may sit below a derivative
        if _functorch.is_batchedtensor(x):
            return False
        x = _functorch.get_unwrapped(x)
    return True


def single(x: Tensor) -> float | None:
    """The number that a tensor () holds, where it can be read; else None. A tenth of the time of an operation on it."""
    return x.item() if x.ndim == 0 and readable(x) else None


def transformed(x: Tensor) -> bool:
    """Whether a transform such as ``torch.vmap``, ``torch.func.jvp`` or ``torch.compile`` runs over it."""
    return torch.compiler.is_compiling() or bool(_functorch.is_functorch_wrapped_tensor(x))


def followed(x: Tensor) -> bool:
    """Whether a derivative may be taken of ``x``, in reverse or forward, or a transform runs over it."""
    return x.requires_grad or transformed(x) or forward_ad._current_level >= 0


def real(value: object, *, name: str) -> Tensor:
    """A number, list, numpy array or tensor as a float64 tensor.

    Raises:
        TypeError: not numbers, or complex or boolean ones.
    """
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return torch.tensor(float(value), dtype=torch.float64)
    try:
        tensor = value if isinstance(value, Tensor) else torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"{name} must be a number or a tensor, got {type(value).__name__}.") from error
    if tensor.is_complex() or tensor.dtype == torch.bool:
        raise TypeError(f"{name} must be a real number or tensor, got dtype {tensor.dtype}.")
    # Lists are read anew: the first reading rounded them to float32.
    return brought(tensor, torch.float64) if isinstance(value, Tensor) else torch.as_tensor(value, dtype=torch.float64)


def brought(x: Tensor, dtype: torch.dtype) -> Tensor:
    """``x.to(dtype)``; a tenth of the time where it is of that dtype already, which every step would pay."""
    return x if x.dtype == dtype else x.to(dtype)


def rounding(value: object) -> float:
    """Relative room for values that should lie in a closed range: a rounding of the dtype they came in."""
    if isinstance(value, Tensor) and value.is_floating_point() and value.dtype != torch.float64:
        return max(_SLACK, torch.finfo(value.dtype).eps)
    return _SLACK


def time(t: float | Tensor, upper: float, *, name: str = "t", what: str = "the SDE") -> Tensor:
    """``t`` as a float64 tensor of shape () or (B,), inside [0, upper].

    Raises:
        TypeError: ``t`` is neither a real number (or array of them) nor a real tensor.
        ValueError: the rank is above 1, or a value is NaN or outside [0, upper].
    """
    time = real(t, name=name)
    if time.ndim > 1:
        raise ValueError(
            f"{name} must be one time () or one per sample (B,), got shape {tuple(time.shape)}. "
            "Drop the trailing axes; the library broadcasts over the event."
        )
    if time.numel() and readable(time):
        low, high = (time.item(),) * 2 if time.ndim == 0 else (v.item() for v in time.detach().aminmax())
        if low >= 0 and high <= upper:
            return time
        slack = rounding(t) * upper
        if not (low >= -slack and high <= upper + slack):
            raise ValueError(
                f"{name} must lie in [0, {upper:g}], the time range of {what}; got values in [{low:.10g}, {high:.10g}]."
            )
        time = time.clamp(0.0, upper)
    return time


def result_dtype(t: object) -> torch.dtype:
    """The dtype in which a function of time is returned: that of a float32 or wider tensor, float64 for numbers."""
    if isinstance(t, Tensor) and t.is_floating_point():
        return torch.promote_types(t.dtype, torch.float32)
    return torch.float64


def state(x: Tensor, *, name: str = "x", values: bool = False) -> Tensor:
    """``x`` is a floating tensor (B, *event); with ``values`` its numbers must be finite as well.

    Raises:
        TypeError: not a tensor, or not a floating one.
        ValueError: no batch axis, or (with ``values``) NaN or infinity inside.
    """
    if not isinstance(x, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor (B, *event), got {type(x).__name__}.")
    if not x.is_floating_point():
        raise TypeError(f"{name} must be a floating tensor, got {x.dtype}; call {name}.float() first.")
    if x.ndim == 0:
        raise ValueError(f"{name} must have a batch axis, (B, *event); got a tensor of shape ().")
    if values:
        finite(x, name=name)
    return x


def finite(x: Tensor, *, name: str, hint: str = "") -> None:
    """Raises ValueError where ``x`` holds NaN or infinity, saying how many and in which samples."""
    if not x.numel() or torch.compiler.is_compiling():
        return
    bad = ~torch.isfinite(x.detach())
    if bad.any().item():
        rows = bad.reshape(bad.shape[0], -1).any(1).nonzero().flatten()[:5].tolist() if x.ndim else []
        where = f", first in samples {rows}" if rows else ""
        raise ValueError(f"{name} holds {int(bad.sum())} values that are NaN or infinite{where}. {hint}".rstrip())


def same_batch(t: Tensor, x: Tensor, *, name: str = "t") -> None:
    """A per-sample time (B,) must have one entry for each sample of ``x``."""
    if t.ndim == 1 and t.shape[0] != x.shape[0]:
        raise ValueError(
            f"{name} has {t.shape[0]} entries but x has {x.shape[0]} samples (shape {tuple(x.shape)}); "
            f"give one time () or one per sample ({x.shape[0]},)."
        )


def same_shape(a: Tensor, b: Tensor, *, names: str) -> None:
    """Two tensors that must agree in shape."""
    if a.shape != b.shape:
        raise ValueError(f"{names} must have the same shape, got {tuple(a.shape)} and {tuple(b.shape)}.")


def number(value: float | Tensor, *, name: str = "a parameter") -> float:
    """A parameter's value, whether it is a number or a tensor () that may require a gradient.

    Raises:
        TypeError: neither.
    """
    if isinstance(value, Tensor) and not value.ndim and not value.is_complex():
        return float(value.detach())
    if isinstance(value, Tensor) or not isinstance(value, SupportsFloat) or isinstance(value, bool):
        got = f"a tensor {tuple(value.shape)} of {value.dtype}" if isinstance(value, Tensor) else repr(value)
        raise TypeError(f"{name} must be a real number or a tensor of shape (), got {got}.")
    return float(value)


def positive(value: float | Tensor, *, name: str) -> None:
    """A parameter that must be a finite number above zero."""
    given = number(value, name=name)
    if not (math.isfinite(given) and given > 0):
        raise ValueError(f"{name} must be positive and finite, got {given:g}.")


def fraction(value: float, *, name: str) -> None:
    """A number from 0 to 1."""
    given = number(value, name=name)
    if not 0 <= given <= 1:
        raise ValueError(f"{name} must be a number from 0 to 1, got {value!r}.")


def count(value: int, *, name: str, least: int = 1) -> None:
    """A whole number of at least ``least``."""
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ValueError(f"{name} must be a whole number of at least {least}, got {value!r}.")


def shape(sizes: object, *, what: str = "(B, *event)") -> tuple[int, ...]:
    """A shape of whole numbers with a first axis.

    Raises:
        ValueError: something else.
    """
    found = tuple(sizes) if isinstance(sizes, (tuple, list)) else ()
    if not found or not all(isinstance(n, int) and not isinstance(n, bool) and n >= 0 for n in found):
        raise ValueError(f"shape must be {what}, whole numbers; got {sizes!r}.")
    return found


def grid(times: Tensor, upper: float) -> Tensor:
    """``times`` as a float64 tensor on the CPU: (n + 1,), strictly decreasing, inside [0, upper].

    The grid lives in main memory because each step reads it as numbers; gradients still flow to it.

    Raises:
        ValueError: fewer than two times, wrong rank, not decreasing, out of range.
    """
    grid = times if isinstance(times, Tensor) else real(times, name="grid")
    if grid.ndim != 1 or grid.shape[0] < 2:
        raise ValueError(f"a grid needs at least two times in one axis, (steps + 1,); got shape {tuple(grid.shape)}.")
    grid = time(grid.to("cpu"), upper, name="grid")
    rising = (grid.detach().diff() >= 0).nonzero().flatten()
    if rising.numel():
        i = int(rising[0])
        raise ValueError(
            f"a grid must be strictly decreasing (reverse time, from noise to data); entry {i} is {grid[i]:g} and "
            f"entry {i + 1} is {grid[i + 1]:g}. Flip an increasing grid with grid.flip(0), drop repeated times."
        )
    return grid


@functools.cache
def _literals(kind: type[Any]) -> dict[str, tuple[object, ...]]:
    hints = typing.get_type_hints(kind)
    chosen = {field.name: hints[field.name] for field in dataclasses.fields(kind)}
    literals = {name: typing.get_args(hint) for name, hint in chosen.items()}
    return {
        name: (True, False) if hint is bool else literals[name]
        for name, hint in chosen.items()
        if hint is bool or typing.get_origin(hint) is typing.Literal
    }


def choices(options: Any) -> None:
    """Each field of a dataclass that is annotated as a Literal, or as bool, has one of its values.

    Raises:
        ValueError: it has not.
    """
    kind: Any = type(options)
    for name, allowed in _literals(kind).items():
        if getattr(options, name) not in allowed:
            listed = ", ".join(map(repr, allowed))
            raise ValueError(f"{name} must be one of {listed}; got {getattr(options, name)!r}.")
