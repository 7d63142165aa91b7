"""Checks of tensors: states, times and grids, and what can be asked of a tensor without stalling a device::

state(x, values=True)                           # a floating tensor (B, *event), finite
time(t, sde.t_max), grid(times, sde.t_max)      # float64, in range; a grid decreases
readable(x), followed(x)                        # whether values can be looked at; whether derivatives are taken
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.autograd import forward_ad

from scoresde.checks.plain import got, masked, number, whole

# Relative room at the ends of the time range: T - (T - t) and the like come back a few roundings outside.
_SLACK = 1e-9

_FLOATING = frozenset((torch.float32, torch.float64, torch.bfloat16, torch.float16))
"""In which states may come: what is asked at every step, so of the tensor's dtype alone."""

_functorch = torch._C._functorch


def readable(x: Tensor) -> bool:
    """Whether the values of ``x`` can be looked at without stalling a device or breaking a transform."""
    return not torch.compiler.is_compiling() and x.is_cpu and not hidden(x)


def hidden(x: Tensor) -> bool:
    """Whether nobody may look at the values of ``x``, wherever they are: they are traced, or many at once."""
    if torch.compiler.is_compiling():
        return True
    while _functorch.is_functorch_wrapped_tensor(x):  # vmap may sit below a derivative
        if _functorch.is_batchedtensor(x):
            return True
        x = _functorch.get_unwrapped(x)
    return False


def single(x: Tensor) -> float | None:
    """The number that a tensor () holds, where it can be read; else None. A tenth of the time of an operation on it."""
    return x.item() if x.ndim == 0 and readable(x) else None


def transformed(x: Tensor) -> bool:
    """Whether a transform such as ``torch.vmap``, ``torch.func.jvp`` or ``torch.compile`` runs over it."""
    return torch.compiler.is_compiling() or bool(_functorch.is_functorch_wrapped_tensor(x))


def followed(x: Tensor) -> bool:
    """Whether a derivative may be taken of ``x``, in reverse or forward, or a transform runs over it."""
    return x.requires_grad or transformed(x) or _is_dual(x)


def _is_dual(x: Tensor) -> bool:
    """Whether it carries a tangent of plain forward-mode autograd, whose level may be that of another thread."""
    level = forward_ad._current_level
    return level >= 0 and torch._VF._unpack_dual(x, level=level)[1] is not None


def real(value: object, *, name: str) -> Tensor:
    """A number, list, numpy array or tensor as a float64 tensor.

    Raises:
        TypeError: not numbers, or complex or boolean ones.
    """
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return torch.tensor(number(value, name=name), dtype=torch.float64)
    tensor = value if isinstance(value, Tensor) else _array(value, name)
    if tensor is value and tensor.dtype is torch.float64 and tensor.layout is torch.strided and not tensor.is_nested:
        return tensor  # that of every step
    if tensor.is_complex() or tensor.dtype == torch.bool or tensor.is_quantized:
        raise TypeError(f"{name} must be a real number or tensor, got {got(value)} of dtype {tensor.dtype}.")
    if tensor.layout is not torch.strided or tensor.is_nested:
        _dense(tensor, name)
    # Lists are read anew: the first reading rounded them to float32.
    return brought(tensor, torch.float64) if isinstance(value, Tensor) else torch.as_tensor(value, dtype=torch.float64)


def _array(value: object, name: str) -> Tensor:
    """What numbers are given in, as a tensor; torch would read bytes as numbers, too."""
    try:
        among = value if isinstance(value, (list, tuple)) else ()
        truths = any(isinstance(entry, bool) for entry in among)  # torch would read these as 1.0 beside a number
        if isinstance(value, (Tensor, np.ndarray, np.number, list, tuple)) and not truths:
            if masked(value):
                raise TypeError("an array with a mask: give .filled() or .compressed()")
            return torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise TypeError(f"{name} must be a real number or a tensor, got {got(value)}.") from error
    raise TypeError(f"{name} must be a real number or a tensor, got {got(value)}.")


def _dense(x: Tensor, name: str) -> None:
    if x.is_nested:
        raise TypeError(f"{name} must be a dense tensor, got {got(x)}; give the samples one shape.")
    if x.layout is not torch.strided:
        raise TypeError(f"{name} must be a dense tensor, got one of {x.layout}; call {name}.to_dense() first.")


def integers(value: object, *, name: str, least: int, most: int) -> Tensor:
    """Whole numbers from ``least`` to ``most``, one or an array, list or tensor of them, as an int64 tensor.

    Raises:
        TypeError: not whole numbers. ValueError: one out of range, where they can be read.
    """
    single = not isinstance(value, (Tensor, np.ndarray, list, tuple))
    given = torch.tensor(whole(value, name=name, least=least, most=most)) if single else _array(value, name)
    if given.dtype in (torch.bool, torch.complex64, torch.complex128) or (given.is_floating_point() and given.numel()):
        raise TypeError(f"{name} must be whole numbers from {least} to {most}, got {got(value)}.")
    _dense(given, name)
    found = given.long()
    if found.numel() and readable(found):
        low, high = (int(end) for end in found.aminmax())
        if low < least or high > most:
            raise ValueError(f"{name} must be whole numbers from {least} to {most}, got values in [{low}, {high}].")
    return found


def brought(x: Tensor, dtype: torch.dtype) -> Tensor:
    """``x.to(dtype)``; a tenth of the time where it is of that dtype already, which every step would pay.

    On the CPU where its device has no such dtype.
    """
    if x.dtype == dtype:
        return x
    return x.to("cpu", dtype) if dtype is torch.float64 and not has_float64(x.device) else x.to(dtype)


def has_float64(device: torch.device) -> bool:
    """Whether a device computes in float64, which Apple's MPS does not: schedules are then worked out on the CPU."""
    return device.type != "mps"


def time_beside(time: Tensor, x: Tensor) -> Tensor:
    """Float64 numbers, one for each sample, on the device of ``x``; they stay on the CPU where that has no float64.

    What is worked out of them meets x in its own dtype (:func:`~scoresde.sde.spread`).
    """
    if time.device == x.device:
        return time
    return sent(time, x.device) if has_float64(x.device) else time.to("cpu")


def sent(x: Tensor, device: torch.device, dtype: torch.dtype | None = None) -> Tensor:
    """``x.to(device, dtype)``, in float32 where float64 is meant and the device has none.

    Where x is in main memory the host does not wait for the device: a number () is written there by a kernel that has
    it as an argument, and more of them are copied behind the work that is queued.
    """
    dtype = x.dtype if dtype is None else dtype
    dtype = torch.float32 if dtype is torch.float64 and not has_float64(device) else dtype
    if x.device == device or not x.is_cpu:
        return x.to(device, dtype)
    if not x.ndim and readable(x) and not followed(x):
        return torch.full((), x.item(), dtype=dtype, device=device)
    return x.to(dtype).to(device, non_blocking=device.type != "mps")  # that one may read memory that was freed


def refuse_without_float64(x: Tensor, what: str, instead: str) -> None:
    """Raise ValueError where the device of ``x`` has no float64, in which ``what`` keeps times there."""
    if not has_float64(x.device):
        raise ValueError(
            f"{what} works in float64 on the device of x, and {x.device} has none: move x and the network to the CPU, "
            f"or {instead}."
        )


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
        raise TypeError(f"{name} must be a torch.Tensor (B, *event), got {got(x)}.")
    if x.dtype not in _FLOATING:
        raise TypeError(f"{name} must be a floating tensor, got {x.dtype}; call {name}.float() first.")
    if x.ndim == 0:
        raise ValueError(f"{name} must have a batch axis, (B, *event); got a tensor of shape ().")
    if x.layout is not torch.strided or x.is_nested:
        _dense(x, name)
    if values:
        finite(x, name=name)
    return x


def finite(x: Tensor, *, name: str, hint: str = "") -> None:
    """Raises ValueError where ``x`` holds NaN or infinity, saying how many and in which samples."""
    if torch.compiler.is_compiling():
        return
    if x.is_meta:
        raise ValueError(f"{name} must hold values, which a tensor on the meta device does not; got {got(x)}.")
    if not x.numel():
        return
    bad = ~torch.isfinite(x.detach())
    if bad.any().item():
        rows = bad.reshape(bad.shape[0], -1).any(1).nonzero().flatten()[:5].tolist() if x.ndim else []
        where = f", first in samples {rows}" if rows else ""
        many = f"{int(bad.sum())} values that are NaN or infinite{where}"
        raise ValueError(f"{name} must be finite, but holds {many}. {hint}".rstrip())


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


def grid(times: object, upper: float, *, name: str = "grid") -> Tensor:
    """``times`` as a float64 tensor on the CPU: (n + 1,), strictly decreasing, inside [0, upper].

    The grid lives in main memory because each step reads it as numbers; gradients still flow to it.

    Raises:
        TypeError: no real numbers.
        ValueError: fewer than two times, wrong rank, not decreasing, out of range.
    """
    try:
        grid = times if isinstance(times, Tensor) else real(times, name=name)
    except TypeError as error:
        raise TypeError(
            f"{name} must be times or a function of scoresde.grids such as grids.karras, got {got(times)}."
        ) from error
    if grid.is_nested or grid.layout is not torch.strided:
        _dense(grid, name)
    if grid.ndim != 1 or grid.shape[0] < 2:
        raise ValueError(
            f"{name} must hold at least two times in one axis, (steps + 1,); got {got(times)}, of shape "
            f"{tuple(grid.shape)}. For the number of steps give steps=."
        )
    if grid.is_meta:
        raise ValueError(f"{name} must hold values, which a tensor on the meta device does not; got {got(times)}.")
    grid = time(grid.to("cpu"), upper, name=name)
    rising = (grid.detach().diff() >= 0).nonzero().flatten()
    if rising.numel():
        i = int(rising[0])
        raise ValueError(
            f"a {name} must be strictly decreasing (reverse time, from noise to data); entry {i} is {grid[i]:g} and "
            f"entry {i + 1} is {grid[i + 1]:g}. Flip an increasing grid with grid.flip(0), drop repeated times."
        )
    return grid
